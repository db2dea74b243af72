"""What stands before every call of a Solon service, and what becomes of its end.

One interceptor, so that servicers only translate: it asks who calls, reads the request, names it,
refuses it while the model loads, past its deadline or against the rules; it gives a request that
is asked again its first answer; it turns every exception into a status with details; it writes
the log line and the call's span. Of health and reflection it only reads the bodies (see
``bodies``). Knows nothing of roles.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast
from uuid import uuid4

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message

from solon import tracing
from solon.engine.base import Engine, EngineError, Overloaded
from solon.engine.pace import bounded, retry_after
from solon.serving import bodies, rules
from solon.serving.answers import Answer, Answers, Key, Put, Work
from solon.serving.errors import DeadlineInQueue, DeadlinePassed, InvalidFields, NotServing
from solon.serving.health import Health, Phase
from solon.serving.logs import cause
from solon.serving.metrics import Metrics
from solon.serving.status import Failure, failure_of
from solon.serving.tokens import Scope, Tokens

_PREFIX = "/solon.v1."
_CONTROL = "/solon.v1.ControlService/"
_LOOKS = ("GetServerInfo", "GetLoad")
"""Methods of the control plane that change nothing, and so are open to whoever is known."""
_RETRY_SECONDS = 1.0
_AUTHORIZATION = "authorization"
_LOG = logging.getLogger(__name__)
_OURS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Ends that OpenTelemetry's conventions hold against the server rather than its caller."""

Context = grpc.aio.ServicerContext[Any, Any]
Result = TypeVar("Result")


class _Request(Protocol):
    request_id: str


class _Handler(Protocol):
    @property
    def request_deserializer(self) -> Callable[[bytes], _Request]: ...
    @property
    def response_serializer(self) -> Callable[[Message], bytes]: ...
    @property
    def unary_unary(self) -> Callable[[_Request, Context], Awaitable[Message]]: ...
    @property
    def unary_stream(self) -> Callable[[_Request, Context], AsyncGenerator[Message, None]]: ...


class _Method:
    """One method, as every call of it needs it: made once."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        """``name``: as gRPC has it, such as ``/solon.v1.JudgeService/Compare``."""
        self.name = name
        self.span = name.removeprefix("/")
        self.is_control = name.startswith(_CONTROL)
        self.metrics = metrics.of(name.removeprefix(_PREFIX))
        # who may look at what the control plane tells need not be allowed to change it
        looks = self.is_control and name.removeprefix(_CONTROL) in _LOOKS
        self.scope = None if looks else Scope.CONTROL if self.is_control else Scope.INFER


@dataclass(slots=True)
class _Call:
    """What the log line of a call says, and its span."""

    method: _Method
    span: tracing.Span
    metadata: Mapping[str, str | bytes]
    """What came with the call."""
    started: float = field(default_factory=time.monotonic)
    request_id: str = ""
    caller: str = ""
    """The name of its token; empty where none is needed."""
    unnamed: bool = False
    """Whether its request_id is the server's."""
    replayed: bool = False
    """Whether the answer was known, or on its way, from the same request before."""
    spent: dict[str, float] = field(default_factory=dict)

    def count(self, response: Message) -> None:
        """Add up what a response says it cost. A stream's messages each have a share."""
        if "usage" not in response.DESCRIPTOR.fields_by_name:
            return
        usage, timing = response.usage, response.timing  # type: ignore[attr-defined]
        queued = _seconds(timing.queue)
        if usage.model_calls:
            self.method.metrics.spent(
                queued,
                prompt=usage.prompt_tokens,
                cached=usage.cached_tokens,
                completion=usage.completion_tokens,
                cost_usd=usage.cost_usd,
            )
        spent = self.spent
        # most models cost nothing, and their lines say nothing of it
        cost = (("cost_usd", usage.cost_usd),) if usage.cost_usd else ()
        for key, amount in (
            *cost,
            ("prompt_tokens", usage.prompt_tokens),
            ("completion_tokens", usage.completion_tokens),
            ("queue_seconds", queued),
            ("inference_seconds", _seconds(timing.inference)),
        ):
            spent[key] = spent.get(key, 0) + amount
        self.span.set_attribute("solon.weight_version", response.weight_version)  # type: ignore[attr-defined]

    def log(self, code: grpc.StatusCode, level: int, **fields: object) -> None:
        """Write the line, count the end, and tell the span of both."""
        seconds = time.monotonic() - self.started
        reason = None if "reason" not in fields else str(fields["reason"])
        self.method.metrics.ended(code.name, reason, seconds)
        if self.span.is_recording():
            known = self._known().items()
            self.span.set_attributes({f"solon.{key}": value for key, value in known})
        tracing.ended(self.span, code.value[0], reason, failed=code in _OURS)
        if _LOG.isEnabledFor(level):
            line = {
                "method": self.method.name,
                "code": code.name,
                "seconds": round(seconds, 6),
                **self._known(),
                **fields,
            }
            # as Logger.log would, which looks for the line of code that calls it
            record = logging.LogRecord(_LOG.name, level, __file__, 0, "call", None, None)
            record.fields = line
            _LOG.handle(record)

    def _known(self) -> dict[str, str | float]:
        return {
            "request_id": self.request_id,
            **({"caller": self.caller} if self.caller else {}),
            **({"replayed": True} if self.replayed else {}),
            **{key: round(amount, 6) for key, amount in self.spent.items()},
        }


