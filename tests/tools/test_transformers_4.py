"""Results in transformers 4.57, in an environment of its own: they load there without a complaint and give out what
transformers 5 makes of them, long texts and older keys included."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import models
from tests.helpers.checkpoints import saved, target_config_file
from tests.helpers.cli import ROOT, lemon_here, run_python
from tests.helpers.growing import ARCHITECTURES, times
from tests.helpers.pretrained import given_out, tokens
from tests.helpers.samples import IMAGE, POSITIONS, VARIANTS, sample
from tests.helpers.variations import (
    DIFFERENT,
    FARTHER,
    LONG,
    MISREAD,
    SCALED,
    SLIDING,
    WINDOW,
    edit,
    mixed,
    stored_beside,
)

PYTHON = os.environ.get("LEMON_TRANSFORMERS_4", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="LEMON_TRANSFORMERS_4 names no python with transformers 4.57"),
]
SCRIPT = ROOT / "tests" / "helpers" / "scripts" / "transformers_4.py"
SAME = 1e-5
"""The largest relative difference: norms compute in float32 whatever the model's dtype is."""
KNOWN = [variant for variant in VARIANTS if not variant.startswith("bert-pre-ln")]
TIED_APART = [variant for variant in DIFFERENT if variant in KNOWN]
SCALINGS = {"none": None, "llama3": SCALED, "linear": {"rope_type": "linear", "factor": 2.0}}


BASES = {"full_attention": 5e4, "sliding_attention": 7e3}
"""Of rotary positions, by the type of a layer."""


@dataclass(frozen=True)
class Case:
    """A result, and the source that it has the outputs of in transformers 4 too; None: outputs of another shape, or a
    source that transformers 4 reads otherwise."""

    large: Path
    inputs: dict[str, Tensor]
    small: Path | None = None


def _inputs(folder: Path, length: int = POSITIONS) -> dict[str, Tensor]:
    config = models.read_config(folder / "config.json")[1]
    if models.of_config(config).data == "images":
        shape = (2, 3, IMAGE, IMAGE)
        return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)}
    return tokens(folder, length)


def _saved(folder: Path, variant: str, **sizes: object) -> Path:
    """By transformers 5, under the class's public name."""
    return edit(saved(folder, variant, **sizes), architectures=sample(variant).architectures)


def _grown(small: Path, variant: str, changes: dict | None = None, length: int = POSITIONS, **sizes: object) -> Path:
    target = target_config_file(small.parent / "target.json", variant, positions=length, **sizes)
    lemon_here(
        "expand", "--source", small, "--target", edit(target, **(changes or {})), "--out", small.parent / "large"
    )
    return small.parent / "large"


def _of_variant(variant: str, folder: Path) -> Case:
    small = _saved(folder / "small", variant)
    large, architecture = _grown(small, variant, **times(2)), ARCHITECTURES[variant]
    comparable = "logits" in architecture.outputs and not architecture.doubled
    return Case(large, _inputs(small), small if comparable else None)


def _of_rotation(scaling: dict | None, folder: Path) -> Case:
    """Older keys at the top, a base that is not the default."""
    keys = {"rope_parameters": ..., "rope_theta": 5e5, "rope_scaling": scaling}
    small = edit(saved(folder / "small", "llama", positions=LONG), **keys)
    return Case(_grown(small, "llama", keys, LONG, **times(2, layers=3)), _inputs(small, LONG), small)


