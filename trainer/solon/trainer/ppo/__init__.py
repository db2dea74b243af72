"""Reinforcement learning: PPO, and GRPO and RLOO, which need no value network.

``config`` what can be set; ``math`` and ``groups`` the formulas; ``order`` which prompts a batch
answers; ``samples`` episodes as tokens, in batches with little padding; ``rollout`` how they are
sampled, with a ``cache``, and ``served`` by whom else; ``networks`` what policy, reference and
value network say of them, by ``logprobs``; ``rewards`` what scores them; ``guards`` what they pay
for; ``assessment`` what they are worth, as ``experience``: advantages and targets; ``exchange``
them among processes; ``update`` the gradient steps on a batch; ``memory`` what of the networks is
held; ``loop`` batches, checkpoints, resume; ``watch`` looks for over-optimisation.
"""
