"""No prompt is both trained on and evaluated on, however it is written, whatever file has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from solon.chat import Conversation, Message
from solon.constitution import load, resolve
from solon.trainer.config import load_config
from solon.trainer.errors import PromptError
from solon.trainer.forecast.dry_run import summarised
from solon.trainer.plan import EVALUATION_KEYS, read_prompts
from solon.trainer.prompts import Prompt, Prompts, PromptSet
from solon.trainer.similarity import conversation_key
from solon.trainer.splits import divide
from solon.trainer.stage_names import STAGES, Stage
from solon.trainer.steps import Step

CONFIG = """\
constitution: core
models: {{policy: sandbox, critic: sandbox, judge: sandbox, base_for_sft: sandbox}}
prompts:
  red_team: [{folder}/mine.txt]
  preferences: [{folder}/mine.txt, "written:helpful"]
  evaluation: {{harmful: [{folder}/loud.txt, "written:red_team"]}}
"""


def prompts(*texts: str, prefix: str = "") -> PromptSet:
    made = (
        Prompt(id=f"{prefix}{text}", conversation=Conversation.from_user(text), source="mine.txt")
        for text in texts
    )
    return PromptSet(prompts=Prompts(made))


def both(
    training: str, trained: PromptSet, evaluation: str, held: PromptSet, share: float | None
) -> dict[str, PromptSet]:
    return divide({training: trained}, {evaluation: held}, held_out_share=share)


def texts(of: PromptSet) -> set[str]:
    return {conversation_key(prompt.conversation) for prompt in of.prompts}


QUIET = [f"What is {n} times {n + 1}?" for n in range(200)]
LOUD = [text.upper().replace(" ", "   ").replace("?", " ?!") for text in QUIET]


def test_a_prompt_of_both_sides_is_refused_unless_the_run_says_who_gets_it() -> None:
    with pytest.raises(PromptError, match=r"evaluation.benign: 200 .*red_team.*held_out_share=1"):
        divide(
            {"red_team": prompts(*QUIET)},
            {"evaluation.benign": prompts(*LOUD)},
            held_out_share=None,
        )


def test_each_is_given_to_one_side_whatever_its_case_spaces_and_punctuation() -> None:
    sides = (
        {"red_team": prompts(*QUIET, "mine"), "rl": prompts(*QUIET[:50], prefix="rl")},
        {"evaluation.benign": prompts(*LOUD, "yours")},
    )
    made = divide(*sides, held_out_share=0.3)
    trained = texts(made["red_team"]) | texts(made["rl"])
    held = texts(made["evaluation.benign"])
    assert trained.isdisjoint(held)
    assert len(trained | held) == 202
    assert 40 <= len(held) <= 80
    assert made["red_team"].divided == len(held) - 1
    assert made["evaluation.benign"].divided == len(trained) - 1
    # the hash alone decides: the order and the other prompts do not
    fewer = divide(
        {"red_team": prompts(*LOUD[99::-1])},
        {"evaluation.benign": prompts(*QUIET)},
        held_out_share=0.3,
    )
    assert texts(fewer["red_team"]) == {t for t in trained if t in texts(prompts(*QUIET[:100]))}


def test_a_share_of_one_keeps_all_for_evaluation_and_of_none_for_training() -> None:
    for share, key, left in ((1.0, "red_team", "mine"), (0.0, "evaluation.benign", "yours")):
        mine, yours = prompts(*QUIET, "mine"), prompts(*QUIET, "yours")
        made = both("red_team", mine, "evaluation.benign", yours, share)
        assert texts(made[key]) == {f"user:{left}"}


def test_a_key_that_would_be_left_with_none_is_refused() -> None:
    with pytest.raises(PromptError, match=r"prompts.red_team: none of its 2 prompts is left"):
        divide(
            {"red_team": prompts("a", "b")},
            {"evaluation.harmful": prompts("a", "b")},
            held_out_share=1,
        )


def test_one_id_for_two_conversations_of_a_run_is_refused() -> None:
    other = Prompt(id="a", conversation=Conversation.from_user("b"), source="other.jsonl")
    with pytest.raises(PromptError, match=r"prompts.rl: id 'a' .* prompts.red_team"):
        divide(
            {"red_team": prompts("a"), "rl": PromptSet(prompts=Prompts([other]))},
            {},
            held_out_share=None,
        )


def test_who_said_it_and_letters_beside_punctuation_tell_conversations_apart() -> None:
    asked = Conversation.from_user("Hi.")
    answered = asked.then(Message("assistant", "Hi."), Message("user", "Hi."))
    keys = {
        conversation_key(one)
        for one in (
            asked,
            answered,
            Conversation.from_user("\u0915\u093f?"),
            Conversation.from_user("\u0915\u0947?"),
            Conversation.from_user("?"),
            Conversation.from_user("!"),
        )
    }
    assert len(keys) == 6
    assert conversation_key(Conversation.from_user("\uff28i!")) in keys


def test_a_run_divides_the_same_whichever_stages_are_run_together(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\n".join(QUIET))
    (tmp_path / "loud.txt").write_text("\n".join(LOUD))
    path = tmp_path / "config.yml"
    path.write_text(CONFIG.format(folder=tmp_path))
    with pytest.raises(PromptError, match="200 held-out prompts are also in"):
        read_prompts(load_config(str(path)), STAGES[-1:])
    config = load_config(str(path), ["prompts.held_out_share=0.2"])
    whole = read_prompts(config, STAGES)
    each: list[tuple[Stage, ...]] = [(stage,) for stage in STAGES]
    apart = {key: of for stages in each for key, of in read_prompts(config, stages).items()}
    assert apart.keys() == whole.keys()
    for key, of in whole.items():
        assert (list(apart[key].prompts), apart[key].divided) == (list(of.prompts), of.divided)
    held = set().union(*(texts(whole[key]) for key in EVALUATION_KEYS))
    trained = set().union(*(texts(of) for key, of in whole.items() if key not in EVALUATION_KEYS))
    assert held.isdisjoint(trained)
    assert len(whole["evaluation.harmful"].prompts) - 200 in range(20, 61)
    lines = "\n".join(summarised(config, load(resolve("core")), whole, [Step("evaluate")]))
    assert "prompts for training are held out, since evaluation has them" in lines
    assert "prompts for evaluation are left out, since training has them" in lines
