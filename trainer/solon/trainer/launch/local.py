"""Running on this machine: services and training stages as processes.

The one module of ``launch`` that the coordinator imports; ``services`` and ``stages`` do the work.
"""

from solon.trainer.launch.errors import LaunchError, StageFailed
from solon.trainer.launch.events import Done, Note, Progress, StageEvent
from solon.trainer.launch.services import LocalServices, Patience, Role, ServiceSpec
from solon.trainer.launch.stages import run_stage

__all__ = [
    "Done",
    "LaunchError",
    "LocalServices",
    "Note",
    "Patience",
    "Progress",
    "Role",
    "ServiceSpec",
    "StageEvent",
    "StageFailed",
    "run_stage",
]
