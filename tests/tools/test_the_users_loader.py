"""What a Hugging Face folder computes is what `from_pretrained` makes of it: a reader or a writer of ours that is wrong
is found out, whatever we think of the files ourselves."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import checkpoints, models
from pipeline.checkpoints import loader
from pipeline.checkpoints.layouts import huggingface
from pipeline.checkpoints.tensors import InMemoryTensor
from pipeline.errors import UserError
from pipeline.growth.verification.probe import fitted, probe, run
from pipeline.models.streaming import LoadedModel
from tests.helpers.checkpoints import saved
from tests.helpers.cli import lemon
from tests.helpers.pretrained import given_out, loaded
from tests.helpers.rotation import rotated
from tests.helpers.samples import VARIANTS, sample

NORM = "transformer.ln_f.weight"
BELIEVED = "claims to be lossless and is not"


@pytest.fixture
def small(tmp_path):
    return saved(tmp_path / "small", "gpt2")


@pytest.fixture
def grow(tmp_path, capsys, small):
    """`lemon expand` of the small folder, and what it says on stderr."""
    target = tmp_path / "target.json"
    target.write_text(sample("gpt2", hidden=48, heads=6, mlp=96).to_json_string())
    return lambda *more: lemon(
        capsys, "expand", "--source", small, "--target", target, "--out", tmp_path / "big", *more
    )


def read_wrongly(folder):
    """Our reading of a folder, with one tensor off by a thousandth."""
    state = REALLY(folder)
    return replace(state, tensors=state.tensors | {NORM: InMemoryTensor(state.tensors[NORM].tensor() * 1.001)})


REALLY = huggingface.read


def test_a_reader_that_is_wrong_is_found_out(tmp_path, monkeypatch, grow, small):
    monkeypatch.setattr(huggingface, "read", lambda folder: (read_wrongly if folder == small else REALLY)(folder))
    code, _, err = grow()
    assert code == 2 and BELIEVED in err and not (tmp_path / "big").exists()


def test_a_config_that_is_written_wrongly_is_found_out(tmp_path, monkeypatch, grow):
    written = models.config_text
    monkeypatch.setattr(models, "config_text", lambda *a: written(*a).replace('"gelu_new"', '"relu"'))
    code, _, err = grow()
    assert code == 2 and BELIEVED in err and not (tmp_path / "big").exists()


def test_verify_asks_it_too(tmp_path, capsys, monkeypatch, grow, small):
    assert grow()[0] == 0
    assert lemon(capsys, "verify", small, tmp_path / "big")[0] == 0
    monkeypatch.setattr(huggingface, "read", read_wrongly)  # of both, which our own reading would not tell apart
    right = checkpoints.read(small)[0].tensors[NORM].tensor()
    assert not torch.equal(right, load_file(small / "model.safetensors")[NORM])
    assert lemon(capsys, "verify", small, tmp_path / "big")[0] == 0  # both functions are the files'


def test_what_it_would_initialise_afresh_is_named(small):
    state, config = checkpoints.read(small)
    held = load_file(small / "model.safetensors")
    held.pop(NORM)
    save_file(held, small / "model.safetensors", metadata={"format": "pt"})
    message = rf"finds no tensor for 1 of the model's parameters, such as '{NORM}', and would initialise them afresh"
    with pytest.raises(UserError, match=message):
        loader.runnable(small, state, config, small / "config.json")


def test_what_has_another_shape_is_named(small):
    state, config = checkpoints.read(small)
    held = load_file(small / "model.safetensors")
    save_file(held | {NORM: torch.ones(3)}, small / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"finds a tensor of another shape for 1 .*'{NORM}'"):
        loader.runnable(small, state, config, small / "config.json")


def test_what_it_does_not_load_is_refused_with_its_reason(tmp_path, capsys, small):
    """An index without the metadata that transformers asks for."""
    (small / "model.safetensors").rename(small / "model-00001-of-00001.safetensors")
    names = load_file(small / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (small / "model.safetensors.index.json").write_text(json.dumps(index))
    code, _, err = lemon(capsys, "verify", small, small)
    assert code == 2 and "from_pretrained of transformers does not load it (KeyError: 'metadata')" in err


def test_wrapped_names_are_said_to_be_read_by_us_alone(small, grow):
    held = {f"module.{name}": tensor for name, tensor in load_file(small / "model.safetensors").items()}
    save_file(held, small / "model.safetensors", metadata={"format": "pt"})
    code, out, _ = grow()
    assert code == 0 and "from_pretrained finds no weights under these names" in out and "without 'module.'" in out


@rotated(one_in=3, of="variant")
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_the_files_own_and_cost_nothing(tmp_path, variant):
    """Views of the mapped file, but for a tied decoder's bias, which BERT shares and transformers pads elsewhere."""
    folder = saved(tmp_path / "small", variant)
    state, _ = checkpoints.read(folder)
    loading = loader.load(folder, state, folder / "config.json")
    assert loading.filled
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    spans = [tuple(int(side, 16) for side in line.split()[0].split("-")) for line in mapped]
    parameters = dict(loading.model.named_parameters())
    copied = [n for n, p in parameters.items() if not any(first <= p.data_ptr() < last for first, last in spans)]
    tied = {"cls.predictions.bias", "lm_head.bias", "vocab_projector.bias", "decoder.bias"}
    assert parameters and set(copied) <= tied


@rotated(one_in=3, of="variant")
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_does_not_fit_is_planned_by_it_and_read_by_us(tmp_path, monkeypatch, variant):
    """Weights of two dtypes, of which loading makes copies: the same outputs without any."""
    folder = saved(tmp_path / "small", variant)
    held = load_file(folder / "model.safetensors")
    first = next(iter(held))
    held[first] = held[first].bfloat16()
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    state, config = checkpoints.read(folder)
    whole = loader.load(folder, state, folder / "config.json")
    monkeypatch.setattr(loader, "LARGEST_TENSOR_STATES", 0)
    planned = loader.load(folder, state, folder / "config.json")
    assert whole.filled and not planned.filled and all(p.is_meta for p in planned.model.parameters())
    inputs = probe(config)
    outputs = [
        run(model, inputs, torch.float64).outputs
        for model in (LoadedModel(whole.model), loader.runnable(folder, state, config, folder / "config.json"))
    ]
    assert outputs[0] and all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[0])


def test_tied_tensors_that_differ_are_planned_as_they_are_loaded(tmp_path, monkeypatch):
    """transformers 5 loads both, whatever the config says."""
    folder = saved(tmp_path / "small", "llama tied")
    held = load_file(folder / "model.safetensors")
    embedding = held["model.embed_tokens.weight"]
    save_file(held | {"lm_head.weight": embedding.flip(0)}, folder / "model.safetensors", metadata={"format": "pt"})
    state, config = checkpoints.read(folder)
    monkeypatch.setattr(loader, "LARGEST_TENSOR_STATES", 0)
    inputs = probe(config)
    found = run(loader.runnable(folder, state, config, folder / "config.json"), inputs, torch.float64)
    expected = given_out(folder, fitted(inputs, loaded(folder)))[inputs["attention_mask"].bool()]
    assert torch.allclose(found.outputs["logits"], expected, atol=1e-5)  # its norms compute in float32
