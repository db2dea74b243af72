"""Why a run has what it has: all that its records say of one prompt, for people and as JSON.

From the prompt to the rows that training got: the response, critique and revision of every round,
the judge's probabilities by principle and order, seeds, models, versions, digests. Reads the run
directory, whether or not the run is still going on; asks no service. Knows nothing of how the
records were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.console
from rich.markup import escape
from rich.table import Table

from solon.constitution import Principle
from solon.trainer import episodes, given
from solon.trainer.config import SAVED_NAME
from solon.trainer.course import TRAINING, steps_of
from solon.trainer.errors import RunDirectoryError
from solon.trainer.schemas import EPISODES, EVALUATION, JUDGED_PAIRS, PREFERENCES, REVISIONS
from solon.trainer.session import saved_config, saved_constitution
from solon.trainer.stage_names import Stage
from solon.trainer.stages import evaluate, preference_export, revisions
from solon.trainer.stages.rows import verdicts_of
from solon.trainer.state import RunState
from solon.trainer.steps import MOST_ITERATIONS, Step
from solon.trainer.store import Record, RunDirectory

_MOST_LISTED = 20
"""Ids that are shown where none, or none that there is, was asked for."""

Explanation = dict[str, Any]
"""``id``, ``prompt``, ``origin``, ``revisions``, ``preferences`` (records or null), ``evaluation``,
``judged_pairs``, ``episodes`` and ``given`` comparisons (lists of records), ``exports`` (file ->
rows), ``principles`` (id -> texts), ``versions`` (trained model -> its weights). Of later
iterations ``preferences-2``, ``episodes-2`` and so on."""


def open_run(url: str) -> RunDirectory:
    """A run directory, to be read.

    Raises:
        RunDirectoryError: There is no run.
    """
    run = RunDirectory(url)
    if not run.storage.exists(SAVED_NAME):
        raise RunDirectoryError(
            f"{url}: expected the directory of a run, which holds {SAVED_NAME}, got none"
        )
    return run


def explain(run: RunDirectory, wanted: str) -> Explanation:
    """All that the run's records say of one prompt.

    Args:
        run: The run.
        wanted: The prompt's id, the beginning of it, or the id of a row that came of it: of an
            export, an evaluation, a judged pair, or an episode of RL, which is then the only one.

    Raises:
        RunDirectoryError: No record has that id, or those of several prompts begin with it.
        StoreError: A record cannot be read.
    """
    found = _prompt_id(run, wanted)
    made = next(iter(run.parts(revisions.FOLDER, REVISIONS).where("id", found)), None)
    compared = {
        step.name: next(iter(run.parts(step.name, PREFERENCES).where("id", found)), None)
        for step in _each(run, "preferences")
    }
    answered = run.parts(evaluate.RESPONSES_FOLDER, EVALUATION).where("prompt_id", found)
    judged = run.parts(evaluate.PAIRS_FOLDER, JUDGED_PAIRS).where("prompt_id", found)
    sampled = {
        step.at("episodes"): episodes.of_prompt(run, step, found, wanted)
        for step in _each(run, "rl")
    }
    constitution = saved_constitution(run)
    used = [r["principle_id"] for r in (made or {}).get("rounds", ())]
    pairs = [pair for of in compared.values() for pair in (of or {}).get("comparisons", ())]
    pairs += [pair["comparison"] for pair in judged]
    used += [verdict["principle_id"] for pair in pairs for verdict in verdicts_of(pair)]
    used += [name for of in sampled.values() for name in episodes.principles_of(of)]
    known_better = [row for row in _given(run) if given.prompt_id(row) == found]
    possible = (made, *compared.values(), *answered, *known_better)
    records: list[Record] = [record for record in possible if record is not None]
    known = records[0] if records else episodes.asked(run, found)
    return {
        "id": found,
        "prompt": known["prompt"],
        "origin": {key: known.get(key) for key in ("source", "row", "category")},
        "revisions": made,
        **compared,
        "evaluation": answered,
        "judged_pairs": judged,
        **sampled,
        "given": known_better,
        "exports": _exports(run, made, compared),
        "principles": {
            one.id: _texts(one) for one in constitution.principles if one.id in set(used)
        },
        "versions": _versions(run),
    }


def ids(run: RunDirectory) -> dict[str, list[str]]:
    """The ids of the prompts that the run has records of, by folder, sorted.

    Raises:
        StoreError: A record cannot be read.
    """
    folders = {
        revisions.FOLDER: (REVISIONS, "id"),
        **{step.name: (PREFERENCES, "id") for step in _each(run, "preferences")},
        evaluate.RESPONSES_FOLDER: (EVALUATION, "prompt_id"),
        **{step.name: (EPISODES, "prompt_id") for step in _each(run, "rl")},
    }
    found = {
        name: sorted(set(run.parts(name, schema).column(key)))
        for name, (schema, key) in folders.items()
    }
    return found | {"given": sorted({given.prompt_id(row) for row in _given(run)})}


def _given(run: RunDirectory) -> Iterator[dict[str, Any]]:
    return given.rows(run, [step.name for step in _each(run, "preferences")])


def show(explanation: Explanation, console: rich.console.Console) -> None:
    """For people."""
    console.rule(f"prompt {explanation['id']}")
    for turn in explanation["prompt"]:
        _say(console, turn["role"], turn["content"])
    _say(console, "from", _origin(explanation))
    if (made := explanation["revisions"]) is not None:
        _show_revisions(made, explanation, console)
    for step in _shown(explanation, "preferences"):
        folder = step.at("preferences")
        _show_preferences(folder, explanation[folder], console)
    if explanation["exports"]:
        _show_exports(explanation, console)
    if explanation["given"]:
        given.show(explanation["given"], console)
    for step in _shown(explanation, "episodes"):
        episodes.show(step, explanation[step.at("episodes")], explanation["versions"], console)
    if explanation["evaluation"]:
        _show_evaluation(explanation, console)


def _each(run: RunDirectory, stage: Stage) -> list[Step]:
    """The stage in every iteration."""
    return list(steps_of(saved_config(run), (stage,), is_done=lambda _: True))


def _shown(explanation: Explanation, key: str) -> list[Step]:
    """The iterations of which there is something."""
    steps = [Step("rl", number) for number in range(1, MOST_ITERATIONS + 1)]
    return [step for step in steps if explanation.get(step.at(key))]


def _prompt_id(run: RunDirectory, wanted: str) -> str:
    known = sorted({one for of in ids(run).values() for one in of})
    # rows that came of a prompt carry its id: PROMPT:r2, PROMPT:0-1, PROMPT:0-1:i2, MODEL:PROMPT
    parts = [part for part in wanted.split(":") if part]
    exact = [one for one in known if one in parts]
    found = exact or [one for one in known if parts and one.startswith(parts[0])]
    if len(found) == 1:
        return found[0]
    listed = ", ".join((found or known)[:_MOST_LISTED])
    if found:
        raise RunDirectoryError(
            f"id: {wanted!r} is the beginning of {len(found)} prompts' ids, such as {listed}: "
            "give more of it"
        )
    if not known:
        raise RunDirectoryError(f"{run.url}: has no records yet")
    raise RunDirectoryError(
        f"id: expected a prompt that {run.url} has records of, got {wanted!r}; there are "
        f"{len(known)}, such as {listed}"
    )


def _texts(principle: Principle) -> dict[str, str | None]:
    question = principle.absolute_question
    return {
        "critique_request": principle.critique_request,
        "revision_request": principle.revision_request,
        "comparison_instruction": principle.comparison_instruction,
        "absolute_question": None if question is None else question.text,
    }


def _exports(
    run: RunDirectory, made: Record | None, compared: Mapping[str, Record | None]
) -> dict[str, list[Mapping[str, Any]]]:
    """The rows for training that these records give, by the file in ``export`` that has them."""
    config = saved_config(run)
    found: dict[str, list[Mapping[str, Any]]] = {}
    if made is not None:
        left_out = revisions.surplus(run, config.revisions)
        examples = revisions.examples_of(made, config.revisions)
        found["sft/train"] = [row for row in examples if row["id"] not in left_out]
    for step in _each(run, "preferences"):
        if (record := compared[step.name]) is None:
            continue
        split = preference_export.split_of(record["prompt"], config.preferences.test_share)
        out = preference_export.copied(run, step, config.preferences.filters.max_copies)
        pairs = (row for row in preference_export.pairs_of(record, step) if row["id"] not in out)
        found[f"{step.name}/{split}"] = list(pairs)
    return found


def _show_revisions(made: Record, explanation: Explanation, console: rich.console.Console) -> None:
    console.rule(f"{made['kind']} prompt: {made['outcome']}", align="left")
    policy = made["policy"]
    _say(console, "made by", f"{_model(policy)}, seed {made['responses'][0]['seed']}")
    for response in made["responses"]:
        _say(console, "response", f"{response['text']}  [{response['finish_reason']}]")
    if made["rounds"]:
        digest, seed = made["constitution_digest"][:12], made["principle_seed"]
        _say(
            console,
            "critic",
            f"{made['critic_model']}, constitution {made['constitution']} ({digest}), principles "
            + (f"drawn with seed {seed}" if seed is not None else "by priority"),
        )
    for one in made["rounds"]:
        texts = explanation["principles"].get(one["principle_id"], {})
        console.rule(f"round {one['round']}: {one['principle_id']}", align="left", style="dim")
        if (assessed := one["assessment"]) is not None:
            _say(console, "something to criticise", _assessment(assessed))
        if one["revision"] is None:
            _say(console, "revision", "not needed: the response stands")
            continue
        for answer in one["answers"] or ():
            _say(console, f"question {answer['number']}", answer["question"])
            _say(console, "answer", f"{answer['answer']['text']}  [{answer['outcome']}]")
        _say(console, "asked", texts.get("critique_request") or "")
        if one["critique"] is not None:
            _say(console, "critique", f"{one['critique']['text']}  [{one['critique_outcome']}]")
        _say(console, "asked", texts.get("revision_request") or "")
        _say(console, "revision", f"{one['revision']['text']}  [{one['revision_outcome']}]")


def _show_preferences(folder: str, compared: Record, console: rich.console.Console) -> None:
    console.rule(folder, align="left")
    if compared["policy"] is not None:
        _say(console, "samples by", _model(compared["policy"]))
    for index, response in enumerate(compared["responses"]):
        how = f"{response['origin']}, temperature {response['temperature']:g}"
        how += f", seed {response['seed']}"
        _say(console, f"response {index}", f"{response['text']}  [{how}]")
    for place, one in enumerate(compared["ranking"], start=1):
        strength = "no verdict" if one["strength"] is None else f"strength {one['strength']:.4f}"
        _say(console, f"ranked {place}", f"response {one['response']}  [{strength}]")
    digest = compared["constitution_digest"][:12]
    _say(
        console,
        "judge",
        f"{compared['judge_model']}, constitution {compared['constitution']} ({digest})",
    )
    for pair in compared["comparisons"]:
        title = f"response {pair['a']} (A) against {pair['b']} (B)"
        _show_comparison(pair, title, console)
        if pair["dropped"] is not None:
            _say(console, title, f"not trained on: {pair['dropped'].replace('_', ' ')}")


def _show_exports(explanation: Explanation, console: rich.console.Console) -> None:
    console.rule("what training got of it", align="left")
    for file, rows in explanation["exports"].items():
        for row in rows:
            says = (
                row["completion"][-1]["content"]
                if "completion" in row
                else f"better with {row['probability']:.4f}: {row['chosen'][-1]['content']}"
            )
            _say(console, f"export/{file} {row['id']}", says)
        if not rows:
            _say(console, f"export/{file}", "nothing")


def _show_evaluation(explanation: Explanation, console: rich.console.Console) -> None:
    console.rule("evaluation", align="left")
    for answer in explanation["evaluation"]:
        truth = "" if answer["truth"] is None else f"  [{answer['truth']}]"
        _say(console, answer["model"], answer["response"]["text"] + truth)
    for pair in explanation["judged_pairs"]:
        title = f"{pair['model_a']} (A) against {pair['model_b']} (B)"
        _show_comparison(pair["comparison"], title, console)


def _show_comparison(pair: Mapping[str, Any], title: str, console: rich.console.Console) -> None:
    """What the judge said, or each judge of the panel and then all together."""
    if pair["principles"]:
        console.print(_verdicts(pair, title))
        _show_chains(pair, console)
    for vote in pair["votes"]:
        who = f"{vote['judge']} ({vote['model']}): {title}"
        if vote["error"] is not None:
            _say(console, who, f"failed: {vote['error']}")
            continue
        console.print(_verdicts(vote, who))
        _show_chains(vote, console)
    if pair["votes"]:
        _say(console, f"panel: {title}", f"P(A) = {_probability(pair)}")


def _show_chains(pair: Mapping[str, Any], console: rich.console.Console) -> None:
    for verdict in pair["principles"]:
        for order in verdict["orders"]:
            shown = "swapped" if order["swapped"] else "as given"
            for number, chain in enumerate(order["chains"]):
                who = f"{verdict['principle_id']}, {shown}, chain {number}"
                reason = (chain["no_verdict_reason"] or "").replace("_", " ")
                _say(console, who, f"{chain['text']}  [P(A) = {_probability(chain)} {reason}]")


def _verdicts(pair: Mapping[str, Any], title: str) -> Table:
    """P(A is better) by principle and order."""
    whole = _probability(pair)
    table = Table(title=f"{title}: P(A) = {whole}", title_justify="left")
    table.add_column("principle")
    for heading in ("weight", "as given", "swapped", "both"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for verdict in pair["principles"]:
        orders = {order["swapped"]: order for order in verdict["orders"]}
        table.add_row(
            verdict["principle_id"],
            f"{verdict['weight']:g}",
            *(_probability(orders.get(swapped)) for swapped in (False, True)),
            _probability(verdict),
            "follows the position"
            if verdict["position_dependent"]
            else (verdict["no_verdict_reason"] or "").replace("_", " "),
        )
    return table


def _assessment(found: Mapping[str, Any]) -> str:
    """The probability, and the log-probabilities that it was read from."""
    logprobs = ", ".join(f"{one['answer']} {one['logprob']:.3f}" for one in found["logprobs"])
    if found["probability"] is None:
        return f"no verdict ({found['no_verdict_reason'].replace('_', ' ')}; {logprobs})"
    return f"P = {found['probability']:.4f}  [{logprobs}]"


def _origin(explanation: Explanation) -> str:
    """Where the prompt is from."""
    source, row, category = explanation["origin"].values()
    return " ".join(part for part in (source, row, category and f"({category})") if part)


def _versions(run: RunDirectory) -> dict[str, str]:
    state = RunState(run)
    trained = {
        step.model: state.summary(step.name) for step in steps_of(saved_config(run), TRAINING)
    }
    return {model: of["weight_version"] for model, of in trained.items() if of}


def _probability(of: Mapping[str, Any] | None) -> str:
    """A verdict's, or an order's, of which there may be none."""
    if of is None:
        return ""
    return "none" if of["probability_a"] is None else f"{of['probability_a']:.4f}"


def _model(answered: Mapping[str, Any]) -> str:
    settings: Sequence[str] = [
        f"{key} {value:g}" for key, value in answered["sampling"].items() if value is not None
    ]
    return f"{answered['model']}, weights {answered['weight_version']}, {', '.join(settings)}"


def _say(console: rich.console.Console, who: str, text: str) -> None:
    console.print(f"[bold]{escape(who)}[/bold]: {escape(text)}", soft_wrap=True)


def listed(run: RunDirectory) -> Iterator[str]:
    """Lines that say which prompts there are."""
    for folder, known in ids(run).items():
        shown = ", ".join(known[:_MOST_LISTED])
        more = ", ..." if len(known) > _MOST_LISTED else ""
        yield f"{folder}: {len(known)} prompts: {shown}{more}" if known else f"{folder}: none yet"
