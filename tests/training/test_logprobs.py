"""Log-probabilities from hidden states, block by block, against torch's own log-softmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from solon.trainer.ppo.logprobs import token_logprobs

TOKENS, HIDDEN, VOCABULARY = 23, 8, 31


def inputs(*, bias: bool = False) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    torch.manual_seed(3)
    hidden = (3 * torch.randn(TOKENS, HIDDEN)).requires_grad_()
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias)
    return hidden, head, torch.randint(0, VOCABULARY, (TOKENS,)), torch.randn(TOKENS)


def plain(hidden: Tensor, head: nn.Linear, target: Tensor, temperature: float) -> list[Tensor]:
    """All logits at once."""
    logprobs = (head(hidden).float() / temperature).log_softmax(dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return [logprobs.gather(1, target[:, None]).squeeze(1), entropy]


@pytest.mark.parametrize("at_once", [1, 5 * VOCABULARY, 10**6])
@pytest.mark.parametrize(("temperature", "bias"), [(1.0, False), (0.7, True)])
def test_blocks_of_any_size_give_the_logprobs_entropies_and_gradients_of_all_at_once(
    at_once: int, temperature: float, bias: bool
) -> None:
    hidden, head, target, gradient = inputs(bias=bias)
    expected, entropy = plain(hidden, head, target, temperature)
    (expected * gradient).sum().backward()
    learned = [hidden, *head.parameters()]
    wanted = [tensor.grad for tensor in learned]
    for tensor in learned:
        tensor.grad = None
    found = token_logprobs(hidden, head, target, temperature=temperature, at_once=at_once)
    (found[0] * gradient).sum().backward()
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], entropy)
    assert not found[1].requires_grad
    for tensor, one in zip(learned, wanted, strict=True):
        torch.testing.assert_close(tensor.grad, one, atol=1e-5, rtol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_passes_one_on() -> None:
    hidden, head, target, gradient = inputs()
    head.requires_grad_(False)
    (plain(hidden, head, target, 1.0)[0] * gradient).sum().backward()
    expected, hidden.grad = hidden.grad, None
    found, _ = token_logprobs(hidden, head, target, temperature=1.0, at_once=64)
    (found * gradient).sum().backward()
    torch.testing.assert_close(hidden.grad, expected)
    assert head.weight.grad is None


def test_under_autocast_the_head_computes_in_its_format_and_all_else_in_float32() -> None:
    hidden, head, target, gradient = inputs(bias=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, _ = plain(hidden, head, target, 1.0)
        found, _ = token_logprobs(hidden, head, target, temperature=1.0, at_once=64)
    (expected * gradient).sum().backward()
    wanted = [hidden.grad, head.weight.grad]
    hidden.grad = head.weight.grad = None
    (found * gradient).sum().backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    for tensor, one in zip([hidden.grad, head.weight.grad], wanted, strict=True):
        torch.testing.assert_close(tensor, one, atol=0.05, rtol=0.05)


def test_nothing_as_large_as_all_logits_is_kept_for_the_gradients() -> None:
    hidden, head, target, _ = inputs()
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_logprobs(hidden, head, target, temperature=1.0, at_once=VOCABULARY)
    assert max(kept) < TOKENS * VOCABULARY
