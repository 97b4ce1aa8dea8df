"""Tied names stored beside their owner: equal ones are tied, different ones both count, as in transformers 5."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import pipeline
from pipeline import checkpoints, models
from pipeline.checkpoints import describe
from tests.helpers.checkpoints import change, saved, target_config_file
from tests.helpers.cli import lemon
from tests.helpers.pretrained import apart, given_out, loaded, tokens
from tests.helpers.samples import POSITIONS, VARIANTS, sample
from tests.helpers.variations import DIFFERENT, edit, stored_beside

SAID = "says tie_word_embeddings true and '{}' differs from"


def grown(capsys, folder: Path, small: Path, variant: str) -> str:
    """What is said while `small` grows to twice its width."""
    target = target_config_file(folder / "target.json", variant, hidden=24, heads=6, mlp=40)
    code, out, err = lemon(capsys, "expand", "--source", small, "--target", target, "--out", folder / "large")
    assert code == 0, err
    return out


@pytest.mark.parametrize("variant, name", DIFFERENT.items())
def test_both_count_where_they_differ(tmp_path, capsys, variant, name):
    small = stored_beside(tmp_path / "small", variant, name)
    said, inputs = grown(capsys, tmp_path, small, variant), tokens(small, POSITIONS)
    assert said.count(SAID.format(name)) == 1, said
    assert apart(small, tmp_path / "large", inputs) < 1e-5
    assert apart(saved(tmp_path / "tied", variant), tmp_path / "large", inputs) > 1e-2  # the test can tell them apart
    assert json.loads((tmp_path / "large" / "config.json").read_text())["tie_word_embeddings"] is False
    code, out, err = lemon(capsys, "verify", small, tmp_path / "large")
    assert code == 0 and f"source config.json {SAID.format(name)}" in " ".join(out.split()), out + err


@pytest.mark.parametrize(
    "variant, name", [("llama tied", "lm_head.weight"), ("bert", "cls.predictions.decoder.weight")]
)
def test_every_layout_keeps_both(tmp_path, capsys, variant, name):
    small = stored_beside(tmp_path / "small", variant, name)
    inputs = tokens(small, POSITIONS)
    for command in (
        ["export", small, "--out", tmp_path / "exported"],
        ["reshard", small, "--format", "zero", "--zero-stage", 3, "--world-size", 2, "--out", tmp_path / "native"],
        ["reshard", tmp_path / "native", "--format", "huggingface", "--out", tmp_path / "again"],
    ):
        code, out, err = lemon(capsys, *command)
        assert code == 0, err
        assert (SAID.format(name) in out) == (command[1] == small), out
    for folder in ("exported", "again"):
        assert torch.equal(given_out(small, inputs), given_out(tmp_path / folder, inputs))


@pytest.mark.parametrize("variant, name", DIFFERENT.items())
def test_inspect_says_it(tmp_path, capsys, variant, name):
    """It imports no model, so it knows tied names by their ends."""
    code, out, _ = lemon(capsys, "inspect", stored_beside(tmp_path / "small", variant, name))
    assert code == 0 and f"'{name}' differs from '" in out
    code, out, _ = lemon(capsys, "inspect", stored_beside(tmp_path / "equal", variant, name, equal=True))
    assert code == 0 and "differs from" not in out


@pytest.mark.parametrize("variant", VARIANTS)
def test_inspect_knows_every_tied_name_and_default(variant):
    """What it knows by heart is what the architectures say."""
    architecture, family = models.architecture_of(sample(variant)), models.family(variant.split()[0])
    names = [row.name for row in architecture.rows()] + list(architecture.aliases)
    ends = describe.TIED.items()
    found = {
        (one, other)
        for one in names
        for other in names
        for end, owners in ends
        if one.endswith(end) and other.endswith(owners)
    }
    assert {pair for pair in found if pair[0] in architecture.aliases} == set(architecture.aliases.items())
    stated = family.config_class().to_dict().get("tie_word_embeddings", True)
    assert stated == (family.config_class.model_type not in describe.UNTIED_BY_DEFAULT)


def test_inspect_and_reading_agree_on_optimizer_state_of_its_own(tmp_path, capsys):
    """Equal numbers that are trained apart are two tensors."""
    small = saved(tmp_path / "small", "gpt2 untied")
    change(small, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].clone()}))
    native = ["--format", "zero", "--zero-stage", 1, "--world-size", 1, "--out", tmp_path / "native"]
    assert lemon(capsys, "reshard", small, *native)[0] == 0
    edit(tmp_path / "native", tie_word_embeddings=True)
    (tmp_path / "native" / "manifest.json").unlink()
    _, config = checkpoints.read(tmp_path / "native")
    code, out, _ = lemon(capsys, "inspect", tmp_path / "native")
    assert code == 0 and not config.tie_word_embeddings and "'lm_head.weight' differs from" in out


@pytest.mark.parametrize("variant, name", DIFFERENT.items())
def test_equal_ones_stay_tied(tmp_path, capsys, variant, name):
    small = stored_beside(tmp_path / "small", variant, name, equal=True)
    assert "tie_word_embeddings" not in grown(capsys, tmp_path, small, variant)
    assert apart(small, tmp_path / "large", tokens(small, POSITIONS)) < 1e-5
    state, config = checkpoints.read(tmp_path / "large")
    assert config.tie_word_embeddings and name not in state.tensors


def test_equal_numbers_of_another_dtype_are_equal(tmp_path):
    def add(tensors: dict) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].bfloat16()
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].float()

    _, config = checkpoints.read(change(saved(tmp_path / "small", "llama tied"), add))
    assert config.tie_word_embeddings


def test_a_tied_name_without_its_owner_is_the_owner(tmp_path):
    def swap(tensors: dict) -> None:
        tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")

    small = saved(tmp_path / "small", "gpt2")
    before = checkpoints.read(small)[0].tensors["transformer.wte.weight"].tensor().clone()
    state, config = checkpoints.read(change(small, swap))
    assert config.tie_word_embeddings and torch.equal(state.tensors["transformer.wte.weight"].tensor(), before)


def test_the_owner_under_a_bare_models_name_and_the_tied_name_beside_it(tmp_path):
    """Which of two files' names comes first decides nothing."""

    def strip(tensors: dict) -> None:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        for name in [name for name in tensors if name.startswith("transformer.")]:
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    state, config = checkpoints.read(change(saved(tmp_path / "small", "gpt2"), strip))
    assert config.tie_word_embeddings and "transformer.wte.weight" in state.tensors


