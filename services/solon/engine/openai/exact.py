"""Log-probabilities of whole continuations from a vLLM server, exactly.

The server tokenizes the prompt as it does for chat, and tells the log-probabilities of given next
tokens. Continuations are a tree of tokens: each inner node is a prompt of its own, of which all but
the end is in the server's prefix cache. (``prompt_logprobs`` would tell the same with one prompt a
continuation, but computes all of each anew.) Knows nothing of queues.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TypeVar

from solon.chat import Conversation
from solon.engine.base import ContextExceeded, EngineFailed, InvalidInput, Usage
from solon.engine.openai.endpoint import Endpoint
from solon.engine.openai.replies import Completed, log_probability, usage
from solon.engine.openai.requests import Requests

_BOUNDARY_TOKENS = 8
"""The end of a prompt that may have a say in how the text after it is tokenized."""
_MOST_KNOWN = 4096
_MOST_PROMPTS = 64
_MOST_TOKENS = 128
"""In one request: vLLM's bounds are 1,024 and 128."""

T = TypeVar("T")
Path = tuple[int, ...]


class ExactScorer:
    """Scores continuations of prompts, one prompt at a time."""

    def __init__(self, endpoint: Endpoint, requests: Requests) -> None:
        """``requests``: for a vLLM server."""
        self._endpoint = endpoint
        self._requests = requests
        self._known: OrderedDict[tuple[Path, str], Path] = OrderedDict()
        self._learning = asyncio.Lock()

    async def score(
        self, conversation: Conversation, texts: Sequence[str]
    ) -> tuple[tuple[float, ...], Usage]:
        """Natural log-probability of each text as the start of the answer.

        Raises:
            ContextExceeded: Prompt and longest text do not fit.
            EngineError: As ``Engine.score``.
        """
        prompt = await self._endpoint.tokenize(self._requests.tokenized(conversation))
        tail = tuple(prompt.tokens[-_BOUNDARY_TOKENS:])
        paths = [await self._path(tail, text) for text in texts]
        longest = max(map(len, paths))
        if len(prompt.tokens) + longest > prompt.max_model_len:
            raise ContextExceeded(
                prompt_tokens=len(prompt.tokens),
                max_tokens=longest,
                context_tokens=prompt.max_model_len,
            )
        # the shortest first: what they share is then in the cache for the others
        nodes = sorted({path[:end] for path in paths for end in range(len(path))}, key=len)
        following = sorted({token for path in paths for token in path})
        found: dict[Path, dict[int, float]] = {node: {} for node in nodes}
        spent = Usage()
        for some in _parts(nodes, _MOST_PROMPTS):
            for among in _parts(following, _MOST_TOKENS):
                told, used = await self._next(prompt.tokens, some, among)
                spent += used
                for node, logprobs in zip(some, told, strict=True):
                    found[node].update(logprobs)
        scores = tuple(
            sum(found[path[:end]][token] for end, token in enumerate(path)) for path in paths
        )
        return scores, Usage(
            prompt_tokens=spent.prompt_tokens,
            cached_tokens=spent.cached_tokens,
            completion_tokens=spent.completion_tokens,
            model_calls=1,
        )

    async def _next(
        self, prompt: Sequence[int], nodes: Sequence[Path], among: Sequence[int]
    ) -> tuple[list[Mapping[int, float]], Usage]:
        """Log-probabilities of some tokens after each node."""
        asked = self._requests.next_of([[*prompt, *node] for node in nodes], among)
        reply = await self._endpoint.complete(asked)
        choices = sorted(reply.choices, key=lambda one: one.index)
        if [one.index for one in choices] != list(range(len(nodes))):
            raise EngineFailed(
                f"expected {len(nodes)} choices of the endpoint, one a prompt, got {len(choices)}"
            )
        return [_told(one, among) for one in choices], usage(reply.usage)

    async def _path(self, tail: Path, text: str) -> Path:
        """The tokens of a text as it follows the end of a prompt.

        Those that joint tokenization gives after the end's own; where the two merge, the text's
        alone, since a model that answers the prompt cannot make the merged token either.
        """
        key = (tail, text)
        async with self._learning:
            if key not in self._known:
                self._known[key] = await self._learned(tail, text)
                if len(self._known) > _MOST_KNOWN:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]

    async def _learned(self, tail: Path, text: str) -> Path:
        before = (await self._endpoint.detokenize(self._requests.text_of(tail))).prompt
        alone, joint = await self._tokens(before), await self._tokens(before + text)
        merged = joint[: len(alone)] != alone
        path = await self._tokens(text) if merged else joint[len(alone) :]
        if not path:
            raise InvalidInput(f"continuation {text!r}: expected at least one token, got none")
        return path

    async def _tokens(self, text: str) -> Path:
        return tuple((await self._endpoint.tokenize(self._requests.tokens_of(text))).tokens)


def _told(choice: Completed, among: Sequence[int]) -> Mapping[int, float]:
    """The log-probabilities of the tokens that were asked for.

    Raises:
        EngineFailed: The server does not tell all of them.
    """
    places = choice.logprobs.top_logprobs if choice.logprobs else []
    told = (places[0] if places else None) or {}
    names = {token: f"token_id:{token}" for token in among}
    if missing := [name for name in names.values() if name not in told]:
        raise EngineFailed(
            f"the endpoint does not tell the log-probability of {missing[0]}: expected a vLLM "
            "server that knows logprob_token_ids (0.32 does); else start with --engine-option "
            "scoring=top_logprobs"
        )
    return {token: log_probability(told[name]) for token, name in names.items()}


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
