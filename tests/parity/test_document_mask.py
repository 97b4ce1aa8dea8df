"""Documents in a packed block that are kept apart: each computes what it computes alone."""

import pytest
import torch

from pipeline import models
from pipeline.data import Batch
from pipeline.models.document_mask import document_mask
from pipeline.training.losses import model_inputs
from tests.helpers.samples import POSITIONS, VOCAB, sample

FAMILIES = [
    name for name, family in models.FAMILIES.items() if family.data == "text" and not any(family.windows(sample(name)))
]
"""Those whose attention sees whole texts: others are refused where documents are kept apart."""
CUT = 6
"""Where the second document begins."""


def built(family: str, attention: str, dtype: torch.dtype):
    net = models.build(sample(family, eps=1e-6), seed=1, attention=attention).to(dtype).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return net


def blocks() -> tuple[torch.Tensor, torch.Tensor]:
    """Two blocks (2, S): ids (behind RoBERTa's padding token, 1), and the numbers of their documents."""
    ids = torch.randint(4, VOCAB, (2, POSITIONS), generator=torch.Generator().manual_seed(2))
    documents = (torch.arange(POSITIONS) >= CUT).int().expand(2, -1)
    return ids, documents


def second_alone(net, ids: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    if models.is_causal(net.config):
        return net(input_ids=ids[:, CUT:], position_ids=torch.arange(CUT, POSITIONS).expand(2, -1)).logits
    return net(input_ids=ids, attention_mask=documents).logits[:, CUT:]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_document_is_as_if_alone(family, attention):
    """float64, where sums in another order differ by some 1e-15. The first document is run as a shorter block; the
    second, whose positions stay, as one with these positions, or with transformers' own mask for padding in place of
    the first."""
    net, (ids, documents) = built(family, attention, torch.float64), blocks()
    inputs = Batch({"input_ids": ids, "documents": documents}, ids, len(ids))
    together = net(**model_inputs(inputs, net, torch.device("cpu"))).logits
    first = net(input_ids=ids[:, :CUT]).logits
    second = second_alone(net, ids, documents)
    torch.testing.assert_close(together[:, :CUT], first, rtol=0, atol=1e-12)
    torch.testing.assert_close(together[:, CUT:], second, rtol=0, atol=1e-12)
    across = net(input_ids=ids).logits
    assert (across[:, CUT:] - together[:, CUT:]).abs().max() > 1e-3, "the documents see each other otherwise"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["bert-pre-ln", "llama"])
def test_in_bf16_another_document_changes_nothing(family, attention):
    """To the bit: what is masked has the weight 0. In bf16 itself, and under autocast of float32 weights."""
    ids, documents = blocks()
    other = torch.where(documents == 0, ids.roll(1, 0), ids)
    for dtype, cast in ((torch.bfloat16, False), (torch.float32, True)):
        net = built(family, attention, dtype)
        mask = document_mask(documents, dtype, models.is_causal(net.config))
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            one, two = (net(input_ids=each, attention_mask=mask).logits[:, CUT:] for each in (ids, other))
        assert torch.equal(one, two) and one.isfinite().all()


def test_the_mask_entry_by_entry():
    documents = torch.tensor([[0, 0, 1, 1, 2]])
    lowest = torch.finfo(torch.float32).min
    for causal in (False, True):
        mask = document_mask(documents, torch.float32, causal)
        assert mask.shape == (1, 1, 5, 5)
        for query in range(5):
            for key in range(5):
                sees = documents[0, query] == documents[0, key] and not (causal and key > query)
                assert mask[0, 0, query, key] == (0 if sees else lowest)
