"""What a client shows and demands: TLS and a bearer token.

Knows nothing of Solon's methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """TLS to a server: encryption, and proof of who it is. Files are PEM."""

    ca: Path | str | None = None
    """Who signs the server's certificate. None: the public authorities that gRPC brings."""
    certificate: Path | str | None = None
    """The client's own chain, for a server that demands one."""
    key: Path | str | None = None
    """Its key, unencrypted."""
    server_name: str | None = None
    """The name in the server's certificate, where the address is another."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            ValueError: A certificate without its key, or a key without its certificate.
            OSError: A file cannot be read.
        """
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise ValueError(f"{missing}: a certificate and its key belong together: give both")
        return grpc.ssl_channel_credentials(
            root_certificates=_content(self.ca),
            private_key=_content(self.key),
            certificate_chain=_content(self.certificate),
        )


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """A token as the metadata of a call.

    Raises:
        ValueError: It holds what no header may: the text shows none of it.
    """
    if token is None:
        return ()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("token: expected printable ASCII without spaces; is there a line break?")
    return (("authorization", f"Bearer {token}"),)


def _content(path: Path | str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
