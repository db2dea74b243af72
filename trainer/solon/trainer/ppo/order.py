"""Which prompts a batch answers. Knows nothing of tokens, networks or files."""

from __future__ import annotations

import torch

from solon.constitution import derive_seed


def prompt_rows(*, total: int, first: int, count: int, seed: int) -> list[int]:
    """The places of ``count`` prompts among ``total``, the run's ``first`` and those after it.

    Every prompt comes once before any comes again, in each pass in another order.
    """
    orders: dict[int, list[int]] = {}
    rows: list[int] = []
    for number in range(first, first + count):
        passed, place = divmod(number, total)
        if passed not in orders:
            orders[passed] = _order(total, passed, seed)
        rows.append(orders[passed][place])
    return rows


def _order(total: int, passed: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "ppo-order", passed) >> 1)
    order: list[int] = torch.randperm(total, generator=generator).tolist()
    return order
