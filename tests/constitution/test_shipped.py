"""The constitutions that ship: complete, without warnings, found by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from solon.constitution import ConstitutionError, lint, load, names, resolve
from solon.constitution.prompts import comparison_prompt, critique_prompt, revision_prompt


def test_harmlessness_has_sixteen_pairs_and_sixteen_comparison_instructions() -> None:
    c = load(resolve("harmlessness"))
    assert (len(c.for_revision), len(c.for_comparison), len(c.for_scoring)) == (16, 16, 16)
    tags = {tag for p in c.principles for tag in p.tags}
    assert {"non-evasive", "over-refusal", "harm"} <= tags


def test_core_has_five_principles_with_every_field() -> None:
    c = load(resolve("core"))
    assert [p.id for p in c.principles] == ["harmless", "honest", "helpful", "fair", "private"]
    assert c.for_revision == c.for_comparison == c.for_scoring == c.principles


@pytest.mark.parametrize("name", names())
def test_what_ships_has_its_file_s_name_and_no_warning(name: str) -> None:
    c = load(resolve(name))
    assert c.name == name
    assert lint(c) == ()


@pytest.mark.parametrize("name", ["core", "harmlessness"])
def test_what_ships_has_provenance_and_balanced_exemplars(name: str) -> None:
    c = load(resolve(name))
    assert c.provenance.author
    assert c.provenance.license == "Apache-2.0"
    answers = [e.answer for e in c.comparison_exemplars]
    assert answers.count("A") == answers.count("B") == 2
    # a critic that has only ever seen faults finds one in everything: over-refusal begins there
    assert any(e.response == e.revision for e in c.critique_exemplars)


@pytest.mark.parametrize("name", ["core", "harmlessness"])
def test_every_principle_makes_every_prompt(name: str) -> None:
    c = load(resolve(name))
    exemplar = c.comparison_exemplars[0]
    for principle in c.principles:
        asked = critique_prompt(c, principle, exemplar.conversation, exemplar.response_a)
        revised = revision_prompt(c, principle, exemplar.conversation, exemplar.response_a, "Hm.")
        compared = comparison_prompt(
            c, principle, exemplar.conversation, exemplar.response_a, exemplar.response_b
        )
        assert revised.messages[: len(asked.messages)] == asked.messages
        assert compared.messages[-1].content.endswith("Answer only (A) or (B).")


def test_a_path_is_taken_as_it_is_and_a_shipped_name_is_found(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("", encoding="utf-8")
    assert resolve(mine) == resolve(str(mine)) == mine
    assert resolve("core").name == "core.yaml"
    assert {"core", "harmlessness"} <= set(names())


@pytest.mark.parametrize("wrong", ["cor", "core.yml", "no/such/core.yaml", ""])
def test_an_unknown_name_lists_what_exists(wrong: str) -> None:
    with pytest.raises(ConstitutionError, match="shipped: core, harmlessness") as caught:
        resolve(wrong)
    assert repr(wrong) in str(caught.value)
    if wrong:
        assert "did you mean 'core'?" in str(caught.value)
