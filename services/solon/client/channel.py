"""How the client's channels behave: balancing, health, keepalive, reconnection, message sizes.

Knows nothing of Solon's methods or of retries, which are the client's own (see ``retry``): gRPC's
cannot wait out a restart.
"""

from __future__ import annotations

import json
import re

import grpc

from solon.client.security import Tls

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Default bound of a reply: 64 completions of 131,072 tokens with their log-probabilities come
near it. gRPC's own default is 4 MiB."""

_KEEPALIVE_MS = 60_000
"""A dead host is noticed after this and ``_KEEPALIVE_TIMEOUT_MS``. Servers answer more frequent
pings than their ``grpc.http2.min_ping_interval_without_data_ms`` with GOAWAY."""
_KEEPALIVE_TIMEOUT_MS = 20_000
_FIRST_RECONNECT_MS = 100
_LONGEST_RECONNECT_MS = 2_000
"""gRPC's default is 120 s: a service that restarts in 10 s would be missed for two minutes."""
_BETWEEN_RESOLUTIONS_MS = 1_000

_LOOPBACK = re.compile(r"(ipv4:|ipv6:|dns:///)?(127\.|localhost:|\[::1\])")

_WINDOW_BYTES = 1024 * 1024
"""Of what a server may send before it is read."""


def open_channel(
    address: str,
    *,
    service: str | None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    tls: Tls | None = None,
) -> grpc.aio.Channel:
    """A channel to every replica behind an address. Needs a running event loop.

    Args:
        address: ``host:port``, or any gRPC target such as ``dns:///host:port`` or
            ``ipv4:10.0.0.1:80,10.0.0.2:80``.
        service: Full name of the gRPC service. Calls go round robin to the replicas that
            report it as SERVING (grpc.health.v1). None: the first replica that connects.
        max_message_bytes: Bound of a reply.
        tls: None: plain text.

    Raises:
        ValueError, OSError: The TLS files cannot be used.
    """
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", json.dumps(service_config(service))),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # a unary call that waits long sends no data between pings
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
        # an old connection that its server ends is the time to look who is there now; gRPC would
        # look twice a minute at most
        ("grpc.dns_min_time_between_resolutions_ms", _BETWEEN_RESOLUTIONS_MS),
        ("grpc.max_receive_message_length", max_message_bytes),
        # as the servers have it
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
    ]
    if is_loopback(address):
        # gRPC sends even loopback through http_proxy unless no_proxy says otherwise
        options.append(("grpc.enable_http_proxy", 0))
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(address, tls.credentials(), options=options)


def is_loopback(address: str) -> bool:
    """Whether what is sent to the address stays on this machine."""
    return _LOOPBACK.match(address) is not None


def service_config(service: str | None) -> dict[str, object]:
    """The gRPC service config: balanced over healthy replicas, or the first that connects."""
    if service is None:
        return {"loadBalancingConfig": [{"pick_first": {}}]}
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": service},
    }
