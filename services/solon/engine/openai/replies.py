"""What endpoints answer, as far as the engine reads it: checked, since anybody may be behind a URL.

Fields that only some endpoints send are optional here; whether they had to be there is said where
they are used. Knows nothing of requests.
"""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from solon.engine.base import (
    BackendUnavailable,
    ContentFiltered,
    EngineFailed,
    FinishReason,
    Token,
    Usage,
)

ReplyT = TypeVar("ReplyT", bound="Reply")

_NO_CHANCE = -9999.0
"""What vLLM writes for a log-probability of minus infinity, which JSON cannot."""
_FINISHED = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_BROKEN_OFF = ("abort", "error")
"""vLLM's and OpenRouter's words for an answer that the server could not finish."""


class Reply(BaseModel):
    """Anything that an endpoint sends; further fields are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class CachedTokens(Reply):
    """Part of the prompt's tokens."""

    cached_tokens: int | None = Field(default=None, ge=0)


class Spent(Reply):
    """``usage`` of a reply."""

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int | None = Field(default=None, ge=0)
    prompt_tokens_details: CachedTokens | None = None


class Likely(Reply):
    """A token and its log-probability."""

    token: str
    logprob: float
    codes: list[int] | None = Field(default=None, alias="bytes")

    @property
    def raw(self) -> bytes:
        """Its bytes: some tokens are parts of a character."""
        return self.token.encode() if self.codes is None else bytes(self.codes)


class Chosen(Likely):
    """A token of the answer, and what was likely in its place."""

    top_logprobs: list[Likely] = []


class Logprobs(Reply):
    """``logprobs`` of a choice."""

    content: list[Chosen] | None = None


class Message(Reply):
    """What the model says, or says next."""

    content: str | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """The words: a refusal is an answer too."""
        return self.content or self.refusal or ""


class Choice(Reply):
    """One answer, or a piece of one."""

    message: Message = Message()
    delta: Message = Message()
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None

    def tokens(self) -> tuple[Token, ...]:
        """Its tokens, of an endpoint that tells their ids.

        Raises:
            EngineFailed: The endpoint does not tell them, or not of each.
        """
        chosen = (self.logprobs and self.logprobs.content) or []
        ids = self.token_ids or []
        if len(chosen) != len(ids):
            raise EngineFailed(
                f"the endpoint told {len(ids)} token_ids and {len(chosen)} logprobs of one answer: "
                "is it a vLLM server? Else start with --engine-option dialect=openai"
            )
        return tuple(
            Token(id=i, text=one.token, logprob=log_probability(one.logprob))
            for i, one in zip(ids, chosen, strict=True)
        )


class Chat(Reply):
    """A reply of ``/chat/completions``, or a piece of one."""

    choices: list[Choice]
    usage: Spent | None = None

    @property
    def choice(self) -> Choice:
        """The only answer.

        Raises:
            EngineFailed: There is none, or more than one.
        """
        if len(self.choices) != 1:
            raise EngineFailed(f"expected one choice of the endpoint, got {len(self.choices)}")
        return self.choices[0]


class ScoredNext(Reply):
    """``logprobs`` of a choice of ``/completions``."""

    top_logprobs: list[dict[str, float] | None]


class Completed(Reply):
    """A choice of ``/completions``."""

    index: int
    logprobs: ScoredNext | None = None


class Completions(Reply):
    """A reply of ``/completions``."""

    choices: list[Completed]
    usage: Spent | None = None


class Tokenized(Reply):
    """A reply of vLLM's ``/tokenize``."""

    tokens: list[int]
    max_model_len: int


class Detokenized(Reply):
    """A reply of vLLM's ``/detokenize``."""

    prompt: str


class Model(Reply):
    """A model of the endpoint's list."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None


class Models(Reply):
    """A reply of ``/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


def read(kind: type[ReplyT], body: object) -> ReplyT:
    """A reply.

    Args:
        kind: Which one is expected.
        body: Its JSON, or an object with the same fields.

    Raises:
        EngineFailed: It is another; the text says where, and quotes nothing.
    """
    try:
        if isinstance(body, bytes):
            return kind.model_validate_json(body)
        return kind.model_validate(body, from_attributes=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # outside of the block: the error's own text quotes what was said
    where = ".".join(map(str, first["loc"])) or "the body"
    raise EngineFailed(
        f"the endpoint's answer is no {kind.__name__.lower()} reply: {where}: {first['msg']}"
    )


def finish_reason(said: str | None) -> FinishReason:
    """Why an answer ended.

    Raises:
        ContentFiltered: The endpoint withheld it.
        BackendUnavailable: The endpoint broke it off.
        EngineFailed: It does not say, or for a reason that makes the text no answer.
    """
    if said == "content_filter":
        raise ContentFiltered("the endpoint's content filter withheld the answer")
    if said in _BROKEN_OFF:
        raise BackendUnavailable(f"the endpoint broke the answer off ({said})")
    if said not in _FINISHED:
        raise EngineFailed(f"expected the answer to end with stop or length, it did with {said!r}")
    return _FINISHED[said]


def usage(spent: Spent | None) -> Usage:
    """Tokens of one request; zeros where the endpoint tells none."""
    if spent is None:
        return Usage(model_calls=1)
    details = spent.prompt_tokens_details
    return Usage(
        prompt_tokens=spent.prompt_tokens,
        cached_tokens=min(spent.prompt_tokens, (details and details.cached_tokens) or 0),
        completion_tokens=spent.completion_tokens or 0,
        model_calls=1,
    )


def log_probability(told: float) -> float:
    """A log-probability as it is meant.

    Raises:
        EngineFailed: It is above 0.
    """
    # one that was rounded may be a little too large
    if told > 1e-3:
        raise EngineFailed(
            f"the endpoint gave {told!r} as a log-probability: a vLLM server must run with "
            "--logprobs-mode raw_logprobs (its default)"
        )
    return float("-inf") if told <= _NO_CHANCE else min(told, 0.0)
