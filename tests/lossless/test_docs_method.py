"""The method of docs/growth.md, "A method of your own": its code runs as it stands, and what it grows is lossless."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import pipeline
from pipeline.expansion.preview import show
from pipeline.growth import methods
from pipeline.growth.activations import ProbedSource
from tests.helpers.docs_code import python_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "growth.md"
CODE = python_of(PAGE, "A method of your own")
UNITS, MORE = 256, 128


@pytest.fixture
def namespace(monkeypatch) -> dict:
    """What the example leaves behind; its method is registered for the time of a test."""
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    names: dict = {"__name__": "example"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(CODE, str(PAGE), "exec"), names)
    return names


def new_units(model: torch.nn.Module, layer: int) -> torch.Tensor:
    """The weights of the MLP units behind the first UNITS: GPT-2 stores (in, out)."""
    return model.transformer.h[layer].mlp.c_fc.weight.detach()[:, UNITS:]


def test_what_the_example_grows_computes_the_same(namespace):
    small, large = namespace["small"].eval(), namespace["large"].eval()
    assert large.config.n_inner == UNITS + MORE
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        before, after = small(tokens).logits, large(tokens).logits
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()  # both compute in float32


def test_each_layer_has_more_of_its_own_strongest_units(namespace):
    small, large = namespace["small"], namespace["large"]
    small.config.architectures = ["GPT2LMHeadModel"]
    probed = ProbedSource(small.config, lambda name: dict(small.named_parameters())[name].detach())
    for layer in (0, 1):
        strongest = probed.mean_magnitude("mlp", "layers", layer).topk(MORE).indices
        own = small.transformer.h[layer].mlp.c_fc.weight.detach()
        assert torch.equal(new_units(large, layer), own[:, strongest])


def test_the_commands_know_the_example(namespace, tmp_path):
    namespace["small"].save_pretrained(tmp_path / "small")
    namespace["target"].save_pretrained(tmp_path / "target")
    grown = tmp_path / "grown"
    with pytest.raises(pipeline.UserError, match="method 'strongest' has no option 'depth'; its options are noise"):
        pipeline.plan(tmp_path / "small", tmp_path / "target", "strongest", method_options={"depth": "zero"})
    assert "differs from layer to layer" in _shown(pipeline.plan(tmp_path / "small", tmp_path / "target", "strongest"))
    assert pipeline.expand(tmp_path / "small", tmp_path / "target", grown, "strongest", workers=1).lossless
    assert (grown / "plan.safetensors").exists()  # units chosen by data are no few blocks
    del methods.METHODS["strongest"]
    assert pipeline.verify(tmp_path / "small", grown).lossless


WITHOUT_TORCH = """
[[tool.mypy.overrides]]
module = ["torch.*"]
follow_imports = "skip"
"""
"""Reading its types takes a minute."""


@pytest.mark.slow
@pytest.mark.parametrize("section", ["A method of your own", "A learned method of your own"])
def test_the_example_passes_the_type_checker_of_this_repository(tmp_path, section):
    """As strictly as the files of growth/methods, of which it may become one; part of .ci/lint."""
    pytest.importorskip("mypy")
    (tmp_path / "example.py").write_text(python_of(PAGE, section))
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8") + WITHOUT_TORCH
    (tmp_path / "pyproject.toml").write_text(settings, encoding="utf-8")
    options = ["--config-file", tmp_path / "pyproject.toml", "--cache-dir", tmp_path, "--follow-imports", "silent"]
    options += ["--allow-subclassing-any"]  # of nn.Module, whose types are not read
    command = [sys.executable, "-m", "mypy", *options, tmp_path / "example.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _shown(preview) -> str:
    """What `lemon plan` prints."""
    console = Console(width=200, file=io.StringIO())
    show(preview, console)
    return console.file.getvalue()
