"""What a response pays for besides the KL: length that drifts, and repetition. Pure functions.

Shapes: B episodes of this process, R response tokens. Knows nothing of rewards or networks.
"""

from __future__ import annotations

from math import log1p

import torch
from torch import Tensor

from solon.trainer.ppo.samples import Samples
from solon.trainer.similarity import repeated_trigrams


def repetition_shares(samples: Samples) -> Tensor:
    """[B]: the share of a response's token trigrams that were in it before, 0 to 1.

    Ordinary text has little of it; a model that has collapsed into repetition nearly 1
    (Constitution or Collapse, 2504.04918). A response of fewer than three tokens has none.
    """
    shares = [repeated_trigrams(ids) for ids in samples.responses()]
    return torch.tensor(shares, device=samples.logprobs_BR.device)


def length_excess(lengths_B: Tensor, *, usual: float, tolerance: float) -> Tensor:
    """[B]: how far a length is beyond ``tolerance`` of the usual one, longer or shorter.

    In e-foldings: |ln(length / usual)| - ln(1 + tolerance), and 0 within. ``lengths_B`` may hold
    0 for an episode that is left out; its excess means nothing.
    """
    drift_B = (lengths_B.clamp(min=1) / usual).log().abs()
    return (drift_B - log1p(tolerance)).clamp(min=0)


def excess_repetition(shares_B: Tensor, *, tolerance: float) -> Tensor:
    """[B]: how far a share of repetition is above ``tolerance``."""
    return (shares_B - tolerance).clamp(min=0)
