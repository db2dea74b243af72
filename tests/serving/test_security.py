"""Who may call, and who can listen: real certificates, real tokens, real processes."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from solon.client import ControlClient, Conversation, PolicyClient, Tls, errors
from solon.policy.server import ROLE
from solon.serving.options import UsageError, parse
from solon.serving.testing import FunctionEngine, running
from solon.serving.tokens import ENVIRONMENT, Scope, TokenError, Tokens, line_of
from solon.serving.tokens import parse as lines

HELLO = Conversation.from_user("Hello.")
NOW = datetime.datetime.now(datetime.UTC)


class Authority:
    """A certificate authority of the test's, and files that it signs."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self._issued = 0
        folder.mkdir()
        self.path = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.path)

    def issue(self, name: str, **options: Any) -> tuple[Path, Path]:
        """Certificate and key."""
        made = self._ca.issue_cert(name, **options)
        self._issued += 1
        certificate = self._folder / f"{self._issued}.pem"
        key = self._folder / f"{self._issued}.key"
        for blob in made.cert_chain_pems:
            blob.write_to_path(certificate, append=True)
        made.private_key_pem.write_to_path(key)
        return certificate, key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "stranger")


async def answers(address: str, **options: Any) -> str:
    """What a policy says, asked once."""
    async with PolicyClient(address, retry_for=0, timeout=20, **options) as client:
        made = await client.generate(HELLO)
    return made.completions[0].text


async def refused(call: Awaitable[object]) -> errors.SolonError:
    with pytest.raises(errors.SolonError) as caught:
        await call
    return caught.value


async def test_tls_answers_whoever_trusts_its_authority(authority: Authority) -> None:
    certificate, key = authority.issue("127.0.0.1")
    async with running(ROLE, FunctionEngine(), tls_certificate=certificate, tls_key=key) as address:
        assert await answers(address, tls=Tls(ca=authority.path)) == "Yes."


async def test_a_client_refuses_a_server_of_another_authority(
    authority: Authority, stranger: Authority
) -> None:
    certificate, key = authority.issue("127.0.0.1")
    engine = FunctionEngine()
    async with running(ROLE, engine, tls_certificate=certificate, tls_key=key) as address:
        error = await refused(answers(address, tls=Tls(ca=stranger.path)))
        assert isinstance(error, errors.Unavailable)
        assert isinstance(await refused(answers(address)), errors.Unavailable)
    assert engine.asked == []


async def test_a_client_refuses_an_expired_certificate(authority: Authority) -> None:
    certificate, key = authority.issue("127.0.0.1", not_after=NOW - datetime.timedelta(days=1))
    async with running(ROLE, FunctionEngine(), tls_certificate=certificate, tls_key=key) as address:
        error = await refused(answers(address, tls=Tls(ca=authority.path)))
    assert error.code is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_for_another_name_needs_that_name(authority: Authority) -> None:
    certificate, key = authority.issue("judge.example")
    async with running(ROLE, FunctionEngine(), tls_certificate=certificate, tls_key=key) as address:
        await refused(answers(address, tls=Tls(ca=authority.path)))
        named = Tls(ca=authority.path, server_name="judge.example")
        assert await answers(address, tls=named) == "Yes."


async def test_mutual_tls_wants_a_certificate_of_its_authority(
    authority: Authority, stranger: Authority
) -> None:
    certificate, key = authority.issue("127.0.0.1")
    mine, of_stranger = authority.issue("caller@example"), stranger.issue("caller@example")
    engine = FunctionEngine()
    async with running(
        ROLE, engine, tls_certificate=certificate, tls_key=key, tls_client_ca=authority.path
    ) as address:
        for shown in (None, of_stranger):
            tls = Tls(ca=authority.path)
            if shown is not None:
                tls = dataclasses.replace(tls, certificate=shown[0], key=shown[1])
            error = await refused(answers(address, tls=tls))
            assert error.code is grpc.StatusCode.UNAVAILABLE
        assert engine.asked == []
        tls = Tls(ca=authority.path, certificate=mine[0], key=mine[1])
        assert await answers(address, tls=tls) == "Yes."


