"""A service as a process: from its command line to its exit code.

Exit codes: 2 for the mistake of whoever started it (one line on stderr), 0 after SIGTERM or SIGINT,
1 otherwise. A second signal stops at once. Knows nothing of what its role does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import uvloop

from solon.constitution import ConstitutionError
from solon.engine import COMPUTING, EngineOptions, create
from solon.engine.base import EngineError, EngineFailed, InvalidInput, Mortal
from solon.serving import logs
from solon.serving.apart.engine import ApartEngine
from solon.serving.constitutions import Library
from solon.serving.garbage import collect_after_crowds, collect_seldom
from solon.serving.options import ServerOptions, UsageError, parse
from solon.serving.server import Resources, Role, Server
from solon.tracing.export import TracingError, exporting

_LOG = logging.getLogger(__name__)


def main(role: Role, argv: Sequence[str] | None = None) -> int:
    """Serve the role until a signal; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = parse(role.program, arguments, takes_constitutions=role.takes_constitutions)
        logs.configure(options.log_level)
        uvloop.run(serve(role, options))
    except (UsageError, ConstitutionError, InvalidInput, TracingError) as error:
        return _complain(role, error, 2)
    except EngineError as error:
        return _complain(role, error, 1)
    return 0


def resources_of(options: ServerOptions) -> Resources:
    """The engine, not yet started, and the constitutions that the options name.

    Raises:
        UsageError, ConstitutionError, InvalidInput: An option is wrong.
    """
    engine_options = EngineOptions(
        model=options.model,
        weight_version=options.weight_version,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        max_batch=options.max_batch,
        queue_capacity=options.queue_capacity,
        token_capacity=options.token_capacity,
        extra=options.engine_options,
    )
    try:
        library = Library.read(options.constitutions)
    except ValueError as error:
        raise UsageError(str(error)) from error
    own = {"own": True, "shared": False, "auto": options.engine in COMPUTING}
    if not own[options.engine_process]:
        engine = create(options.engine, engine_options)
        return Resources(
            engine=engine,
            library=library,
            max_tokens_default=options.max_tokens_default,
            lost=engine.lost if isinstance(engine, Mortal) else None,
        )
    apart = ApartEngine(
        options.engine, engine_options, service=options.program, log_level=options.log_level
    )
    return Resources(
        engine=apart,
        library=library,
        max_tokens_default=options.max_tokens_default,
        lost=apart.lost,
    )


async def serve(
    role: Role,
    options: ServerOptions,
    resources: Callable[[ServerOptions], Resources] = resources_of,
) -> None:
    """Bind, load, serve until a signal, drain.

    ``resources`` runs once signals are heard: an engine may take seconds to import.

    Raises:
        UsageError, ConstitutionError, InvalidInput: A mistake in the options.
        TracingError: One in the environment.
        EngineError: The engine cannot start.
    """
    stopped = _stop_signal()
    ready = _ReadyFile(options.ready_file)
    server = Server(role, resources(options), options)
    with exporting(role.program, server.instance_id):
        try:
            await _serve(role, server, options, stopped, ready)
        finally:
            ready.remove()
            await server.stop()


async def _serve(
    role: Role, server: Server, options: ServerOptions, stopped: asyncio.Event, ready: _ReadyFile
) -> None:
    port = await server.bind()
    where: dict[str, object] = {
        "host": options.host,
        "port": port,
        "instance_id": server.instance_id,
    }
    if (health_port := await server.bind_health()) is not None:
        where["health_port"] = health_port
    if (metrics_port := server.bind_metrics()) is not None:
        where["metrics_port"] = metrics_port
    _LOG.info("listening", extra={"fields": {"role": role.name, **where}})
    if not await _loaded(server, stopped):
        # a thread that loads a model cannot be cancelled, and the interpreter would wait for it
        _LOG.info("stopped while loading")
        _exit_now(0)
    collect_seldom()
    ready.write({**where, "pid": os.getpid()})
    _LOG.info("serving", extra={"fields": where})
    tidying = asyncio.create_task(collect_after_crowds(server.in_flight, server.most_in_flight))
    try:
        await _stopped_or_lost(server, stopped)
    finally:
        tidying.cancel()
    _LOG.info("draining")
    ready.remove()
    await server.drain()
    _LOG.info("stopped")


async def _loaded(server: Server, stopped: asyncio.Event) -> bool:
    """Load the model; False if a signal came first."""
    loading = asyncio.create_task(server.load())
    signalled = asyncio.create_task(stopped.wait())
    await asyncio.wait({loading, signalled}, return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    if not loading.done():
        loading.cancel()
    elif (error := loading.exception()) is not None:
        raise error
    return loading.done()


async def _stopped_or_lost(server: Server, stopped: asyncio.Event) -> None:
    """Return at a signal.

    Raises:
        EngineFailed: The engine is gone: a new process must take this one's place.
    """
    signalled, lost = asyncio.create_task(stopped.wait()), asyncio.create_task(server.lost())
    await asyncio.wait({signalled, lost}, return_when=asyncio.FIRST_COMPLETED)
    if lost.done() and not signalled.done():
        signalled.cancel()
        reason = lost.result()
        _LOG.error("engine lost", extra={"fields": {"reason": reason}})
        raise EngineFailed(reason)
    lost.cancel()


def _stop_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second ends the process with code 1."""
    stopped = asyncio.Event()

    def on_signal() -> None:
        if stopped.is_set():
            _LOG.warning("stopped at once by a second signal")
            _exit_now(1)
        stopped.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stopped


class _ReadyFile:
    """Tells whoever started the process where it serves. Exists only while it does."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"--ready-file: expected a directory, {str(path.parent)!r} is none")
        # one that a killed process left would send callers to a port of somebody else's
        self.remove()

    def write(self, content: Mapping[str, object]) -> None:
        """Write the file at once or not at all."""
        if self._path is None:
            return
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(content) + "\n", "utf-8")
            partial.replace(self._path)
        except OSError as error:
            raise _unusable(self._path, error) from error

    def remove(self) -> None:
        """Remove the file, if it is there."""
        if self._path is None:
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self._path, error) from error


def _unusable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"--ready-file: cannot write {str(path)!r}: {error.strerror}")


def _exit_now(code: int) -> NoReturn:
    logging.shutdown()
    os._exit(code)


def _complain(role: Role, error: Exception, code: int) -> int:
    text = " ".join(str(error).split())
    print(f"{role.program}: error: {text}", file=sys.stderr)
    return code
