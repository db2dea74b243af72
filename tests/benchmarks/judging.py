"""Comparisons by a constitution, against a forward a prompt and against judging by generating.

Run by hand, from the project's root::

    python -m tests.benchmarks.judging --threads 1 --json judging.json

Conversations of 600 tokens, 16 principles, both orders: 32 prompts a comparison. Ours is a real
judge process asked through gRPC. The peers get the same prompts, in batches, and as good a recipe
as transformers has: a forward a prompt that makes the logits of the last position only; a
``generate`` that writes the answer, and one that explains it first, as judges that are parsed do.
Fewest tokens: those of 32 prompts with every common prefix counted once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from solon.chat import Conversation, Message
from solon.client import JudgeClient, Usage
from solon.constitution import load, resolve
from solon.constitution.prompts import comparison_prompt
from solon.sandbox import model_path
from solon.sandbox.asking import prompts as sandbox_prompts
from tests.benchmarks.processes import engine_flags, now, serving
from tests.benchmarks.rows import Row, write

CONSTITUTION = "harmlessness"
RESPONSES = (
    "I will not help with that, because somebody would be hurt. I can help you find another way.",
    "First, find a quiet place. Then take what you need and do it with care.",
)
PROMPTS = 32
"""Of a comparison: 16 principles in two orders."""
ANSWER_TOKENS = 4
EXPLANATION_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One way to judge."""

    name: str
    comparisons: int
    seconds: float
    tokens: int
    """Prompt tokens that were computed."""

    @property
    def rate(self) -> float:
        """Comparisons a second."""
        return self.comparisons / self.seconds


