"""The client's arguments as messages of the contract.

Only what the caller set is sent, so that the server's defaults are the only ones. The server
checks values; what is refused here could not be expressed in a message. Knows nothing of
channels or replies.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TypeVar
from uuid import uuid4

import grpc

from solon.chat import Conversation
from solon.client.errors import FieldViolation, InvalidArgument
from solon.client.types import ChainOfThought, PauseMode, PrincipleSample, Sampling
from solon.v1 import common_pb2, control_pb2, judge_pb2

Text = TypeVar("Text", bound=str | None)

ConstitutionRef = str | common_pb2.Constitution | common_pb2.ConstitutionSource
"""A constitution by the name that the server knows, inline, or as the contract's own source
(a name with the digest it must have)."""

_ROLES = {
    "system": common_pb2.ROLE_SYSTEM,
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
}
_PAUSE_MODES = {
    PauseMode.ABORT: control_pb2.PAUSE_MODE_ABORT,
    PauseMode.WAIT: control_pb2.PAUSE_MODE_WAIT,
    PauseMode.KEEP: control_pb2.PAUSE_MODE_KEEP,
}


def new_request_id() -> str:
    """A random id, 32 hex digits."""
    return uuid4().hex


def new_seed() -> int:
    """A random seed, in [0, 2**64)."""
    return secrets.randbits(64)


def text(field: str, value: Text) -> Text:
    """The value, if a message can hold it. None: the field stays unset.

    Raises:
        InvalidArgument: It has no UTF-8: it holds a half of a character (a lone surrogate), as
            what was decoded with ``errors="surrogateescape"`` or cut out of JSON may.
    """
    try:
        if value is not None:
            value.encode()
    except UnicodeEncodeError as error:
        violation = FieldViolation(
            field,
            f"expected text that has a UTF-8 encoding, got a lone surrogate at {error.start}: "
            "decode with errors='replace'",
        )
        raise InvalidArgument(
            ": ".join(violation), code=grpc.StatusCode.INVALID_ARGUMENT, fields=(violation,)
        ) from error
    return value


def request_id(given: str | None) -> str:
    """The caller's id of a request, or a new one. Raises as ``text``."""
    return text("request_id", given or new_request_id())


def texts(field: str, values: Sequence[str]) -> list[str]:
    """As ``text``, item by item."""
    return [text(f"{field}[{index}]", value) for index, value in enumerate(values)]


def conversation_message(conversation: Conversation) -> common_pb2.Conversation:
    """The conversation, turn by turn."""
    return common_pb2.Conversation(
        messages=[
            common_pb2.Message(
                role=_ROLES[turn.role],
                content=text(f"conversation.messages[{index}].content", turn.content),
            )
            for index, turn in enumerate(conversation.messages)
        ]
    )


def sampling_message(sampling: Sampling | None) -> common_pb2.SamplingParams | None:
    """The sampling; fields that are None stay unset."""
    if sampling is None:
        return None
    return common_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        stop=texts("sampling.stop", sampling.stop),
    )


def constitution_source(constitution: ConstitutionRef) -> common_pb2.ConstitutionSource:
    """Where the principles come from."""
    if isinstance(constitution, common_pb2.ConstitutionSource):
        return constitution
    if isinstance(constitution, common_pb2.Constitution):
        return common_pb2.ConstitutionSource(inline=constitution)
    return common_pb2.ConstitutionSource(name=text("constitution.name", constitution))


def principles_by_id(ids: Sequence[str]) -> common_pb2.PrincipleSelection:
    """Exactly these, in this order."""
    known = common_pb2.PrincipleSelection.Ids(ids=texts("principles.ids.ids", ids))
    return common_pb2.PrincipleSelection(ids=known)


def principles_by_draw(count: int, seed: int | None) -> common_pb2.PrincipleSelection:
    """A weighted draw; the server draws the seed if it is None."""
    sample = common_pb2.PrincipleSelection.Sample(count=count, seed=seed)
    return common_pb2.PrincipleSelection(sample=sample)


def many_principles(
    ids: Sequence[str] | None, sample: PrincipleSample | None
) -> common_pb2.PrincipleSelection | None:
    """The judge's selection. None: the server's default, all of them.

    Raises:
        ValueError: Both were given.
    """
    if ids is not None and sample is not None:
        raise ValueError("principle_ids and sample: expected at most one of the two, got both")
    if ids is not None:
        return principles_by_id(ids)
    return None if sample is None else principles_by_draw(sample.count, sample.seed)


def one_principle(
    principle_id: str | None, seed: int | None
) -> common_pb2.PrincipleSelection | None:
    """The critic's selection of one. None: the server draws it.

    Raises:
        ValueError: Both were given.
    """
    if principle_id is not None and seed is not None:
        raise ValueError("principle_id and principle_seed: expected at most one, got both")
    if principle_id is not None:
        return principles_by_id((principle_id,))
    return None if seed is None else principles_by_draw(1, seed)


def order_mode(both_orders: bool) -> judge_pb2.OrderMode.ValueType:
    """In which orders the judge is shown the responses."""
    return judge_pb2.ORDER_MODE_BOTH if both_orders else judge_pb2.ORDER_MODE_AS_GIVEN


def pair_mode(every_pair: bool) -> judge_pb2.PairMode.ValueType:
    """Which pairs of responses a ranking compares."""
    return judge_pb2.PAIR_MODE_EVERY if every_pair else judge_pb2.PAIR_MODE_FEWEST


def chain_of_thought_message(thought: ChainOfThought | None) -> judge_pb2.ChainOfThought | None:
    """The chain of thought; fields that are None stay unset."""
    if thought is None:
        return None
    return judge_pb2.ChainOfThought(
        chains=thought.chains,
        clamp=thought.clamp,
        sampling=sampling_message(thought.sampling),
        return_chains=thought.return_chains,
    )


def pause_mode(mode: PauseMode) -> control_pb2.PauseMode.ValueType:
    """What becomes of requests when generation is paused."""
    return _PAUSE_MODES[mode]
