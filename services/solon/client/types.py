"""What the clients take and give: sampling, completions, verdicts, server facts.

Frozen values with no protobuf in them. Knows nothing of channels, retries or messages on the
wire (see ``requests`` and ``replies``).

Times are in seconds; log-probabilities are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

Draw = Literal["anew", "once", "priority"]
"""How a chain's principles are chosen: drawn anew for every round, with odds by weight; drawn, but
none of them twice; or one a round in the order of their priority."""
ServiceRole = Literal["policy", "critic", "judge"]


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """The model ended its turn, or a stop text appeared."""
    LENGTH = "length"
    """``max_tokens`` were made."""
    ABORT = "abort"
    """Generation was paused in abort mode: the text so far is returned."""


class Outcome(StrEnum):
    """What became of a critique or a revision."""

    MADE = "made"
    EMPTY = "empty"
    """The model said nothing."""
    TRUNCATED = "truncated"
    """Cut at ``max_tokens``; the text is returned as it is."""
    ABORTED = "aborted"
    """Generation was paused in abort mode; the text so far is returned."""
    NOT_NEEDED = "not_needed"
    """The critic found too little to criticise: the round was not made, the response stands."""


class NoVerdictReason(StrEnum):
    """Why the judge has no verdict. Never to be replaced by a tie or a default."""

    LOW_OPTION_MASS = "low_option_mass"
    """The options together hold less probability than ``min_option_mass``."""
    NOT_FINITE = "not_finite"
    """A log-probability was not a finite number, or what runs the model does not tell it."""
    UNREADABLE_ANSWER = "unreadable_answer"
    """A chain of thought was cut short, or had no words but an answer: none follows from it. Or the
    engine tells no log-probabilities, and what the judge said began with no option."""
    FILTERED = "filtered"
    """A filter in front of the model withheld what the judge said."""
    NO_PRINCIPLE = "no_principle"
    """No principle gave a verdict."""


class PauseMode(StrEnum):
    """What becomes of requests when generation is paused."""

    ABORT = "abort"
    """End running generations at once; refuse new ones."""
    WAIT = "wait"
    """Let running requests finish; refuse new ones."""
    KEEP = "keep"
    """Hold running and new requests until resumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How text is drawn. What is None takes the server's documented default."""

    temperature: float | None = None
    """0 to 10; 0 is greedy."""
    top_p: float | None = None
    """In (0, 1]."""
    top_k: int | None = None
    """0 to 1,000,000; 0 is off."""
    max_tokens: int | None = None
    """1 to 131,072."""
    seed: int | None = None
    """In [0, 2**64). None: the server draws one and returns it with the completion."""
    stop: tuple[str, ...] = ()
    """At most 16 texts that end the generation; not part of the result."""


