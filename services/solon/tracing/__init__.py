"""Traces: one request from whoever asked, through client and service, to the model's batch.

The one package that knows OpenTelemetry, whose API does nothing until ``export``, or the program
around a client, sets up the SDK. The spans, from the outside in::

    run                                   a run of the coordinator
    └── stage revisions                   one of its stages
        └── record                        all that is asked for one prompt
            └── solon.v1.JudgeService/Compare       the client: an event for each failed attempt
                └── solon.v1.JudgeService/Compare   the server
                    └── engine.score                one use of the model, or ``engine.generate``
                        └── engine.request          the same, where the engine has its own process
                            └── engine.batch        what the model does for many of those at once

A batch serves many requests: it is linked with the span of each, both ways. Generations have one
while their prompts are computed; of the steps that follow, each in other company, their own spans
say how large they were on average.

No span holds the text of a prompt, of an answer or of a credential, nor an exception's message,
which may quote one. Knows nothing of gRPC.
"""

from __future__ import annotations

from opentelemetry.trace import Span

from solon.tracing.spans import (
    batch,
    call,
    continued,
    current,
    ended,
    headers,
    ids,
    serving,
    span,
    within,
)

__all__ = [
    "Span",
    "batch",
    "call",
    "continued",
    "current",
    "ended",
    "headers",
    "ids",
    "serving",
    "span",
    "within",
]
