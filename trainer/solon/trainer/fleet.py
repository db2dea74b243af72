"""The three services as a run sees them: connected, checked, with the weights that it means.

Starts on this machine whatever the configuration gives no address for. Knows nothing of stages.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from solon.chat import Conversation
from solon.client import (
    ControlClient,
    CriticClient,
    Generated,
    JudgeClient,
    JudgePanel,
    PanelMode,
    PolicyClient,
    Sampling,
    ServerInfo,
    Tls,
)
from solon.client.base import ServiceClient
from solon.client.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotAuthorized,
    Unavailable,
    UnexpectedStatus,
    WeightVersionMismatch,
)
from solon.constitution import Constitution, resolve
from solon.trainer import inline
from solon.trainer.config import RunConfig, model_source
from solon.trainer.errors import ServiceError
from solon.trainer.launch.local import LocalServices, Patience, Role, ServiceSpec
from solon.trainer.roster import Place, roster
from solon.trainer.stages.preference_settings import PanelConfig
from solon.trainer.stages.settings import ServiceConfig
from solon.v1 import common_pb2

Result = TypeVar("Result")

INITIAL = "initial"
"""What a service calls the weights that it was started with, unless told otherwise."""
_MOST_UPDATES = 20
"""Of the weights, for one call: a service that is restarted comes back with its first weights."""
_STOP_AT_ONCE = ("--settle-seconds", "0", "--drain-seconds", "2")
"""Nobody else calls a service that the run started, so at the end nobody is waited for."""
_CLIENTS: dict[Role, type[ServiceClient]] = {
    "policy": PolicyClient,
    "critic": CriticClient,
    "judge": JudgeClient,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The weights that a request is meant for."""

    version: str
    path: str
    """Directory in Hugging Face format, as the policy service sees it."""
    onto: Weights | None = None
    """Full weights, if ``path`` is an adapter: what it is merged into."""


