"""Files as the field publishes them: what each becomes, and how a broken one is refused."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from solon.trainer.errors import PromptError
from solon.trainer.importers import FORMATS, Imported, Importer, read_pairs
from solon.trainer.prompt_settings import FormatName, PromptSource
from solon.trainer.prompts import load_prompts

HH = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Name a fruit.\n\nAssistant: "
TURNS = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Name a fruit."},
]
SAID = [{"role": "assistant", "content": "An apple."}]
OTHER = [{"role": "assistant", "content": "A chair."}]
TEXT = {"content": "Name a fruit.", "role": "user"}


def table(path: Path, *rows: Any) -> Path:
    """The rows in whatever kind of file the name says."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    if suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return path
    text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


def only(path: Path, **chosen: Any) -> Imported:
    (made,) = Importer(path, **chosen)
    return made


# format -> a row, its prompt, its category, its pair
PAIR = ("An apple.", "A chair.")
CASES: dict[str, tuple[dict[str, Any], Any, str | None, tuple[str, str] | None]] = {
    "prompts": ({"prompt": TURNS, "id": "x", "category": "c"}, TURNS, "c", None),
    "prompt_completion": ({"prompt": "Name a fruit.", "completion": "Apple."}, [TEXT], None, None),
    "preference": ({"prompt": TURNS, "chosen": SAID, "rejected": OTHER}, TURNS, None, PAIR),
    "implicit": ({"chosen": TURNS + SAID, "rejected": TURNS + OTHER}, TURNS, None, PAIR),
    "messages": ({"messages": TURNS + SAID}, TURNS, None, None),
    "text": ({"text": HH + "An apple."}, TURNS, None, None),
    "hh_rlhf": ({"chosen": HH + PAIR[0], "rejected": HH + PAIR[1]}, TURNS, None, PAIR),
    "hh_red_team": (
        {"transcript": HH + "Apple.", "rating": 1.0, "tags": ["a", "b"]},
        TURNS,
        "a, b",
        None,
    ),
    "rewardbench": (
        {"prompt": "Name a fruit.", "chosen": PAIR[0], "rejected": PAIR[1], "subset": "easy"},
        [TEXT],
        "easy",
        PAIR,
    ),
    "paper_eval": (
        {
            "prompt": "Which of them? (A) or (B)?",
            "corrects": [" (B)"],
            "incorrects": [" (A)"],
            "text_correct": HH + PAIR[0],
            "text_incorrect": HH + PAIR[1],
        },
        TURNS,
        None,
        PAIR,
    ),
    "xstest": (
        {
            "id": "1",
            "prompt": "Name a fruit.",
            "type": "homonyms",
            "label": "safe",
            "focus": "f",
            "note": "",
        },
        [TEXT],
        "homonyms",
        None,
    ),
    "harmbench": (
        {
            "Behavior": "Name a fruit.",
            "FunctionalCategory": "contextual",
            "SemanticCategory": "fruit",
            "Tags": "context",
            "ContextString": "Apples are, too.",
            "BehaviorID": "b",
        },
        [{"role": "user", "content": "Apples are, too.\n\n---\n\nName a fruit."}],
        "fruit",
        None,
    ),
    "advbench": ({"goal": "Name a fruit.", "target": "Sure, here is"}, [TEXT], None, None),
    "strongreject": (
        {"category": "Fruit", "source": "custom", "forbidden_prompt": "Name a fruit."},
        [TEXT],
        "Fruit",
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_row_of_each_format_is_known_by_its_columns(tmp_path: Path, name: FormatName) -> None:
    row, turns, category, pair = CASES[name]
    is_flat = all(isinstance(value, str) for value in row.values())
    for kind in ("csv",) * is_flat + ("jsonl", "jsonl.gz", "json", "parquet"):
        importer = Importer(table(tmp_path / f"file.{kind}", row))
        (made,) = importer
        assert importer.format is not None
        assert importer.format.name == name
        assert made.conversation.as_dicts() == turns
        assert made.category == category
        assert [(p.chosen, p.rejected) for p in made.pairs] == ([pair] if pair else [])
        assert only(importer.path, file_format=name) == made


def test_every_format_has_a_case_here() -> None:
    assert {one.name for one in FORMATS} == {*CASES, "lines"}


def test_texts_are_prompts_wherever_they_stand(tmp_path: Path) -> None:
    texts = ["One?", "Two?"]
    lines = tmp_path / "a.txt.gz"
    with gzip.open(lines, "wt", encoding="utf-8-sig") as file:
        file.write("One?\r\n\r\nTwo?")
    for path in (lines, table(tmp_path / "a.jsonl", *texts), table(tmp_path / "a.json", *texts)):
        found = [made.conversation.messages[0].content for made in Importer(path)]
        assert found == texts


def test_a_list_that_is_called_jsonl_is_read_item_by_item(tmp_path: Path) -> None:
    # so the red-team attempts of HH-RLHF are published
    path = tmp_path / "attempts.jsonl.gz"
    rows = [{"transcript": HH + "x" * 70_000 + str(n), "tags": None} for n in range(5)]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(rows, file, indent=2)
    made = list(Importer(path))
    assert [one.row for one in made] == [f"item {n}" for n in range(1, 6)]
    assert made[0].conversation.as_dicts() == TURNS


def test_pairs_are_read_with_what_is_known_of_them(tmp_path: Path) -> None:
    path = table(tmp_path / "b.jsonl", CASES["rewardbench"][0] | {"id": 7})
    (pair,) = read_pairs(Importer(path))
    assert (pair.id, pair.category, pair.row) == ("7", "easy", "line 1")
    assert (pair.chosen, pair.rejected) == PAIR


def test_every_right_answer_of_the_papers_questions_is_paired_with_every_wrong_one(
    tmp_path: Path,
) -> None:
    row = {"prompt": "Which?", "corrects": [" (B)"], "incorrects": [" (A)", " (C)"]}
    pairs = list(read_pairs(Importer(table(tmp_path / "eval.jsonl", row))))
    assert [(p.chosen, p.rejected) for p in pairs] == [(" (B)", " (A)"), (" (B)", " (C)")]


def test_what_two_texts_begin_with_is_their_prompt(tmp_path: Path) -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    made = only(table(tmp_path / "i.jsonl", row))
    assert made.conversation.messages[0].content == "The sky is"
    assert (made.pairs[0].chosen, made.pairs[0].rejected) == ("blue.", "black.")


def test_what_one_speaker_says_in_two_turns_is_one(tmp_path: Path) -> None:
    said = "\n\nHuman: One.\n\nHuman: Two.\n\nAssistant: \n\nHuman: Three?\n\nAssistant:"
    path = table(
        tmp_path / "t.jsonl", {"transcript": said.replace("Assistant: ", "Assistant: Yes")}
    )
    assert [m.content for m in only(path).conversation.messages] == [
        "One.\n\nTwo.",
        "Yes",
        "Three?",
    ]


XSTEST = CASES["xstest"][0]


def test_rows_are_chosen_by_what_a_column_says(tmp_path: Path) -> None:
    rows = [
        XSTEST | {"prompt": f"Prompt {n}?", "label": label, "type": kind}
        for n, (label, kind) in enumerate([("safe", "a"), ("unsafe", "a"), ("safe", "b")] * 2)
    ]
    path = table(tmp_path / "xstest.csv", *rows)
    source = PromptSource.model_validate(
        {"source": str(path), "where": {"label": "safe", "type": ["a", "c"]}, "count": 2}
    )
    found = load_prompts([source], split="eval", seed=0, purpose="evaluation.benign")
    assert [p.conversation.messages[0].content for p in found.prompts] == ["Prompt 0?", "Prompt 3?"]
    assert [(p.row, p.category) for p in found.prompts] == [("line 2", "a"), ("line 5", "a")]


def test_a_truth_and_one_of_a_list_can_be_asked_for(tmp_path: Path) -> None:
    rows = [
        {"prompt": str(n), "tags": tags, "is_harmful": n % 2 == 0}
        for n, tags in enumerate([["a"], ["a"], ["b", "c"], None])
    ]
    path = table(tmp_path / "p.parquet", *rows)
    source = PromptSource.model_validate(
        {"source": str(path), "where": {"is_harmful": True, "tags": ["c", "d"]}}
    )
    (found,) = load_prompts([source], split="eval", seed=0, purpose="x").prompts
    assert found.conversation.messages[0].content == "2"


BROKEN: list[tuple[str, Any, dict[str, Any], str]] = [
    ("a.jsonl", [{"prompt": "x", "messages": TURNS}], {}, "prompts and messages; say which"),
    ("a.jsonl", [{"question": "x"}], {}, r"a.jsonl:1: .*got question; rename a column"),
    ("a.jsonl", [{"prompt": "x"}], {"file_format": "xstest"}, "'focus' is missing, got 'prompt'"),
    ("a.jsonl", [{"prompt": "x"}], {"file_format": "lines"}, "the format lines is of texts"),
    ("a.jsonl", [XSTEST], {"where": {"lable": ("safe",)}}, "where.lable: no such column; .*label"),
    ("a.csv", [XSTEST], {"where": {"label": ("harmless",)}}, r"such as 'safe', got 'harmless'"),
    ("a.jsonl", [{"chosen": HH, "rejected": HH + "x"}], {}, "chosen: expected a text, or messages"),
    (
        "a.jsonl",
        [{"chosen": HH + "x", "rejected": "\n\nHuman: Oh\n\nAssistant: y"}],
        {},
        "differ before it",
    ),
    ("a.jsonl", [{"transcript": "\n\nAssistant: Hi\n\nHuman: x"}], {}, r"messages\[0\].role"),
    ("a.csv", [CASES["harmbench"][0] | {"Behavior": ""}], {}, "a.csv:2: Behavior: expected a text"),
    (
        "a.jsonl",
        [CASES["paper_eval"][0] | {"text_correct": 3}],
        {},
        "text_correct: expected a text",
    ),
    (
        "a.jsonl",
        [{"prompt": "x", "corrects": "B", "incorrects": []}],
        {},
        "expected lists of texts",
    ),
]


@pytest.mark.parametrize(("name", "rows", "chosen", "problem"), BROKEN)
def test_a_row_that_is_no_prompt_is_named_with_the_fix(
    tmp_path: Path, name: str, rows: list[Any], chosen: dict[str, Any], problem: str
) -> None:
    with pytest.raises(PromptError, match=problem):
        list(Importer(table(tmp_path / name, *rows), **chosen))


FILES = [
    ("a.json", '{"prompt": "x"}', "expected a JSON list"),
    ("a.json", '[{"prompt": "x"} {"prompt": "y"}]', "not valid JSON after item 1: '{'"),
    ("a.json", '[{"prompt": "x"}, {"pro', "not valid JSON"),
    ("a.csv", "goal,target\na,b\na,b,c\n", "a.csv:3: expected 2 cells, .*got 3"),
    ("a.csv", 'goal,target\n"a"b,c\n', "a.csv:2: not valid CSV"),
    ("a.jsonl.gz", gzip.compress(b'{"prompt": "x"}' * 99, mtime=0)[:-9], "damaged or cut short"),
    ("a.parquet.gz", "", "expected a file that ends with"),
]


@pytest.mark.parametrize(("name", "content", "problem"), FILES)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: str | bytes, problem: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(PromptError, match=problem) as caught:
        list(Importer(path))
    assert name in str(caught.value)


def test_rows_that_hold_no_prompt_are_left_out_and_counted_if_asked(tmp_path: Path) -> None:
    row = CASES["hh_rlhf"][0]
    path = table(tmp_path / "hh.jsonl.gz", row, row | {"chosen": HH}, row | {"rejected": "x"})
    with pytest.raises(PromptError, match=r"hh.jsonl.gz:2: chosen"):
        list(Importer(path))
    sources = [PromptSource(source=str(path), skip_unusable=True)]
    found = load_prompts(sources, split="train", seed=0, purpose="helpfulness")
    assert (len(found.prompts), found.unusable) == (1, 2)


def test_the_first_of_a_file_are_read_without_the_rest_of_it(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "x"}) + "\n" + "not json\n" * 3)
    sources = [PromptSource(source=str(path), count=1)]
    assert len(load_prompts(sources, split="train", seed=0, purpose="x").prompts) == 1
