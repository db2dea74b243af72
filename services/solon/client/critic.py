"""The client of CriticService: critiques, revisions, and chains of both."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from solon.chat import Conversation
from solon.client import replies, requests
from solon.client.base import ServiceClient
from solon.client.errors import BadReply, WeightVersionMismatch
from solon.client.requests import ConstitutionRef
from solon.client.types import (
    Assessed,
    CritiqueResult,
    Draw,
    PrincipleSample,
    RefinedRound,
    RevisionResult,
    Sampling,
)
from solon.tracing import Span
from solon.v1 import common_pb2, critic_pb2, critic_pb2_grpc


class CriticClient(ServiceClient):
    """Critiques and revises. Every method raises ``SolonError``; see ``errors`` for the tree."""

    HEALTH_NAME = "solon.v1.CriticService"

    @property
    def _stub(self) -> critic_pb2_grpc.CriticServiceStub:
        return self._stub_of(critic_pb2_grpc.CriticServiceStub)

    async def critique(
        self,
        conversation: Conversation,
        response: str,
        *,
        constitution: ConstitutionRef,
        principle_id: str | None = None,
        principle_seed: int | None = None,
        skip_questions: bool = False,
        sampling: Sampling | None = None,
        weight_version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> CritiqueResult:
        """Say what is wrong with a response by one principle.

        Args:
            conversation: What was asked; ends with the user.
            response: The response under review.
            constitution: Where the principle comes from.
            principle_id: Which principle. None: drawn at random.
            principle_seed: Makes that draw repeatable.
            skip_questions: Write the critique at once, even if the principle has questions.
            sampling: How to draw the text; answers to questions derive their own seeds.
            weight_version: Refuse to be answered by any other weights.
            request_id: Names the request in logs. None: a random one.
            timeout: Deadline of one attempt, seconds. None: the client's.

        Raises:
            SolonError: The call failed.
            ValueError: Both a principle's id and a seed were given.
        """
        request = critic_pb2.CritiqueRequest(
            request_id=requests.request_id(request_id),
            conversation=requests.conversation_message(conversation),
            response=requests.text("response", response),
            constitution=requests.constitution_source(constitution),
            principles=requests.one_principle(principle_id, principle_seed),
            skip_questions=skip_questions,
            sampling=requests.sampling_message(sampling),
            weight_version=requests.text("weight_version", weight_version),
        )
        method = self._stub.Critique
        return await self._call(method, request, replies.critique, timeout)

    async def revise(
        self,
        conversation: Conversation,
        response: str,
        *,
        constitution: ConstitutionRef,
        critique: str | None = None,
        answers: Sequence[str] = (),
        skip_questions: bool = False,
        principle_id: str | None = None,
        principle_seed: int | None = None,
        sampling: Sampling | None = None,
        weight_version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> RevisionResult:
        """Make a response better by one principle, in the light of a critique or without one.

        Args:
            conversation: What was asked; ends with the user.
            response: The response to revise.
            constitution: Where the principle comes from.
            critique: What to heed. None: revise without one.
            answers: To the principle's questions, that the critique rests on: all of them, empty
                where there is none, or none at all.
            skip_questions: Whether that critique was written without looking at its questions.
            principle_id: Which principle. None: drawn at random.
            principle_seed: Makes that draw repeatable.
            sampling: How to draw the text.
            weight_version: Refuse to be answered by any other weights.
            request_id: Names the request in logs. None: a random one.
            timeout: Deadline of one attempt, seconds. None: the client's.

        Raises:
            SolonError: The call failed.
            ValueError: Both a principle's id and a seed were given.
        """
        request = critic_pb2.ReviseRequest(
            request_id=requests.request_id(request_id),
            conversation=requests.conversation_message(conversation),
            response=requests.text("response", response),
            critique=requests.text("critique", critique),
            answers=requests.texts("answers", answers),
            skip_questions=skip_questions,
            constitution=requests.constitution_source(constitution),
            principles=requests.one_principle(principle_id, principle_seed),
            sampling=requests.sampling_message(sampling),
            weight_version=requests.text("weight_version", weight_version),
        )
        method = self._stub.Revise
        return await self._call(method, request, replies.revision, timeout)

    async def refine(
        self,
        conversation: Conversation,
        response: str,
        *,
        constitution: ConstitutionRef,
        rounds: int = 4,
        principle_ids: Sequence[str] | None = None,
        principle_seed: int | None = None,
        draw: Draw = "anew",
        skip_critique: bool = False,
        skip_questions: bool = False,
        not_needed_below: float | None = None,
        min_option_mass: float | None = None,
        sampling: Sampling | None = None,
        weight_version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[RefinedRound, None]:
        """Run a chain of critique-revision rounds, yielding each as it is made.

        Leaving the iteration stops the chain. If the replica dies in the middle, the chain is
        repeated elsewhere with the same seeds and weights, and the rounds that were already
        yielded are not yielded again. Seeds that were not given are drawn here for that.

        Args:
            conversation: What was asked; ends with the user.
            response: The first response.
            constitution: Where the principles come from.
            rounds: 1 to 16.
            principle_ids: One a round, in this order. None: as ``draw`` says.
            principle_seed: Makes draws repeatable.
            draw: How principles are chosen that are not named.
            skip_critique: Revise without critiques (arXiv 2212.08073, section 3.5).
            skip_questions: Write critiques at once, even by principles that have questions.
            not_needed_below: Leave out a round by whose principle it is less probable than this
                that there is something to criticise, 0 to 1. None: make every round.
            min_option_mass: Least probability of the answers together for a verdict on that.
            sampling: How to draw the texts; every call of the chain derives its own seed.
            weight_version: Refuse to be answered by any other weights.
            request_id: Names the request in logs. None: a random one.
            timeout: Deadline of the whole chain, seconds. None: the client's.

        Raises:
            SolonError: The call failed; the rounds that were yielded are whole and valid.
            ValueError: Ids were given with a seed or a draw, or a seed where nothing is drawn.
        """
        request = critic_pb2.RefineRequest(
            request_id=requests.request_id(request_id),
            conversation=requests.conversation_message(conversation),
            response=requests.text("response", response),
            constitution=requests.constitution_source(constitution),
            principles=_principles_of_chain(principle_ids, principle_seed, draw, rounds),
            rounds=rounds,
            skip_critique=skip_critique,
            skip_questions=skip_questions,
            not_needed_below=not_needed_below,
            min_option_mass=min_option_mass,
            sampling=requests.sampling_message(_seeded(sampling)),
            weight_version=requests.text("weight_version", weight_version),
        )
        made: list[RefinedRound] = []
        attempts = self._stream_with_retries(
            request, lambda span: self._rounds(request, made, timeout, span), resumes=True
        )
        async with aclosing(attempts) as rounds_made:
            async for refined in rounds_made:
                yield refined

    async def assess(
        self,
        conversation: Conversation,
        response: str,
        *,
        constitution: ConstitutionRef,
        principle_ids: Sequence[str] | None = None,
        sample: PrincipleSample | None = None,
        min_option_mass: float | None = None,
        weight_version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Assessed:
        """How probable it is that there is something to criticise, per principle and at most.

        Nothing is generated: the critic's log-probabilities are read.

        Args:
            conversation: What was asked; ends with the user.
            response: The response under review.
            constitution: Where the principles come from.
            principle_ids: These, in this order. None: all that can be asked by.
            sample: A weighted draw of so many.
            min_option_mass: Least probability of the answers together for a verdict, 0 to 1.
            weight_version: Refuse to be answered by any other weights.
            request_id: Names the request in logs. None: a random one.
            timeout: Deadline of one attempt, seconds. None: the client's.

        Raises:
            SolonError: The call failed.
            ValueError: Both ``principle_ids`` and ``sample`` were given.
        """
        request = critic_pb2.AssessRequest(
            request_id=requests.request_id(request_id),
            conversation=requests.conversation_message(conversation),
            response=requests.text("response", response),
            constitution=requests.constitution_source(constitution),
            principles=requests.many_principles(principle_ids, sample),
            min_option_mass=min_option_mass,
            weight_version=requests.text("weight_version", weight_version),
        )
        method = self._stub.Assess
        return await self._call(method, request, replies.assessed, timeout)

    async def _rounds(
        self,
        request: critic_pb2.RefineRequest,
        made: list[RefinedRound],
        timeout: float | None,
        span: Span,
    ) -> AsyncGenerator[RefinedRound, None]:
        """One attempt at a chain: the rounds that no earlier attempt made, added to ``made``."""
        method = self._stub.Refine
        known = tuple(made)
        stream = self._stream(method, request, replies.refined_round, timeout, span)
        async with aclosing(stream) as chain:
            async for refined in chain:
                if refined.round > len(known):
                    made.append(refined)
                    yield refined
                else:
                    _require_same(refined, known[refined.round - 1])


def _principles_of_chain(
    ids: Sequence[str] | None, seed: int | None, draw: Draw, rounds: int
) -> common_pb2.PrincipleSelection:
    if ids is not None and (seed is not None or draw != "anew"):
        raise ValueError(
            "principle_ids, principle_seed and draw: expected at most one way to choose, got ids "
            f"with principle_seed={seed!r} and draw={draw!r}"
        )
    if ids is not None:
        return requests.principles_by_id(ids)
    if draw == "priority":
        if seed is not None:
            raise ValueError("principle_seed: expected None, since draw='priority' draws nothing")
        return common_pb2.PrincipleSelection(all=common_pb2.PrincipleSelection.All())
    count = 1 if draw == "anew" else rounds
    return requests.principles_by_draw(count, requests.new_seed() if seed is None else seed)


def _seeded(sampling: Sampling | None) -> Sampling:
    sampling = sampling or Sampling()
    return sampling if sampling.seed is not None else replace(sampling, seed=requests.new_seed())


def _require_same(again: RefinedRound, before: RefinedRound) -> None:
    """A repeated round must be the one that the caller has, or the chain is of two minds."""
    if again.weight_version != before.weight_version:
        raise WeightVersionMismatch(
            f"the chain began on the weights {before.weight_version!r}, and the replica that it "
            f"was repeated on runs {again.weight_version!r}: ask for a new chain",
            metadata={"expected": before.weight_version, "actual": again.weight_version},
            request_id=again.request_id,
        )
    if _of_round(again) != _of_round(before):
        raise BadReply(
            f"round {again.round} of a repeated chain: expected the same principle and revision "
            f"for the same seeds and weights ({before.weight_version!r}), got others; the "
            "replicas do not compute alike",
            request_id=again.request_id,
        )


def _of_round(made: RefinedRound) -> tuple[str, str | None]:
    return made.principle_id, None if made.revision is None else made.revision.text