@dataclass(frozen=True, slots=True)
class PrincipleSample:
    """A weighted draw of principles, without replacement."""

    count: int
    """1 to the number of usable principles."""
    seed: int | None = None
    """In [0, 2**64). None: the server draws one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainOfThought:
    """Judgement after reasoning. What is None takes the server's documented default."""

    chains: int | None = None
    """Chains per principle and order, 1 to 16."""
    clamp: float | None = None
    """Probabilities are clamped to [clamp, 1 - clamp], 0 to 0.5."""
    sampling: Sampling | None = None
    return_chains: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens spent. Adds up."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were not computed again; part of ``prompt_tokens``."""
    completion_tokens: int = 0
    model_calls: int = 0
    cost_usd: float = 0.0
    """What the model's host charges for them, in US dollars; 0 where the service has no prices."""

    def __add__(self, other: Usage) -> Usage:
        """The sum, field by field."""
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            model_calls=self.model_calls + other.model_calls,
            cost_usd=self.cost_usd + other.cost_usd,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Where the server's time went, in seconds. Adds up."""

    queue: float = 0.0
    """Waiting for a place in a batch."""
    inference: float = 0.0
    """In the model."""

    def __add__(self, other: Timing) -> Timing:
        """The sum, field by field."""
        return Timing(queue=self.queue + other.queue, inference=self.inference + other.inference)


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One token of an answer."""

    id: int
    text: str
    logprob: float
    """Under the model at temperature 1, before top_k and top_p. At most 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One sampled text."""

    text: str
    """Without the end-of-turn token and the stop text."""
    finish_reason: FinishReason
    seed: int
    """Repeats this completion, given with ``n=1``."""
    tokens: tuple[Token, ...] = ()
    """If ``return_tokens`` was asked for; the end-of-turn token included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What every reply tells about itself."""

    request_id: str
    weight_version: str
    """The weights that answered."""
    usage: Usage
    timing: Timing


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated(Reply):
    """``PolicyClient.generate``: n completions."""

    completions: tuple[Completion, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Final:
    """What is known once a streamed answer has ended."""

    finish_reason: FinishReason
    seed: int
    """Repeats this answer."""
    usage: Usage
    timing: Timing


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """``PolicyClient.stream``: the text since the piece before."""

    request_id: str
    weight_version: str
    text: str
    """Whole characters. May be empty in the last piece."""
    tokens: tuple[Token, ...] = ()
    final: Final | None = None
    """Set in the last piece only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionAnswer:
    """An answer to one of a principle's questions."""

    number: int
    """1 for the first question."""
    question: str
    answer: Completion
    outcome: Outcome
    """Where it is EMPTY, the answer was left out of all that follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CritiqueResult(Reply):
    """``CriticClient.critique``."""

    principle_id: str
    constitution_digest: str
    critique: Completion
    outcome: Outcome
    """ABORTED also where an answer was, so that no critique was begun."""
    answers: tuple[QuestionAnswer, ...] = ()
    """To the principle's questions, which came first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RevisionResult(Reply):
    """``CriticClient.revise``."""

    principle_id: str
    constitution_digest: str
    revision: Completion
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """Whether there is something to criticise in a response by one principle."""

    principle_id: str
    probability: float | None
    """That there is; None exactly where there is a ``no_verdict_reason``."""
    logprobs: Mapping[str, float]
    """Answer text -> log-probability of the reply beginning with it."""
    option_mass: float
    """Probability that the answers held together before they were normalised."""
    no_verdict_reason: NoVerdictReason | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessed(Reply):
    """``CriticClient.assess``."""

    constitution_digest: str
    probability: float | None
    """Highest of the principles' probabilities, over those that have a verdict."""
    no_verdict_reason: NoVerdictReason | None
    """Why ``probability`` is None."""
    principles: tuple[Assessment, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinedRound(Reply):
    """``CriticClient.refine``: one round of a chain."""

    round: int
    """1, 2, ... up to the rounds asked for."""
    principle_id: str
    constitution_digest: str
    critique: Completion | None
    """None in skip-critique mode, and where the round was not needed."""
    critique_outcome: Outcome | None
    """None where there is no critique."""
    revision: Completion | None
    """None where the round was not needed."""
    revision_outcome: Outcome
    """Where it is EMPTY or ABORTED, the chain ends with this round; where it is NOT_NEEDED, the
    next round looks at the same response."""
    assessment: Assessment | None = None
    """Of the response before this round; None unless ``not_needed_below`` was given."""
    answers: tuple[QuestionAnswer, ...] = ()
    """To the principle's questions, before the critique."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainVerdict:
    """What one chain of thought led to."""

    logprob_a: float
    """Of the option that stood for ``response_a``, after this chain; NaN if it was not read."""
    logprob_b: float
    probability_a: float | None
    """Before the clamp; None exactly where there is a ``no_verdict_reason``."""
    no_verdict_reason: NoVerdictReason | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderVerdict:
    """What the judge said with the responses in one order."""

    swapped: bool
    """Whether ``response_b`` was shown first, as (A)."""
    logprob_a: float
    """Of the option that stood for ``response_a``."""
    logprob_b: float
    probability_a: float | None
    """Normalised over the two; None exactly where there is a ``no_verdict_reason``."""
    no_verdict_reason: NoVerdictReason | None
    chains: tuple[str, ...] = ()
    """The chains of thought, if they were asked for."""
    chain_verdicts: tuple[ChainVerdict, ...] = ()
    """What each chain led to; empty without chain of thought."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrincipleVerdict:
    """What the judge said by one principle."""

    principle_id: str
    weight: float
    """In the overall mean."""
    orders: tuple[OrderVerdict, ...]
    probability_a: float | None
    """Mean over the orders; None exactly where there is a ``no_verdict_reason``."""
    position_dependent: bool | None
    """Whether the orders disagree. None unless both have a verdict."""
    no_verdict_reason: NoVerdictReason | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison(Reply):
    """``JudgeClient.compare``."""

    constitution_digest: str
    probability_a: float | None
    """That ``response_a`` is better: weighted mean over the principles that have a verdict."""
    no_verdict_reason: NoVerdictReason | None
    """Why ``probability_a`` is None."""
    principles: tuple[PrincipleVerdict, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrincipleScore:
    """A score by one principle."""

    principle_id: str
    weight: float
    """In the overall mean."""
    score: float | None
    """Expectation of the answers' values; None exactly where there is a reason."""
    probabilities: Mapping[str, float]
    """Answer text -> probability, normalised over the answers."""
    option_mass: float
    """Probability that the answers held together before that."""
    no_verdict_reason: NoVerdictReason | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Score(Reply):
    """``JudgeClient.score``."""

    constitution_digest: str
    score: float | None
    """Weighted mean over the principles that have a score."""
    no_verdict_reason: NoVerdictReason | None
    """Why ``score`` is None."""
    principles: tuple[PrincipleScore, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedResponse:
    """One response's place."""

    index: int
    """In the request."""
    strength: float | None
    """Bradley-Terry log-strength, mean 0. None: no comparison of it had a verdict."""
    win_rate: float | None
    """Mean probability of being the better one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairVerdict:
    """One comparison that a ranking rests on."""

    index_a: int
    index_b: int
    probability_a: float | None
    no_verdict_reason: NoVerdictReason | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking(Reply):
    """``JudgeClient.rank``: best first, those without a strength last."""

    constitution_digest: str
    ranking: tuple[RankedResponse, ...]
    pairs: tuple[PairVerdict, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstitutionInfo:
    """A constitution that a server knows by name."""

    name: str
    version: str
    digest: str
    principle_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """``ControlClient.get_server_info``: what a process is."""

    service_role: ServiceRole
    solon_version: str
    engine: str
    model: str
    weight_version: str
    context_tokens: int
    start_time: datetime
    """In UTC."""
    supports_logprobs: bool
    supports_weight_update: bool
    instance_id: str
    """Different in each process: tells a restart."""
    constitutions: tuple[ConstitutionInfo, ...] = field(default=())


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """``ControlClient.get_load``: how busy a process is at this moment."""

    queued: int
    running: int
    queue_capacity: int
    """Model calls that may wait before new ones are refused."""
    paused: bool
    weight_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsUpdated:
    """``ControlClient.update_weights``."""

    weight_version: str
    previous_weight_version: str