class Guard(grpc.aio.ServerInterceptor):
    """The interceptor of every Solon server."""

    def __init__(
        self,
        health: Health,
        engine: Engine,
        answers: Answers,
        tokens: Tokens,
        metrics: Metrics,
        *,
        max_in_flight: int,
    ) -> None:
        """Remember what calls are held to.

        Args:
            health: Says whether the model is loaded.
            engine: Says how long new work would wait.
            answers: Keeps one inference to one request_id.
            tokens: Says who calls.
            metrics: Counts calls and their ends.
            max_in_flight: Calls at once, but for those of the control plane; more are refused
                before they are read.
        """
        self._max_in_flight = max_in_flight
        self.in_flight = 0
        """Calls that have their place."""
        self._most_in_flight = 0
        # by method: gRPC asks for the handler of every single call
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._metrics = metrics
        self._engine = engine
        self._health = health
        self._answers = answers
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Stand before the methods of solon.v1; before others, only read their bodies."""
        name = handler_call_details.method
        if (guarded := self._guarded.get(name)) is not None:
            return guarded
        found = await continuation(handler_call_details)
        if found is None:
            return None
        guarded = self._guard(name, found) if name.startswith(_PREFIX) else bodies.reading(found)
        self._guarded[name] = guarded
        return guarded

    def _guard(
        self, name: str, found: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        # grpc's stubs know the handlers of its synchronous server only
        handler = cast("_Handler", found)
        method = _Method(name, self._metrics)
        make, behaviour = (
            (grpc.unary_stream_rpc_method_handler, self._streaming(method, handler))
            if found.response_streaming
            else (grpc.unary_unary_rpc_method_handler, self._unary(method, handler))
        )
        # bodies are read here: one that is no message is then refused like any other mistake; and
        # answers are written here: they are kept as the wire has them
        return make(behaviour, request_deserializer=None, response_serializer=None)

    def _unary(self, method: _Method, handler: _Handler) -> Callable[[bytes, Context], Any]:
        async def serve(call: _Call, body: bytes, context: Context) -> bytes:
            request = self._admitted(call, body, handler, context)

            async def made() -> bytes:
                response = await handler.unary_unary(request, context)
                call.count(response)
                return handler.response_serializer(response)

            async def work(put: Put) -> None:
                put(await made())

            answer = self._answer(call, request, context, work)
            return await (made() if answer is None else self._answers.only(answer))

        async def answer(body: bytes, context: Context) -> bytes | None:
            return await self._ending(method, body, context, serve)

        return answer

    def _streaming(self, method: _Method, handler: _Handler) -> Callable[[bytes, Context], Any]:
        # a coroutine that writes, not a generator: a cancelled call then always unwinds at once,
        # where a generator that waits at a yield lives until it is collected
        async def serve(call: _Call, body: bytes, context: Context) -> None:
            request = self._admitted(call, body, handler, context)

            async def made() -> AsyncGenerator[bytes, None]:
                async with aclosing(handler.unary_stream(request, context)) as responses:
                    async for response in responses:
                        call.count(response)
                        yield handler.response_serializer(response)

            async def work(put: Put) -> None:
                async with aclosing(made()) as messages:
                    async for message in messages:
                        put(message)

            answer = self._answer(call, request, context, work)
            messages = made() if answer is None else self._answers.read(answer)
            async with aclosing(messages):
                async for message in messages:
                    await context.write(message)

        async def answer(body: bytes, context: Context) -> None:
            await self._ending(method, body, context, serve)

        return answer

    def _answer(
        self, call: _Call, request: _Request, context: Context, work: Work
    ) -> Answer | None:
        """The same request's answer, or its beginning. None: one that nobody can ask for again."""
        if call.method.is_control:
            # shows what is, not what was, however long the queue
            return None
        if call.unnamed:
            self._refuse_if_hopeless(context)
            return None
        key = Key(call.caller, call.method.name, call.request_id)
        body = cast("Message", request).SerializeToString(deterministic=True)
        digest = hashlib.sha256(body).digest()
        answer = self._answers.find(key, digest)
        if answer is not None:
            call.replayed = True
            call.method.metrics.replayed()
            return answer
        self._refuse_if_hopeless(context)
        return self._answers.start(key, digest, work)

    async def _ending(
        self,
        method: _Method,
        body: bytes,
        context: Context,
        serve: Callable[[_Call, bytes, Context], Awaitable[Result]],
    ) -> Result | None:
        """Serve a call in its place and its span; however that ends becomes the call's end."""
        metadata = dict(context.invocation_metadata() or ())
        with tracing.serving(method.span, metadata) as span:
            call = _Call(method, span, metadata)
            method.metrics.began()
            takes_place = not method.is_control
            try:
                if takes_place:
                    self._refuse_if_full()
                self.in_flight += takes_place
                self._most_in_flight = max(self._most_in_flight, self.in_flight)
                try:
                    result = await serve(call, body, context)
                finally:
                    self.in_flight -= takes_place
            except asyncio.CancelledError:
                late = context.time_remaining() == 0
                code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                call.log(code, logging.INFO)
                raise
            except Exception as error:  # any exception at all must become a status, and only here
                failure = failure_of(error)
                _log_failure(call, failure, error)
                trailers = failure.trailers(call.request_id)
                await context.abort(failure.code, failure.message, trailers)
            else:
                call.log(grpc.StatusCode.OK, logging.INFO)
                return result
        # a failed call was aborted: nothing is sent
        return None

    def most_in_flight(self) -> int:
        """The most calls that had their place at once since this was last asked."""
        most, self._most_in_flight = self._most_in_flight, self.in_flight
        return most

    def _refuse_if_full(self) -> None:
        if self.in_flight >= self._max_in_flight:
            raise Overloaded(
                f"{self.in_flight} calls are in flight, which is as many as there may be: try "
                "again later",
                retry_after=_RETRY_SECONDS,
            )

    def _admitted(self, call: _Call, body: bytes, handler: _Handler, context: Context) -> _Request:
        """The request, named and checked.

        An empty request_id is filled in, so that the servicer, the log and any error agree.
        """
        call.caller = self._caller(call)
        try:
            request = handler.request_deserializer(body)
        except DecodeError as error:
            raise InvalidFields.of("", f"the body is no request of {call.method.name}") from error
        call.unnamed = not request.request_id
        request.request_id = request.request_id or uuid4().hex
        call.request_id = request.request_id[:128]
        if self._health.phase is Phase.LOADING:
            raise NotServing
        refuse_if_late(context.time_remaining())
        rules.check(cast("Message", request))
        return request

    def _refuse_if_hopeless(self, context: Context) -> None:
        load = self._engine.load()
        if load.queued >= load.queue_capacity and not load.paused:
            # the engine would say the same, after all the work of asking it
            raise Overloaded(
                f"{load.queued} sequences wait, which is as many as may: try again later",
                retry_after=retry_after(load.wait),
            )
        refuse_if_late(context.time_remaining(), load.wait)

    def _caller(self, call: _Call) -> str:
        """The name of whoever calls; empty where no token is needed."""
        if not self._tokens.required:
            return ""
        authorization = call.metadata.get(_AUTHORIZATION)
        credential = None if authorization is None else str(authorization)
        return self._tokens.admit(credential, call.method.scope)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def refuse_if_late(seconds_left: float | None, wait: float = 0.0) -> None:
    """Spend no work on an answer that nobody waits for, or will any more when its turn comes.

    Args:
        seconds_left: Until the call's deadline. None: it has none.
        wait: Seconds until work that comes now would begin.

    Raises:
        DeadlinePassed: No time is left.
        DeadlineInQueue: Too little is left.
    """
    if seconds_left is None:
        return
    if seconds_left <= 0:
        raise DeadlinePassed
    if seconds_left < wait:
        raise DeadlineInQueue(wait, retry_after=bounded(wait - seconds_left))


def _log_failure(call: _Call, failure: Failure, error: Exception) -> None:
    if failure.error_id is None:
        call.log(failure.code, logging.INFO, reason=failure.reason_name)
        return
    # an engine's own words name devices and sizes; a stranger's may quote the prompt
    verbose = isinstance(error, EngineError) or _LOG.isEnabledFor(logging.DEBUG)
    hidden = cause(error, verbose=verbose)
    call.log(
        failure.code, logging.ERROR, reason=failure.reason_name, error_id=failure.error_id, **hidden
    )
