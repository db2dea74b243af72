"""The command line of a service: the same for every role.

Reads and checks values; imports nothing heavy, so that ``--help`` answers at once. Knows nothing of
sockets or models.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from solon.engine.base import InvalidInput
from solon.engine.sources import Source
from solon.serving import tokens


class UsageError(Exception):
    """The person who started the server made a mistake: one sentence says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """How a service process runs."""

    program: str = "solon"
    """Which one it is, such as ``solon-judge``."""
    host: str = "127.0.0.1"
    """Address to bind."""
    port: int = 0
    """Port to bind, 0 to 65535; 0 lets the system choose, see ``ready_file``."""
    insecure_bind: bool = False
    """Whether an address that other machines reach may be bound though anyone may call, or read
    what is said."""
    tls_certificate: Path | None = None
    """PEM file: the server's chain. None: no TLS."""
    tls_key: Path | None = None
    """PEM file: its key, unencrypted."""
    tls_client_ca: Path | None = None
    """PEM file: who signs clients' certificates, which are then required."""
    token_file: Path | None = None
    """Bearer tokens that may call, as ``solon.serving.tokens`` has them."""
    metrics_port: int | None = None
    """Port of the same host for Prometheus; None: none. 0: the system chooses."""
    health_port: int | None = None
    """Port of the same host for health alone, without TLS; None: none. 0: the system chooses."""
    idempotency_seconds: float = 600.0
    """For so long the same request_id gets the same answer, >= 0."""
    idempotency_bytes: int = 64 * 1024 * 1024
    """Bound of the answers that are kept for that."""
    engine: str = "transformers"
    """What runs the model."""
    engine_process: str = "auto"
    """``own``: the engine has a process of its own; ``shared``: it has the server's; ``auto``: its
    own, if it computes in Python."""
    model: str = ""
    """Path or name of the model, as the engine understands it."""
    weight_version: str = "initial"
    """What to call the weights that are loaded first. 1 to 256 characters."""
    weights_from: tuple[Source, ...] = ()
    """UpdateWeights loads nothing but what lies beneath one of these. Empty: anything."""
    constitutions: tuple[str, ...] = ()
    """Paths, or names of shipped constitutions, that calls may ask for by name."""
    threads: int | None = None
    """CPU threads of the model, >= 1; None leaves it to the engine."""
    device: str = "auto"
    dtype: str = "auto"
    max_batch: int = 64
    """Sequences that run at once, >= 1."""
    queue_capacity: int = 8192
    """Sequences that may wait before calls are refused with OVERLOADED, >= 1."""
    token_capacity: int = 4_194_304
    """Tokens, of prompts and of the longest answers, that may wait before calls are refused."""
    max_tokens_default: int = 256
    """max_tokens of requests that bring none, 1 to 131,072."""
    max_message_bytes: int = 64 * 1024 * 1024
    """Largest request, in bytes."""
    max_in_flight: int = 32_768
    """Calls that may be in flight at once, those for control and health left out, >= 1."""
    max_connection_age: float = 300.0
    """Seconds after which a connection is asked to close once its calls have ended, so that
    clients resolve the address anew and find replicas that were added. > 0."""
    ready_file: Path | None = None
    """Written, as JSON, once the socket is bound and the model answers."""
    log_level: str = "INFO"
    settle_seconds: float = 0.5
    """Between NOT_SERVING and the last accepted call, so that clients can go elsewhere. >= 0."""
    drain_seconds: float = 30.0
    """Most time for the calls that run when the server stops. >= 0."""
    engine_options: Mapping[str, str] = field(default_factory=dict)
    """Options that only this engine knows."""


def parse(program: str, argv: Sequence[str], *, takes_constitutions: bool) -> ServerOptions:
    """Read the command line.

    Raises:
        UsageError: A flag is unknown or its value is wrong.
        SystemExit: ``--help`` was asked for; it has been printed.
    """
    values = vars(_parser(program, takes_constitutions=takes_constitutions).parse_args(argv))
    values["constitutions"] = tuple(values.get("constitutions", ()))
    values["weights_from"] = tuple(values["weights_from"])
    values["engine_options"] = dict(values["engine_options"])
    options = ServerOptions(program=program, **values)
    _check_tls(options)
    _check_bind(options)
    return options


def _check_tls(options: ServerOptions) -> None:
    certificate, key = options.tls_certificate, options.tls_key
    if (certificate is None) != (key is None):
        missing = "--tls-key" if key is None else "--tls-certificate"
        raise UsageError(f"{missing}: a certificate and its key belong together: give both")
    if options.tls_client_ca is not None and certificate is None:
        raise UsageError("--tls-client-ca: needs TLS: add --tls-certificate and --tls-key")


