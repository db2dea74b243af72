"""Where the spans of a process go: what the standard OTEL_* variables say, if they ask for any.

The SDK is imported only then. Knows nothing of what the spans are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING
from uuid import uuid4

from opentelemetry import trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
"""OTLP protocol -> the name under which an exporter of it is installed."""
_FLUSH_SECONDS = 5.0
"""Most time for the last spans; the SDK's own bounds add up to half a minute."""


class TracingError(Exception):
    """The environment asks for traces, but they cannot be sent: one sentence says why."""


@contextmanager
def exporting(service: str, instance_id: str | None = None) -> Iterator[None]:
    """Send the block's spans to where the standard OTEL_* variables say, if they say so.

    Args:
        service: ``service.name``, unless the environment has another.
        instance_id: ``service.instance.id``, likewise. None: a random one.

    Raises:
        TracingError: They cannot be sent.
    """
    names = _exporters_asked_for(os.environ)
    if not names:
        yield
        return
    provider = _provider(names, service, instance_id or uuid4().hex)
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        flush = threading.Thread(target=provider.shutdown, name="solon-traces", daemon=True)
        flush.start()
        flush.join(_FLUSH_SECONDS)


def _exporters_asked_for(environment: Mapping[str, str]) -> list[str]:
    """Names as OTEL_TRACES_EXPORTER has them."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    by_endpoint = "otlp" if any(environment.get(name) for name in _ENDPOINTS) else "none"
    names = environment.get("OTEL_TRACES_EXPORTER") or by_endpoint
    return [name for one in names.split(",") if (name := one.strip()) not in ("", "none")]


def _provider(names: Iterable[str], service: str, instance_id: str) -> TracerProvider:
    try:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    except ImportError as error:
        raise _not_installed("OpenTelemetry's SDK") from error
    defaults = {"service.name": service, "service.instance.id": instance_id}
    resource = Resource.create({**defaults, **OTELResourceDetector().detect().attributes})
    # no shutdown at exit: ``exporting`` bounds its own
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in names:
        provider.add_span_processor(_processor(name))
    return provider


def _processor(name: str) -> BatchSpanProcessor:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    if name == "otlp":
        protocol = next(filter(None, map(os.environ.get, _PROTOCOLS)), "grpc")
        name = _OTLP.get(protocol, protocol)
    found = tuple(entry_points(group="opentelemetry_traces_exporter", name=name))
    try:
        return BatchSpanProcessor(found[0].load()())
    except (IndexError, ImportError) as error:
        raise _not_installed(f"an exporter {name!r}") from error
    except Exception as error:  # each exporter reads its own variables, and has its own errors
        raise TracingError(f"the exporter {name!r} refuses its OTEL_* settings: {error}") from error


def _not_installed(what: str) -> TracingError:
    return TracingError(
        f"OTEL_TRACES_EXPORTER or {_ENDPOINTS[0]} asks for traces, but {what} is not installed: "
        "pip install 'solon[otel]', which has console and otlp over grpc, or unset the variable"
    )
