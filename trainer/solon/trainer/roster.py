"""Which services a run's configuration asks for: one a role, or one for each judge of a panel.

Knows nothing of how they are started or called; imports no gRPC.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from solon.trainer.config import RunConfig
from solon.trainer.launch.local import Role
from solon.trainer.stages.settings import ServiceConfig

ROLES: tuple[Role, ...] = ("policy", "critic", "judge")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One service of a run."""

    role: Role
    name: str
    """Among the run's services: the role, or ``judge-`` and the name in the panel."""
    key: str
    """Of its settings in the configuration."""
    model_key: str
    """Of its model in the configuration."""
    service: ServiceConfig
    model: str
    judge: str | None = None
    """Its name in the panel."""


def roster(config: RunConfig, roles: Collection[Role] = ROLES) -> Iterator[Place]:
    """The services of these roles, sorted by role; a panel's judges stand for the judge."""
    panel = config.preferences.panel
    for role in sorted(roles):
        if role == "judge" and panel is not None:
            for name, model in panel.judges.items():
                yield Place(
                    role=role,
                    name=f"judge-{name}",
                    key=f"services.panel.{name}",
                    model_key=f"preferences.panel.judges.{name}",
                    service=config.services.panel.get(name, ServiceConfig()),
                    model=model,
                    judge=name,
                )
            continue
        yield Place(
            role=role,
            name=role,
            key=f"services.{role}",
            model_key=f"models.{role}",
            service=getattr(config.services, role),
            model=getattr(config.models, role),
        )


def placed(config: RunConfig, addresses: Mapping[str, str]) -> RunConfig:
    """With services that run at these addresses, by their names in the roster."""
    services = config.services
    for place in roster(config):
        if place.name not in addresses:
            continue
        service = place.service.model_copy(update={"address": addresses[place.name]})
        if place.judge is None:
            services = services.model_copy(update={place.role: service})
        else:
            panel = services.panel | {place.judge: service}
            services = services.model_copy(update={"panel": panel})
    return config.model_copy(update={"services": services})