def _check_bind(options: ServerOptions) -> None:
    """Serve other machines only what is encrypted, and only to callers that are known."""
    if options.insecure_bind or _is_loopback(options.host):
        return
    known = options.token_file or options.tls_client_ca or os.environ.get(tokens.ENVIRONMENT)
    lacks = [
        *(() if options.tls_certificate else ("not encrypted: add --tls-certificate, --tls-key",)),
        *(() if known else ("not authenticated: add --token-file or --tls-client-ca",)),
    ]
    if lacks:
        raise UsageError(
            f"--host: {options.host!r} can be reached from other machines, and calls are "
            f"{'; and '.join(lacks)}; or add --insecure-bind if the network around this machine "
            "is trusted"
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _parser(program: str, *, takes_constitutions: bool) -> argparse.ArgumentParser:
    defaults = ServerOptions()
    parser = _Parser(
        prog=program,
        description=f"Serve {program.removeprefix('solon-')} over gRPC.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _add_socket_flags(parser, defaults)
    _add_security_flags(parser)
    _add_flags_beside(parser, defaults)
    _add_model_flags(parser, defaults)
    if takes_constitutions:
        parser.add_argument(
            "--constitution",
            dest="constitutions",
            action="append",
            default=[],
            metavar="NAME_OR_PATH",
            help="constitution that calls may name (repeatable)",
        )
    return parser


def _add_socket_flags(parser: argparse.ArgumentParser, defaults: ServerOptions) -> None:
    add = parser.add_argument
    add("--host", default=defaults.host, help="address to bind")
    add("--port", type=_integer(0, 65_535), default=defaults.port, help="port; 0: any free one")
    add(
        "--insecure-bind",
        action="store_true",
        help="allow an address that other machines reach, without encryption or authentication",
    )
    add(
        "--max-message-bytes",
        type=_integer(1, 2**31 - 1),
        default=defaults.max_message_bytes,
        metavar="N",
        help="largest request",
    )
    add(
        "--max-in-flight",
        type=_integer(1, 2**31 - 1),
        default=defaults.max_in_flight,
        metavar="N",
        help="calls at once, whatever they wait for; control and health are exempt",
    )
    add(
        "--max-connection-age",
        type=_positive_seconds,
        default=defaults.max_connection_age,
        metavar="S",
        help="clients reconnect this often, and so find new replicas; calls are not cut",
    )
    add("--ready-file", type=Path, metavar="PATH", help="JSON file written once calls are served")
    add(
        "--log-level",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        default=defaults.log_level,
        help="DEBUG may log prompts",
    )
    add(
        "--settle-seconds",
        type=_seconds,
        default=defaults.settle_seconds,
        metavar="S",
        help="time between NOT_SERVING and the last accepted call when stopping",
    )
    add(
        "--drain-seconds",
        type=_seconds,
        default=defaults.drain_seconds,
        metavar="S",
        help="most time for running calls when stopping",
    )


def _add_security_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tls-certificate", type=Path, metavar="PEM", help="the server's certificate chain")
    add("--tls-key", type=Path, metavar="PEM", help="its key, unencrypted")
    add(
        "--tls-client-ca",
        type=Path,
        metavar="PEM",
        help="require clients' certificates, signed by this authority",
    )
    add(
        "--token-file",
        type=Path,
        metavar="PATH",
        help=f"bearer tokens that may call, hashed; ${tokens.ENVIRONMENT} may hold more",
    )
    add(
        "--weights-from",
        type=_source,
        action="append",
        default=[],
        metavar="PATH_OR_URL",
        help="UpdateWeights loads only what lies beneath (repeatable; default: anything)",
    )


def _add_flags_beside(parser: argparse.ArgumentParser, defaults: ServerOptions) -> None:
    """What stands beside the calls: probes, scrapes, answers that are kept."""
    add = parser.add_argument
    add(
        "--metrics-port",
        type=_integer(0, 65_535),
        metavar="PORT",
        help="serve Prometheus metrics at /metrics on a port of its own; 0: any free one",
    )
    add(
        "--health-port",
        type=_integer(0, 65_535),
        metavar="PORT",
        help="serve health alone, without TLS, on a port of its own; 0: any free one",
    )
    add(
        "--idempotency-seconds",
        type=_seconds,
        default=defaults.idempotency_seconds,
        metavar="S",
        help="how long the same request_id gets the same answer",
    )
    add(
        "--idempotency-bytes",
        type=_integer(0, 2**40),
        default=defaults.idempotency_bytes,
        metavar="N",
        help="most memory for that",
    )


def _add_model_flags(parser: argparse.ArgumentParser, defaults: ServerOptions) -> None:
    add = parser.add_argument
    count = _integer(1, 2**31 - 1)
    add("--engine", default=defaults.engine, help="what runs the model")
    add(
        "--engine-process",
        choices=("auto", "own", "shared"),
        default=defaults.engine_process,
        help="whether it shares the server's process (auto: the scripted engine does)",
    )
    add("--model", default=defaults.model, metavar="PATH_OR_NAME", help="the model")
    add(
        "--weight-version",
        type=_version,
        default=defaults.weight_version,
        metavar="NAME",
        help="what to call the first weights",
    )
    add("--threads", type=count, metavar="N", help="CPU threads of the model")
    add("--device", choices=("auto", "cpu", "cuda"), default=defaults.device, help="where it runs")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default=defaults.dtype,
        help="its precision",
    )
    add(
        "--max-batch", type=count, default=defaults.max_batch, metavar="N", help="sequences at once"
    )
    add(
        "--queue-capacity",
        type=count,
        default=defaults.queue_capacity,
        metavar="N",
        help="sequences that may wait",
    )
    add(
        "--token-capacity",
        type=count,
        default=defaults.token_capacity,
        metavar="N",
        help="tokens of prompts and longest answers that may wait",
    )
    add(
        "--max-tokens-default",
        type=_integer(1, 131_072),
        default=defaults.max_tokens_default,
        metavar="N",
        help="max_tokens of requests that bring none",
    )
    add(
        "--engine-option",
        dest="engine_options",
        type=_pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of this engine (repeatable)",
    )


def _integer(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {low} to {high}, got {text!r}")
        return value

    return read


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text!r}")
    return value


def _positive_seconds(text: str) -> float:
    value = _seconds(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")
    return value


def _version(text: str) -> str:
    if not 1 <= len(text) <= 256:
        raise argparse.ArgumentTypeError(f"expected 1 to 256 characters, got {len(text)}")
    return text


def _source(text: str) -> Source:
    try:
        return Source.parse(text)
    except InvalidInput as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("path: ")) from error


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, value


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # some other machine name: where it leads is for the resolver to say
        return False
