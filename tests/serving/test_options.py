"""The command line: what it takes, and what it says of mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from solon.engine.sources import Source
from solon.serving.options import ServerOptions, UsageError, parse


def read(*argv: str, takes_constitutions: bool = True) -> ServerOptions:
    return parse("solon-judge", argv, takes_constitutions=takes_constitutions)


def test_without_flags_every_option_has_its_default() -> None:
    assert read() == ServerOptions(program="solon-judge")


def test_flags_are_read_into_options() -> None:
    options = read(
        "--port=7000", "--engine=scripted", "--model=/m", "--weight-version=sl",
        "--constitution=core", "--constitution=./mine.yaml", "--threads=2", "--device=cpu",
        "--dtype=float32", "--max-batch=8", "--queue-capacity=9", "--max-tokens-default=10",
        "--ready-file=/tmp/ready", "--log-level=DEBUG", "--drain-seconds=1.5",
        "--settle-seconds=0", "--engine-option=seed=1", "--engine-option=note=a=b",
        "--max-message-bytes=1024", "--max-in-flight=100",
        "--weights-from=/models", "--weights-from=s3://bucket/models",
    )  # fmt: skip
    assert options == ServerOptions(
        program="solon-judge",
        port=7000,
        engine="scripted",
        model="/m",
        weight_version="sl",
        constitutions=("core", "./mine.yaml"),
        threads=2,
        device="cpu",
        dtype="float32",
        max_batch=8,
        queue_capacity=9,
        max_tokens_default=10,
        max_message_bytes=1024,
        max_in_flight=100,
        weights_from=(Source.parse("/models"), Source.parse("s3://bucket/models")),
        ready_file=Path("/tmp/ready"),
        log_level="DEBUG",
        settle_seconds=0,
        drain_seconds=1.5,
        engine_options={"seed": "1", "note": "a=b"},
    )


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--port=65536", "expected 0 to 65535, got '65536'"),
        ("--port=http", "expected 0 to 65535, got 'http'"),
        ("--threads=0", "--threads"),
        ("--max-batch=0", "--max-batch"),
        ("--queue-capacity=0", "--queue-capacity"),
        ("--max-tokens-default=131073", "expected 1 to 131072"),
        ("--max-message-bytes=0", "--max-message-bytes"),
        ("--drain-seconds=-1", "expected seconds, 0 or more, got '-1'"),
        ("--settle-seconds=inf", "expected seconds, 0 or more, got 'inf'"),
        ("--drain-seconds=nan", "expected seconds, 0 or more, got 'nan'"),
        ("--weight-version=", "expected 1 to 256 characters, got 0"),
        ("--engine-option=seed", "expected KEY=VALUE, got 'seed'"),
        ("--device=tpu", "--device"),
        ("--log-level=LOUD", "--log-level"),
        ("--weights-from=https://host/..", "--weights-from: expected a URL whose path has no . or"),
        ("--modle=x", "--modle"),
    ],
)
def test_a_wrong_flag_is_named_with_what_was_expected(flag: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        read(flag)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_an_address_that_others_reach_needs_a_flag(host: str) -> None:
    with pytest.raises(UsageError, match="--insecure-bind"):
        read(f"--host={host}")
    assert read(f"--host={host}", "--insecure-bind").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_loopback_address_needs_none(host: str) -> None:
    assert read(f"--host={host}").host == host


def test_the_policy_takes_no_constitution() -> None:
    with pytest.raises(UsageError, match="--constitution"):
        read("--constitution=core", takes_constitutions=False)
