"""The client of JudgeService: comparisons, scores and rankings by a constitution."""

from __future__ import annotations

from collections.abc import Sequence

from solon.chat import Conversation
from solon.client import replies, requests
from solon.client.base import ServiceClient
from solon.client.requests import ConstitutionRef
from solon.client.types import ChainOfThought, Comparison, PrincipleSample, Ranking, Score
from solon.v1 import judge_pb2, judge_pb2_grpc


class JudgeClient(ServiceClient):
    """Judges responses. Every method raises ``SolonError``; see ``errors`` for the tree.

    A judge that cannot decide is no error: the result says so, with a reason.
    """

    HEALTH_NAME = "solon.v1.JudgeService"

    @property
    def _stub(self) -> judge_pb2_grpc.JudgeServiceStub:
        return self._stub_of(judge_pb2_grpc.JudgeServiceStub)

    async def compare(
        self,
        conversation: Conversation,
        response_a: str,
        response_b: str,
        *,
        constitution: ConstitutionRef,
        principle_ids: Sequence[str] | None = None,
        sample: PrincipleSample | None = None,
        both_orders: bool = True,
        min_option_mass: float | None = None,
        chain_of_thought: ChainOfThought | None = None,
        weight_version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Comparison:
        """The probability that ``response_a`` is the better one, per principle and overall.

        Args:
            conversation: What was asked; ends with the user.
            response_a: One response.
            response_b: The other.
            constitution: Where the principles come from.
            principle_ids: These, in this order. None: all, unless ``sample`` is given.
            sample: A weighted draw of so many.
            both_orders: Show the responses in both orders and average, against position bias
                (RLAIF, arXiv 2309.00267, section 2.1).
            min_option_mass: Least probability of the two options together for a verdict, 0 to 1.
            chain_of_thought: Reason first. None: answer at once.
            weight_version: Refuse to be answered by any other weights.
            request_id: Names the request in logs. None: a random one.
            timeout: Deadline of one attempt, seconds. None: the client's.

        Raises:
            SolonError: The call failed.
            ValueError: Both ``principle_ids`` and ``sample`` were given.
        """
        request = judge_pb2.CompareRequest(
            request_id=requests.request_id(request_id),
            conversation=requests.conversation_message(conversation),
            response_a=requests.text("response_a", response_a),
            response_b=requests.text("response_b", response_b),
            constitution=requests.constitution_source(constitution),
            principles=requests.many_principles(principle_ids, sample),
            order_mode=requests.order_mode(both_orders),
            min_option_mass=min_option_mass,
            chain_of_thought=requests.chain_of_thought_message(chain_of_thought),
            weight_version=requests.text("weight_version", weight_version),
        )
        method = self._stub.Compare
        return await self._call(method, request, replies.comparison, timeout)

    async def score(
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
    ) -> Score:
        """An absolute score of one response, per principle and overall; higher is better.

        Args:
            conversation: What was asked; ends with the user.
            response: The response.
            constitution: Where the questions come from.
            principle_ids: These, in this order. None: all that have an absolute question.
            sample: A weighted draw of so many.
            min_option_mass: Least probability of the answers together for a score, 0 to 1.
            weight_version: Refuse to be answered by any other weights.
            request_id: Names the request in logs. None: a random one.
            timeout: Deadline of one attempt, seconds. None: the client's.

        Raises:
            SolonError: The call failed.
            ValueError: Both ``principle_ids`` and ``sample`` were given.
        """
        request = judge_pb2.ScoreRequest(
            request_id=requests.request_id(request_id),
            conversation=requests.conversation_message(conversation),
            response=requests.text("response", response),
            constitution=requests.constitution_source(constitution),
            principles=requests.many_principles(principle_ids, sample),
            min_option_mass=min_option_mass,
            weight_version=requests.text("weight_version", weight_version),
        )
        method = self._stub.Score
        return await self._call(method, request, replies.score, timeout)

    async def rank(
        self,
        conversation: Conversation,
        responses: Sequence[str],
        *,
        constitution: ConstitutionRef,
        principle_ids: Sequence[str] | None = None,
        sample: PrincipleSample | None = None,
        both_orders: bool = True,
        min_option_mass: float | None = None,
        every_pair: bool = True,
        weight_version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Ranking:
        """Order 2 to 16 responses by comparing pairs (Bradley-Terry strengths).

        Args:
            conversation: What was asked; ends with the user.
            responses: The responses.
            constitution: Where the principles come from.
            principle_ids: These, in this order. None: all, unless ``sample`` is given.
            sample: A weighted draw of so many.
            both_orders: Show every pair in both orders and average.
            min_option_mass: As in ``compare``.
            every_pair: Compare every pair; else as few as settle the order: from k - 1 to 2 (k - 1)
                where the probabilities fit one another.
            weight_version: Refuse to be answered by any other weights.
            request_id: Names the request in logs. None: a random one.
            timeout: Deadline of one attempt, seconds. None: the client's.

        Raises:
            SolonError: The call failed.
            ValueError: Both ``principle_ids`` and ``sample`` were given.
        """
        request = judge_pb2.RankRequest(
            request_id=requests.request_id(request_id),
            conversation=requests.conversation_message(conversation),
            responses=requests.texts("responses", responses),
            constitution=requests.constitution_source(constitution),
            principles=requests.many_principles(principle_ids, sample),
            order_mode=requests.order_mode(both_orders),
            min_option_mass=min_option_mass,
            pair_mode=requests.pair_mode(every_pair),
            weight_version=requests.text("weight_version", weight_version),
        )
        method = self._stub.Rank
        return await self._call(method, request, replies.ranking, timeout)
