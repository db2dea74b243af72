"""The model's forwards: a step of generation, and what scoring needs.

Nothing makes logits for tokens that are given. Knows nothing of requests.

Shapes: B rows, T tokens, N tokens of a run, M sequences, W places that are read, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from solon.engine.hf.attention import install
from solon.engine.hf.cache import LEAST_KEYS, SlotCache, round_up
from solon.engine.hf.loading import LoadedModel
from solon.engine.hf.masks import FULL
from solon.engine.hf.prefixes import Pack
from solon.engine.hf.runs import Run, groups, laid_out

LEAST_ROWS = 16
"""Token rows of a matrix product, at least: with fewer, kernels add up in another order."""


class Runner:
    """A loaded model and how to call it."""

    def __init__(self, loaded: LoadedModel) -> None:
        plain = loaded.masks.layer_types == {FULL}
        self.runs = install(loaded.model) and plain
        """Whether prompts join in the forward of a step; else they take one of their own."""
        self._loaded = loaded
        self._keeps = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters
        self.device = loaded.device
        self.tokens = 0
        """Token positions computed since the start, padding not counted."""

    @property
    def model(self) -> Any:
        """The model itself."""
        return self._loaded.model

    def new_cache(self) -> SlotCache:
        """An empty cache for this model."""
        return SlotCache(self._loaded.model.config.get_text_config().num_hidden_layers)

    def step(
        self,
        cache: SlotCache,
        rows: Sequence[tuple[int, int]],
        prompts: Sequence[tuple[int, Sequence[int]]],
    ) -> Tensor:
        """Run the next token of every row, and prompts.

        Args:
            cache: Row i lies in slot i; the prompts go into the slots that follow, in their order.
                Has ``LEAST_ROWS`` slots at least, and room for prompts of rounded up lengths.
            rows: Next tokens and their positions.
            prompts: How many tokens their slots hold already (0 unless ``runs``), and all that
                follow, at least one; those of equal ``shape`` stand together.

        Returns:
            Float32 logits [M, V] of the rows' tokens, then of the prompts' last ones.
        """
        if not self.runs:
            return self._two_steps(cache, rows, [ids for _, ids in prompts])
        self.tokens += len(rows) + sum(len(ids) for _, ids in prompts)
        return self._one_run(cache, rows, prompts)

    def _one_run(
        self,
        cache: SlotCache,
        rows: Sequence[tuple[int, int]],
        prompts: Sequence[tuple[int, Sequence[int]]],
    ) -> Tensor:
        decoding = len(rows)
        ids = [token for token, _ in rows]
        positions = [position for _, position in rows]
        slots = list(range(decoding))
        length = max(LEAST_KEYS, round_up(max(positions, default=0) + 1))
        last = list(range(decoding))
        for slot, (before, prompt) in enumerate(prompts, start=decoding):
            ids += prompt
            positions += range(before, before + len(prompt))
            slots += [slot] * len(prompt)
            last.append(len(ids) - 1)
        filler = [0] * max(0, LEAST_ROWS - len(ids))
        position_N = self.tensor(positions + filler)
        mask = None
        if rows:
            seen = functional.pad(position_N[:decoding], (0, max(0, LEAST_ROWS - decoding)))
            mask = self._mask(seen[:, None], length)
        pieces = [(before, len(prompt)) for before, prompt in prompts]
        run = Run(
            decoding=decoding,
            mask=mask,
            groups=groups(decoding, pieces, self._mask, self.device),
        )
        cache.run(run, self.tensor(slots), position_N[: len(ids)])
        kept = last + [0] * max(0, LEAST_ROWS - len(last))
        with laid_out(run):
            logits_1_M_V = self._logits(
                kept,
                input_ids=self.tensor(ids + filler)[None],
                position_ids=self._within(position_N[None]),
                attention_mask=position_N.new_zeros((1, 1, 1, 1), dtype=self._loaded.dtype),
                past_key_values=cache,
            )
        return logits_1_M_V[0, : len(last)]

    def _mask(self, position_R_T: Tensor, length: int) -> Tensor:
        # where there are runs, all layers take the same one
        mask: Tensor = self._loaded.masks.build(position_R_T, length, self._loaded.dtype)
        return mask

    def _two_steps(
        self,
        cache: SlotCache,
        rows: Sequence[tuple[int, int]],
        prompts: Sequence[Sequence[int]],
    ) -> Tensor:
        slot = len(rows)
        for width, group in groupby(prompts, key=lambda prompt: round_up(len(prompt) - 1)):
            together = [prompt[:-1] for prompt in group]
            if width:
                self.prefill(cache, slot, together)
            slot += len(together)
        every = [*rows, *((prompt[-1], len(prompt) - 1) for prompt in prompts)]
        logits_M_1_V = self.extend(cache, 0, [[t] for t, _ in every], [p for _, p in every])
        assert logits_M_1_V is not None
        return logits_M_1_V[:, 0]

    def prefill(
        self,
        cache: SlotCache,
        start: int,
        prompts: Sequence[Sequence[int]],
        source: Sequence[int] | None = None,
    ) -> None:
        """Compute the keys of whole prompts into the slots from ``start`` on.

        Args:
            cache: Has room for them, lengths rounded up.
            start: The first slot.
            prompts: B sequences of at least one id; equal lengths after rounding up, for results
                that do not depend on each other.
            source: For each slot, its prompt; default: one slot a prompt.
        """
        ids_B_T = self._padded(prompts)
        cache.prompts(start, None if source is None else self.tensor(source))
        position_1_T = torch.arange(ids_B_T.shape[1], device=self.device)[None]
        self._loaded.model.base_model(
            input_ids=ids_B_T,
            position_ids=self._within(position_1_T.expand_as(ids_B_T)),
            past_key_values=cache,
            use_cache=True,
        )
        self.tokens += sum(map(len, prompts))

    def extend(
        self,
        cache: SlotCache,
        start: int,
        rows: Sequence[Sequence[int]],
        offsets: Sequence[int],
        *,
        logits: bool = True,
    ) -> Tensor | None:
        """Run further tokens of the sequences in the slots from ``start`` on.

        Args:
            cache: Holds keys 0 .. offset-1 of every row; has room for ``LEAST_ROWS`` slots more.
            start: The first slot.
            rows: B sequences of T ids (shorter ones are padded at the end).
            offsets: The position of each row's first id.
            logits: Whether to make logits, float32 [B, T, V].
        """
        ids_B_T = self._padded_rows(rows)
        length = max(LEAST_KEYS, round_up(max(offsets) + ids_B_T.shape[1]))
        missing = ids_B_T.shape[0] - len(rows)
        offset_B = self.tensor([*offsets, *([0] * missing)])
        position_B_T = offset_B[:, None] + torch.arange(ids_B_T.shape[1], device=self.device)
        cache.extend(start, position_B_T, length)
        call = self._loaded.model if logits else self._loaded.model.base_model
        output = call(
            input_ids=ids_B_T,
            position_ids=self._within(position_B_T),
            attention_mask=self._loaded.masks.build(position_B_T, length, self._loaded.dtype),
            past_key_values=cache,
            use_cache=True,
        )
        self.tokens += sum(map(len, rows))
        return output.logits[: len(rows)].float() if logits else None

    def branch(self, cache: SlotCache, start: int, packs: Sequence[Pack]) -> Tensor:
        """Run packs, each after the keys that its slot from ``start`` on holds already.

        Args:
            cache: Holds keys 0 .. ``pack.start``-1 of every row; has room for the packs' lengths,
                rounded up. What the packs add is of no use afterwards.
            start: The first slot.
            packs: B packs of equal length after rounding up.

        Returns:
            Float32 logits [B, W, V] of the W places of ``places`` in each pack.
        """
        ids_B_T = self._padded([pack.tokens for pack in packs])
        width = ids_B_T.shape[1]
        length = max(LEAST_KEYS, round_up(max(pack.start for pack in packs) + width))
        offset_B = self.tensor([pack.start for pack in packs])
        write_B_T = offset_B[:, None] + torch.arange(width, device=self.device)
        position_B_T = offset_B[:, None].repeat(1, width)
        visible_B_T_T = torch.eye(width, dtype=torch.bool).repeat(len(packs), 1, 1)
        for row, pack in enumerate(packs):
            size = len(pack.tokens)
            position_B_T[row, :size] = self.tensor(pack.positions())
            visible_B_T_T[row, :size, :size] = torch.from_numpy(pack.visible())
        cache.extend(start, write_B_T, length)
        mask = self._loaded.masks.branches(
            position_B_T, offset_B, visible_B_T_T.to(self.device), length, self._loaded.dtype
        )
        self.tokens += sum(len(pack.tokens) for pack in packs)
        return self._logits(
            places(packs),
            input_ids=ids_B_T,
            position_ids=self._within(position_B_T),
            attention_mask=mask,
            past_key_values=cache,
        )

    def tensor(self, values: Sequence[int]) -> Tensor:
        """int64 values on the model's device."""
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _logits(self, places: Sequence[int], **inputs: Any) -> Tensor:
        """Float32 logits [B, W, V] of a forward, at these places of its tokens."""
        kept_W = self.tensor(places)
        if self._keeps:
            inputs["logits_to_keep"] = kept_W
        logits: Tensor = self._loaded.model(use_cache=True, **inputs).logits
        return (logits if self._keeps else logits[:, kept_W]).float()

    def _within(self, position_B_T: Tensor) -> Tensor:
        # padding may reach past the context, where a table of positions ends
        return position_B_T.clamp(max=self._loaded.context_tokens - 1)

    def _padded(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        width = round_up(max(map(len, prompts)))
        return self.tensor([[*ids, *([0] * (width - len(ids)))] for ids in prompts])  # type: ignore[misc]

    def _padded_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, rows))
        if width >= LEAST_ROWS:
            return self._padded(rows)
        filled = [[*ids, *([0] * (width - len(ids)))] for ids in rows]
        missing = max(0, -(-LEAST_ROWS // width) - len(rows))
        return self.tensor(filled + [[0] * width] * missing)  # type: ignore[arg-type]


def places(packs: Sequence[Pack]) -> list[int]:
    """The places in packs that run together whose logits are made: all that are read in any.

    Filled up to a multiple of ``GRAIN``: with fewer rows, kernels add up in another order.
    """
    read = {place for pack in packs for one in pack.reads for place in one.places}
    width = round_up(max(len(pack.tokens) for pack in packs))
    others = (place for place in range(width) if place not in read)
    return sorted(read | set(islice(others, round_up(len(read)) - len(read))))
