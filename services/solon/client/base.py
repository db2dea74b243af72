"""What every client does: hold a channel, call with a deadline, try again, translate errors.

Knows nothing of any service's methods.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import ClassVar, Self, TypeVar

import grpc
from google.protobuf import wrappers_pb2

from solon import tracing
from solon.client.channel import MAX_MESSAGE_BYTES, is_loopback, open_channel
from solon.client.errors import (
    BadReply,
    DeadlineExceeded,
    NotServing,
    SolonError,
    Unavailable,
    UnexpectedStatus,
    from_rpc_error,
)
from solon.client.line import Line
from solon.client.retry import Retries, RetryPolicy, with_retries
from solon.client.security import Tls, bearer
from solon.client.spans import Named, attempt_failed, calling
from solon.client.types import Final, Piece, Reply
from solon.tracing import Span

Request = TypeVar("Request", bound=Named)
Response = TypeVar("Response")
Result = TypeVar("Result")
Stub = TypeVar("Stub")

_SERVING = 1
_HEALTH_ATTEMPT_SECONDS = 10.0
_WAITING = RetryPolicy(longest_delay=0.25)


class ServiceClient:
    """A balanced, retrying connection to one service. Use with ``async with``.

    One client serves any number of concurrent calls.
    """

    HEALTH_NAME: ClassVar[str]
    """What to ask grpc.health.v1 about: the gRPC service's full name, or "" for the server."""
    BALANCED: ClassVar[bool] = True
    """Whether calls go round robin to all healthy replicas."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 300.0,
        retry_for: float = 60.0,
        retry_late: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        tls: Tls | None = None,
        token: str | None = None,
        allow_plain_token: bool = False,
    ) -> None:
        """Remember how to connect; ``async with`` does.

        Args:
            address: ``host:port``, or a gRPC target such as ``dns:///judge:50051``.
            timeout: Deadline of one attempt at a call, seconds. For a stream, of all of it.
            retry_for: Seconds after a call's first failure within which it is tried again; 0 is
                never. Longer than a restart takes, and a restart goes unnoticed. Unless it is 0,
                no more calls are in flight than the servers take and can do in ``timeout`` (see
                ``line``): the others wait here, which counts neither towards this time nor
                towards a deadline. A call that is refused for what else is in flight is given up
                only when no other has been answered for so long.
            retry_late: Also try a call again whose deadline passed with others in flight, among
                fewer: for batches, where late is better than never. One that was alone fails.
            max_message_bytes: Bound of a reply.
            tls: How to encrypt, and whom to trust. None: plain text.
            token: Bearer token, shown with every call.
            allow_plain_token: Show it in plain text to other machines, too: for a network that
                encrypts by itself, such as a service mesh.

        Raises:
            ValueError: The token is malformed, or would travel in plain text.
        """
        if token is not None and tls is None and not (allow_plain_token or is_loopback(address)):
            raise ValueError(
                f"token: it would travel to {address} in plain text: give tls=Tls(...), or "
                "allow_plain_token=True if the network encrypts by itself"
            )
        self._metadata = bearer(token)
        self._tls = tls
        self.address = address
        self._timeout = timeout
        self._retry = RetryPolicy(retry_for=retry_for)
        self._line = Line(retry_for, retry_late=retry_late)
        self._max_message_bytes = max_message_bytes
        self._open: grpc.aio.Channel | None = None
        self._methods: object = None
        self.cost_usd = 0.0
        """What the model's host charges for what was answered so far, in US dollars."""

    async def __aenter__(self) -> Self:
        """Open the channel. Connects with the first call."""
        self._open = open_channel(
            self.address,
            service=self.HEALTH_NAME if self.BALANCED else None,
            max_message_bytes=self._max_message_bytes,
            tls=self._tls,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the channel; calls that still run are cancelled."""
        if self._open is not None:
            await self._open.close()
            self._open = self._methods = None

    async def wait_until_serving(self, timeout: float = 60.0) -> None:
        """Return once a replica serves, by grpc.health.v1.

        Args:
            timeout: Seconds to wait.

        Raises:
            NotServing: None did within the time; the text has the last failure.
            UnexpectedStatus: Something else than a Solon service answers at the address.
        """
        # the balanced channel knows healthy replicas only: it cannot tell that a replica is up
        # but loading, or is another service
        async with open_channel(self.address, service=None, tls=self._tls) as plain:

            async def attempt() -> None:
                await self._health(plain)
                if not await self._health(self._channel):
                    raise NotServing(f"{self._what} at {self.address} is up but not serving")

            await with_retries(attempt, replace(_WAITING, retry_for=timeout), Line(0))

    async def _health(self, channel: grpc.aio.Channel) -> bool:
        """Whether the replica that answers serves."""
        # HealthCheckRequest {string service = 1} and HealthCheckResponse {enum status = 1} are
        # on the wire what StringValue and UInt32Value are: the base install has no health stub
        check: grpc.aio.UnaryUnaryMultiCallable[
            wrappers_pb2.StringValue, wrappers_pb2.UInt32Value
        ] = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=wrappers_pb2.StringValue.SerializeToString,
            response_deserializer=wrappers_pb2.UInt32Value.FromString,
        )
        request = wrappers_pb2.StringValue(value=self.HEALTH_NAME)
        try:
            status = await check(request, timeout=_HEALTH_ATTEMPT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _health_error(error, self._what, self.address) from None
        return status.value == _SERVING

    @property
    def retried(self) -> int:
        """Attempts at calls that failed and were followed by another, so far."""
        return self._line.retried

    def _paid(self, result: Result) -> Result:
        match result:
            case Reply(usage=usage) | Piece(final=Final(usage=usage)):
                self.cost_usd += usage.cost_usd
        return result

    @property
    def _what(self) -> str:
        return self.HEALTH_NAME or "a Solon service"

    @property
    def _channel(self) -> grpc.aio.Channel:
        if self._open is None:
            name = type(self).__name__
            raise RuntimeError(f"{name} is not open: use `async with {name}(...) as client`")
        return self._open

    def _stub_of(self, kind: type[Stub]) -> Stub:
        """The service's methods over the open channel."""
        channel = self._channel
        # made once: each time would register every method with gRPC again
        if not isinstance(self._methods, kind):
            make: Callable[[grpc.aio.Channel], Stub] = kind
            self._methods = make(channel)
        return self._methods

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        read: Callable[[Response], Result],
        timeout: float | None,
    ) -> Result:
        """The reply as ``read`` makes it, after as many attempts as it takes."""
        deadline = self._timeout if timeout is None else timeout
        with calling(request, self.address) as span:

            async def attempt() -> Result:
                with _translated_errors(request.request_id, span):
                    metadata = self._metadata + tracing.headers(span)
                    return self._paid(
                        read(await method(request, timeout=deadline, metadata=metadata))
                    )

            return await with_retries(attempt, self._retry, self._line)

    async def _stream_with_retries(
        self,
        request: Request,
        attempt: Callable[[Span], AsyncGenerator[Result, None]],
        *,
        resumes: bool,
    ) -> AsyncGenerator[Result, None]:
        """What as many attempts at a stream yield as it takes.

        Args:
            request: What is asked.
            attempt: One attempt, in the call's span.
            resumes: Whether an attempt goes on after what those before it yielded. If not, none
                follows one that yielded anything: that cannot be taken back.
        """
        retries = Retries(self._retry, self._line)
        begun = False
        with calling(request, self.address) as span:
            while True:
                await retries.turn()
                try:
                    with retries.attempt():
                        async with aclosing(attempt(span)) as items:
                            async for item in items:
                                # progress: an earlier failure and a later one are not one outage
                                retries.forget()
                                begun = True
                                yield item
                    return
                except SolonError as error:
                    if begun and not resumes:
                        raise
                    await retries.wait_after(error)

    async def _stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        read: Callable[[Response], Result],
        timeout: float | None,
        span: Span,
    ) -> AsyncGenerator[Result, None]:
        """One attempt at a stream: what was yielded cannot be taken back, so no retry here."""
        deadline = self._timeout if timeout is None else timeout
        metadata = self._metadata + tracing.headers(span)
        call = method(request, timeout=deadline, metadata=metadata)
        try:
            with _translated_errors(request.request_id, span):
                async for response in call:
                    yield self._paid(read(response))
        finally:
            # gRPC lets an abandoned stream run until the channel closes (grpc/grpc#43462)
            call.cancel()


@contextmanager
def _translated_errors(request_id: str, span: Span) -> Iterator[None]:
    """GRPC's errors as Solon's, each with the request's id and noted in the call's span."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        typed = from_rpc_error(error, request_id=request_id)
        attempt_failed(span, typed)
        raise typed from None
    except BadReply as error:
        error.request_id = request_id
        attempt_failed(span, error)
        raise


def _health_error(error: grpc.aio.AioRpcError, service: str, address: str) -> SolonError:
    typed = from_rpc_error(error)
    if isinstance(typed, Unavailable | DeadlineExceeded):
        return NotServing(
            f"{service} at {address} does not answer: {typed.message}", code=typed.code
        )
    return UnexpectedStatus(
        f"expected {service} at {address}, but its health check answers: {typed.message}",
        code=typed.code,
    )
