"""The stage that measures: every model of the run answers the same held-out prompts.

With a ground truth (the sandbox's oracle) it says what each response is, and how often the judge is
right. Without one the judge compares the models pairwise, and the figures are named for what they
are: one model's opinion. Nothing here is seen by any other stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, TypeVar

from solon.chat import Conversation
from solon.constitution import derive_seed
from solon.trainer.fleet import Weights
from solon.trainer.prompt_settings import SANDBOX_KINDS
from solon.trainer.prompts import Prompt
from solon.trainer.schemas import EVALUATION, JUDGED_PAIRS
from solon.trainer.snapshots import is_snapshot
from solon.trainer.stages import judging, rows
from solon.trainer.stages.context import StageContext, Summary
from solon.trainer.stages.measures import by_category, of_judge, of_models, of_pairwise
from solon.trainer.stages.work import make_records
from solon.trainer.store import Record

Item = TypeVar("Item")

RESPONSES_FOLDER = "evaluation/responses"
PAIRS_FOLDER = "evaluation/pairs"
RESULT_NAME = "evaluation.json"


@dataclass(frozen=True, slots=True)
class _Item:
    model: str
    kind: str
    prompt: Prompt

    @property
    def id(self) -> str:
        return f"{self.model}:{self.prompt.id}"


@dataclass(frozen=True, slots=True)
class _Pair:
    prompt_id: str
    a: Record
    b: Record
    a_is_better: bool | None

    @property
    def id(self) -> str:
        return f"{self.prompt_id}:{self.a['model']}-{self.b['model']}"


async def run(context: StageContext) -> Summary:
    """Answer, judge, measure, and write ``evaluation.json``.

    Raises:
        TrainerError, SolonError: As the store and the services raise.
    """
    items = _items(context)
    responses = context.run.parts(RESPONSES_FOLDER, EVALUATION)
    judged = context.run.parts(PAIRS_FOLDER, JUDGED_PAIRS)
    answered, compared = responses.ids(), judged.ids()
    context.progress.start(len(items), len(answered))
    for model in context.weights:
        # one model after the other: the policy service holds one set of weights
        todo = [item for item in items if item.model == model and item.id not in answered]
        await _records(context, todo, partial(_answer, context), responses)
    pairs = _pairs(context, list(responses.records()))[: context.config.evaluate.judge_pairs]
    left = [pair for pair in pairs if pair.id not in compared]
    context.progress.start(len(pairs), len(compared))
    await _records(context, left, partial(_compare, context), judged)
    chosen = {pair.id for pair in pairs}
    verdicts = [record for record in judged.records() if record["id"] in chosen]
    context.run.write_json(RESULT_NAME, _result(context, list(responses.records()), verdicts))
    return {"models": list(context.weights), "responses": len(items), "pairs": len(pairs)}


async def _records(
    context: StageContext, items: Sequence[Item], make: Callable[[Item], Any], parts: Any
) -> None:
    await make_records(
        items,
        make,
        parts=parts,
        in_flight=context.config.services.in_flight,
        store=context.config.store,
        on_record=lambda _: context.progress.advance(),
    )


def _items(context: StageContext) -> list[_Item]:
    return [
        _Item(model, kind, prompt)
        for model in context.weights
        for kind in SANDBOX_KINDS
        for prompt in context.prompts[f"evaluation.{kind}"].prompts
    ]


async def _answer(context: StageContext, item: _Item) -> Record:
    settings = context.config.evaluate.sampling
    # the same seed for every model: they differ by their weights alone
    seed = derive_seed(context.config.seed, "evaluate", item.prompt.id)
    weights: Weights = context.weights[item.model]
    reply = await context.fleet.policy.generate(
        item.prompt.conversation, weights=weights, sampling=rows.sampling(settings, seed)
    )
    response = reply.completions[0]
    return {
        "id": item.id,
        "model": item.model,
        "kind": item.kind,
        "prompt_id": item.prompt.id,
        **rows.origin(item.prompt),
        "prompt": item.prompt.conversation.as_dicts(),
        "response": rows.completion(response),
        "policy": rows.answered(reply, context.fleet.info("policy"), settings),
        "truth": _truth(context, item.prompt.conversation, response.text),
    }


async def _compare(context: StageContext, pair: _Pair) -> Record:
    # the judge that labels the pairs is the one that is measured, chains of thought and all
    config = context.config.preferences.model_copy(
        update={"principles": "all", "both_orders": True}
    )
    made = await judging.compare(
        context.fleet,
        config,
        Conversation.from_dicts(pair.a["prompt"]),
        (pair.a["response"]["text"], pair.b["response"]["text"]),
        places=(0, 1),
        seed=derive_seed(context.config.seed, "judged", pair.id),
    )
    return {
        "id": pair.id,
        "prompt_id": pair.prompt_id,
        "kind": pair.a["kind"],
        "model_a": pair.a["model"],
        "model_b": pair.b["model"],
        "a_is_better": pair.a_is_better,
        "comparison": made,
        "constitution_digest": context.constitution.digest,
    }


def _pairs(context: StageContext, responses: Sequence[Record]) -> list[_Pair]:
    """Comparable pairs of two models' responses to one prompt, in a seeded order."""
    by_prompt: dict[str, list[Record]] = {}
    for record in responses:
        if record["response"]["text"].strip():
            by_prompt.setdefault(record["prompt_id"], []).append(record)
    found = [
        pair
        for prompt_id, answers in by_prompt.items()
        for pair in _pairs_of(context, prompt_id, answers)
    ]
    return sorted(found, key=lambda pair: derive_seed(context.config.seed, "judged", pair.id))


