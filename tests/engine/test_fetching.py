"""Weights behind URLs: fetched whole, or not at all and with the reason."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest

from solon.chat import Conversation
from solon.engine import Engine
from solon.engine.base import InvalidInput, Sampling, WeightsNotLoaded
from tests.engine.conftest import make_adapter, make_model, running

PROMPT = Conversation.from_user("How do I bake bread?")
LONG = Sampling(temperature=0.0, max_tokens=60)
SHARD = "model-00002-of-00007.safetensors"


async def said(engine: Engine) -> tuple[Any, ...]:
    answer = await engine.generate(PROMPT, LONG)
    return answer.weight_version, answer.tokens


class Handler(SimpleHTTPRequestHandler):
    """Files of a directory, with the mistakes that its server says."""

    server: Web

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name = Path(url.path).name
        if self.server.needs and self._brought() != self.server.needs:
            self.send_error(401)
        elif name in self.server.refused:
            self.send_error(self.server.refused[name])
        elif name == self.server.cut:
            self._send_half(Path(self.translate_path(url.path)).read_bytes())
        else:
            super().do_GET()

    def _brought(self) -> tuple[str, str]:
        kind, _, coded = self.headers.get("Authorization", "").partition(" ")
        assert kind in ("Basic", "")
        return base64.b64decode(coded).decode(), urlsplit(self.path).query

    def _send_half(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.server.half_sent.set()
        self.server.go_on.wait()
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Web(ThreadingHTTPServer):
    """A web server on loopback."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(root)))
        self.root = root
        self.needs: tuple[str, str] | None = None
        """User and password, and the query, of every request."""
        self.refused: dict[str, int] = {}
        """Status of files that are not given."""
        self.cut = ""
        """The file of which only half is sent, until ``go_on``; then the connection ends."""
        self.half_sent = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def url(self, folder: str, credentials: str = "") -> str:
        return f"http://{credentials}127.0.0.1:{self.server_port}/{folder}"


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root = tmp_path / "web"
    make_model(root / "full", seed=1)
    make_model(root / "sharded", seed=1, shard="20KB")
    with Web(root) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


async def refusal(engine: Engine, url: str, temporary: Path) -> str:
    """What is said of weights that are not loaded; nothing else has changed."""
    before = await said(engine)
    with pytest.raises(WeightsNotLoaded) as caught:
        await engine.update_weights(url, "next")
    assert await said(engine) == before
    assert list(temporary.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("folder", ["full", "sharded", "sharded/"])
async def test_full_weights_are_fetched_over_http(
    folder: str, model_path: Path, web: Web, temporary: Path
) -> None:
    async with running(web.root / "full", weight_version="next") as engine:
        expected = await said(engine)
    async with running(model_path) as engine:
        await engine.update_weights(web.url(folder), "next")
        assert list(temporary.iterdir()) == []
        assert await said(engine) == expected


async def test_an_adapter_and_its_base_are_fetched_over_http(
    model_path: Path, web: Web, temporary: Path
) -> None:
    make_adapter(web.root / "adapter", web.root / "full")
    async with running(web.root / "full") as engine:
        await engine.update_weights(str(web.root / "adapter"), "next")
        expected = await said(engine)
    async with running(model_path) as engine:
        await engine.update_weights(web.url("sharded"), "full")
        await engine.update_weights(web.url("adapter"), "next")
        assert await said(engine) == expected
        assert list(temporary.iterdir()) == []
        web.refused = {"config.json": 500}
        text = await refusal(engine, web.url("adapter"), temporary)
        assert "the full weights that the adapter is for cannot be read again" in text
        assert f"{web.url('sharded')!r}: cannot fetch config.json: HTTP 500" in text


async def test_weights_are_fetched_from_any_file_system_of_fsspec(
    model_path: Path, other_path: Path, temporary: Path
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(other_path), "/models/other", recursive=True)
    async with running(other_path, weight_version="next") as engine:
        expected = await said(engine)
    async with running(model_path) as engine:
        for url in ("memory://models/other", f"file://{other_path}"):
            await engine.update_weights(str(model_path), "back")
            await engine.update_weights(url, "next")
            assert await said(engine) == expected
        assert "'memory://models/none': cannot fetch config.json: it is not there" in await refusal(
            engine, "memory://models/none", temporary
        )
        assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "refused", "what"),
    [
        ("nowhere", {}, "config.json: it is not there, or may not be read: expected config.json"),
        ("full", {"config.json": 503}, "config.json: HTTP 503"),
        ("full", {"adapter_config.json": 500}, "adapter_config.json: HTTP 500"),
        ("full", {"model.safetensors": 404}, "model.safetensors.index.json: it is not there"),
        ("sharded", {SHARD: 404}, f"{SHARD}: it is not there"),
    ],
)
async def test_a_file_that_is_not_given_is_named(
    folder: str, refused: dict[str, int], what: str, model_path: Path, web: Web, temporary: Path
) -> None:
    web.refused = refused
    async with running(model_path) as engine:
        text = await refusal(engine, web.url(folder), temporary)
    assert f"path {web.url(folder)!r}: cannot fetch {what}" in text


