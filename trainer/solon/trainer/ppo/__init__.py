"""Reinforcement learning: PPO, and GRPO and RLOO, which need no value network.

``config`` what can be set; ``math`` and ``groups`` the formulas; ``rollout`` episodes and what the
networks say of them; ``experience`` advantages and targets; ``update`` the gradient steps on a
batch of episodes; ``order`` which prompts it answers; ``loop`` batches, checkpoints, resume.
"""
