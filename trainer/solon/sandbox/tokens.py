"""The sandbox's tokenizer: byte-level BPE with a chat template, and documents as tokens.

Every word of the world is one token. Knows nothing of models or of training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from solon.sandbox.corpus import Document, Sample

PAD = "<|pad|>"
END = "<|end|>"
SPECIAL_TOKENS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY_SIZE = 1792
# a break and the speaker after it are one piece, and so is an option: they come in every prompt
_PIECES = r"\n+[A-Z][a-z]+:|\n+| ?\([A-Z]\)| ?[\p{L}']+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedDocument:
    """Token sequences that begin alike: a common beginning and a branch for every sample.

    A branch begins before its first learnt token, so that this one has a token to be said from.
    """

    prefix: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    learnt: tuple[tuple[bool, ...], ...]
    """For every token of every branch, whether the assistant is to learn to say it."""

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prefix) + sum(map(len, self.branches))


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Fit a tokenizer to texts, the same for the same texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


class DocumentTokenizer:
    """Turns documents into tokens exactly as the chat template does, and remembers pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Tokenize with ``tokenizer``, whose template is ``CHAT_TEMPLATE``."""
        self._tokenizer = tokenizer
        self._role = {
            role: self._special(f"<|{role}|>") for role in ("system", "user", "assistant")
        }
        self._end = self._special(END)

    def _special(self, token: str) -> int:
        number = self._tokenizer.convert_tokens_to_ids(token)
        assert isinstance(number, int)
        return number

    def tokenize(self, document: Document) -> TokenizedDocument:
        """Find the beginning that all samples share, which holds nothing to be learnt."""
        rows = [self.sample(sample) for sample in document.samples]
        shared = _shared([tokens for tokens, _ in rows], [learnt for _, learnt in rows])
        return TokenizedDocument(
            prefix=tuple(rows[0][0][:shared]),
            branches=tuple(tuple(tokens[shared:]) for tokens, _ in rows),
            learnt=tuple(tuple(learnt[shared:]) for _, learnt in rows),
        )

    def sample(self, sample: Sample) -> tuple[list[int], list[bool]]:
        """The tokens of one sample, and which of them are to be learnt."""
        tokens: list[int] = []
        learnt: list[bool] = []
        for index, message in enumerate(sample.conversation.messages):
            content = self._tokenizer.encode(message.content, add_special_tokens=False)
            tokens += [self._role[message.role], *content, self._end]
            learnt += [False, *[index in sample.learnt] * (len(content) + 1)]
        return tokens, learnt


def _shared(rows: list[list[int]], learnt: list[list[bool]]) -> int:
    most = min(mask.index(True) for mask in learnt) - 1
    for position in range(most):
        if len({row[position] for row in rows}) > 1:
            return position
    return most
