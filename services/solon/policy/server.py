"""solon-policy: PolicyService in a process of its own.

Translates and calls ``Policy``, nothing else; ``solon.serving`` does the rest.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc

from solon.engine.base import GenerationPiece
from solon.policy.policy import Policy
from solon.serving import convert, process
from solon.serving.server import Resources, Role
from solon.v1 import control_pb2, policy_pb2, policy_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """PolicyService over a ``Policy``."""

    def __init__(self, policy: Policy, *, max_tokens_default: int) -> None:
        """``max_tokens_default``: for requests that bring none."""
        self._policy = policy
        self._max_tokens_default = max_tokens_default

    async def Generate(  # noqa: N802
        self, request: policy_pb2.GenerateRequest, context: Context
    ) -> policy_pb2.GenerateResponse:
        """See the contract."""
        if request.return_tokens:
            self._policy.check_tokens()
        answers = await self._policy.generate(
            convert.conversation(request.conversation),
            convert.sampling(request.sampling, max_tokens_default=self._max_tokens_default),
            n=request.n if request.HasField("n") else 1,
            weight_version=convert.weight_version(request),
        )
        return policy_pb2.GenerateResponse(
            request_id=request.request_id,
            weight_version=answers.weight_version,
            completions=[
                convert.completion(s.generation, seed=s.seed, return_tokens=request.return_tokens)
                for s in answers.samples
            ],
            usage=convert.usage(answers.usage),
            timing=convert.timing(answers.timing),
        )

    async def StreamGenerate(  # noqa: N802
        self, request: policy_pb2.StreamGenerateRequest, context: Context
    ) -> AsyncGenerator[policy_pb2.StreamGenerateResponse, None]:
        """See the contract."""
        if request.return_tokens:
            self._policy.check_tokens()
        sampling = convert.sampling(request.sampling, max_tokens_default=self._max_tokens_default)
        stream = self._policy.stream(
            convert.conversation(request.conversation),
            sampling,
            weight_version=convert.weight_version(request),
        )
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                yield _streamed(piece, request, seed=sampling.seed)


def _streamed(
    piece: GenerationPiece, request: policy_pb2.StreamGenerateRequest, *, seed: int
) -> policy_pb2.StreamGenerateResponse:
    response = policy_pb2.StreamGenerateResponse(
        request_id=request.request_id,
        weight_version=piece.weight_version,
        text=piece.text,
        tokens=convert.tokens(piece.tokens) if request.return_tokens else (),
    )
    if (whole := piece.final) is not None:
        response.finish_reason = convert.finish_reason(whole.finish_reason)
        response.usage.CopyFrom(convert.usage(whole.usage))
        response.timing.CopyFrom(convert.timing(whole.timing))
        response.seed = seed
    return response


def _register(server: grpc.aio.Server, resources: Resources) -> None:
    servicer = PolicyServicer(
        Policy(resources.engine), max_tokens_default=resources.max_tokens_default
    )
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(servicer, server)


ROLE = Role(
    name="policy",
    service=policy_pb2.DESCRIPTOR.services_by_name["PolicyService"],
    service_role=control_pb2.SERVICE_ROLE_POLICY,
    takes_constitutions=False,
    register=_register,
)
"""What ``solon.serving`` must know of the policy."""


def main() -> None:
    """Run solon-policy."""
    raise SystemExit(process.main(ROLE))


if __name__ == "__main__":
    main()
