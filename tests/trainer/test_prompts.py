"""Prompts from files: kept whole, distinct, and refused with their line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from solon.trainer.errors import PromptError
from solon.trainer.prompt_settings import PromptSource
from solon.trainer.prompts import PromptSet, load_prompts


def read(path: Path, count: int | None = None) -> PromptSet:
    sources = [PromptSource(source=str(path), count=count)]
    return load_prompts(sources, split="train", seed=0, purpose="red_team")


def jsonl(tmp_path: Path, *records: Any) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "How do I cook rice?"},
]


def test_a_conversation_of_many_turns_is_kept_whole(tmp_path: Path) -> None:
    (prompt,) = read(jsonl(tmp_path, {"prompt": TURNS, "id": "rice"})).prompts
    assert prompt.id == "rice"
    assert prompt.conversation.as_dicts() == TURNS


def test_the_three_kinds_of_files_give_the_same_ids_for_the_same_text(tmp_path: Path) -> None:
    texts = ["How do I cook rice?", "Wie geht es dir?", "\u3053\u3093\u306b\u3061\u306f"]
    text_file = tmp_path / "prompts.txt"
    text_file.write_text("\n\n".join(texts))
    parquet = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": texts}), parquet)
    found = [
        [prompt.id for prompt in read(path).prompts]
        for path in (text_file, parquet, jsonl(tmp_path, *({"prompt": t} for t in texts)))
    ]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 3


def test_the_same_conversation_twice_is_left_out_and_counted(tmp_path: Path) -> None:
    found = read(jsonl(tmp_path, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "id": "x"}))
    assert len(found.prompts) == 2
    assert found.duplicates == 1


def test_a_count_takes_the_first_of_a_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *({"prompt": str(number)} for number in range(5)))
    assert [p.conversation.messages[0].content for p in read(path, 2).prompts] == ["0", "1"]


BROKEN = [
    ("not json", "prompts.jsonl:2: not valid JSON"),
    ({"text": "x"}, "prompts.jsonl:2: expected the columns of the format prompts, prompt;"),
    ([1], "prompts.jsonl:2: expected an object such as {"),
    ({"prompt": ""}, "prompts.jsonl:2: prompt: expected a text, got an empty one"),
    ({"prompt": 3}, "prompts.jsonl:2: prompt: expected a text or a list"),
    ({"prompt": []}, "prompts.jsonl:2: prompt: messages: expected at least one"),
    ({"prompt": TURNS[:3]}, "prompts.jsonl:2: prompt: expected the last message to be the user's"),
    ({"prompt": TURNS[1:2] * 2}, "prompts.jsonl:2: prompt: messages[1].role"),
    ({"prompt": [{"role": "user", "content": " "}]}, "messages[0].content is empty"),
    ({"prompt": "b", "id": ["x"]}, "prompts.jsonl:2: id: expected a text"),
    ({"prompt": "b", "id": "one"}, "prompts.jsonl:2: id 'one' was given before"),
]


@pytest.mark.parametrize(("second", "expected"), BROKEN)
def test_a_broken_record_is_refused_with_its_line(
    tmp_path: Path, second: Any, expected: str
) -> None:
    with pytest.raises(PromptError) as caught:
        read(jsonl(tmp_path, {"prompt": "a", "id": "one"}, second))
    assert expected in str(caught.value)


def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    names = ("e.txt", "l.txt", "t.parquet", "o.xlsx")
    empty, latin, table, other = (tmp_path / name for name in names)
    other.touch()
    empty.write_text("\n\n")
    latin.write_bytes(b"fine\n\xff\xfe\n")
    pq.write_table(pa.table({"question": ["x"]}), table)
    for path, expected in [
        (empty, "expected at least one prompt, got none"),
        (latin, "l.txt:2: not UTF-8"),
        (table, "expected the columns of a known format, got question; rename a column"),
        (tmp_path / "missing.txt", "no such file"),
        (other, "expected a file that ends with .jsonl, .json, .csv"),
    ]:
        with pytest.raises(PromptError, match=expected) as caught:
            read(path)
        assert path.name in str(caught.value)


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(PromptError, match="cannot be read as Parquet"):
        read(path)


def test_more_prompts_than_a_file_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="expected 9 prompts, as its count says, got 1"):
        read(jsonl(tmp_path, {"prompt": "a"}), count=9)