def _pairs_of(context: StageContext, prompt_id: str, answers: Sequence[Record]) -> Iterator[_Pair]:
    truth = context.config.evaluate.ground_truth
    for a, b in combinations(answers, 2):
        if a["response"]["text"] == b["response"]["text"]:
            continue
        if not _are_compared(a["model"], b["model"], has_truth=truth is not None):
            continue
        if truth is None:
            yield _Pair(prompt_id, a, b, None)
            continue
        better = _better(a, b)
        if better is not None:
            yield _Pair(prompt_id, a, b, better)


def _are_compared(model: str, other: str, *, has_truth: bool) -> bool:
    """Snapshots only with the helpful model, and only where nothing but the judge measures them."""
    if not (is_snapshot(model) or is_snapshot(other)):
        return True
    return not has_truth and "base" in (model, other)


def _better(a: Record, b: Record) -> bool | None:
    """Whether A is better by the oracle; None if they are equally good."""
    from solon import sandbox  # noqa: PLC0415 - only this stage knows the oracle

    conversation = Conversation.from_dicts(a["prompt"])
    preference = sandbox.better(conversation, a["response"]["text"], b["response"]["text"])
    return {"A": True, "B": False}.get(preference)


def _truth(context: StageContext, conversation: Conversation, response: str) -> str | None:
    if context.config.evaluate.ground_truth is None:
        return None
    from solon import sandbox  # noqa: PLC0415 - only this stage knows the oracle

    return str(sandbox.read(conversation, response))


def _result(
    context: StageContext, responses: Sequence[Record], pairs: Sequence[Record]
) -> Mapping[str, Any]:
    models = tuple(context.weights)
    if context.config.evaluate.ground_truth is None:
        context.progress.note(
            "evaluation: there is no ground truth for these prompts; the figures are the judge's "
            "opinion of the models, not a measurement"
        )
        return {
            "ground_truth": None,
            "models": of_pairwise(models, pairs),
            "judge": of_judge(pairs),
            "categories": by_category(responses, pairs, partial(of_pairwise, models)),
        }
    return {
        "models": of_models(models, responses),
        "judge": of_judge(pairs),
        "categories": by_category(responses, responses, partial(of_models, models)),
    }
