"""Paths and URLs: how they are read, shown and compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from solon.engine.base import InvalidInput
from solon.engine.sources import Source


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/a/b", "https://host/a/b"),
        ("HTTPS://user:secret@host:8443/a", "https://***@host:8443/a"),
        ("http://token@host/a?key=secret", "http://***@host/a?***"),
        ("s3://key:secret@bucket/a", "s3://***@bucket/a"),
        ("hf://org/model@main/a", "hf://org/model@main/a"),
        ("abfs://container@account/a", "abfs://container@account/a"),
        ("file:///models/a%20b", "/models/a b"),
        ("file://localhost/models", "/models"),
        ("/models/a/../b", "/models/b"),
    ],
)
def test_a_source_is_shown_without_credentials(text: str, shown: str) -> None:
    source = Source.parse(text)
    assert str(source) == shown
    assert "secret" not in repr(source)


def test_a_file_of_a_url_keeps_its_credentials() -> None:
    source = Source.parse("https://me:pw@host/a/?key=k")
    assert source.file("config.json") == "https://me:pw@host/a/config.json?key=k"
    assert source.text == "https://me:pw@host/a/?key=k"


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a/../b",
        "https://host/a/%2e%2e/b",
        "https://host/a/%252E%252e/b",
        "https://host/a/..%2fb",
        "https://host/./a",
        "https://good\\@evil/a",
        "https://host/a b",
        "https://host/a\n",
        "https://host/a#b",
        "s3://bucket/a?versionId=1",
        "file://elsewhere/a",
        "simplecache::s3://bucket/a",
        "1a://host/a",
        "/models/\0",
    ],
)
def test_what_may_be_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="path: expected"):
        Source.parse(text)


@pytest.mark.parametrize(
    ("text", "prefix", "beneath"),
    [
        ("https://host/models/a", "https://host/models", True),
        ("https://host/models", "https://host/models/", True),
        ("https://me:pw@HOST:443/models/a?key=k", "https://host/models", True),
        ("https://host/a", "https://host", True),
        ("s3://bucket/a", "s3://bucket", True),
        ("https://host/models-of-others/a", "https://host/models", False),
        ("https://host/models%2Fa", "https://host/models", False),
        ("https://host/", "https://host/models", False),
        ("http://host/models/a", "https://host/models", False),
        ("https://host:8443/models/a", "https://host/models", False),
        ("https://host@evil/models/a", "https://host/models", False),
        ("https://host.evil/models/a", "https://host/models", False),
        ("hf://org@evil/models", "hf://evil/models", False),
        ("s3://bucket/a", "/", False),
        ("/models/a", "s3://bucket", False),
    ],
)
def test_only_what_lies_beneath_a_prefix_is_beneath_it(
    text: str, prefix: str, beneath: bool
) -> None:
    assert Source.parse(text).lies_beneath(Source.parse(prefix)) is beneath


def test_paths_are_compared_where_symlinks_lead(tmp_path: Path) -> None:
    inside = tmp_path / "models" / "a"
    outside = tmp_path / "secret"
    inside.mkdir(parents=True)
    outside.mkdir()
    (inside.parent / "link").symlink_to(outside)
    (tmp_path / "current").symlink_to(inside.parent)
    prefix = Source.parse(str(tmp_path / "models"))
    for text in (inside, inside.parent, tmp_path / "current" / "a", f"file://{inside}"):
        assert Source.parse(str(text)).lies_beneath(prefix)
    for text in (
        outside,
        tmp_path / "models-of-others",
        inside.parent / "link",
        inside.parent / ".." / "secret",
        f"file://{inside}/..%2f..%2fsecret",
    ):
        try:
            assert not Source.parse(str(text)).lies_beneath(prefix)
        except InvalidInput:
            assert "%2f" in str(text)
