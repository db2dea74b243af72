"""TLS of a server: certificates from files, read again when they change.

gRPC asks for the certificate at each new connection, so that one that was renewed is used without
a restart; connections that are open keep theirs until they end. Knows nothing of services.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from solon.serving.watched import Watched


class TlsError(ValueError):
    """Files that make no TLS: which, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """PEM files."""

    certificate: Path
    """The server's chain, its own certificate first."""
    key: Path
    """The certificate's private key, without a passphrase."""
    client_ca: Path | None = None
    """Who signs clients' certificates. None: clients need none."""

    @property
    def all(self) -> tuple[Path, ...]:
        """The files that there are."""
        found = (self.certificate, self.key, self.client_ca)
        return tuple(path for path in found if path is not None)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files.

    Raises:
        TlsError: The files are not there, are not PEM, or do not belong together.
    """
    watched = Watched(files.all, lambda: _configuration(files))
    return grpc.dynamic_ssl_server_credentials(
        watched.first,
        # the stubs do not know that None means "no other", as grpc's documentation has it
        watched.renewed,  # type: ignore[arg-type]
        require_client_authentication=files.client_ca is not None,
    )


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    try:
        contents = [path.read_bytes() for path in files.all]
    except OSError as error:
        raise TlsError(f"cannot read {error.filename!r}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # without a passphrase: OpenSSL would ask at the terminal
        context.load_cert_chain(files.certificate, files.key, password=_no_passphrase)
    except (ssl.SSLError, TlsError) as error:
        raise TlsError(
            f"{str(files.certificate)!r} and {str(files.key)!r} are not a PEM certificate and its "
            f"unencrypted key: {error}"
        ) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise TlsError(f"{str(files.client_ca)!r} is no PEM certificate: {error}") from error
    certificate, key, *rest = contents
    return grpc.ssl_server_certificate_configuration(
        [(key, certificate)], root_certificates=rest[0] if rest else None
    )


def _no_passphrase() -> str:
    raise TlsError("the key is encrypted; give one that is not")