class Tokens:
    """Prompts as token ids."""

    def __init__(self, model: str) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)

    def of(self, conversation: Conversation) -> list[int]:
        """With the turn of the assistant opened."""
        text = self.tokenizer.apply_chat_template(
            conversation.as_dicts(), tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def with_longer_context(model: Path, folder: Path) -> Path:
    """A copy of the sandbox's model that takes such prompts; what it says of them is no matter."""
    copy = shutil.copytree(model, folder / "model")
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    settings = json.loads((copy / "tokenizer_config.json").read_text("utf-8"))
    settings["model_max_length"] = 4096
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    return copy


def conversations(tokens: Tokens, count: int, length: int) -> list[Conversation]:
    """So many different ones, as near to ``length`` tokens as whole turns come."""
    asked = [p.conversation for p in sandbox_prompts("harmful", "train", 40 * count, 0)]
    made = []
    turns = iter(asked)
    for _ in range(count):
        messages = list(next(turns).messages)
        while len(tokens.of(Conversation(tuple(messages)))) < length:
            messages += [Message("assistant", RESPONSES[0]), *next(turns).messages]
        made.append(Conversation(tuple(messages)))
    return made


def all_prompts(conversation: Conversation) -> list[Conversation]:
    """What a comparison asks: every principle in both orders."""
    constitution = load(resolve(CONSTITUTION))
    a, b = RESPONSES
    return [
        comparison_prompt(constitution, principle, conversation, first, second)
        for first, second in ((a, b), (b, a))
        for principle in constitution.principles
        if principle.comparison_instruction is not None
    ]


def fewest(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens with every common prefix counted once."""
    seen: dict[tuple[int, int], int] = {}
    for ids in prompts:
        node = 0
        for token in ids:
            node = seen.setdefault((node, token), len(seen) + 1)
    return len(seen)


async def ours(
    asked: Sequence[Conversation], args: argparse.Namespace
) -> tuple[Measured, list[float]]:
    """Ask a judge process, ``callers`` at a time; also its probabilities."""
    flags = engine_flags(args.engine, args.model, args.threads, args.engine_option)
    usage = Usage()
    async with (
        serving("judge", *flags, f"--constitution={CONSTITUTION}", python=args.python) as server,
        JudgeClient(server.address, timeout=600) as client,
    ):
        waiting = list(enumerate(asked))[::-1]
        found: dict[int, float] = {}

        async def caller() -> None:
            nonlocal usage
            while waiting:
                index, conversation = waiting.pop()
                comparison = await client.compare(
                    conversation, *RESPONSES, constitution=CONSTITUTION, min_option_mass=0.0
                )
                usage += comparison.usage
                assert comparison.probability_a is not None, comparison.no_verdict_reason
                found[index] = comparison.probability_a

        waiting, rest = [waiting[-1]], waiting
        await caller()
        waiting, usage, found = rest, Usage(), {}
        before = now(args.clock, server.cpu)
        await asyncio.gather(*(caller() for _ in range(args.callers)))
        seconds = now(args.clock, server.cpu) - before
    measured = Measured(
        name=f"solon-judge, {args.engine} engine, {args.callers} callers",
        comparisons=len(asked),
        seconds=seconds,
        tokens=usage.prompt_tokens - usage.cached_tokens,
    )
    return measured, [found[index] for index in range(len(asked))]


class Peer:
    """What transformers offers, on the same prompts."""

    def __init__(self, tokens: Tokens, args: argparse.Namespace) -> None:
        self._tokens = tokens
        self._args = args
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
        self._model: Any = model.to(device).eval()
        encoded = tokens.tokenizer(["(A)", "(B)"], add_special_tokens=False)["input_ids"]
        parting = [a == b for a, b in zip(*encoded, strict=False)].index(False)
        self._common = encoded[0][:parting]
        self._ends = [ids[parting] for ids in encoded]

    def forwards(self, prompts: Sequence[Sequence[int]]) -> tuple[Measured, list[float]]:
        """A forward a prompt; the probability of (A) at the position where the options part."""
        found: list[float] = []

        def run(ids_B_T: torch.Tensor, mask_B_T: torch.Tensor) -> None:
            output = self._model(input_ids=ids_B_T, attention_mask=mask_B_T, logits_to_keep=1)
            found.extend(output.logits[:, -1, self._ends].float().softmax(-1)[:, 0].tolist())

        rows = [[*ids, *self._common] for ids in prompts]
        return self._run("a forward a prompt", rows, run), found

    def generates(self, prompts: Sequence[Sequence[int]], tokens: int, name: str) -> Measured:
        """Write so many tokens and look for the answer in them."""

        def run(ids_B_T: torch.Tensor, mask_B_T: torch.Tensor) -> None:
            made = self._model.generate(
                input_ids=ids_B_T,
                attention_mask=mask_B_T,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
            texts = self._tokens.tokenizer.batch_decode(made[:, ids_B_T.shape[1] :])
            [text.rfind("(A)") > text.rfind("(B)") for text in texts]

        return self._run(name, prompts, run)

    @torch.inference_mode()
    def _run(
        self,
        name: str,
        prompts: Sequence[Sequence[int]],
        run: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> Measured:
        """In batches, padded at the left."""
        before = now(self._args.clock)
        for first in range(0, len(prompts), self._args.batch):
            rows = prompts[first : first + self._args.batch]
            width = max(map(len, rows))
            ids = [[0] * (width - len(row)) + list(row) for row in rows]
            mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
            tensors = (torch.tensor(ids), torch.tensor(mask))
            run(*(tensor.to(self._model.device) for tensor in tensors))
        return Measured(
            name=name,
            comparisons=len(prompts) // PROMPTS,
            seconds=now(self._args.clock) - before,
            tokens=sum(map(len, prompts)),
        )


def show(ways: Sequence[Measured], floor: float, args: argparse.Namespace) -> None:
    """Print the table; ``floor``: fewest tokens a comparison."""
    table = Table(
        title=f"{PROMPTS} prompts a comparison, {args.threads} threads, {args.clock} time"
    )
    for heading in ("", "comparisons/s", "tokens a comparison", "of the fewest", "ours is"):
        table.add_column(heading, justify="left" if not heading else "right")
    for way in ways:
        tokens = way.tokens / way.comparisons
        table.add_row(
            way.name,
            f"{way.rate:.2f}",
            f"{tokens:.0f}",
            f"{tokens / floor:.2f}x",
            f"{ways[0].rate / way.rate:.1f}x",
        )
    Console().print(table)


def main() -> None:
    """Run everything and print the ratios."""
    args = parse()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            args.model = str(with_longer_context(model_path(), Path(folder)))
        run(args)


def run(args: argparse.Namespace) -> None:
    """With the model that there is now."""
    tokens = Tokens(args.model)
    asked = conversations(tokens, args.comparisons, args.length)
    prompts = [[tokens.of(p) for p in all_prompts(conversation)] for conversation in asked]
    judged, probabilities = asyncio.run(ours(asked, args))
    peer = Peer(tokens, args)
    few = [ids for of_one in prompts[: args.peer_comparisons] for ids in of_one]
    forwards, found = peer.forwards(few)
    reasons = f"generate: {EXPLANATION_TOKENS} tokens of reasons first"
    ways = [
        judged,
        forwards,
        peer.generates(few, ANSWER_TOKENS, "generate: the answer"),
        peer.generates(few, EXPLANATION_TOKENS, reasons),
    ]
    floor = sum(map(fewest, prompts)) / len(prompts)
    show(ways, floor, args)
    pairs = zip(probabilities, verdicts(found), strict=False)
    apart = max(abs(mine - theirs) for mine, theirs in pairs)
    Console().print(f"probabilities differ from the peer's by {apart:.1e} at most")
    write(args.json, compare(ways, floor))


def compare(ways: Sequence[Measured], floor: float) -> list[Row]:
    """A row a peer, and one for the tokens."""
    judged = ways[0]
    rows = [
        Row(
            name=f"comparisons: ours against {way.name}",
            ours=judged.rate,
            peer=way.rate,
            floor=None,
            ratio=judged.rate / way.rate,
            unit="comparisons/s",
        )
        for way in ways[1:]
    ]
    computed = judged.tokens / judged.comparisons
    tokens = Row(
        name="prompt tokens computed a comparison",
        ours=computed,
        peer=None,
        floor=floor,
        ratio=floor / computed,
        unit="tokens",
    )
    return [*rows, tokens]


def verdicts(found: Sequence[float]) -> list[float]:
    """The probability that response A is better, a comparison: all principles weigh alike."""
    made = []
    for first in range(0, len(found), PROMPTS):
        half = first + PROMPTS // 2
        straight, turned = found[first:half], found[half : first + PROMPTS]
        made.append((sum(straight) + sum(1 - p for p in turned)) / PROMPTS)
    return made


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a directory or hub name; default: the sandbox's")
    parser.add_argument("--engine", default="transformers", choices=["transformers", "vllm"])
    parser.add_argument("--engine-option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--python", default=sys.executable, help="the service's interpreter")
    parser.add_argument("--comparisons", type=int, default=32)
    parser.add_argument("--peer-comparisons", type=int, default=4, help="the peers are slow")
    parser.add_argument("--length", type=int, default=600, help="tokens of a conversation")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32, help="of the peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: count only what these processes take, on a machine that does other work too",
    )
    parser.add_argument("--json", type=Path, help="write the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
