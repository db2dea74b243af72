"""Proximal policy optimisation, in five files.

``config`` what can be set; ``math`` the formulas; ``rollout`` episodes and what the networks say of
them; ``update`` the gradient steps on a batch of episodes; ``loop`` batches, checkpoints, resume.
"""
