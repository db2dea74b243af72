"""solon-judge: JudgeService in a process of its own.

Translates and calls ``Judge``, nothing else; ``solon.serving`` does the rest.
"""

from __future__ import annotations

from typing import Any

import grpc

from solon.constitution import Constitution
from solon.judge import replies
from solon.judge.judge import Judge
from solon.judge.questions import ChainOfThought, Manner, Question
from solon.serving import constitutions, convert, process
from solon.serving.constitutions import All, Library, Purpose
from solon.serving.server import Resources, Role
from solon.v1 import control_pb2, judge_pb2, judge_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class JudgeServicer(judge_pb2_grpc.JudgeServiceServicer):
    """JudgeService over a ``Judge``."""

    def __init__(self, judge: Judge, library: Library, *, max_tokens_default: int) -> None:
        """``max_tokens_default``: for chains of thought that bring none."""
        self._judge = judge
        self._library = library
        self._max_tokens_default = max_tokens_default

    async def Compare(  # noqa: N802
        self, request: judge_pb2.CompareRequest, context: Context
    ) -> judge_pb2.CompareResponse:
        """See the contract."""
        question = self._question(request, Purpose.COMPARISON)
        thought = request.chain_of_thought
        comparison = await self._judge.compare(
            question,
            request.response_a,
            request.response_b,
            Manner(
                both_orders=_both_orders(request.order_mode),
                min_option_mass=request.min_option_mass,
                chain_of_thought=self._chain_of_thought(thought)
                if request.HasField("chain_of_thought")
                else None,
            ),
            weight_version=convert.weight_version(request),
        )
        return replies.comparison(
            comparison,
            request_id=request.request_id,
            digest=question.constitution.digest,
            return_chains=thought.return_chains,
        )

    async def Score(  # noqa: N802
        self, request: judge_pb2.ScoreRequest, context: Context
    ) -> judge_pb2.ScoreResponse:
        """See the contract."""
        question = self._question(request, Purpose.SCORING)
        score = await self._judge.score(
            question,
            request.response,
            min_option_mass=request.min_option_mass,
            weight_version=convert.weight_version(request),
        )
        return replies.score(
            score, request_id=request.request_id, digest=question.constitution.digest
        )

    async def Rank(  # noqa: N802
        self, request: judge_pb2.RankRequest, context: Context
    ) -> judge_pb2.RankResponse:
        """See the contract."""
        question = self._question(request, Purpose.COMPARISON)
        ranking = await self._judge.rank(
            question,
            request.responses,
            Manner(
                both_orders=_both_orders(request.order_mode),
                min_option_mass=request.min_option_mass,
            ),
            every_pair=request.pair_mode != judge_pb2.PAIR_MODE_FEWEST,
            weight_version=convert.weight_version(request),
        )
        return replies.ranking(
            ranking, request_id=request.request_id, digest=question.constitution.digest
        )

    def _question(
        self,
        request: judge_pb2.CompareRequest | judge_pb2.ScoreRequest | judge_pb2.RankRequest,
        purpose: Purpose,
    ) -> Question:
        constitution: Constitution = convert.constitution(request.constitution, self._library)
        selection = convert.selection(request.principles, default=All())
        return Question(
            constitution=constitution,
            principles=constitutions.choose(selection, constitution, purpose),
            conversation=convert.conversation(request.conversation),
        )

    def _chain_of_thought(self, message: judge_pb2.ChainOfThought) -> ChainOfThought:
        return ChainOfThought(
            chains=message.chains if message.HasField("chains") else 1,
            clamp=message.clamp if message.HasField("clamp") else 0.4,
            sampling=convert.sampling(
                message.sampling, max_tokens_default=self._max_tokens_default
            ),
        )


def _both_orders(mode: judge_pb2.OrderMode.ValueType) -> bool:
    return mode != judge_pb2.ORDER_MODE_AS_GIVEN


def _register(server: grpc.aio.Server, resources: Resources) -> None:
    servicer = JudgeServicer(
        Judge(resources.engine),
        resources.library,
        max_tokens_default=resources.max_tokens_default,
    )
    judge_pb2_grpc.add_JudgeServiceServicer_to_server(servicer, server)


ROLE = Role(
    name="judge",
    service=judge_pb2.DESCRIPTOR.services_by_name["JudgeService"],
    service_role=control_pb2.SERVICE_ROLE_JUDGE,
    takes_constitutions=True,
    register=_register,
)
"""What ``solon.serving`` must know of the judge."""


def main() -> None:
    """Run solon-judge."""
    raise SystemExit(process.main(ROLE))


if __name__ == "__main__":
    main()
