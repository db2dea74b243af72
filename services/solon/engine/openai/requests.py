"""What an endpoint is asked: conversations and sampling as fields of its requests.

Whatever a vLLM server has defaults of its own for is sent, so that they have no say: it would else
sample as the model's generation_config.json says. Knows nothing of replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from solon.chat import Conversation
from solon.engine.base import Sampling, Unsupported

_SEEDS = 2**31
"""Some endpoints take no larger seeds."""
_AS_IT_IS = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Nothing between the model and what is drawn from it, for vLLM."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """Writes the requests for one model of one endpoint."""

    model: str
    is_vllm: bool = False
    """Whether its extensions may be used."""
    length_field: str = "max_completion_tokens"
    """Bounds the answer."""
    reasoning_tokens: int = 0
    """Added to the bound."""
    fixed_sampling: bool = False
    """Whether how an answer is drawn is the endpoint's own affair."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of chat requests."""

    def chat(self, conversation: Conversation, sampling: Sampling) -> dict[str, Any]:
        """An answer, or the rest of one, as keywords of the client.

        Raises:
            Unsupported: The standard has no field for it, and this is no vLLM server.
        """
        fields: dict[str, Any] = {
            "model": self.model,
            self.length_field: sampling.max_tokens + self.reasoning_tokens,
            **({} if self.fixed_sampling else self._drawn(sampling)),
        }
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        extra = {**self.more, **self._conversation(conversation)}
        if self.is_vllm:
            fields["logprobs"] = True
            extra |= {**_AS_IT_IS, "top_k": sampling.top_k, "return_token_ids": True}
        elif sampling.top_k:
            raise Unsupported(
                f"top_k: expected 0, got {sampling.top_k}: only of a vLLM server's API it is a part"
            )
        return {**fields, "messages": extra.pop("messages"), "extra_body": extra}

    def likely(self, conversation: Conversation, tokens: int, top: int) -> dict[str, Any]:
        """The likeliest first tokens of the answer, ``top`` in each of so many places."""
        # greedy: the path that is shown is then the one that most of the others leave
        asked = self.chat(conversation, Sampling(temperature=0, max_tokens=tokens))
        return {**asked, "logprobs": True, "top_logprobs": top}

    def tokenized(self, conversation: Conversation) -> dict[str, Any]:
        """The tokens of a prompt, as vLLM makes them of a chat request."""
        kept = {"chat_template", "chat_template_kwargs"}
        more = {key: value for key, value in self.more.items() if key in kept}
        return {"model": self.model, **more, **self._conversation(conversation)}

    def tokens_of(self, text: str) -> dict[str, Any]:
        """The tokens of a text, which names control tokens itself."""
        return {"model": self.model, "prompt": text, "add_special_tokens": False}

    def text_of(self, tokens: Sequence[int]) -> dict[str, Any]:
        """The text of tokens."""
        return {"model": self.model, "tokens": list(tokens)}

    def next_of(self, prompts: Sequence[Sequence[int]], among: Sequence[int]) -> dict[str, Any]:
        """Log-probabilities of given tokens after each of the prompts."""
        extra = {
            **_AS_IT_IS,
            "logprob_token_ids": list(among),
            "return_tokens_as_token_ids": True,
        }
        fields = {"model": self.model, "max_tokens": 1, "logprobs": 0}
        fields |= {"temperature": 1.0, "top_p": 1.0}
        return {**fields, "prompt": [list(one) for one in prompts], "extra_body": extra}

    def _drawn(self, sampling: Sampling) -> dict[str, Any]:
        fields = {"temperature": sampling.temperature, "seed": sampling.seed % _SEEDS}
        # some hosts refuse it beside a temperature; all but vLLM's servers draw from the whole
        if self.is_vllm or sampling.top_p < 1:
            fields["top_p"] = sampling.top_p
        return fields

    def _conversation(self, conversation: Conversation) -> dict[str, Any]:
        messages = conversation.as_dicts()
        if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
            messages.pop()
        if messages[-1]["role"] != "assistant":
            return {"messages": messages}
        if not self.is_vllm:
            raise Unsupported(
                "the conversation ends with the assistant, whose turn is to be continued: only of "
                "a vLLM server's API that is a part"
            )
        return {
            "messages": messages,
            "add_generation_prompt": False,
            "continue_final_message": True,
        }