def test_two_tensors_of_one_name_are_refused(tmp_path, capsys):
    def double(tensors: dict) -> None:
        tensors["wte.weight"] = tensors["transformer.wte.weight"] + 1

    small = change(saved(tmp_path / "small", "gpt2"), double)
    code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert code == 2 and "'transformer.wte.weight' and 'wte.weight' are both 'transformer.wte.weight'" in err, err


def test_a_model_in_memory_that_was_loaded_from_such_files(tmp_path, caplog):
    small = stored_beside(tmp_path / "small", "llama tied", "lm_head.weight")
    model = AutoModelForCausalLM.from_pretrained(small)
    large = pipeline.grow(model, sample("llama tied", hidden=24, heads=6, mlp=40, eps=1e-6)).double().eval()
    assert f"grow: the config {SAID.format('lm_head.weight')} 'model.embed_tokens.weight'" in caplog.text
    before, inputs = loaded(small), tokens(small, POSITIONS)
    assert (before(**inputs)[0] - large(**inputs)[0]).abs().max() < 1e-5 * before(**inputs)[0].abs().max()
    assert not large.config.tie_word_embeddings


DOUBLED = {
    "bert untied": ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    "roberta untied": ("lm_head.bias", "lm_head.decoder.bias"),
}
"""Variant -> the bias that transformers 4 adds, and the one that transformers 5 adds."""


@pytest.mark.parametrize("variant", DOUBLED)
def test_an_untied_decoder_adds_one_bias_in_transformers_4_and_5(tmp_path, capsys, variant):
    """The files of a result hold one of them twice; what DeepSpeed's hold stays."""
    older, newer = DOUBLED[variant]
    said = f"'{older}', which transformers 4 adds where transformers 5 adds '{newer}', differs"
    small = saved(tmp_path / "small", variant)
    target = target_config_file(tmp_path / "target.json", variant, hidden=24, heads=6, mlp=40, vocab=70)
    native = ["--format", "zero", "--zero-stage", 2, "--world-size", 1]
    for name, command in {
        "large": ["expand", "--source", small, "--target", target],
        "exported": ["export", small],
        "native": ["reshard", small, *native],
        "again": ["reshard", tmp_path / "native", "--format", "huggingface"],
    }.items():
        code, out, err = lemon(capsys, *command, "--out", tmp_path / name)
        assert code == 0 and (said in out) == (name != "native"), out + err
    before = load_file(small / "model.safetensors")
    for name in ("large", "exported", "again"):
        after = load_file(tmp_path / name / "model.safetensors")
        assert torch.equal(after[older], after[newer]) and torch.equal(after[newer][:61], before[newer])
    kept = checkpoints.read(tmp_path / "native")[0].tensors[older].tensor()
    assert torch.equal(kept, before[older]) and not torch.equal(kept, before[newer])
    code, out, _ = lemon(capsys, "export", tmp_path / "exported", "--out", tmp_path / "twice")
    assert code == 0 and "transformers 4 adds" not in out


def test_the_bias_that_transformers_4_saved_alone(tmp_path, capsys):
    """transformers 5 starts the other from zeros, which nobody means."""
    small = change(saved(tmp_path / "small", "bert untied"), lambda t: t.pop("cls.predictions.decoder.bias"))
    code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert (
        code == 2 and "'cls.predictions.decoder.bias' is missing; transformers 4, which saves none, adds 'cls." in err
    )
