"""Typed async clients of Solon's services, for the trainer and for other systems.

Imports grpcio, protobuf and ``solon.v1`` only: the base install of the distribution. Knows
nothing of engines, constitutions on disk, or training.

    async with JudgeClient("judge.example:50051") as judge:
        verdict = await judge.compare(conversation, "Yes.", "No.", constitution="core")

``solon.client.sync`` has the same clients for scripts that use no asyncio.
"""

from solon.chat import Conversation, Message
from solon.client import errors
from solon.client.control import ControlClient
from solon.client.critic import CriticClient
from solon.client.errors import SolonError
from solon.client.judge import JudgeClient
from solon.client.panel import (
    JudgePanel,
    PanelComparison,
    PanelMode,
    PanelNoVerdict,
    PanelScore,
    ScoreVote,
    Vote,
)
from solon.client.policy import PolicyClient
from solon.client.requests import ConstitutionRef
from solon.client.security import Tls
from solon.client.types import (
    Assessed,
    Assessment,
    ChainOfThought,
    ChainVerdict,
    Comparison,
    Completion,
    ConstitutionInfo,
    CritiqueResult,
    Draw,
    Final,
    FinishReason,
    Generated,
    Load,
    NoVerdictReason,
    OrderVerdict,
    Outcome,
    PairVerdict,
    PauseMode,
    Piece,
    PrincipleSample,
    PrincipleScore,
    PrincipleVerdict,
    QuestionAnswer,
    RankedResponse,
    Ranking,
    RefinedRound,
    RevisionResult,
    Sampling,
    Score,
    ServerInfo,
    Timing,
    Token,
    Usage,
    WeightsUpdated,
)

__all__ = [
    "Assessed",
    "Assessment",
    "ChainOfThought",
    "ChainVerdict",
    "Comparison",
    "Completion",
    "ConstitutionInfo",
    "ConstitutionRef",
    "ControlClient",
    "Conversation",
    "CriticClient",
    "CritiqueResult",
    "Draw",
    "Final",
    "FinishReason",
    "Generated",
    "JudgeClient",
    "JudgePanel",
    "Load",
    "Message",
    "NoVerdictReason",
    "OrderVerdict",
    "Outcome",
    "PairVerdict",
    "PanelComparison",
    "PanelMode",
    "PanelNoVerdict",
    "PanelScore",
    "PauseMode",
    "Piece",
    "PolicyClient",
    "PrincipleSample",
    "PrincipleScore",
    "PrincipleVerdict",
    "QuestionAnswer",
    "RankedResponse",
    "Ranking",
    "RefinedRound",
    "RevisionResult",
    "Sampling",
    "Score",
    "ScoreVote",
    "ServerInfo",
    "SolonError",
    "Timing",
    "Tls",
    "Token",
    "Usage",
    "Vote",
    "WeightsUpdated",
    "errors",
]