async def test_a_renewed_certificate_is_used_without_a_restart(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls.key"

    def install(issued: tuple[Path, Path]) -> None:
        for source, target in zip(issued, (certificate, key), strict=True):
            target.write_bytes(source.read_bytes())

    install(authority.issue("127.0.0.1"))
    old, new = Tls(ca=authority.path), Tls(ca=stranger.path)
    async with running(ROLE, FunctionEngine(), tls_certificate=certificate, tls_key=key) as address:
        assert await answers(address, tls=old) == "Yes."
        certificate.write_text("half of a cert", "utf-8")
        assert await answers(address, tls=old) == "Yes."
        install(stranger.issue("127.0.0.1"))
        assert await answers(address, tls=new) == "Yes."
        await refused(answers(address, tls=old))


@pytest.mark.parametrize("broken", ["missing", "swapped", "text"])
async def test_tls_files_that_do_not_work_are_named_before_anything_is_served(
    broken: str, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("127.0.0.1")
    if broken == "missing":
        key = tmp_path / "none.key"
    elif broken == "swapped":
        certificate, key = key, certificate
    else:
        key.write_text("no key", "utf-8")
    with pytest.raises(UsageError, match="--tls-key") as caught:
        async with running(ROLE, FunctionEngine(), tls_certificate=certificate, tls_key=key):
            raise AssertionError("it serves")
    assert str(key) in str(caught.value)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(
        "# who may call\n"
        f"{line_of('chat', [Scope.INFER], 'chat-secret')}\n\n"
        f"{line_of('trainer', [Scope.INFER, Scope.CONTROL], 'trainer-secret')}\n"
        f"{line_of('ops', [Scope.CONTROL], 'ops-secret')}\n",
        "utf-8",
    )
    return path


async def load_of(address: str, token: str | None) -> object:
    async with ControlClient(address, retry_for=0, token=token) as control:
        await control.get_server_info()
        return await control.get_load()


async def pause(address: str, token: str | None) -> object:
    async with ControlClient(address, retry_for=0, token=token) as control:
        return await control.pause()


@pytest.mark.parametrize(
    ("call", "token", "code"),
    [
        (answers, None, grpc.StatusCode.UNAUTHENTICATED),
        (answers, "wrong", grpc.StatusCode.UNAUTHENTICATED),
        (answers, "ops-secret", grpc.StatusCode.PERMISSION_DENIED),
        (answers, "chat-secret", None),
        (answers, "trainer-secret", None),
        (load_of, None, grpc.StatusCode.UNAUTHENTICATED),
        (load_of, "wrong", grpc.StatusCode.UNAUTHENTICATED),
        (load_of, "chat-secret", None),
        (load_of, "ops-secret", None),
        (pause, None, grpc.StatusCode.UNAUTHENTICATED),
        (pause, "wrong", grpc.StatusCode.UNAUTHENTICATED),
        (pause, "chat-secret", grpc.StatusCode.PERMISSION_DENIED),
        (pause, "ops-secret", None),
        (load_of, "trainer-secret", None),
    ],
)
async def test_a_token_opens_what_its_scopes_say(
    call: Callable[..., Awaitable[object]],
    token: str | None,
    code: grpc.StatusCode | None,
    token_file: Path,
) -> None:
    engine = FunctionEngine()
    async with running(ROLE, engine, token_file=token_file) as address:
        if code is None:
            await call(address, token=token)
            return
        error = await refused(call(address, token=token))
    assert (type(error), error.code) == (errors.NotAuthorized, code)
    assert "secret" not in str(error)
    assert engine.asked == []


async def test_health_needs_no_token(token_file: Path) -> None:
    async with (
        running(ROLE, FunctionEngine(), token_file=token_file) as address,
        PolicyClient(address) as client,
    ):
        await client.wait_until_serving(timeout=20)


async def test_two_callers_with_one_request_id_get_an_answer_each(token_file: Path) -> None:
    engine = FunctionEngine()
    async with running(ROLE, engine, token_file=token_file) as address:
        for token in ("chat-secret", "trainer-secret"):
            async with PolicyClient(address, token=token) as client:
                await client.generate(HELLO, request_id="1")
    assert len(engine.asked) == 2


async def test_tokens_are_read_again_and_a_broken_file_changes_nothing(token_file: Path) -> None:
    async with running(ROLE, FunctionEngine(), token_file=token_file) as address:
        assert await answers(address, token="chat-secret") == "Yes."
        token_file.write_text("chat infer chat-secret\n", "utf-8")
        assert await answers(address, token="chat-secret") == "Yes."
        token_file.write_text(line_of("chat", [Scope.INFER], "another") + "\n", "utf-8")
        await refused(answers(address, token="chat-secret"))
        assert await answers(address, token="another") == "Yes."
        token_file.unlink()
        assert await answers(address, token="another") == "Yes."


def test_the_environment_may_hold_tokens_too(token_file: Path) -> None:
    environment = {ENVIRONMENT: line_of("more", [Scope.INFER], "more-secret")}
    for path in (None, token_file):
        assert Tokens(path, environment).admit("Bearer more-secret", Scope.INFER) == "more"
    assert Tokens(token_file, environment).admit("bearer chat-secret", Scope.INFER) == "chat"
    assert not Tokens(None, {}).required


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("chat infer", "here:2: expected NAME SCOPES sha256:HEX, got 2 words"),
        ("chat infer my-secret", "`python -m solon.serving.tokens chat`"),
        ("chat all sha256:" + 64 * "0", "scopes: expected infer or control"),
        ("c/h infer sha256:" + 64 * "0", "name: expected"),
        ("one infer sha256:" + 64 * "0", "two tokens are named 'one'"),
    ],
)
def test_a_wrong_line_is_named_and_never_quoted(line: str, said: str) -> None:
    text = f"one infer sha256:{64 * 'a'}\n{line}"
    with pytest.raises(TokenError) as caught:
        lines(text, "here")
    assert said in str(caught.value)
    assert "my-secret" not in str(caught.value)


