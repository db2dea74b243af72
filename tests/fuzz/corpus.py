"""Every method of every server, and requests for it that work.

The methods are read from the descriptors, so that a new one is fuzzed without anybody's
remembering; one without a request here is a ``KeyError``. Knows nothing of fuzzing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from solon.constitution import AbsoluteQuestion, Constitution, Principle
from solon.critic.server import ROLE as CRITIC
from solon.judge.server import ROLE as JUDGE
from solon.policy.server import ROLE as POLICY
from solon.serving.server import Role
from solon.v1 import common_pb2, control_pb2, critic_pb2, judge_pb2, policy_pb2

ROLES = (POLICY, CRITIC, JUDGE)
COMMON: tuple[Any, ...] = (
    control_pb2.DESCRIPTOR.services_by_name["ControlService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
"""What every server has beside its role's own service."""

CORE = Constitution(
    name="core",
    version="1",
    principles=(
        Principle(
            id="kind",
            critique_request="What is unkind?",
            revision_request="Be kind.",
            comparison_instruction="Which is kinder?",
            absolute_question=AbsoluteQuestion(text="Is it kind?", answers={"Yes": 1.0, "No": 0.0}),
        ),
        Principle(id="calm", weight=2.0, comparison_instruction="Which is calmer?"),
    ),
)
"""The constitution that servers under test know by name."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of one server."""

    role: Role
    descriptor: MethodDescriptor

    @property
    def path(self) -> str:
        """As it stands in the HTTP/2 request."""
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.role.name}: {self.descriptor.full_name.removeprefix('solon.v1.')}"

    @property
    def is_ours(self) -> bool:
        """Whether its errors follow Solon's contract."""
        return self.descriptor.containing_service.full_name.startswith("solon.v1.")

    def responses(self, bodies: Iterable[bytes]) -> tuple[Message, ...]:
        """What was answered, read."""
        made = GetMessageClass(self.descriptor.output_type)
        return tuple(made.FromString(body) for body in bodies)

    @property
    def requests(self) -> Sequence[Message]:
        """Requests that a server with ``CORE`` answers."""
        return REQUESTS[self.descriptor.full_name]


def methods() -> Iterator[Method]:
    """All methods of all servers."""
    for role in ROLES:
        for service in services(role):
            for method in service.methods:
                yield Method(role, method)


def services(role: Role) -> tuple[ServiceDescriptor, ...]:
    """What the role's server serves."""
    return (role.service, *COMMON)


def _conversation(*texts: str) -> common_pb2.Conversation:
    roles = (common_pb2.ROLE_USER, common_pb2.ROLE_ASSISTANT)
    return common_pb2.Conversation(
        messages=[
            common_pb2.Message(role=roles[index % 2], content=text)
            for index, text in enumerate(texts)
        ]
    )


def _inline() -> common_pb2.Constitution:
    answer = common_pb2.AbsoluteQuestion.Answer
    return common_pb2.Constitution(
        name="mine",
        principles=[
            common_pb2.Principle(
                id="kind",
                weight=2,
                tags=["tone"],
                critique_request="What is unkind?",
                revision_request="Be kind.",
                comparison_instruction="Which is kinder?",
                absolute_question=common_pb2.AbsoluteQuestion(
                    text="Is it kind?",
                    answers=[answer(text="Yes", value=1), answer(text="No", value=0)],
                ),
                priority=3,
                questions=["Who is hurt?"],
                exemplars=[
                    common_pb2.CritiqueExemplar(
                        conversation=_conversation("Help."),
                        response="Go.",
                        answers=["The human."],
                        critique="Rude.",
                        revision="Gladly.",
                    )
                ],
            ),
            common_pb2.Principle(
                id="calm",
                comparison_instruction="Which is calmer?",
                absolute_question=common_pb2.AbsoluteQuestion(
                    text="How calm is it?",
                    answers=[answer(text=str(n), value=n) for n in range(1, 11)],
                ),
            ),
        ],
        critique_exemplars=[
            common_pb2.CritiqueExemplar(
                conversation=_conversation("Help."),
                response="No.",
                principle_id="kind",
                critique="Curt.",
                revision="Sorry, no.",
            )
        ],
        comparison_exemplars=[
            common_pb2.ComparisonExemplar(
                conversation=_conversation("Help."),
                response_a="No.",
                response_b="Sorry, no.",
                principle_id="kind",
                answer=common_pb2.OPTION_B,
            )
        ],
    )


_ASKED = _conversation("Can you help?")
_LONGER = _conversation("Hello.", "Hello!", "Can you help?")
_NAMED = common_pb2.ConstitutionSource(name="core", digest=CORE.digest)
_INLINE = common_pb2.ConstitutionSource(inline=_inline())
_SAMPLING = common_pb2.SamplingParams(
    temperature=0.5, top_p=0.9, top_k=50, max_tokens=8, seed=1, stop=["\n"]
)
_SHORT = common_pb2.SamplingParams(max_tokens=8)
_BY_ID = common_pb2.PrincipleSelection(ids=common_pb2.PrincipleSelection.Ids(ids=["kind"]))
_DRAWN = common_pb2.PrincipleSelection(sample=common_pb2.PrincipleSelection.Sample(count=1, seed=1))
_ALL = common_pb2.PrincipleSelection(all=common_pb2.PrincipleSelection.All())

