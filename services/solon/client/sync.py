"""The clients for scripts that use no asyncio: the same methods, blocking.

Every client runs an event loop in a thread of its own, from ``with`` to its end. Knows nothing
of the methods themselves: they are taken over with their signatures.

    with JudgeClient("localhost:50051") as judge:
        verdict = judge.compare(conversation, "Yes.", "No.", constitution="core")
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from solon.client.base import ServiceClient
from solon.client.channel import MAX_MESSAGE_BYTES
from solon.client.control import ControlClient as AsyncControlClient
from solon.client.critic import CriticClient as AsyncCriticClient
from solon.client.judge import JudgeClient as AsyncJudgeClient
from solon.client.policy import PolicyClient as AsyncPolicyClient
from solon.client.security import Tls

Client = TypeVar("Client", bound=ServiceClient)
Params = ParamSpec("Params")
Result = TypeVar("Result")


class _Blocking(Generic[Client]):
    """A client whose coroutines run to their end in a thread's event loop."""

    _client_class: type[Client]

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
        """As the async client's."""
        self._client = self._client_class(
            address,
            timeout=timeout,
            retry_for=retry_for,
            retry_late=retry_late,
            max_message_bytes=max_message_bytes,
            tls=tls,
            token=token,
            allow_plain_token=allow_plain_token,
        )
        self._runner = asyncio.Runner()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start the thread and open the channel."""
        loop = self._runner.get_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="solon-client", daemon=True)
        self._thread.start()
        self._wait_for(self._client.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the channel and end the thread."""
        if self._thread is None:
            return
        self._wait_for(self._client.__aexit__(kind, error, traceback))
        self._runner.get_loop().call_soon_threadsafe(self._runner.get_loop().stop)
        self._thread.join()
        self._thread = None
        self._runner.close()

    def wait_until_serving(self, timeout: float = 60.0) -> None:
        """As ``ServiceClient.wait_until_serving``."""
        self._wait_for(self._client.wait_until_serving(timeout))

    @property
    def retried(self) -> int:
        """As ``ServiceClient.retried``."""
        return self._client.retried

    def _wait_for(self, work: Coroutine[Any, Any, Result]) -> Result:
        if self._thread is None:
            work.close()
            name = type(self).__name__
            raise RuntimeError(f"{name} is not open: use `with {name}(...) as client`")
        future = asyncio.run_coroutine_threadsafe(work, self._runner.get_loop())
        try:
            return future.result()
        except BaseException:
            # Ctrl-C reaches the waiting thread only: the call must not go on without it
            future.cancel()
            raise


def _blocking(
    method: Callable[Concatenate[Client, Params], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[_Blocking[Client], Params], Result]:
    @functools.wraps(method)
    def call(self: _Blocking[Client], /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        return self._wait_for(method(self._client, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[Client, Params], AsyncGenerator[Result, None]],
) -> Callable[Concatenate[_Blocking[Client], Params], Iterator[Result]]:
    @functools.wraps(method)
    def iterate(
        self: _Blocking[Client], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> Iterator[Result]:
        stream = method(self._client, *args, **kwargs)

        async def following() -> tuple[Result, ...]:
            # a StopAsyncIteration would not cross the thread: no item is the end
            async for item in stream:
                return (item,)
            return ()

        try:
            while item := self._wait_for(following()):
                yield item[0]
        finally:
            self._wait_for(stream.aclose())

    return iterate


class PolicyClient(_Blocking[AsyncPolicyClient]):
    """``solon.client.PolicyClient``, blocking."""

    _client_class = AsyncPolicyClient
    generate = _blocking(AsyncPolicyClient.generate)
    stream = _iterating(AsyncPolicyClient.stream)


class CriticClient(_Blocking[AsyncCriticClient]):
    """``solon.client.CriticClient``, blocking."""

    _client_class = AsyncCriticClient
    critique = _blocking(AsyncCriticClient.critique)
    revise = _blocking(AsyncCriticClient.revise)
    refine = _iterating(AsyncCriticClient.refine)
    assess = _blocking(AsyncCriticClient.assess)


class JudgeClient(_Blocking[AsyncJudgeClient]):
    """``solon.client.JudgeClient``, blocking."""

    _client_class = AsyncJudgeClient
    compare = _blocking(AsyncJudgeClient.compare)
    score = _blocking(AsyncJudgeClient.score)
    rank = _blocking(AsyncJudgeClient.rank)


class ControlClient(_Blocking[AsyncControlClient]):
    """``solon.client.ControlClient``, blocking."""

    _client_class = AsyncControlClient
    get_server_info = _blocking(AsyncControlClient.get_server_info)
    get_load = _blocking(AsyncControlClient.get_load)
    update_weights = _blocking(AsyncControlClient.update_weights)
    pause = _blocking(AsyncControlClient.pause)
    resume = _blocking(AsyncControlClient.resume)
