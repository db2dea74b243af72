"""The run directory under kills, full disks, damage and behind URLs."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest

from solon.trainer.errors import RunDirectoryError, StoreError
from solon.trainer.storage import Storage
from solon.trainer.store import Parts, RunDirectory

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.int64())])
WRITER = """
import sys
from pathlib import Path
import pyarrow as pa
from solon.trainer.store import RunDirectory

schema = pa.schema([("id", pa.string()), ("value", pa.int64())])
parts = RunDirectory(sys.argv[1]).parts("records", schema)
done = parts.ids()
left = [n for n in range(int(sys.argv[2])) if str(n) not in done]
print("ready", flush=True)
for start in range(0, len(left), 3):
    parts.append([{"id": str(n), "value": n * n} for n in left[start : start + 3]])
    print(start, flush=True)
"""


def rows(start: int, stop: int) -> list[dict[str, object]]:
    return [{"id": str(n), "value": n} for n in range(start, stop)]


def parts_of(url: str | Path) -> Parts:
    return RunDirectory(str(url)).parts("records", SCHEMA)


def test_a_writer_killed_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    dice = random.Random(3)
    total = 45
    kills = 0
    for _ in range(200):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(total)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        for _ in range(dice.randint(1, 8)):
            # anywhere in the writing of the part after this one
            if not writer.stdout.readline():
                break
        writer.send_signal(signal.SIGKILL)
        kills += 1
        writer.communicate()
        if len(parts_of(tmp_path).ids()) == total:
            break
    records = list(parts_of(tmp_path).records())
    assert kills > 2
    assert sorted(records, key=lambda r: int(r["id"])) == [
        {"id": str(n), "value": n * n} for n in range(total)
    ]


def test_the_content_does_not_depend_on_how_it_was_split_or_ordered(tmp_path: Path) -> None:
    once, often = parts_of(tmp_path / "once"), parts_of(tmp_path / "often")
    once.append(rows(0, 20))
    for start in (15, 5, 10, 0):
        often.append(rows(start, start + 5))
    assert list(once.records()) == list(often.records())


def test_more_records_than_are_sorted_in_memory_come_in_the_same_order(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    places = list(range(20_000))
    random.Random(1).shuffle(places)
    for start in range(0, len(places), 1_500):
        parts.append([{"id": str(n), "value": n} for n in places[start : start + 1_500]])
    found = list(parts.records())
    assert [row["id"] for row in found] == sorted(map(str, places))
    assert all(row["id"] == str(row["value"]) for row in found)


def test_what_a_killed_writer_left_half_written_is_no_record_and_is_removed(tmp_path: Path) -> None:
    parts_of(tmp_path).append(rows(0, 3))
    run = RunDirectory(str(tmp_path))
    revisions = run.parts("revisions", SCHEMA)
    revisions.append(rows(0, 3))
    half = tmp_path / "revisions" / ".part-000001.parquet.tmp-77"
    half.write_bytes(b"PAR1")
    assert len(revisions.ids()) == 3
    assert run.remove_leftovers() == 1
    assert not half.exists()


def test_a_damaged_part_is_named_with_the_way_out(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    parts.append(rows(0, 3))
    (tmp_path / "records" / "part-000001.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(StoreError, match=r"part-000001.parquet: is damaged .*remove it"):
        parts.ids()


def test_a_record_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    parts.append(rows(0, 3))
    parts.append(rows(2, 4))
    with pytest.raises(StoreError, match=r"part-000001.parquet: holds records .*'2'"):
        parts.ids()


def test_parts_of_another_version_are_refused(tmp_path: Path) -> None:
    parts_of(tmp_path).append(rows(0, 1))
    other = RunDirectory(str(tmp_path)).parts("records", pa.schema([("id", pa.string())]))
    with pytest.raises(StoreError, match="has other columns"):
        list(other.records())


def test_records_are_written_and_read_without_pandas(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys
        import pyarrow as pa
        from solon.trainer.store import RunDirectory

        run = RunDirectory(sys.argv[1])
        parts = run.parts("records", pa.schema([("id", pa.string())]))
        assert list(parts.records()) == []
        parts.append([{"id": "a"}])
        assert set(parts.ids()) == {"a"} and parts.where("id", "a") == list(parts.records())
        with run.exporting("sft/train", pa.schema([("id", pa.string())])) as export:
            export.extend(parts.records())
        assert run.exported("sft/train") == [{"id": "a"}]
        print("pandas" in sys.modules)
    """)
    assert subprocess.check_output([sys.executable, "-c", code, str(tmp_path)]) == b"False\n"


def test_behind_a_url_everything_works_the_same() -> None:
    parts = parts_of("memory://run-of-this-test")
    parts.append(rows(0, 4))
    again = parts_of("memory://run-of-this-test")
    again.append(rows(4, 6))
    assert set(again.ids()) == {str(n) for n in range(6)}
    assert Storage("memory://run-of-this-test").list("records", ".parquet") == [
        "records/part-000000.parquet",
        "records/part-000001.parquet",
    ]


def test_training_behind_a_url_is_refused_in_words() -> None:
    with pytest.raises(RunDirectoryError, match="choose a path with --run"):
        _ = RunDirectory("memory://somewhere").local


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(StoreError, match="nosuch"):
        RunDirectory("nosuch://bucket/run")


def test_a_full_disk_is_one_clear_error_and_what_was_written_stays_whole(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import os, resource, sys
        import pyarrow as pa
        from solon.trainer.errors import StoreError
        from solon.trainer.store import RunDirectory

        schema = pa.schema([("id", pa.string()), ("value", pa.string())])
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        parts = RunDirectory(sys.argv[1]).parts("records", schema)
        parts.append([{"id": "small", "value": "x"}])
        try:
            parts.append([{"id": "large", "value": os.urandom(200_000).hex()}])
        except StoreError as error:
            print(error)
            sys.exit(7)
    """)

    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 7, ended.stderr
    assert "part-000001.parquet: could not be written: the file would exceed" in ended.stdout
    assert "run again with --resume" in ended.stdout
    schema = pa.schema([("id", pa.string()), ("value", pa.string())])
    assert set(RunDirectory(str(tmp_path)).parts("records", schema).ids()) == {"small"}
    assert [p.name for p in (tmp_path / "records").iterdir()] == ["part-000000.parquet"]


def test_no_space_left_is_said_as_such() -> None:
    with (
        pytest.raises(StoreError, match="the disk is full: free some space"),
        Storage("/")._explained("x", "written"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_state_is_replaced_whole_and_damage_is_named(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    assert run.read_json("state.json") is None
    run.write_json("state.json", {"a": 1})
    run.write_json("state.json", {"b": "\u3053"})
    assert run.read_json("state.json") == {"b": "\u3053"}
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(StoreError, match=r"state.json: is damaged"):
        run.read_json("state.json")
