"""Why RL taught the policy what it did: the episodes of one prompt, found and shown.

Knows nothing of how they were sampled, scored or written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.console
from rich.markup import escape
from rich.table import Table

from solon.trainer.errors import RunDirectoryError
from solon.trainer.schemas import EPISODES
from solon.trainer.steps import Step
from solon.trainer.store import Record, RunDirectory

_PROMPTS = "rl_prompts/train"
_MOST_CHARACTERS = 60
"""Of a response in the table of many."""


def of_prompt(run: RunDirectory, step: Step, prompt_id: str, wanted: str) -> list[dict[str, Any]]:
    """The prompt's episodes in their order; one alone, if ``wanted`` is its id.

    Raises:
        StoreError: A record cannot be read.
    """
    found = run.parts(step.name, EPISODES).where("prompt_id", prompt_id)
    found.sort(key=lambda record: int(record["episode"]))
    return [one for one in found if one["id"] == wanted] or found


def asked(run: RunDirectory, prompt_id: str) -> Record:
    """The prompt of episodes, and where it is from.

    Raises:
        RunDirectoryError: The prompts of RL are not there any more.
        StoreError: They cannot be read.
    """
    for row in run.exported(_PROMPTS):
        if row["id"] == prompt_id:
            return row
    raise RunDirectoryError(
        f"{run.url}/export/{_PROMPTS}.parquet: expected the prompt {prompt_id!r}, of which there "
        "are episodes, got none; restore the file"
    )


def principles_of(episodes: Sequence[Record]) -> Iterator[str]:
    """Ids of the principles by which a judge scored them."""
    for episode in episodes:
        for judgement in episode["judgements"]:
            yield from (one["principle_id"] for one in judgement["principles"])


def show(
    step: Step,
    episodes: Sequence[Record],
    versions: Mapping[str, str],
    console: rich.console.Console,
) -> None:
    """For people: all of one episode, or a row of each of several.

    Args:
        step: In which they were sampled.
        episodes: Of one prompt.
        versions: Trained model -> its weights.
        console: Where to.
    """
    console.rule(f"episodes of RL: {step.name}", align="left")
    start = versions.get("sl", "the SL model")
    console.print(
        escape(f"{step.model}@N: the policy, from {start}, after N batches"), soft_wrap=True
    )
    if len(episodes) == 1:
        for line in _lines(episodes[0], step.model):
            console.print(line, soft_wrap=True)
        return
    table = Table()
    for heading in ("episode", "policy", "score", "KL", "reward", "advantage"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("response")
    for one in episodes:
        text = one["response"]
        short = text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."
        figures = (_figure(one[key]) for key in ("score", "kl", "reward", "advantage"))
        table.add_row(f"e{one['episode']}", _policy(one, step.model), *figures, escape(short))
    console.print(table)


def _lines(one: Record, model: str) -> Iterator[str]:
    """All of an episode, as rich markup."""
    yield _said(
        f"e{one['episode']}",
        f"{one['response']}  [{one['finish_reason']}, {one['tokens']} tokens, by "
        f"{_policy(one, model)}, seed {one['seed']}, row {one['place']}]",
    )
    for score in one["scores"]:
        counts = "watched" if score["weight"] is None else f"weight {score['weight']:g}"
        yield _said(f"score of {score['source']}", f"{_figure(score['score'])}  [{counts}]")
    for judgement in one["judgements"]:
        yield from _judged(judgement)
    if one["score"] is None:
        yield _said("score", f"none ({(one['no_score_reason'] or '').replace('_', ' ')})")
        return
    taken = ", ".join(f"{p['guard']} {p['penalty']:.4f}" for p in one["penalties"])
    yield _said("penalties", taken)
    yield _said(
        "KL from the SL model",
        f"{one['kl']:.4f} nats, times {one['kl_coefficient']:g}  "
        f"[log-probability {one['logprob']:.4f} against {one['reference_logprob']:.4f}]",
    )
    yield _said(
        "learned from", f"reward {_figure(one['reward'])}, advantage {_figure(one['advantage'])}"
    )


def _judged(judgement: Record) -> Iterator[str]:
    head = f"{judgement['judge']} ({judgement['model']})"
    if judgement["error"] is not None:
        yield _said(head, f"failed: {judgement['error']}")
        return
    digest = judgement["constitution_digest"][:12]
    yield _said(head, f"{_figure(judgement['score'])}  [constitution {digest}]")
    for found in judgement["principles"]:
        read = ", ".join(f"{a['answer']} {a['probability']:.4f}" for a in found["probabilities"])
        reason = (found["no_verdict_reason"] or "").replace("_", " ")
        yield _said(
            found["principle_id"],
            f"{_figure(found['score'])} {reason} [weight {found['weight']:g}; {read}]",
        )


def _policy(one: Record, model: str) -> str:
    """As snapshots are called."""
    return f"{model}@{one['batch'] - 1}"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _said(who: str, text: str) -> str:
    return f"[bold]{escape(who)}[/bold]: {escape(text)}"