NEW_ROPES = {
    "llama": {"rope_type": "default", "rope_theta": 5e5},
    "mistral": {**SCALED, "rope_theta": 5e5},
    "qwen2": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
    "qwen3": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": LONG // 2, "rope_theta": 5e5},
    "gemma2": {"rope_type": "default", "rope_theta": 300.0},
    "phi3": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5},
    "llama long": {**FARTHER, "factor": 2.0, "original_max_position_embeddings": LONG // 2},
    "mistral long, no original": {**FARTHER, "factor": 8.0},
    "gemma3_text long": {
        "full_attention": {**FARTHER, "factor": 4.0, "original_max_position_embeddings": LONG // 4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
    "qwen2 beside": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 777.0},
    "phi3 long": {
        **FARTHER,
        "short_factor": [1.0],
        "long_factor": [3.0],
        "original_max_position_embeddings": LONG // 2,
        "partial_rotary_factor": 0.5,
    },
}
"""As transformers 5 has saved them, in keys that transformers 4 does not read."""


def _of_new_rope(name: str, folder: Path) -> Case:
    variant = name.split()[0]
    keys = {"rope_parameters": NEW_ROPES[name]}
    if name in ("phi3 long", "qwen2 beside"):
        keys["original_max_position_embeddings"] = LONG // 2
    small = edit(saved(folder / "small", variant, positions=LONG), **keys)
    sizes = times(2) | ({"layers": 4} if variant.startswith("gemma") else {"layers": 3})
    return Case(_grown(small, variant, keys, LONG, **sizes), _inputs(small, LONG))


def _of_layer_types(folder: Path) -> Case:
    small = mixed(folder / "small")
    return Case(_grown(small, "qwen3", SLIDING, LONG, **times(2, layers=4)), _inputs(small, LONG), small)


def _of_alternation(older: bool, folder: Path) -> Case:
    """ModernBERT in the keys of transformers 4 alone, or of 5 alone, which transformers 4 reads as its defaults."""
    rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in BASES.items()}
    fours = {
        "global_attn_every_n_layers": 2,
        "global_rope_theta": BASES["full_attention"],
        "local_rope_theta": BASES["sliding_attention"],
    }
    fives = {"layer_types": ["full_attention", "sliding_attention"] * 2, "rope_parameters": rope}
    keys = (fours | dict.fromkeys(fives, ...)) if older else (fives | dict.fromkeys(fours, ...))
    small = edit(_saved(folder / "small", "modernbert", positions=LONG), **keys)
    target = {**keys, "num_hidden_layers": 6} | ({} if older else {"layer_types": fives["layer_types"][:2] * 3})
    return Case(_grown(small, "modernbert", target, LONG, **times(2)), _inputs(small, LONG), small if older else None)


def _of_windows(folder: Path) -> Case:
    window = {"sliding_window": WINDOW}
    small = edit(saved(folder / "small", "mistral", positions=LONG), **window)
    return Case(_grown(small, "mistral", window, LONG, **times(2)), _inputs(small, LONG), small)


def _of_two_bases(older: bool, folder: Path) -> Case:
    """One for layers with a window, a scaled one for the others; in the keys of transformers 4, or as 5 has saved it,
    which 4 does not read."""
    scaling = {"rope_type": "linear", "factor": 2.0}
    keys = {"rope_parameters": ..., "rope_local_base_freq": 300.0, "rope_theta": 5e5, "rope_scaling": scaling}
    if not older:
        bases = {"rope_type": "default", "rope_theta": 300.0}, {**scaling, "rope_theta": 5e5}
        keys = {"rope_parameters": dict(zip(("sliding_attention", "full_attention"), bases, strict=True))}
    small = edit(saved(folder / "small", "gemma3_text", positions=LONG), **keys)
    large = _grown(small, "gemma3_text", keys, LONG, **times(2, layers=3))
    return Case(large, _inputs(small, LONG), small if older else None)


def _of_one_scaling(folder: Path) -> Case:
    """ModernBERT's, of both kinds of layers alike."""
    rope = {kind: {**SCALINGS["linear"], "rope_theta": theta} for kind, theta in BASES.items()}
    small = edit(_saved(folder / "small", "modernbert", positions=LONG), rope_parameters=rope)
    return Case(_grown(small, "modernbert", {"rope_parameters": rope}, LONG, **times(2)), _inputs(small, LONG))


def _of_own_order(variant: str, folder: Path) -> Case:
    """Layers whose types follow no pattern, in files that state one."""
    keys = {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}
    small = edit(_saved(folder / "small", variant, positions=LONG), **keys)
    return Case(_grown(small, variant, keys, LONG, **times(2)), _inputs(small, LONG), small)


