"""Which parameters an optimizer trains together, by their place in the architecture and their rates."""

import re

import pytest

from pipeline import checkpoints, models
from pipeline.config.fit import FitChoice
from pipeline.optim.optimizers import SGD, AdamW
from pipeline.optim.parameter_groups import KINDS
from tests.helpers.samples import VARIANTS, sample

BEHIND = r"classifier|lm_head|decoder\.weight|head\.dense|transform\.dense|vocab_|pooler|embed_out|score|project_out"
BEHIND += r"|seq_relationship|qa_outputs"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_parameters_kind_is_what_its_name_says(variant):
    """Names are what a person would go by; the rule goes by axes and stacks alone."""
    architecture = models.architecture_of(sample(variant))
    block = re.compile("|".join(re.escape(each) for each in architecture.blocks()))
    for row in architecture.rows():
        shape = architecture.shape(row)
        inside = block.search(row.module_name) is not None
        named = "vectors" if len(shape) == 1 else "hidden" if inside else None
        named = named or ("head" if re.search(BEHIND, row.name) else "embeddings")
        assert row.kind == named, (row.name, shape)


@pytest.mark.parametrize("variant", ["bert-pre-ln", "vit"])
@pytest.mark.parametrize("spec", [AdamW(), SGD(), AdamW(rates={"embeddings": 1.0})], ids=str)
def test_without_rates_the_groups_are_decayed_and_not(variant, spec):
    """As before there were rates: native shards of then are in this order."""
    config = sample(variant)
    decayed = {row.name: row.decay for row in models.architecture_of(config).rows()}
    order = checkpoints.parameter_order(config)
    groups = checkpoints.fresh_groups(config, spec)
    assert [list(g.names) for g in groups] == [[n for n in order if decayed[n] is decay] for decay in (True, False)]
    assert [group.hyper["weight_decay"] for group in groups] == [spec.weight_decay, 0.0]


def test_kinds_of_one_rate_are_one_group():
    config = sample("vit")
    kinds = {row.name: row.kind for row in models.architecture_of(config).rows()}
    groups = checkpoints.fresh_groups(config, AdamW(rates={"hidden": 0.5, "head": 0.5, "vectors": 2.0}))
    assert [sorted({kinds[name] for name in group.names}) for group in groups] == [
        ["embeddings"],  # the patch projection, which is decayed
        ["head", "hidden"],
        ["embeddings"],
        ["vectors"],
    ]
    assert [group.hyper["lr"] / groups[0].hyper["lr"] for group in groups] == [1.0, 0.5, 1.0, 2.0]
    assert sorted(name for group in groups for name in group.names) == sorted(kinds)


def test_rates_are_of_a_model_and_not_of_coefficients():
    assert FitChoice(optimizer={"betas": (0.9, 0.95)}).optimizer.rates == AdamW().rates
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"coefficients have one rate; leave them out"):
            FitChoice(optimizer={"rates": {kind: 0.5}})
