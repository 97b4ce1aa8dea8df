"""What a model in memory holds besides its numbers: carried by `pipeline.grow`, or named."""

import logging

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from pipeline import UserError, grow, models
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


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
def test_it_grows_inside_whatever_its_caller_is_in(small, caplog, inside):
    with inside():
        large, _ = grown(small, caplog)
        tokens = torch.randint(61, (2, 9))
        assert torch.allclose(large.eval()(tokens).logits, small.eval()(tokens).logits, atol=1e-4)


def test_a_model_that_lost_a_layer_is_refused(small, caplog):
    del small.transformer.h[1]
    with pytest.raises(UserError, match=r"no parameter 'transformer\.h\.1\..*was changed behind its construction"):
        grown(small, caplog)


def test_a_forward_that_does_not_run_in_float64_is_refused(small, caplog):
    head = small.lm_head.weight.detach().clone()
    small.lm_head.forward = lambda hidden: hidden @ head.T
    with pytest.raises(UserError, match="own code does not run on a probe in float64"):
        grown(small, caplog)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["gemma2", "gemma3_text"])
def test_a_root_of_the_width_that_was_rounded_is_no_difference(variant, dtype):
    """Gemma's, which two widths in bf16 do not hold in their ratio."""
    torch.manual_seed(0)
    config = sample(variant)
    model = type(models.build(config))(config).to(dtype)
    large = grow(model, sample(variant, hidden=24, heads=6, mlp=40, kv_heads=sample(variant).num_key_value_heads * 2))
    tokens = torch.randint(61, (2, 9))
    exact = type(model)(config).eval()
    exact.load_state_dict(model.float().state_dict())
    given, expected = large.eval()(tokens).logits, exact(tokens).logits
    assert (given - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_buffer_that_was_changed_is_no_rounding():
    """It makes another function than that of the class, in bf16 as in float32."""
    config = sample("llama", hidden=24, heads=3, kv_heads=3)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).bfloat16()
    model.model.rotary_emb.inv_freq.mul_(0.5)
    with pytest.raises(UserError, match="claims to be lossless and is not"):
        grow(model, sample("llama", hidden=48, heads=6, kv_heads=6))


@pytest.mark.parametrize("key, value", [("partial_rotary_factor", 0.5), ("original_max_position_embeddings", 5)])
@pytest.mark.parametrize("variant", ["llama", "phi3", "gemma3_text"])
def test_a_target_that_says_otherwise_of_rotary_positions_is_refused(variant, key, value):
    model = models.build(sample(variant))
    target = sample(variant, layers=4)
    setattr(target, key, value)
    with pytest.raises(UserError, match=f"has {key} {value} where the source's has"):
        grow(model, target)