def _of_misread(name: str, folder: Path) -> Case:
    variant, keys = MISREAD[name]
    small = edit(_saved(folder / "small", variant, positions=LONG), **keys)
    return Case(_grown(small, variant, keys, LONG, **times(2)), _inputs(small, LONG))


def _of_ties(variant: str, folder: Path) -> Case:
    small = stored_beside(folder / "small", variant, DIFFERENT[variant])
    return Case(_grown(small, variant, **times(2)), _inputs(small))


def _of_export(variant: str, folder: Path) -> Case:
    small = _saved(folder / "small", variant)
    native = ["--format", "zero", "--zero-stage", 3, "--world-size", 2]
    lemon_here("reshard", small, *native, "--out", folder / "native")
    lemon_here("export", folder / "native", "--out", folder / "large")
    return Case(folder / "large", _inputs(small), small)


BUILDERS: dict[str, Callable[[Path], Case]] = {
    **{f"grown {name}": lambda folder, name=name: _of_variant(name, folder) for name in KNOWN},
    **{f"rope {name}": lambda folder, each=each: _of_rotation(each, folder) for name, each in SCALINGS.items()},
    **{f"new rope {name}": lambda folder, name=name: _of_new_rope(name, folder) for name in NEW_ROPES},
    "layer types": _of_layer_types,
    "alternation": lambda folder: _of_alternation(True, folder),
    "alternation in new keys": lambda folder: _of_alternation(False, folder),
    **{
        f"two bases, older {older}": lambda folder, older=older: _of_two_bases(older, folder) for older in (True, False)
    },
    "one scaling": _of_one_scaling,
    **{
        f"own order {name}": lambda folder, name=name: _of_own_order(name, folder) for name in ("gemma2", "gemma3_text")
    },
    "windows": _of_windows,
    **{f"tied apart {name}": lambda folder, name=name: _of_ties(name, folder) for name in TIED_APART},
    **{
        f"exported {name}": lambda folder, name=name: _of_export(name, folder) for name in ("llama tied", "bert", "vit")
    },
}


READ_OTHERWISE = {name: lambda folder, name=name: _of_misread(name, folder) for name in MISREAD}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    made = {}
    for number, (name, build) in enumerate((BUILDERS | READ_OTHERWISE).items()):
        folder = tmp_path_factory.mktemp(str(number))
        made[name] = build(folder)
    return made


@pytest.fixture(scope="module")
def by_transformers_4(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """Folder -> its first output and complaints there."""
    folder = tmp_path_factory.mktemp("transformers_4")
    jobs = {str(place): case.inputs for case in cases.values() for place in (case.large, case.small) if place}
    torch.save(jobs, folder / "jobs.pt")
    command = [SCRIPT, folder / "jobs.pt", folder / "out.pt"]
    ended = run_python(*command, timeout=500, interpreter=PYTHON)
    assert ended.returncode == 0, ended.stderr
    content = torch.load(folder / "out.pt")
    assert content["version"].startswith("4.57."), content["version"]
    return content["results"]


def _apart(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / one.abs().max()).item()


@pytest.mark.parametrize("name", BUILDERS)
def test_results_are_the_same_in_transformers_4(cases, by_transformers_4, name):
    case = cases[name]
    output, complaints = by_transformers_4[str(case.large)]
    assert not complaints
    assert _apart(given_out(case.large, case.inputs), output) < SAME
    if case.small:
        assert _apart(by_transformers_4[str(case.small)][0], output) < SAME


@pytest.mark.parametrize("name", READ_OTHERWISE)
def test_what_is_said_of_transformers_4_is_so(cases, by_transformers_4, name):
    """`test_windows_and_rope.py` demands the line."""
    output, complaints = by_transformers_4[str(cases[name].large)]
    if "in no order" in name:
        assert output is None and "NoneType" in complaints["error"][0], complaints
    else:
        assert not complaints
        assert _apart(given_out(cases[name].large, cases[name].inputs), output) > 1e-3
