"""The loss of a sample: a mean over its labels that count."""

import torch
from torch.nn import functional as F

from pipeline.training.losses import loss_per_sample, per_sample

LOGITS = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[1, 2, 3, 4], [5, -100, 6, -100], [-100, -100, -100, -100]])


def test_a_loss_is_the_mean_over_the_labels_that_count():
    losses, hits, counted = per_sample(LOGITS, LABELS)
    assert counted.tolist() == [1, 1, 0]
    expected = [F.cross_entropy(LOGITS[0], LABELS[0]), F.cross_entropy(LOGITS[1, [0, 2]], LABELS[1, [0, 2]])]
    torch.testing.assert_close(losses[:2], torch.stack(expected))
    right = [[LOGITS[row, place].argmax() == LABELS[row, place] for place in range(4)] for row in range(3)]
    assert hits.tolist() == [sum(right[0]) / 4, (right[1][0] + right[1][2]) / 2, 0]


def test_what_does_not_count_has_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    losses, _, _ = per_sample(logits, LABELS)
    losses.sum().backward()
    assert losses[2] == 0 and logits.grad is not None
    assert ((logits.grad != 0).any(-1) == (LABELS != -100)).all()


def test_images_have_one_label():
    logits, labels = LOGITS[:, 0], torch.tensor([0, 1, 2])
    losses, _, counted = per_sample(logits.bfloat16(), labels)
    assert counted.sum() == 3 and losses.dtype == torch.float32
    torch.testing.assert_close(losses, F.cross_entropy(logits.bfloat16().float(), labels, reduction="none"))


def test_labels_may_be_shares_of_classes():
    """Half of one class and half of another, each smoothed by a tenth, against the formula."""
    logits = LOGITS[:2, 0]
    shares = (0.5 * F.one_hot(torch.tensor([0, 3]), 7) + 0.5 * F.one_hot(torch.tensor([5, 3]), 7)) * 0.9 + 0.1 / 7
    expected = -(shares * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(loss_per_sample(logits, shares), expected)
