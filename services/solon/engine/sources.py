"""Where weights lie: a directory or a URL, spelt one way, shown without credentials.

Knows nothing of how either is read.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from solon.engine.base import InvalidInput

WEB = ("http", "https")
"""Schemes whose URLs may bring a user, a password and a query."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)([^?]*)\??(.*)")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A directory, or what stands for one behind a URL."""

    scheme: str = ""
    """Lower-case; empty: a directory."""
    authority: str = field(default="", repr=False)
    """What stands between ``//`` and the path, a user and a password included."""
    path: str
    """A directory's is absolute and goes through no symlink but one that leads back to itself."""
    query: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read a path or a URL; a ``file`` URL is the directory that it names.

        Raises:
            InvalidInput: A URL that clients and servers may read in more than one way.
        """
        found = _URL.fullmatch(text)
        if found is None and "://" not in text and "\0" not in text:
            return cls(path=os.path.realpath(text))
        if found is None or not text.isprintable() or re.search(r"[ \\#]|::", text):
            raise InvalidInput(
                "path: expected a URL without blanks, control characters, \\, # or ::"
            )
        scheme, authority, path, query = found.groups()
        scheme = scheme.lower()
        if query and scheme not in WEB:
            raise InvalidInput(f"path: expected no ? in a URL of scheme {scheme}")
        if {".", ".."} & set(re.split(r"[/\\]", _decoded(path))):
            raise InvalidInput("path: expected a URL whose path has no . or .. in it")
        if scheme == "file":
            if authority not in ("", "localhost"):
                raise InvalidInput("path: expected file:///PATH, got a file URL of another host")
            return cls(path=os.path.realpath(unquote(path)))
        return cls(scheme=scheme, authority=authority, path=path, query=query)

    @property
    def text(self) -> str:
        """The whole of it, credentials included: for whoever reads it, never to be shown."""
        return self._spelt(self.path)

    def file(self, name: str) -> str:
        """As ``text``, of a file directly below."""
        return self._spelt(f"{self.path.rstrip('/')}/{name}")

    @property
    def has_credentials(self) -> bool:
        """Whether ``text`` may hold any."""
        return bool(self.query) or "@" in self.authority

    def __str__(self) -> str:
        """For errors and logs."""
        if not self.scheme:
            return self.path
        user, at, host = self.authority.rpartition("@")
        # elsewhere what stands before @ may be a container or a model
        secret = at and (self.scheme in WEB or ":" in user)
        authority = f"***@{host}" if secret else self.authority
        return f"{self.scheme}://{authority}{self.path}{'?***' if self.query else ''}"

    def lies_beneath(self, prefix: Source) -> bool:
        """Whether it is the prefix or something below; in case of doubt it is not."""
        above, below = (source.path.rstrip("/").split("/") for source in (prefix, self))
        return self._host == prefix._host and below[: len(above)] == above

    @property
    def _host(self) -> tuple[str, str]:
        if self.scheme not in WEB:
            return self.scheme, self.authority
        host = self.authority.rpartition("@")[2].lower()
        return self.scheme, host.removesuffix(_DEFAULT_PORTS[self.scheme])

    def _spelt(self, path: str) -> str:
        if not self.scheme:
            return path
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{self.authority}{path}{query}"


def _decoded(path: str) -> str:
    """Without percent-encoding, however often it was applied."""
    while (once := unquote(path)) != path:
        path = once
    return path
