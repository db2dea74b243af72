"""The stage that makes the supervised phase's data: sample, critique, revise.

For a red-team prompt the helpful policy answers, and the critic critiques and revises that answer
in rounds, each by a principle drawn anew. For a helpfulness prompt the policy's answers are kept
as they are, so that fine-tuning does not forget how to help. Method: Bai et al. 2022 (2212.08073),
section 3. Knows nothing of training, and nothing of whether any response is good.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from solon.client import Completion, Outcome, RefinedRound
from solon.constitution import derive_seed
from solon.trainer.errors import StageFailed
from solon.trainer.fleet import Weights
from solon.trainer.prompts import Prompt, PromptSet
from solon.trainer.schemas import REVISIONS, SFT_EXPORT
from solon.trainer.spool import TextSet, temporary_database
from solon.trainer.stages import rows
from solon.trainer.stages.context import StageContext, Summary
from solon.trainer.stages.filters import is_repetitive
from solon.trainer.stages.settings import RevisionsConfig
from solon.trainer.stages.work import Share, make_records
from solon.trainer.store import Record, RunDirectory

Kind = Literal["red_team", "helpfulness"]
FOLDER = "revisions"
_GOOD = (Outcome.MADE, Outcome.NOT_NEEDED)


@dataclass(frozen=True, slots=True)
class _Item:
    kind: Kind
    prompt: Prompt


async def run(context: StageContext) -> Summary:
    """Make a record of every prompt that has none yet, then the export for fine-tuning.

    Raises:
        StageFailed: Too many responses or revisions are unusable, or none is left to train on.
        TrainerError, SolonError: As the store and the services raise.
    """
    config = context.config.revisions
    prompts = (context.prompts["red_team"], context.prompts["helpfulness"])
    total = _count(*prompts)
    parts = context.run.parts(FOLDER, REVISIONS)
    share = Share(
        what="revisions: prompts without a usable response and revisions",
        key="revisions.max_unusable_share",
        limit=config.max_unusable_share,
        total=total,
    )
    done = parts.ids()
    context.progress.start(total, len(done))
    share.add(parts.column("outcome"))

    def on_record(record: Record) -> None:
        context.progress.advance()
        share.add([record["outcome"]])

    await make_records(
        (item for item in _items(*prompts) if item.prompt.id not in done),
        lambda item: _make(context, item),
        parts=parts,
        in_flight=context.config.services.in_flight,
        store=context.config.store,
        on_record=on_record,
    )
    out = surplus(context.run, config)
    examples, repetitive = _export(context.run, config, out)
    if repetitive:
        context.progress.note(
            f"revisions: {repetitive:,} texts repeat themselves too much to be trained on"
        )
    return {
        "prompts": total,
        "examples": examples,
        "repetitive": repetitive,
        "surplus": len(out),
        "outcomes": dict(share.counts),
    }


def _export(run: RunDirectory, config: RevisionsConfig, out: Collection[str]) -> tuple[int, int]:
    """Write the fine-tuning examples but for those whose ids are ``out``.

    Returns:
        How many there are, and how many whole responses and revisions repeat themselves too much.

    Raises:
        StageFailed: There are none.
    """
    repetitive = 0

    def examples() -> Iterator[dict[str, Any]]:
        nonlocal repetitive
        for record in run.parts(FOLDER, REVISIONS).records():
            yield from (one for one in examples_of(record, config) if one["id"] not in out)
            texts = (text for _, text in _whole(record))
            repetitive += sum(is_repetitive(text, config.max_repetition) for text in texts)

    with run.exporting("sft/train", SFT_EXPORT) as export:
        export.extend(examples())
        if not export.rows:
            raise StageFailed(
                "revisions: no response or revision can be trained on; look at the records in "
                f"{run.url}/{FOLDER}"
            )
    return export.rows, repetitive


def surplus(run: RunDirectory, config: RevisionsConfig) -> Collection[str]:
    """Ids of the examples that ``helpful_share`` leaves out, which no record knows by itself."""
    if config.helpful_share is None:
        return ()
    revised = 0
    drawn = temporary_database()
    drawn.execute("CREATE TABLE helpful (draw INTEGER, id TEXT)")
    for record in run.parts(FOLDER, REVISIONS).records():
        for example in examples_of(record, config):
            if record["kind"] == "helpfulness":
                draw = derive_seed(0, "surplus", example["id"]) - 2**63
                drawn.execute("INSERT INTO helpful VALUES (?, ?)", (draw, example["id"]))
            else:
                revised += 1
    most = int(config.helpful_share / (1 - config.helpful_share) * revised + 1e-9)
    out = drawn.execute("SELECT id FROM helpful ORDER BY draw LIMIT -1 OFFSET ?", (most,))
    return TextSet(name for (name,) in out)


def _items(red_team: PromptSet, helpfulness: PromptSet) -> Iterator[_Item]:
    """A prompt that is of both kinds is a red-team prompt: it has one record."""
    for prompt in red_team.prompts:
        yield _Item("red_team", prompt)
    for prompt in helpfulness.prompts:
        if not red_team.prompts.has(prompt.id):
            yield _Item("helpfulness", prompt)


def _count(red_team: PromptSet, helpfulness: PromptSet) -> int:
    """How many items there are."""
    ids = helpfulness.prompts.ids()
    return len(red_team.prompts) + sum(not red_team.prompts.has(name) for name in ids)


async def _make(context: StageContext, item: _Item) -> Record:
    config = context.config.revisions
    seed = derive_seed(context.config.seed, FOLDER, item.prompt.id)
    weights: Weights = context.weights["base"]
    reply = await context.fleet.policy.generate(
        item.prompt.conversation,
        weights=weights,
        sampling=rows.sampling(config.response, derive_seed(seed, "response")),
        n=config.helpful_samples if item.kind == "helpfulness" else 1,
    )
    responses = [rows.completion(completion) for completion in reply.completions]
    outcomes = [rows.outcome(response) for response in responses]
    refine = item.kind == "red_team" and outcomes[0] in (Outcome.MADE, Outcome.TRUNCATED)
    made = await _refined(context, item, reply.completions[0], seed) if refine else []
    return {
        "id": item.prompt.id,
        "kind": item.kind,
        **rows.origin(item.prompt),
        "prompt": item.prompt.conversation.as_dicts(),
        "seed": seed,
        "responses": responses,
        "outcome": _worst(outcomes, made),
        "policy": rows.answered(reply, context.fleet.info("policy"), config.response),
        "rounds": [rows.refined(one) for one in made],
        "principle_seed": _principle_seed(config, seed) if refine else None,
        "constitution": context.constitution.name if refine else None,
        "constitution_digest": context.constitution.digest if refine else None,
        "critic_model": context.fleet.info("critic").model if refine else None,
        "critic_sampling": config.critic.model_dump() if refine else None,
    }


async def _refined(
    context: StageContext, item: _Item, response: Completion, seed: int
) -> list[RefinedRound]:
    config = context.config.revisions
    rounds = context.fleet.critic().refine(
        item.prompt.conversation,
        response.text,
        constitution=context.fleet.constitution("critic"),
        rounds=config.rounds,
        draw=config.principles,
        principle_seed=_principle_seed(config, seed),
        skip_critique=config.skip_critique,
        skip_questions=config.skip_questions,
        not_needed_below=config.not_needed_below,
        min_option_mass=config.min_option_mass,
        sampling=rows.sampling(config.critic, derive_seed(seed, "critic")),
    )
    async with aclosing(rounds):
        return [made async for made in rounds]


def _principle_seed(config: RevisionsConfig, seed: int) -> int | None:
    """None where principles are not drawn."""
    return None if config.principles == "priority" else derive_seed(seed, "principles")


def _worst(responses: list[Outcome], rounds: list[RefinedRound]) -> str:
    """``made`` if all is well, else the first thing that is not."""
    everything = [*responses, *(made.revision_outcome for made in rounds)]
    return next((o.value for o in everything if o not in _GOOD), Outcome.MADE.value)


def examples_of(record: Record, config: RevisionsConfig) -> Iterator[dict[str, Any]]:
    """The rows of SFT_EXPORT that come of a record, of the rounds that are to be trained on."""
    usable = [
        (number, text)
        for number, text in _whole(record)
        if not is_repetitive(text, config.max_repetition)
    ]
    if record["kind"] == "helpfulness":
        for number, text in usable:
            yield _example(record, f"{record['id']}:h{number}", 0, text)
        return
    if config.train_rounds is not None:
        usable = [(number, text) for number, text in usable if number <= config.train_rounds]
    for number, text in usable[-1:] if config.train_on == "last" else usable:
        yield _example(record, f"{record['id']}:r{number}", number, text)


def _whole(record: Record) -> Iterator[tuple[int, str]]:
    """The texts that the model ended itself: helpful responses, or revisions by round."""
    if record["kind"] == "helpfulness":
        for number, response in enumerate(record["responses"]):
            if rows.outcome(response) is Outcome.MADE:
                yield number, response["text"]
        return
    rounds, (response, *_) = record["rounds"], record["responses"]
    stands = rounds and all(made["revision_outcome"] == "not_needed" for made in rounds)
    if stands and rows.outcome(response) is Outcome.MADE:
        # the critic found nothing to criticise: what the policy said is what it is to say
        yield 0, response["text"]
    for made in rounds:
        if made["revision_outcome"] == "made":
            yield made["round"], made["revision"]["text"]


def _example(record: Record, name: str, number: int, text: str) -> dict[str, Any]:
    return {
        "id": name,
        "source": record["source"],
        "round": number,
        "prompt": record["prompt"],
        "completion": [{"role": "assistant", "content": text}],
    }
