"""What cannot be grown is refused, with the reason, the values and the way out. Every message has its line here."""

import re
from dataclasses import replace

import pytest

from pipeline import models
from pipeline.errors import UserError
from pipeline.growth.methods import METHODS
from tests.helpers.growing import ARCHITECTURES, planned, times
from tests.helpers.samples import sample

SHRINKS = "; an expansion only grows"
REMAINDER = "the norm needs the mean in the remainder, its readers need copies; choose a multiple of 12"
LEMON = [
    (
        "bert",
        {},
        {"hidden": 20, "heads": 5},
        (
            f"post-LN cannot grow losslessly from 12 to 20: {REMAINDER}; a dense-activation-norm head cannot "
            f"grow losslessly from 12 to 20: {REMAINDER}"
        ),
    ),
    ("roberta encoder", {}, {"hidden": 16, "heads": 4}, f"post-LN cannot grow losslessly from 12 to 16: {REMAINDER}"),
    (
        "bert-pre-ln transform",
        {},
        {"hidden": 30, "heads": 3},
        f"a dense-activation-norm head cannot grow losslessly from 12 to 30: {REMAINDER}",
    ),
    (
        "llama",
        {},
        {"head_dim": 8, "hidden": 24},
        "rotary positions depend on head_dim, which changes from 4 to 8; give the target heads of 4",
    ),
    (
        "qwen3",
        {},
        {"head_dim": 6},
        "rotary positions depend on head_dim, which changes from 4 to 6; give the target heads of 4",
    ),
    (
        "modernbert encoder",
        {},
        {"hidden": 20, "heads": 5},
        (
            "a norm behind the embedding writes the residual stream, which cannot grow losslessly from 12 to 20: the "
            "remainder has to be the mean of what the norm gives out, and no entry of a norm's output is; choose a "
            "multiple of 12"
        ),
    ),
    ("vit", {}, {"hidden": 9}, f"embed shrinks from 12 to 9{SHRINKS}; head_dim shrinks from 4 to 3{SHRINKS}"),
    ("vit", {}, {"layers": 1}, f"layers shrinks from 2 to 1{SHRINKS}"),
    ("gpt2", {}, {"mlp": 10}, f"mlp shrinks from 20 to 10{SHRINKS}"),
    ("bert-pre-ln", {}, {"vocab": 60}, f"vocab shrinks from 61 to 60{SHRINKS}"),
    ("gpt2", {}, {"positions": 13}, f"positions shrinks from 14 to 13{SHRINKS}"),
    ("vit", {}, {"patch": 2}, f"patch shrinks from 4 to 2{SHRINKS}"),
    (
        "vit",
        {"hidden": 24, "heads": 6},
        {"hidden": 24, "heads": 4},
        f"heads shrinks from 6 to 4{SHRINKS}; kv heads shrinks from 6 to 4{SHRINKS}",
    ),
    (
        "llama",
        {"hidden": 24, "heads": 4},
        {"hidden": 24, "heads": 8, "kv_heads": 2},
        f"kv heads shrinks from 4 to 2{SHRINKS}",
    ),
    (
        "llama",
        {"hidden": 24, "heads": 6, "kv_heads": 2},
        {"hidden": 24, "heads": 6, "kv_heads": 3},
        (
            "1 of the 6 query heads would occur nowhere: 6 heads in 3 groups are too few for 6 in 2; choose "
            "more heads or groups"
        ),
    ),
    (
        "mistral",
        {"hidden": 24, "heads": 8, "kv_heads": 1},
        {"hidden": 24, "heads": 4, "kv_heads": 2},
        (
            "4 of the 8 query heads would occur nowhere: 4 heads in 2 groups are too few for 8 in 1; choose "
            "more heads or groups"
        ),
    ),
    (
        "qwen3",
        {"hidden": 24, "heads": 6, "kv_heads": 2},
        {"hidden": 24, "heads": 6, "kv_heads": 4},
        "6 heads do not fall into 4 groups of keys and values; choose a multiple of 4",
    ),
]


def refused(source, target, **options) -> str:
    with pytest.raises(UserError) as caught:
        planned(source, target, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "variant, small, large, reason", LEMON, ids=lambda value: value[:40] if isinstance(value, str) else ""
)
def test_lemon_says_why(variant, small, large, reason):
    assert (
        refused(sample(variant, **small), sample(variant, **large))
        == f"method 'lemon' cannot grow this model: {reason}"
    )


def test_classes_stay():
    target = sample("deit")
    target.num_labels = 5
    assert (
        refused(sample("deit"), target)
        == "method 'lemon' cannot grow this model: classes changes from 3 to 5; it has to stay as it is"
    )


def test_families_do_not_mix():
    said = refused(sample("bert"), sample("bert-pre-ln"))
    assert said == (
        "method 'lemon' cannot grow this model: the source is a 'bert', the target a 'bert-pre-ln'; "
        "choose a target of the source's family"
    )


@pytest.mark.parametrize(
    "source, target, lacking",
    [
        ("gpt2", "gpt2 untied", "lm_head.weight"),
        ("qwen3", "qwen3 tied", "lm_head.weight"),
        ("vit", "vit without bias", "vit.encoder.layer.{i}.attention.attention.key.bias"),
        ("bert", "bert encoder", "bert.embeddings.LayerNorm.bias"),
    ],
)
def test_both_need_the_same_parameters(source, target, lacking):
    said = refused(sample(source), sample(target))
    assert said == (
        f"method 'lemon' cannot grow this model: source and target do not have the same parameters: only "
        f"one has '{lacking}'; "
        "give the target the source's options"
    )