@pytest.mark.parametrize(
    ("folder", "name"),
    [("full", "config.json"), ("full", "model.safetensors"), ("sharded", SHARD)],
)
async def test_a_download_that_ends_early_is_noticed(
    folder: str, name: str, model_path: Path, web: Web, temporary: Path
) -> None:
    web.cut = name
    async with running(model_path) as engine:
        text = await refusal(engine, web.url(folder), temporary)
    assert f"{web.url(folder)!r}: cannot fetch {name}: ClientPayloadError" in text


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
async def test_a_damaged_file_is_reported_with_the_url_and_not_with_where_it_was_fetched_to(
    name: str, model_path: Path, web: Web, temporary: Path
) -> None:
    path = web.root / "full" / name
    path.write_bytes(path.read_bytes()[:-100])
    async with running(model_path) as engine:
        text = await refusal(engine, web.url("full"), temporary)
    assert text.startswith(f"path {web.url('full')!r}: ")
    assert str(temporary) not in text


async def test_a_store_that_forbids_what_is_not_there_is_read_all_the_same(
    model_path: Path, web: Web
) -> None:
    web.refused = {"adapter_config.json": 403}
    async with running(model_path) as engine:
        await engine.update_weights(web.url("full"), "next")
        assert engine.weight_version == "next"


@pytest.mark.parametrize("name", ["../../full/model.safetensors", "/etc/passwd", "a.bin", 7])
async def test_an_index_that_names_anything_but_files_beside_it_is_refused(
    name: object, model_path: Path, web: Web, temporary: Path
) -> None:
    index = web.root / "sharded" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    async with running(model_path) as engine:
        text = await refusal(engine, web.url("sharded"), temporary)
        assert f"expected names of .safetensors files, got {name!r}" in text
        index.write_text("[]")
        assert "it is no index of shards" in await refusal(engine, web.url("sharded"), temporary)


async def test_credentials_of_a_url_reach_every_file_and_no_error(
    model_path: Path, web: Web, temporary: Path
) -> None:
    web.needs = ("me:hunter2", "key=hunter3")
    url = web.url("sharded?key=hunter3", "me:hunter2@")
    async with running(model_path) as engine:
        await engine.update_weights(url, "next")
        assert engine.weight_version == "next"
        shown = f"'http://***@127.0.0.1:{web.server_port}/sharded?***'"
        web.refused = {"config.json": 404}
        texts = [await refusal(engine, url, temporary)]
        web.refused, web.cut = {}, "config.json"
        texts.append(await refusal(engine, url, temporary))
        web.needs = ("me", "other")
        texts.append(await refusal(engine, url, temporary))
        assert all(shown in text and "hunter" not in text for text in texts)
        assert "HTTP 401" in texts[-1]
        with pytest.raises(InvalidInput) as caught:
            await engine.update_weights(f"{url}#", "next")
        assert "hunter" not in str(caught.value)


async def test_a_scheme_without_its_driver_names_the_package(
    model_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    async with running(model_path) as engine:
        assert "need a package that this server lacks: Install s3fs" in await refusal(
            engine, "s3://bucket/model", temporary
        )
        assert "Protocol not known: carrier-pigeon" in await refusal(
            engine, "carrier-pigeon://loft/model", temporary
        )


async def test_what_the_disk_cannot_hold_is_not_fetched(
    model_path: Path, web: Web, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(temporary)._replace(free=30_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    async with running(model_path) as engine:
        text = await refusal(engine, web.url("full"), temporary)
        assert "cannot fetch model.safetensors" in text
        assert "more bytes are needed where 30,000 are free: point TMPDIR" in text
        assert "30,000 are free" in await refusal(engine, web.url("sharded"), temporary)


async def test_nowhere_to_fetch_to_is_said(
    model_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    async with running(model_path) as engine:
        with pytest.raises(WeightsNotLoaded, match=r"nowhere to fetch it to.*point TMPDIR"):
            await engine.update_weights(web.url("full"), "next")


async def test_an_update_that_is_cancelled_while_it_fetches_leaves_nothing_behind(
    model_path: Path, web: Web, temporary: Path
) -> None:
    async with running(model_path) as engine:
        before = await said(engine)
        web.cut = "model.safetensors"
        web.go_on.clear()
        update = asyncio.create_task(engine.update_weights(web.url("full"), "next"))
        await asyncio.to_thread(web.half_sent.wait)
        assert await said(engine) == before
        update.cancel()
        web.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await update
        assert list(temporary.iterdir()) == []
        assert await said(engine) == before
        web.cut = ""
        await engine.update_weights(web.url("full"), "next")
        assert engine.weight_version == "next"
