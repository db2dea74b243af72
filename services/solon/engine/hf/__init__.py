"""The ``transformers`` engine: any causal language model from a path or the hub, CPU or GPU."""