def test_a_drawn_token_opens_what_its_line_says() -> None:
    drawn = subprocess.run(
        [sys.executable, "-m", "solon.serving.tokens", "chat", "--scope=infer"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    secret, line = drawn.stdout.split("\n")[:2]
    tokens = Tokens(None, {ENVIRONMENT: line})
    assert tokens.admit(f"Bearer {secret}", Scope.INFER) == "chat"
    assert len(secret) >= 43


def test_a_client_does_not_send_a_token_in_plain_text() -> None:
    with pytest.raises(ValueError, match="plain text"):
        PolicyClient("judge.example:50051", token="secret")
    PolicyClient("judge.example:50051", token="secret", tls=Tls())
    PolicyClient("judge.example:50051", token="secret", allow_plain_token=True)
    PolicyClient("localhost:50051", token="secret")


def test_a_token_with_a_line_break_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="line break") as caught:
        PolicyClient("localhost:50051", token="secret\n")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "not encrypted.*not authenticated"),
        (["--token-file=t"], "not encrypted"),
        (["--tls-certificate=c", "--tls-key=k"], "not authenticated"),
    ],
)
def test_other_machines_are_served_only_with_tls_and_known_callers(
    flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(UsageError, match=said):
        parse("solon-policy", ["--host=0.0.0.0", *flags], takes_constitutions=False)


def test_tls_with_tokens_or_client_certificates_may_serve_other_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tls = ["--host=0.0.0.0", "--tls-certificate=c", "--tls-key=k"]
    for flags in (["--token-file=t"], ["--tls-client-ca=a"]):
        parse("solon-policy", [*tls, *flags], takes_constitutions=False)
    monkeypatch.setenv(ENVIRONMENT, line_of("chat", [Scope.INFER], "secret"))
    parse("solon-policy", tls, takes_constitutions=False)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tls-certificate=c"], "--tls-key"),
        (["--tls-key=k"], "--tls-certificate"),
        (["--tls-client-ca=a"], "--tls-client-ca: needs TLS"),
    ],
)
def test_half_of_tls_is_refused(flags: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse("solon-policy", flags, takes_constitutions=False)


async def test_probes_have_a_port_without_tls(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("127.0.0.1")
    ready = tmp_path / "ready.json"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "solon.policy.server", "--engine=scripted"),
            *(f"--tls-certificate={certificate}", f"--tls-key={key}", "--health-port=0"),
            *(f"--ready-file={ready}", "--settle-seconds=0"),
        ],
        stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != ENVIRONMENT},
    )
    try:
        async with asyncio.timeout(120):
            while not ready.exists():
                await asyncio.sleep(0.05)
        told = json.loads(ready.read_text("utf-8"))
        async with PolicyClient(f"127.0.0.1:{told['health_port']}") as probe:
            await probe.wait_until_serving(timeout=20)
            with pytest.raises(errors.SolonError):
                await probe.generate(HELLO)
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
