"""Bearer tokens: who calls, and what that caller may do.

A server knows only the SHA-256 of a token, in lines of ``NAME SCOPES sha256:HEX``, from a file
(read again when it changes) or from the environment. ``python -m solon.serving.tokens NAME`` draws
a token and prints its line. Tokens are drawn with 256 bits, so a plain hash cannot be reversed.
Knows nothing of gRPC.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from solon.serving.errors import NotAuthenticated, NotPermitted
from solon.serving.watched import Watched

ENVIRONMENT = "SOLON_TOKENS"
"""The variable that may hold lines of tokens."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_SCHEME = "bearer "


class Scope(StrEnum):
    """What a token may be good for."""

    INFER = "infer"
    """PolicyService, CriticService and JudgeService."""
    CONTROL = "control"
    """ControlService: whoever can replace the weights owns the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One token, as far as a server knows it."""

    name: str
    """Of its holder: for logs and metrics."""
    scopes: frozenset[Scope]
    sha256: bytes


class TokenError(ValueError):
    """A line of tokens that cannot be read: which, and what was expected."""


class Tokens:
    """The tokens of one server."""

    def __init__(self, path: Path | None, environment: Mapping[str, str]) -> None:
        """Read the file, if there is one, and the environment.

        Raises:
            TokenError: A line is wrong, a name occurs twice, or the file cannot be read.
        """
        self._tokens = fixed = parse(environment.get(ENVIRONMENT, ""), ENVIRONMENT)
        self._file: Watched[tuple[Token, ...]] | None = None
        if path is not None:
            self._file = Watched((path,), lambda: _joined(fixed, _read(path)))
            self._tokens = self._file.first

    @property
    def required(self) -> bool:
        """Whether calls need a token at all."""
        return bool(self._tokens)

    def admit(self, authorization: str | None, scope: Scope | None) -> str:
        """The name of the caller.

        Args:
            authorization: What the call brings, if anything.
            scope: What it needs. None: any token will do.

        Raises:
            NotAuthenticated: No token, or none that is known.
            NotPermitted: A known one without the scope.
        """
        if authorization is None:
            raise NotAuthenticated("no token")
        if not authorization.lower().startswith(_SCHEME):
            raise NotAuthenticated("the authorization is no bearer token")
        token = self._find(authorization[len(_SCHEME) :].strip())
        if token is None:
            raise NotAuthenticated("the token is not known here")
        if scope is not None and scope not in token.scopes:
            raise NotPermitted(token.name, scope)
        return token.name

    def _find(self, secret: str) -> Token | None:
        if self._file is not None and (renewed := self._file.renewed()) is not None:
            self._tokens = renewed
        digest = hash_of(secret)
        found = None
        # all of them, always: the time taken tells nothing of which one came near
        for token in self._tokens:
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found


def hash_of(secret: str) -> bytes:
    """What a server keeps of a token."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def parse(text: str, source: str) -> tuple[Token, ...]:
    """The tokens of a text.

    Args:
        text: ``NAME SCOPES sha256:HEX`` a line, scopes with commas between them; empty lines and
            those that begin with # are skipped.
        source: What to call the text in errors.

    Raises:
        TokenError: A line is wrong or a name occurs twice.
    """
    tokens = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            tokens.append(_token(line, f"{source}:{number}"))
    return _joined(tuple(tokens))


def line_of(name: str, scopes: Sequence[Scope], secret: str) -> str:
    """The line by which a server knows a token."""
    return f"{name} {','.join(scopes)} sha256:{hash_of(secret).hex()}"


def _token(line: str, where: str) -> Token:
    match line.split():
        case [name, scopes, digest]:
            pass
        case parts:
            # never the line itself: it may hold a token by mistake
            raise TokenError(f"{where}: expected NAME SCOPES sha256:HEX, got {len(parts)} words")
    if not _NAME.fullmatch(name):
        raise TokenError(f"{where}: name: expected 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'")
    if not set(scopes.split(",")) <= set(Scope):
        expected = " or ".join(Scope)
        raise TokenError(f"{where}: scopes: expected {expected}, or both with a comma between them")
    if (found := _HASH.fullmatch(digest)) is None:
        raise TokenError(
            f"{where}: expected sha256: and 64 lower-case hex digits; "
            f"`python -m solon.serving.tokens {name}` makes a line"
        )
    return Token(
        name=name,
        scopes=frozenset(map(Scope, scopes.split(","))),
        sha256=bytes.fromhex(found[1]),
    )


def _read(path: Path) -> tuple[Token, ...]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"cannot read {str(path)!r}: {error}") from error
    if not (tokens := parse(text, str(path))):
        raise TokenError(f"{path}: expected at least one line NAME SCOPES sha256:HEX, got none")
    return tokens


def _joined(*parts: tuple[Token, ...]) -> tuple[Token, ...]:
    tokens = tuple(token for part in parts for token in part)
    names = [token.name for token in tokens]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TokenError(f"two tokens are named {min(twice)!r}: give each a name of its own")
    return tokens


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw a token: the token on stdout's first line, the server's line on the second."""
    parser = argparse.ArgumentParser(prog="python -m solon.serving.tokens", description=__doc__)
    parser.add_argument("name", help="whose token it is")
    parser.add_argument("--scope", action="append", choices=list(Scope), help="default: infer")
    given = parser.parse_args(arguments)
    if not _NAME.fullmatch(given.name):
        parser.error(
            f"name: expected 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', got {given.name!r}"
        )
    secret = secrets.token_urlsafe(32)
    print(secret)
    print(line_of(given.name, tuple(given.scope or [Scope.INFER]), secret))
    return 0


if __name__ == "__main__":
    sys.exit(main())