@pytest.mark.parametrize(
    "method, way_out", [("lemmon", "; did you mean 'lemon'?"), ("xyz", f"; known: {', '.join(sorted(METHODS))}")]
)
def test_an_unknown_method(method, way_out):
    assert refused(sample("vit"), sample("vit"), method=method) == f"unknown method '{method}'{way_out}"


@pytest.mark.parametrize("method", ["stack", "interpolate"])
def test_methods_of_depth_refuse_width(method):
    said = refused(sample("gpt2"), sample("gpt2", mlp=40, layers=4), method=method)
    assert said == (
        f"method '{method}' cannot grow this model: '{method}' grows in depth only, and the target grows "
        f"mlp from 20 to 40; "
        "use lemon, fpi or aki"
    )


@pytest.mark.parametrize("method", ["fpi", "net2net", "aki", "stack", "interpolate", "random"])
def test_no_method_shrinks(method):
    assert f"layers shrinks from 2 to 1{SHRINKS}" in refused(sample("vit"), sample("vit", layers=1), method=method)


@pytest.mark.parametrize("variant", ARCHITECTURES)
def test_doubling_the_top_at_most_doubles(variant):
    source, target = sample(variant), sample(variant, layers=5)
    before, after = (models.architecture_of(config).stacks[0].layers for config in (source, target))
    assert refused(source, target, placement="top") == (
        "method 'lemon' cannot grow this model: "
        f"placement 'top' at most doubles the layers, {before} to {after} is more; use placement 'even'"
    )


@pytest.mark.parametrize(
    "sizes, options", [({"layers": 4}, {}), (times(2, layers=4), {"noise": 0.0})], ids=["no width", "no noise"]
)
def test_fan_outs_cancel_only_where_something_is_free(sizes, options):
    said = refused(sample("bert-pre-ln"), sample("bert-pre-ln", **sizes), depth="cancel", **options)
    assert (
        said
        == "depth 'cancel' needs a tensor with a free part, and no input space grows (or noise is 0); use depth 'zero'"
    )


@pytest.mark.parametrize("variant", ["dinov2", "dinov2-with-registers"])
def test_dinov2_with_swiglu(variant):
    config = sample(variant)
    config.use_swiglu_ffn = True
    with pytest.raises(
        UserError,
        match=re.escape(
            "DINOv2 with use_swiglu_ffn is not supported; its published files fuse two tensors that its "
            "modules hold apart"
        ),
    ):
        models.architecture_of(config)


def test_dinov2_with_registers_and_without_any():
    config = sample("dinov2-with-registers")
    config.num_register_tokens = 0
    with pytest.raises(UserError, match="num_register_tokens 0 is less than 1; choose a DINOv2 without any"):
        models.architecture_of(config)


def test_another_number_of_registers():
    target = sample("dinov2-with-registers")
    target.num_register_tokens = 4
    assert "registers changes from 3 to 4; it has to stay as it is" in refused(sample("dinov2-with-registers"), target)


def test_an_unknown_architecture():
    config = sample("bert")
    config.architectures = ["BertForMultipleChoice"]
    with pytest.raises(
        UserError,
        match=re.escape(
            "architecture 'BertForMultipleChoice' of family 'bert' is not known; known "
            "are BertForMaskedLM, BertForPreTraining, BertForNextSentencePrediction, BertForSequenceClassification, "
            "BertForTokenClassification, BertForQuestionAnswering, BertModel: load the model as one of them (say "
            "BertForMaskedLM.from_pretrained) and save that"
        ),
    ):
        models.architecture_of(config)


def test_a_bug_of_an_architecture_is_no_fault_of_the_config(monkeypatch):
    """What a family computes wrongly keeps its traceback."""
    broken = replace(
        models.FAMILIES["vit"], heads=(replace(models.FAMILIES["vit"].heads[0], architecture=lambda c: 1 / 0),)
    )
    monkeypatch.setitem(models.FAMILIES, "vit", broken)
    with pytest.raises(ZeroDivisionError):
        models.recognise({"model_type": "vit"}, "some/config.json")


@pytest.mark.parametrize(
    "content, reason",
    [
        (
            {"model_type": "qwen9", "rms_norm_eps": 1e-6, "rope_theta": 1e4},
            "model_type 'qwen9' (architectures: none) is not supported; nearest in architecture: llama (",
        ),
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
            (
                "model_type 't5' (architectures: T5ForConditionalGeneration) is not supported; nearest in "
                "architecture: none (encoder and decoder, relative positions); supported: "
                f"{', '.join(sorted(models.FAMILIES))}; to add a family: docs/adding-a-family.md"
            ),
        ),
        ({}, "it names no model_type: add it"),
        (
            {"model_type": "bert", "architectures": ["BertForSequenceClasification"]},
            "is not known; did you mean 'BertForSequenceClassification'? known are BertForMaskedLM, ",
        ),
        ({"model_type": "vit", "hidden_size": 13, "num_attention_heads": 3}, "num_attention_heads"),
    ],
    ids=["unlisted", "foreign", "none", "architecture", "sizes"],
)
def test_a_foreign_config_is_recognised(content, reason):
    with pytest.raises(UserError, match="^some/config.json: .*" + re.escape(reason)):
        models.recognise(content, "some/config.json")


@pytest.mark.parametrize("cap", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_a_soft_cap_of_nothing_is_refused(cap):
    """Its code would give NaN; and no cap is one that is null."""
    config = sample("gemma2")
    setattr(config, cap, 0.0)
    with pytest.raises(UserError, match=f"{cap} is 0, by which the model's code divides"):
        models.architecture_of(config)
    setattr(config, cap, None)
    assert models.architecture_of(config)
