"""Where protobuf stops: messages that obey the rules become domain types, and results messages.

``rules.check`` has run before anything here, so nothing is checked twice. Knows nothing of calls,
engines or roles.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from solon.chat import Conversation, Message, Role
from solon.constitution import (
    AbsoluteQuestion,
    ComparisonExemplar,
    Constitution,
    CritiqueExemplar,
    Principle,
)
from solon.engine import base
from solon.serving.constitutions import (
    All,
    ByIds,
    BySample,
    Library,
    Selection,
    check_digest,
    new_seed,
)
from solon.serving.readings import NoVerdict
from solon.v1 import common_pb2, critic_pb2, judge_pb2, policy_pb2

Request = (
    policy_pb2.GenerateRequest
    | policy_pb2.StreamGenerateRequest
    | critic_pb2.CritiqueRequest
    | critic_pb2.ReviseRequest
    | critic_pb2.RefineRequest
    | critic_pb2.AssessRequest
    | judge_pb2.CompareRequest
    | judge_pb2.ScoreRequest
    | judge_pb2.RankRequest
)
"""A request that may demand a weight_version."""

_ROLES: dict[common_pb2.Role.ValueType, Role] = {
    common_pb2.ROLE_SYSTEM: "system",
    common_pb2.ROLE_USER: "user",
    common_pb2.ROLE_ASSISTANT: "assistant",
}
_FINISH_REASONS = {
    base.FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    base.FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    base.FinishReason.ABORT: common_pb2.FINISH_REASON_ABORT,
}

_NO_VERDICT_REASONS: dict[NoVerdict | None, judge_pb2.NoVerdictReason.ValueType] = {
    None: judge_pb2.NO_VERDICT_REASON_UNSPECIFIED,
    NoVerdict.LOW_OPTION_MASS: judge_pb2.NO_VERDICT_REASON_LOW_OPTION_MASS,
    NoVerdict.NOT_FINITE: judge_pb2.NO_VERDICT_REASON_NOT_FINITE,
    NoVerdict.UNREADABLE_ANSWER: judge_pb2.NO_VERDICT_REASON_UNREADABLE_ANSWER,
    NoVerdict.FILTERED: judge_pb2.NO_VERDICT_REASON_FILTERED,
    NoVerdict.NO_PRINCIPLE: judge_pb2.NO_VERDICT_REASON_NO_PRINCIPLE,
}


def conversation(message: common_pb2.Conversation) -> Conversation:
    """The turns."""
    return Conversation(tuple(Message(_ROLES[m.role], m.content) for m in message.messages))


def sampling(message: common_pb2.SamplingParams, *, max_tokens_default: int) -> base.Sampling:
    """How to draw; what is unset takes its default, and a seed is drawn if there is none."""
    return base.Sampling(
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        top_k=message.top_k,
        max_tokens=message.max_tokens if message.HasField("max_tokens") else max_tokens_default,
        seed=message.seed if message.HasField("seed") else new_seed(),
        stop=tuple(message.stop),
    )


def weight_version(request: Request) -> str | None:
    """The weights that the request demands, if any."""
    return request.weight_version if request.HasField("weight_version") else None


def constitution(message: common_pb2.ConstitutionSource, library: Library) -> Constitution:
    """The constitution that is meant.

    Raises:
        UnknownConstitution: The library has none of that name.
        DigestMismatch: It is not the one that the caller expects.
    """
    if message.WhichOneof("source") == "inline":
        found = inline_constitution(message.inline)
    else:
        found = library.get(message.name)
    check_digest(found, message.digest if message.HasField("digest") else None)
    return found


def inline_constitution(message: common_pb2.Constitution) -> Constitution:
    """A constitution that came with a request. Its digest is that of the same one in a file."""
    return Constitution(
        name=message.name,
        version="inline",
        principles=tuple(map(_principle, message.principles)),
        critique_exemplars=tuple(map(_critique_exemplar, message.critique_exemplars)),
        comparison_exemplars=tuple(map(_comparison_exemplar, message.comparison_exemplars)),
    )


def selection(message: common_pb2.PrincipleSelection, *, default: Selection) -> Selection:
    """Which principles are meant."""
    match message.WhichOneof("selection"):
        case "ids":
            return ByIds(ids=tuple(message.ids.ids))
        case "sample":
            seed = message.sample.seed if message.sample.HasField("seed") else None
            return BySample(count=message.sample.count, seed=seed)
        case "all":
            return All()
    return default


def completion(
    generation: base.Generation, *, seed: int, return_tokens: bool = False
) -> common_pb2.Completion:
    """A sampled text."""
    return common_pb2.Completion(
        text=generation.text,
        finish_reason=finish_reason(generation.finish_reason),
        tokens=tokens(generation.tokens) if return_tokens else (),
        seed=seed,
    )


def tokens(made: Iterable[base.Token]) -> list[common_pb2.Token]:
    """Generated tokens."""
    return [common_pb2.Token(id=t.id, text=t.text, logprob=t.logprob) for t in made]


def finish_reason(reason: base.FinishReason) -> common_pb2.FinishReason.ValueType:
    """Why a generation ended."""
    return _FINISH_REASONS[reason]


def no_verdict_reason(reason: NoVerdict | None) -> judge_pb2.NoVerdictReason.ValueType:
    """Why there is no verdict; UNSPECIFIED if there is one."""
    return _NO_VERDICT_REASONS[reason]


def usage(spent: base.Usage) -> common_pb2.Usage:
    """Tokens spent."""
    return common_pb2.Usage(
        prompt_tokens=spent.prompt_tokens,
        cached_tokens=spent.cached_tokens,
        completion_tokens=spent.completion_tokens,
        model_calls=spent.model_calls,
        cost_usd=spent.cost_usd,
    )


def timing(taken: base.Timing) -> common_pb2.Timing:
    """Where the time went."""
    return common_pb2.Timing(queue=_duration(taken.queue), inference=_duration(taken.inference))


def _duration(seconds: float) -> Duration:
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)


def _principle(message: common_pb2.Principle) -> Principle:
    question = message.absolute_question
    return Principle(
        id=message.id,
        weight=message.weight if message.HasField("weight") else 1.0,
        tags=tuple(message.tags),
        # an empty text asks nothing: some languages' clients send it for "unset"
        critique_request=message.critique_request or None,
        revision_request=message.revision_request or None,
        comparison_instruction=message.comparison_instruction or None,
        absolute_question=AbsoluteQuestion(
            text=question.text, answers={a.text: a.value for a in question.answers}
        )
        if message.HasField("absolute_question")
        else None,
        priority=message.priority if message.HasField("priority") else None,
        questions=tuple(message.questions),
        exemplars=tuple(_critique_exemplar(e, message.id) for e in message.exemplars),
    )


def _critique_exemplar(
    message: common_pb2.CritiqueExemplar, principle: str | None = None
) -> CritiqueExemplar:
    return CritiqueExemplar(
        conversation=conversation(message.conversation),
        response=message.response,
        principle=message.principle_id if principle is None else principle,
        answers=tuple(message.answers),
        critique=message.critique,
        revision=message.revision,
    )


def _comparison_exemplar(message: common_pb2.ComparisonExemplar) -> ComparisonExemplar:
    return ComparisonExemplar(
        conversation=conversation(message.conversation),
        response_a=message.response_a,
        response_b=message.response_b,
        principle=message.principle_id,
        answer="A" if message.answer == common_pb2.OPTION_A else "B",
    )
