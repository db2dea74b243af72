"""solon-critic: CriticService in a process of its own.

Translates and calls ``Critic``, nothing else; ``solon.serving`` does the rest.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc

from solon.constitution import Constitution, Principle, by_priority
from solon.critic.assessing import Assessment
from solon.critic.critic import Critic, draw_rounds
from solon.critic.reviews import Answer, Manner, Outcome, Review, Round, Text
from solon.engine.base import Sampling
from solon.serving import constitutions, convert, process, rules
from solon.serving.constitutions import All, BySample, Library, Purpose
from solon.serving.errors import InvalidFields
from solon.serving.server import Resources, Role
from solon.v1 import common_pb2, control_pb2, critic_pb2, critic_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_OUTCOMES = {
    Outcome.MADE: critic_pb2.OUTCOME_MADE,
    Outcome.EMPTY: critic_pb2.OUTCOME_EMPTY,
    Outcome.TRUNCATED: critic_pb2.OUTCOME_TRUNCATED,
    Outcome.ABORTED: critic_pb2.OUTCOME_ABORTED,
    Outcome.NOT_NEEDED: critic_pb2.OUTCOME_NOT_NEEDED,
}


class CriticServicer(critic_pb2_grpc.CriticServiceServicer):
    """CriticService over a ``Critic``."""

    def __init__(self, critic: Critic, library: Library, *, max_tokens_default: int) -> None:
        """``max_tokens_default``: for requests that bring none."""
        self._critic = critic
        self._library = library
        self._max_tokens_default = max_tokens_default

    async def Critique(  # noqa: N802
        self, request: critic_pb2.CritiqueRequest, context: Context
    ) -> critic_pb2.CritiqueResponse:
        """See the contract."""
        review = self._review(request)
        made = await self._critic.critique(
            review,
            self._sampling(request.sampling),
            weight_version=convert.weight_version(request),
        )
        return critic_pb2.CritiqueResponse(
            request_id=request.request_id,
            weight_version=made.weight_version,
            principle_id=review.principle.id,
            constitution_digest=review.constitution.digest,
            answers=map(_answer, made.answers),
            critique=_completion(made.text),
            outcome=_OUTCOMES[made.text.outcome],
            usage=convert.usage(made.usage),
            timing=convert.timing(made.timing),
        )

    async def Revise(  # noqa: N802
        self, request: critic_pb2.ReviseRequest, context: Context
    ) -> critic_pb2.ReviseResponse:
        """See the contract."""
        review = self._review(request)
        made = await self._critic.revise(
            review,
            request.critique if request.HasField("critique") else None,
            self._sampling(request.sampling),
            answers=_given_answers(request, review),
            weight_version=convert.weight_version(request),
        )
        return critic_pb2.ReviseResponse(
            request_id=request.request_id,
            weight_version=made.weight_version,
            principle_id=review.principle.id,
            constitution_digest=review.constitution.digest,
            revision=_completion(made.text),
            outcome=_OUTCOMES[made.text.outcome],
            usage=convert.usage(made.usage),
            timing=convert.timing(made.timing),
        )

    async def Refine(  # noqa: N802
        self, request: critic_pb2.RefineRequest, context: Context
    ) -> AsyncGenerator[critic_pb2.RefineResponse, None]:
        """See the contract."""
        constitution = convert.constitution(request.constitution, self._library)
        principles = _round_principles(request, constitution)
        chain = self._critic.refine(
            Review(
                constitution=constitution,
                principle=principles[0],
                conversation=convert.conversation(request.conversation),
                response=request.response,
                skip_questions=request.skip_questions,
            ),
            principles,
            self._sampling(request.sampling),
            _manner(request),
            weight_version=convert.weight_version(request),
        )
        digest = constitution.digest
        async with aclosing(chain) as rounds:
            async for made in rounds:
                yield _round(made, request_id=request.request_id, digest=digest)

    async def Assess(  # noqa: N802
        self, request: critic_pb2.AssessRequest, context: Context
    ) -> critic_pb2.AssessResponse:
        """See the contract."""
        constitution = convert.constitution(request.constitution, self._library)
        selection = convert.selection(request.principles, default=All())
        assessed = await self._critic.assess(
            constitutions.choose(selection, constitution, Purpose.ASSESSMENT),
            convert.conversation(request.conversation),
            request.response,
            min_option_mass=request.min_option_mass,
            weight_version=convert.weight_version(request),
        )
        return critic_pb2.AssessResponse(
            request_id=request.request_id,
            weight_version=assessed.weight_version,
            constitution_digest=constitution.digest,
            probability=assessed.probability,
            no_verdict_reason=convert.no_verdict_reason(assessed.no_verdict),
            principles=[_assessment(one) for one in assessed.principles],
            usage=convert.usage(assessed.usage),
            timing=convert.timing(assessed.timing),
        )

    def _review(self, request: critic_pb2.CritiqueRequest | critic_pb2.ReviseRequest) -> Review:
        constitution = convert.constitution(request.constitution, self._library)
        selection = convert.selection(request.principles, default=BySample())
        return Review(
            constitution=constitution,
            principle=constitutions.choose_one(selection, constitution, Purpose.REVISION),
            conversation=convert.conversation(request.conversation),
            response=request.response,
            skip_questions=request.skip_questions,
        )

    def _sampling(self, message: common_pb2.SamplingParams) -> Sampling:
        return convert.sampling(message, max_tokens_default=self._max_tokens_default)


def _round_principles(
    request: critic_pb2.RefineRequest, constitution: Constitution
) -> tuple[Principle, ...]:
    rounds = request.rounds if request.HasField("rounds") else None
    match convert.selection(request.principles, default=BySample()):
        case BySample(count=1, seed=seed):
            return draw_rounds(
                constitutions.usable_for(Purpose.REVISION, constitution),
                rules.DEFAULT_ROUNDS if rounds is None else rounds,
                constitutions.new_seed() if seed is None else seed,
            )
        case All():
            return _by_priority(constitution, rounds)
        case selection:
            return constitutions.choose(selection, constitution, Purpose.REVISION)


def _by_priority(constitution: Constitution, rounds: int | None) -> tuple[Principle, ...]:
    """One a round.

    Raises:
        InvalidFields: There are fewer principles than rounds, or more than a chain may have.
    """
    usable = by_priority(constitutions.usable_for(Purpose.REVISION, constitution))
    wanted = len(usable) if rounds is None else rounds
    most = min(len(usable), rules.MOST_ROUNDS)
    if wanted > most:
        text = f"expected 1 to {most}, of {len(usable)} usable principles, got {wanted}"
        raise InvalidFields.of("rounds", text)
    return usable[:wanted]


def _given_answers(request: critic_pb2.ReviseRequest, review: Review) -> tuple[str, ...]:
    """The answers that the critique rests on.

    Raises:
        InvalidFields: They are not one to each of the principle's questions.
    """
    asked, given = len(review.questions), len(request.answers)
    if given not in (0, asked):
        text = f"expected none, or {asked}, one to each of the principle's questions, got {given}"
        raise InvalidFields.of("answers", text)
    return tuple(request.answers)


def _manner(request: critic_pb2.RefineRequest) -> Manner:
    return Manner(
        skip_critique=request.skip_critique,
        not_needed_below=request.not_needed_below if request.HasField("not_needed_below") else None,
        min_option_mass=request.min_option_mass,
    )


def _assessment(one: Assessment) -> critic_pb2.Assessment:
    return critic_pb2.Assessment(
        principle_id=one.principle.id,
        probability=one.probability,
        logprobs=one.logprobs,
        option_mass=one.option_mass,
        no_verdict_reason=convert.no_verdict_reason(one.no_verdict),
    )


def _round(made: Round, *, request_id: str, digest: str) -> critic_pb2.RefineResponse:
    response = critic_pb2.RefineResponse(
        request_id=request_id,
        weight_version=made.weight_version,
        round=made.number,
        principle_id=made.principle.id,
        constitution_digest=digest,
        revision_outcome=_OUTCOMES[made.revision_outcome],
        answers=map(_answer, made.answers),
        usage=convert.usage(made.usage),
        timing=convert.timing(made.timing),
    )
    if made.assessment is not None:
        response.assessment.CopyFrom(_assessment(made.assessment))
    if made.critique is not None:
        response.critique.CopyFrom(_completion(made.critique))
        response.critique_outcome = _OUTCOMES[made.critique.outcome]
    if not made.needed:
        return response
    if made.revision is None:
        response.revision.finish_reason = common_pb2.FINISH_REASON_ABORT
    else:
        response.revision.CopyFrom(_completion(made.revision))
    return response


def _answer(answer: Answer) -> critic_pb2.QuestionAnswer:
    return critic_pb2.QuestionAnswer(
        number=answer.number,
        question=answer.question,
        answer=_completion(answer.text),
        outcome=_OUTCOMES[answer.text.outcome],
    )


def _completion(text: Text) -> common_pb2.Completion:
    return convert.completion(text.generation, seed=text.seed)


def _register(server: grpc.aio.Server, resources: Resources) -> None:
    servicer = CriticServicer(
        Critic(resources.engine),
        resources.library,
        max_tokens_default=resources.max_tokens_default,
    )
    critic_pb2_grpc.add_CriticServiceServicer_to_server(servicer, server)


ROLE = Role(
    name="critic",
    service=critic_pb2.DESCRIPTOR.services_by_name["CriticService"],
    service_role=control_pb2.SERVICE_ROLE_CRITIC,
    takes_constitutions=True,
    register=_register,
)
"""What ``solon.serving`` must know of the critic."""


def main() -> None:
    """Run solon-critic."""
    raise SystemExit(process.main(ROLE))


if __name__ == "__main__":
    main()
