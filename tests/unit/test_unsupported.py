"""Models of no supported family: what is said of them is true, and the refusals say it."""

import json
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING, PretrainedConfig, T5Config

from pipeline import models
from pipeline.errors import UserError
from pipeline.models import unsupported
from pipeline.models.unsupported import RELATIVES, SIGNS, relative
from tests.helpers.checkpoints import saved
from tests.helpers.cli import ROOT, lemon

NOVEL = {"model_type": "novel"}
LLAMA_LIKE = {**NOVEL, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
COMPOSED = ("encoder-decoder", "vision-encoder-decoder")
"""Types whose configs are made of two others."""


def test_no_supported_family_is_among_them():
    kinds = {family.config_class.model_type for family in models.FAMILIES.values()} | set(models.FAMILIES)
    assert not kinds & set(RELATIVES)


def test_every_type_is_one_of_transformers():
    assert not set(RELATIVES) - set(CONFIG_MAPPING)


def test_every_relative_is_a_supported_family():
    named = {found.nearest for found in (*RELATIVES.values(), *(found for _, found in SIGNS))}
    assert named - {None} <= set(models.FAMILIES)


@pytest.mark.parametrize("kind", RELATIVES)
def test_what_differs_is_one_phrase(kind):
    phrase = RELATIVES[kind].differs
    assert phrase == phrase.strip() and 0 < len(phrase) <= 100
    assert not set(phrase) & set(".;:\n")


KNOWN = {
    "t5": (None, "encoder and decoder, relative positions"),
    "bart": (None, "encoder and decoder"),
    "whisper": (None, "encoder and decoder, convolutions over sound"),
    "mamba": (None, "no attention, but state-space layers"),
    "convnext": (None, "no attention, but convolutions"),
    "albert": ("bert", "one layer's weights for all layers, factorised embeddings"),
    "deberta": ("bert", "relative positions, scored apart from the content"),
    "mixtral": ("mistral", "mixture of experts"),
    "qwen2_moe": ("qwen2", "mixture of experts"),
    "qwen3_moe": ("qwen3", "mixture of experts"),
    "gpt_neox": ("gpt2", "parallel residual branches, rotary positions on a part of each head"),
    "bloom": ("gpt2", "distances added to the scores (ALiBi) for positions, a norm behind the embeddings"),
    "llava": ("llama", "an image encoder in front of the language model"),
    "dinov3_vit": ("dinov2-with-registers", "rotary positions"),
    "swin": ("vit", "attention in shifted windows, patches merged from stage to stage, relative positions"),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_what_is_said_of_a_type(kind):
    assert relative({"model_type": kind, "rms_norm_eps": 1e-6, "rope_theta": 1e4}) == KNOWN[kind]


@pytest.mark.parametrize("kind", [kind for kind in RELATIVES if RELATIVES[kind].nearest is None])
def test_keys_find_no_relative_where_the_table_has_none(kind):
    """Were the type not listed, the keys of its own config must lead nowhere."""
    if kind in COMPOSED:
        pytest.skip("its config is made of two others")
    content = {**CONFIG_MAPPING[kind]().to_dict(), "model_type": "unlisted"}
    assert relative(content).nearest is None


@pytest.mark.parametrize("name", sorted(set(models.FAMILIES) & set(CONFIG_MAPPING)))
def test_keys_of_a_supported_family_lead_to_its_kind(name):
    """A model that has all keys of a supported one is near it, or nothing is said."""
    config = models.FAMILIES[name].config_class()
    found = relative({**config.to_dict(), "model_type": "unlisted"}).nearest
    assert found is None or models.FAMILIES[found].data == models.FAMILIES[name].data


@pytest.mark.parametrize(
    "content, nearest",
    [
        (LLAMA_LIKE, "llama"),
        ({**NOVEL, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 1e4}}, "llama"),
        ({**LLAMA_LIKE, "num_experts": 8}, "llama"),
        ({**NOVEL, "layer_norm_eps": 1e-12, "type_vocab_size": 2}, "bert"),
        ({**NOVEL, "image_size": 224, "patch_size": 16, "hidden_size": 8, "num_attention_heads": 2}, "vit"),
        ({**NOVEL, "image_size": 224, "patch_size": 4, "depths": [2, 2]}, None),
        ({**NOVEL, "n_embd": 8, "layer_norm_epsilon": 1e-5}, "gpt2"),
        ({**LLAMA_LIKE, "is_encoder_decoder": True}, None),
        ({**LLAMA_LIKE, "text_config": {"a": 1}, "vision_config": {"a": 1}}, None),
        ({**NOVEL, "rms_norm_eps": 1e-6}, None),
        ({**NOVEL, "rms_norm_eps": 1e-6, "rope_theta": None}, None),
        (NOVEL, None),
        ({"model_type": ["t5"]}, None),
        ({"model_type": 5}, None),
    ],
)
def test_what_the_keys_of_an_unlisted_type_tell(content, nearest):
    assert relative(content).nearest == nearest


def test_experts_are_told_from_the_keys():
    assert relative({**LLAMA_LIKE, "num_local_experts": 8}).differs == "mixture of experts"


def test_the_page_that_it_points_to_is_there():
    assert (ROOT / unsupported.PAGE).exists()


def test_a_config_object_is_refused_in_the_same_words():
    said = "T5Config: model_type 't5' (architectures: none) is not supported; nearest in architecture: none (encoder"
    with pytest.raises(UserError) as refused:
        models.of_config(T5Config())
    assert str(refused.value).startswith(said)


class NovelConfig(PretrainedConfig):
    model_type = "novel"


def test_a_config_object_of_an_unlisted_type_is_judged_by_its_keys():
    with pytest.raises(UserError, match=r"\(architectures: NovelModel\) .* nearest in architecture: bert \("):
        models.of_config(NovelConfig(layer_norm_eps=1e-5, type_vocab_size=2, architectures=["NovelModel"]))


def test_the_family_of_a_config_is_corrected_by_spelling_and_known_ones_are_explained():
    with pytest.raises(UserError, match="unknown model family 'bret'; did you mean 'bert'"):
        models.family("bret")
    with pytest.raises(UserError, match="model family 'mixtral' is not supported; nearest in architecture: mistral"):
        models.family("mixtral")


FOREIGN = {"model_type": "falcon", "architectures": ["FalconForCausalLM"]}
SAID = (
    "config.json: model_type 'falcon' (architectures: FalconForCausalLM) is not supported; nearest in architecture: "
    "gpt2 (parallel residual branches, rotary positions, keys and values that heads share); supported: "
    f"{', '.join(sorted(models.FAMILIES))}; to add a family: docs/adding-a-family.md"
)


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A folder of another family, with weights."""
    folder = saved(tmp_path / "foreign", "gpt2")
    (folder / "config.json").write_text(json.dumps(FOREIGN))
    return folder


@pytest.mark.parametrize("command", ["plan", "expand", "flops", "reshard"])
def test_every_command_says_so_in_one_line(capsys, tmp_path, foreign, command):
    small, out = saved(tmp_path / "small", "gpt2"), ["--out", tmp_path / "out"]
    arguments = {
        "plan": ["--source", foreign, "--target", small],
        "expand": ["--source", small, "--target", foreign, *out],
        "flops": [foreign / "config.json"],
        "reshard": [foreign, "--format", "zero", *out],
    }[command]
    code, printed, said = lemon(capsys, command, *arguments)
    assert (code, printed) == (2, "")
    assert len(said.strip().splitlines()) == 1 and said.strip().endswith(SAID)
    assert not (tmp_path / "out").exists()


def test_inspect_describes_it_all_the_same(capsys, foreign):
    """What a checkpoint is can be told of any model."""
    code, printed, _ = lemon(capsys, "inspect", foreign)
    assert code == 0 and "falcon (FalconForCausalLM)" in printed
