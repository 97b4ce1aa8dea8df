"""The cross-entropy is torch's own, value and gradient, however it is cut into parts."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.training import cross_entropy

VOCABULARY, SAMPLES, POSITIONS, PREDICTED = 50, 4, 9, 7


def both(dtype: torch.dtype, predicted: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Losses of the labels, of which some are ignored, and the gradients of a linear head and its input, as ours and as
    torch has them."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(SAMPLES, POSITIONS, 16, generator=generator)
    head = torch.randn(VOCABULARY, 16, generator=generator)
    labels = torch.randint(VOCABULARY, (SAMPLES, predicted), generator=generator)
    labels[0, :2] = labels[2] = -100
    weights, found = torch.rand(labels.shape, generator=generator), []
    for ours in (True, False):
        leaves = [each.to(dtype).requires_grad_() for each in (hidden, head)]
        logits = F.linear(*leaves)
        if ours:
            losses = cross_entropy.cross_entropy(logits, labels)
        else:
            read = logits[:, :predicted].float().flatten(0, 1)
            losses = F.cross_entropy(read, labels.flatten(), reduction="none").view(labels.shape)
        found.append([losses, *torch.autograd.grad((losses * weights).sum(), leaves)])
    return found[0], found[1]


@pytest.mark.parametrize("part", [2**25, 2 * PREDICTED * VOCABULARY, 3 * VOCABULARY + 1, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("predicted", [PREDICTED, POSITIONS, 1])
def test_it_is_torchs(monkeypatch, part, dtype, predicted):
    monkeypatch.setattr(cross_entropy, "PART", part)
    ours, theirs = both(dtype, predicted)
    assert torch.equal(ours[0], theirs[0])
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)


def test_the_gradient_lies_where_the_logits_lay():
    logits = torch.randn(2, 5, 11, requires_grad=True) * 1
    address = logits.data_ptr()
    seen = []
    logits.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    losses = cross_entropy.cross_entropy(logits, torch.randint(11, (2, 3)))
    losses.sum().backward(retain_graph=True)
    assert seen == [address]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()
