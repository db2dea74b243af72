"""A batch of episodes that several processes made, on each of them whole.

So every minibatch is a draw from the whole batch, the same that one process alone would make.
Shapes as in ``samples``. Knows nothing of networks, rewards or files.
"""

from __future__ import annotations

import dataclasses

from accelerate import Accelerator
from torch import Tensor

from solon.trainer.ppo.experience import Experience, ValueTargets
from solon.trainer.ppo.samples import Samples


def whole(experience: Experience, accelerator: Accelerator) -> Experience:
    """All processes' episodes, the first one's first. Called by every process.

    With a value network on a frozen trunk what that says of the episodes travels too, B R H numbers
    of 4 bytes: computing it anew would be a forward pass of the trunk.
    """
    if accelerator.num_processes == 1:
        return experience

    def gathered(values: Tensor) -> Tensor:
        padded = accelerator.pad_across_processes(values, dim=1) if values.dim() > 1 else values
        found: Tensor = accelerator.gather(padded.contiguous())
        return found

    samples, value = experience.samples, experience.value
    return dataclasses.replace(
        experience,
        samples=Samples(
            ids_BT=gathered(samples.ids_BT),
            prompt_lengths_B=gathered(samples.prompt_lengths_B),
            response_lengths_B=gathered(samples.response_lengths_B),
            logprobs_BR=gathered(samples.logprobs_BR),
            # not every backend sends booleans
            ended_B=gathered(samples.ended_B.long()).bool(),
            behaviour_BR=None if samples.behaviour_BR is None else gathered(samples.behaviour_BR),
        ),
        reference_BR=gathered(experience.reference_BR),
        advantages_BR=gathered(experience.advantages_BR),
        value=value
        and ValueTargets(
            values_BR=gathered(value.values_BR),
            returns_BR=gathered(value.returns_BR),
            features_BRH=None if value.features_BRH is None else gathered(value.features_BRH),
        ),
    )