class Policy:
    """The policy service, always with the weights that a caller asks for."""

    def __init__(self, client: PolicyClient, control: ControlClient, timeout: float) -> None:
        """``timeout``: seconds that loading weights may take."""
        self._client = client
        self._control = control
        self._timeout = timeout
        self._loading = asyncio.Lock()
        # adapter's version -> the full weights' that it was merged into
        self._merged: dict[str, str] = {}

    async def generate(
        self,
        conversation: Conversation,
        *,
        weights: Weights,
        sampling: Sampling,
        n: int = 1,
        return_tokens: bool = False,
    ) -> Generated:
        """Answer n times with exactly these weights, which are loaded first if need be.

        Raises:
            ServiceError: The weights cannot be loaded, or others have answered.
            SolonError: The call failed.
        """
        for _ in range(_MOST_UPDATES):
            try:
                found = await self._client.generate(
                    conversation,
                    sampling=sampling,
                    n=n,
                    return_tokens=return_tokens,
                    weight_version=weights.version,
                )
            except WeightVersionMismatch:
                await self.load(weights)
                continue
            if found.weight_version != weights.version:
                raise ServiceError(
                    f"the policy service at {self._client.address} was asked for weights "
                    f"{weights.version!r} and answered with {found.weight_version!r}, against its "
                    "contract; use another version of it"
                )
            return found
        raise ServiceError(
            f"the policy service at {self._client.address} did not keep weights "
            f"{weights.version!r} after {_MOST_UPDATES} updates; is another run using it?"
        )

    async def load(self, weights: Weights) -> None:
        """Make the service use these weights; nothing if it does already.

        Raises:
            ServiceError: It cannot; the text says why.
        """
        async with self._loading:
            present = (await self._control.get_load()).weight_version
            if present == weights.version:
                return
            full = weights.onto
            # a service that was restarted has neither the adapter nor what it is merged into
            if full is not None and full.version not in (present, self._merged.get(present)):
                await self._update(full)
            await self._update(weights)
            if full is not None:
                self._merged[weights.version] = full.version

    async def _update(self, weights: Weights) -> None:
        try:
            await self._control.update_weights(weights.path, weights.version, timeout=self._timeout)
        except (FailedPrecondition, InvalidArgument) as error:
            raise ServiceError(
                f"the policy service at {self._client.address} could not load {weights.path!r}: "
                f"{error}; the service must be able to read that path, and its engine to replace "
                "weights"
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Connected:
    """One service that answers."""

    client: Any
    address: str
    info: ServerInfo
    constitution: common_pb2.ConstitutionSource
    """How to name the run's constitution to it."""


class Fleet:
    """Services that serve while ``open_fleet``'s block runs."""

    def __init__(
        self, connected: Mapping[str, Connected], policy: Policy | None, local: LocalServices | None
    ) -> None:
        """See ``open_fleet``. ``connected``: by the names of the roster."""
        self._connected = connected
        self._policy = policy
        self._local = local
        self._panel: JudgePanel | None = None

    @property
    def policy(self) -> Policy:
        """The model that is trained."""
        assert self._policy is not None, "the stage did not ask for the policy"
        return self._policy

    def critic(self) -> CriticClient:
        """The client of the critic."""
        client = self._connected["critic"].client
        assert isinstance(client, CriticClient)
        return client

    def judge(self) -> JudgeClient:
        """The client of the only judge."""
        client = self._connected["judge"].client
        assert isinstance(client, JudgeClient)
        return client

    def judges(self) -> dict[str, Connected]:
        """The judges of the panel by name; empty without a panel."""
        prefix = "judge-"
        return {
            name.removeprefix(prefix): one
            for name, one in self._connected.items()
            if name.startswith(prefix)
        }

    def panel(self, config: PanelConfig) -> JudgePanel:
        """The judges as one."""
        if self._panel is None:
            clients = {name: one.client for name, one in self.judges().items()}
            self._panel = JudgePanel(clients, mode=PanelMode(config.mode), quorum=config.quorum)
        return self._panel

    @property
    def judge_model(self) -> str:
        """What compares: a model, or those of the panel, separated by commas."""
        found = self.judges().values() or [self._connected["judge"]]
        return ", ".join(one.info.model for one in found)

    @property
    def retried(self) -> int:
        """Attempts at calls that failed and were followed by another, so far."""
        return sum(one.client.retried for one in self._connected.values())

    @property
    def cost_usd(self) -> float:
        """What endpoints behind the services have charged so far, in US dollars."""
        return float(sum(one.client.cost_usd for one in self._connected.values()))

    def addresses(self, role: Role) -> dict[str, str]:
        """Where the services of a role are, by their names in the roster."""
        return {
            name: one.address
            for name, one in self._connected.items()
            if name == role or name.startswith(f"{role}-")
        }

    def info(self, role: Role) -> ServerInfo:
        """What the service said of itself when the run connected."""
        return self._connected[role].info

    @property
    def base_version(self) -> str:
        """What the policy service calls the weights of the helpful model."""
        info = self.info("policy")
        # an engine that cannot change its weights has them under whatever name it gives
        return INITIAL if info.supports_weight_update else info.weight_version

    def constitution(self, role: Role) -> common_pb2.ConstitutionSource:
        """How to name the run's constitution to a service, or to all judges of the panel."""
        if role == "judge" and (judges := self.judges()):
            # by name only if every one of them has it
            sources = [one.constitution for one in judges.values()]
            return next((source for source in sources if source.HasField("inline")), sources[0])
        return self._connected[role].constitution

    async def guard(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The work's result, unless a local service is given up meanwhile.

        Raises:
            LaunchError: A service crashed too often; the work was cancelled.
        """
        return await work if self._local is None else await self._local.guard(work)


@asynccontextmanager
async def open_fleet(
    config: RunConfig, constitution: Constitution, roles: Collection[Role], *, log_dir: Path
) -> AsyncIterator[Fleet]:
    """Start what has no address, connect to all, and wait until all serve.

    Args:
        config: The run's.
        constitution: The run's.
        roles: The services that are needed.
        log_dir: Gets the logs of services that are started here.

    Raises:
        LaunchError: A service did not start.
        ServiceError: One does not answer at its address, or is another service.
    """
    places = list(roster(config, roles))
    async with AsyncExitStack() as stack:
        local = await _start_local(stack, config, places, log_dir)
        addresses = dict(local.addresses) if local else {}
        connected: dict[str, Connected] = {}
        policy = None
        for place in places:
            address = addresses.get(place.name) or str(place.service.address)
            one, control = await _connect(stack, config, constitution, place, address)
            connected[place.name] = one
            if place.role == "policy":
                policy = Policy(one.client, control, config.services.start_timeout)
        yield Fleet(connected, policy, local)


async def _start_local(
    stack: AsyncExitStack, config: RunConfig, places: Sequence[Place], log_dir: Path
) -> LocalServices | None:
    specs = [_spec(config, place) for place in places if not place.service.address]
    if not specs:
        return None
    patience = Patience(start=config.services.start_timeout)
    return await stack.enter_async_context(LocalServices(specs, log_dir=log_dir, patience=patience))


def _spec(config: RunConfig, place: Place) -> ServiceSpec:
    service = place.service
    flags = ["--device", service.device, "--dtype", service.dtype]
    flags += ["--max-batch", str(service.max_batch), *_STOP_AT_ONCE]
    for key, value in service.engine_options.items():
        flags += ["--engine-option", f"{key}={value}"]
    named = () if place.role == "policy" else (str(resolve(config.constitution)),)
    return ServiceSpec(
        role=place.role,
        name=place.name,
        # an endpoint has names of its own
        model=place.model if service.is_endpoint else model_source(place.model),
        engine=service.engine,
        weight_version=INITIAL,
        constitutions=named,
        threads=service.threads or max(1, len(os.sched_getaffinity(0)) // 2),
        flags=tuple(flags),
    )


async def _connect(
    stack: AsyncExitStack,
    config: RunConfig,
    constitution: Constitution,
    place: Place,
    address: str,
) -> tuple[Connected, ControlClient]:
    client, control, info = await _reach(
        stack, config, place, address, patience=config.services.start_timeout
    )
    known = {known.name: known.digest for known in info.constitutions}
    has_it = known.get(constitution.name) == constitution.digest
    source = inline.by_name(constitution) if has_it else inline.inline(constitution)
    one = Connected(client=client, address=address, info=info, constitution=source)
    return one, control


async def look(config: RunConfig, place: Place, *, patience: float) -> ServerInfo:
    """What the running service at a place's address says of itself; nothing is asked of it.

    Args:
        config: The run's.
        place: Which service; its address is set.
        patience: Seconds to wait until it serves.

    Raises:
        ServiceError: It does not answer, is another service, or cannot do what the role needs.
    """
    async with AsyncExitStack() as stack:
        address = str(place.service.address)
        _, _, info = await _reach(stack, config, place, address, patience=patience)
    return info


async def _reach(
    stack: AsyncExitStack, config: RunConfig, place: Place, address: str, *, patience: float
) -> tuple[ServiceClient, ControlClient, ServerInfo]:
    role = place.role
    how = _how(config, place.service)
    try:
        client = await stack.enter_async_context(_CLIENTS[role](address, **how))
        control = await stack.enter_async_context(ControlClient(address, **how))
    except (OSError, ValueError) as error:
        raise ServiceError(f"{place.key}: {error}") from error
    try:
        await client.wait_until_serving(patience)
        info = await control.get_server_info()
    except NotAuthorized as error:
        raise ServiceError(
            f"{place.key}.token_env: the {role} service at {address!r} does not let the run "
            f"in: {error.message}"
        ) from error
    except (Unavailable, UnexpectedStatus) as error:
        raise ServiceError(
            f"{place.key}.address: the {role} service at {address!r} is not up: "
            f"{error.message}; start it, correct the address, or remove it so that the run "
            "starts its own"
        ) from error
    _require(place, info, address)
    if role == "judge" and config.preferences.chain_of_thought is None:
        fix = "use another engine, or set preferences.chain_of_thought, whose answers are clamped"
        _require_logprobs(place, info, address, "the judge", fix)
    if role == "critic" and config.revisions.not_needed_below is not None:
        _require_logprobs(place, info, address, "revisions.not_needed_below: it")
    return client, control, info


def _how(config: RunConfig, service: ServiceConfig) -> dict[str, Any]:
    """A client's keywords."""
    return {
        "timeout": config.services.call_timeout,
        "retry_for": config.services.retry_for,
        # a run has time: a slow service makes it slow, and does not end it
        "retry_late": True,
        "tls": Tls(**service.tls.model_dump()) if service.tls else None,
        "token": os.environ.get(service.token_env) if service.token_env else None,
        "allow_plain_token": service.allow_plain_token,
    }


def _require(place: Place, info: ServerInfo, address: str) -> None:
    role = place.role
    if info.service_role != role:
        raise ServiceError(
            f"{place.key}.address: expected a {role} service, but {address!r} is a "
            f"{info.service_role} service"
        )


def _require_logprobs(
    place: Place, info: ServerInfo, address: str, who: str, fix: str = "use another engine"
) -> None:
    if not info.supports_logprobs:
        raise ServiceError(
            f"{place.key}: the engine {info.engine!r} of {address!r} gives no "
            f"log-probabilities, from which {who} reads its verdicts; {fix}"
        )
