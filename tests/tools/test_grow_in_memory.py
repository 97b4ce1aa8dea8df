"""What a model in memory holds besides its numbers: carried by `pipeline.grow`, or named."""

import logging

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from pipeline import grow
from tests.helpers.samples import sample


@pytest.fixture
def small() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(sample("gpt2"))


def grown(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> tuple[PreTrainedModel, str]:
    """The larger model, with new layers, and what was said."""
    caplog.set_level(logging.WARNING, logger="pipeline")
    return grow(model, sample("gpt2", layers=4, hidden=20, heads=5)), caplog.text


def test_what_is_frozen_stays_frozen(small, caplog):
    """A new layer is as the one that it comes from."""
    small.transformer.h[0].requires_grad_(False)
    small.transformer.wte.requires_grad_(False)
    large, said = grown(small, caplog)
    frozen = {name for name, parameter in large.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name
        for name, _ in large.named_parameters()
        if name.startswith(("transformer.h.0.", "transformer.h.1.", "transformer.wte"))
    }
    assert not said


def test_the_generation_config_goes_along(small, caplog):
    small.generation_config.update(do_sample=True, temperature=0.3)
    large, _ = grown(small, caplog)
    assert (large.generation_config.do_sample, large.generation_config.temperature) == (True, 0.3)
    assert large.generation_config is not small.generation_config


def test_what_is_registered_besides_is_named(small, caplog):
    small.register_buffer("seen", torch.arange(3))
    small.transformer.extra = torch.nn.Parameter(torch.ones(2))
    _, said = grown(small, caplog)
    assert "no part of a GPT2LMHeadModel and left behind: seen, transformer.extra" in said


def test_digits_that_float32_does_not_hold_are_named(small, caplog):
    small.double()
    assert "float64" not in grown(small, caplog)[1]
    with torch.no_grad():
        small.transformer.ln_f.weight[0] = 1 + 2.0**-40
    said = grown(small, caplog)[1]
    assert "1 tensors hold float64 numbers, of which what float32 cannot hold is left behind: transformer.ln_f" in said


def test_what_is_tied_by_hand_is_named(caplog):
    """The config says nothing of it."""
    small = LlamaForCausalLM(sample("llama"))
    small.lm_head.weight = small.model.embed_tokens.weight
    caplog.set_level(logging.WARNING, logger="pipeline")
    large = grow(small, sample("llama", layers=4))
    assert large.lm_head.weight is not large.model.embed_tokens.weight
    assert "'model.embed_tokens.weight' and 'lm_head.weight' are one parameter and become 2" in caplog.text