REQUESTS: Mapping[str, Sequence[Message]] = {
    "solon.v1.PolicyService.Generate": (
        policy_pb2.GenerateRequest(conversation=_ASKED, sampling=_SHORT),
        policy_pb2.GenerateRequest(
            request_id="mine", conversation=_LONGER, sampling=_SAMPLING, n=3, return_tokens=True
        ),
    ),
    "solon.v1.PolicyService.StreamGenerate": (
        policy_pb2.StreamGenerateRequest(
            conversation=_LONGER, sampling=_SAMPLING, return_tokens=True
        ),
    ),
    "solon.v1.CriticService.Critique": (
        critic_pb2.CritiqueRequest(
            conversation=_ASKED, response="No.", constitution=_NAMED, sampling=_SHORT
        ),
        critic_pb2.CritiqueRequest(
            conversation=_LONGER,
            response="No.",
            constitution=_INLINE,
            principles=_BY_ID,
            sampling=_SAMPLING,
        ),
    ),
    "solon.v1.CriticService.Revise": (
        critic_pb2.ReviseRequest(
            conversation=_ASKED, response="No.", constitution=_NAMED, sampling=_SHORT
        ),
        critic_pb2.ReviseRequest(
            conversation=_LONGER,
            response="No.",
            critique="Curt.",
            constitution=_INLINE,
            principles=_DRAWN,
            sampling=_SAMPLING,
        ),
    ),
    "solon.v1.CriticService.Refine": (
        critic_pb2.RefineRequest(
            conversation=_ASKED, response="No.", constitution=_INLINE, sampling=_SHORT
        ),
        critic_pb2.RefineRequest(
            conversation=_LONGER,
            response="No.",
            constitution=_NAMED,
            principles=_BY_ID,
            rounds=1,
            skip_critique=True,
            not_needed_below=0.5,
            sampling=_SAMPLING,
        ),
    ),
    "solon.v1.CriticService.Assess": (
        critic_pb2.AssessRequest(conversation=_ASKED, response="No.", constitution=_NAMED),
        critic_pb2.AssessRequest(
            conversation=_LONGER,
            response="No.",
            constitution=_INLINE,
            principles=_ALL,
            min_option_mass=1e-6,
        ),
    ),
    "solon.v1.JudgeService.Compare": (
        judge_pb2.CompareRequest(
            conversation=_ASKED,
            response_a="No.",
            response_b="Yes.",
            constitution=_NAMED,
            min_option_mass=1e-6,
        ),
        judge_pb2.CompareRequest(
            conversation=_LONGER,
            response_a="No.",
            response_b="Yes.",
            constitution=_INLINE,
            principles=_ALL,
            order_mode=judge_pb2.ORDER_MODE_BOTH,
            chain_of_thought=judge_pb2.ChainOfThought(
                chains=2, clamp=0.4, sampling=_SHORT, return_chains=True
            ),
        ),
    ),
    "solon.v1.JudgeService.Score": (
        judge_pb2.ScoreRequest(conversation=_ASKED, response="No.", constitution=_NAMED),
        judge_pb2.ScoreRequest(
            conversation=_LONGER,
            response="No.",
            constitution=_INLINE,
            principles=_DRAWN,
            min_option_mass=1e-6,
        ),
    ),
    "solon.v1.JudgeService.Rank": (
        judge_pb2.RankRequest(
            conversation=_ASKED, responses=["No.", "Yes.", "Later."], constitution=_INLINE
        ),
        judge_pb2.RankRequest(
            conversation=_LONGER,
            responses=["No.", "Yes."],
            constitution=_NAMED,
            principles=_DRAWN,
            order_mode=judge_pb2.ORDER_MODE_AS_GIVEN,
            pair_mode=judge_pb2.PAIR_MODE_FEWEST,
        ),
    ),
    "solon.v1.ControlService.GetServerInfo": (control_pb2.GetServerInfoRequest(),),
    "solon.v1.ControlService.GetLoad": (control_pb2.GetLoadRequest(request_id="mine"),),
    "solon.v1.ControlService.UpdateWeights": (
        control_pb2.UpdateWeightsRequest(path=".", weight_version="next"),
    ),
    "solon.v1.ControlService.PauseGeneration": (
        control_pb2.PauseGenerationRequest(mode=control_pb2.PAUSE_MODE_ABORT),
    ),
    "solon.v1.ControlService.ResumeGeneration": (control_pb2.ResumeGenerationRequest(),),
    "grpc.health.v1.Health.Check": (health_pb2.HealthCheckRequest(),),
    "grpc.health.v1.Health.Watch": (health_pb2.HealthCheckRequest(),),
    "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": (
        reflection_pb2.ServerReflectionRequest(list_services="*"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="solon.v1.JudgeService"),
    ),
}
"""By full name of the method."""
