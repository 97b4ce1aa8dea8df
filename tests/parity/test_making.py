"""What making a grown model's weights costs is what torch's counter sees besides the model's own products."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pipeline import models
from pipeline.accounting.flops import cost
from pipeline.growth import methods
from pipeline.growth.grown_model import GrownModel
from pipeline.growth.making import making_cost
from pipeline.growth.plan import begun_module
from tests.helpers.growing import randomised, times
from tests.helpers.samples import CLASSES, IMAGE, POSITIONS, VOCAB, sample

FAMILIES = ["bert-pre-ln", "vit", "gpt2", "llama"]
LIGO = {
    "lossless": {},
    "published": {"maps": "tied", "width_init": "rand"},
    "per layer": {"width_init": "sel", "variant": "per_layer"},
}
CASES = {
    **{f"{variant} ligo {name}": (variant, "ligo", options) for variant in FAMILIES for name, options in LIGO.items()},
    **{f"{variant} mango {rank}": (variant, "mango", {"rank": rank}) for variant in FAMILIES[:3] for rank in (1, 2)},
}


@pytest.mark.parametrize("variant, method, options", CASES.values(), ids=CASES)
def test_it_is_what_torch_counts(variant, method, options):
    source, target = sample(variant, mlp=24), sample(variant, **times(2, layers=3, mlp=48))
    small, large = models.architecture_of(source), models.architecture_of(target)
    parsed = methods.parse(method, options)
    module = begun_module(small, large, parsed)
    weights = {name: tensor.float() for name, tensor in randomised(source, scale=0.15).items()}
    model, images = GrownModel((source, target), parsed, module, weights).train(), variant == "vit"
    model.computing[0].config._attn_implementation = "eager"  # torch counts no other on a CPU
    given = torch.randn(4, 3, IMAGE, IMAGE) if images else torch.randint(VOCAB, (4, POSITIONS))
    labels = torch.randint(CLASSES, (4,)) if images else torch.randint(VOCAB, (4 * POSITIONS,))
    facts = {"block": POSITIONS, "scored": POSITIONS}
    expected, making = cost(large, models.of_config(target).positions(target, facts)), making_cost(model.plan())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**{"pixel_values" if images else "input_ids": given})
    assert counter.get_total_flops() == 4 * expected.forward + making.forward
    with FlopCounterMode(display=False) as counter:
        logits = model(**{"pixel_values" if images else "input_ids": given}).logits
        F.cross_entropy(logits.flatten(0, -2), labels).backward()
    own = 4 * (expected.train + expected.recompute)
    assert counter.get_total_flops() == own + making.forward + making.backward + making.recompute
