"""How two checkpoints of any layout differ, number by number."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import models
from pipeline.checkpoints import CheckpointLayout, diff
from pipeline.checkpoints.state import Group, State
from pipeline.checkpoints.tensors import in_memory
from tests.helpers.checkpoints import FORMATS, foreign, saved, source, state
from tests.helpers.cli import lemon
from tests.helpers.samples import sample
from tests.helpers.variations import edit


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> dict[str, Path]:
    """One state, with moments and 7 steps, in every layout."""
    folders = {name: tmp_path_factory.mktemp("held") for name in FORMATS}
    return {name: source(folder, FORMATS[name]) for name, folder in folders.items()}


def compared(capsys, a: Path, b: Path, *more: object) -> tuple[int, dict]:
    code, out, err = lemon(capsys, "diff", a, b, "--json", *more)
    assert code < 2, err
    return code, json.loads(out)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("1 on 3", "huggingface")])
def test_one_state_in_two_layouts_is_bit_equal(held, capsys, name):
    code, found = compared(capsys, held["1 on 3"], held[name])
    assert code == 0 and found["equal"] and found["names"] == "published"
    assert {kind: part["equal"] for kind, part in found["tensors"].items()} == {
        "weights": 38,
        "exp_avg": 38,
        "exp_avg_sq": 38,
    }


def test_hugging_face_files_hold_the_weights_alone(held, capsys):
    code, found = compared(capsys, held["huggingface"], held["3 on 2"], "--weights-only")
    assert code == 0 and found["tensors"]["weights"]["equal"] == 38 and set(found["tensors"]) == {"weights"}
    code, found = compared(capsys, held["huggingface"], held["3 on 2"])
    assert code == 1 and len(found["tensors"]["exp_avg"]["only_b"]) == 38 and found["without_optimizer"] == ["A"]
    assert (
        "optimizer    A holds none; --weights-only leaves it out"
        in lemon(capsys, "diff", held["huggingface"], held["3 on 2"])[1]
    )


def changed(name: str, value: float) -> torch.Tensor:
    tensor = state().tensors[name].tensor().clone()
    tensor.view(-1)[-1] = value
    return tensor


def variants() -> dict[str, tuple[State, str]]:
    """States that differ in one thing, and what is said of it."""
    one = state()
    moments = {**one.slots, "exp_avg_sq": {**one.slots["exp_avg_sq"], "b": in_memory([("b", torch.zeros(3))])["b"]}}
    groups = Group(("a",), {**one.groups[0].hyper, "betas": (0.9, 0.99)}), one.groups[1]
    return {
        "weight": (
            replace(one, tensors={**one.tensors, **in_memory([("a", changed("a", 9.0))])}),
            "weights: 'a' differs in 1 of 35 numbers, by at most",
        ),
        "not a number": (
            replace(one, tensors={**one.tensors, **in_memory([("a", changed("a", float("nan")))])}),
            "differs in 1 of 35 numbers, by at most inf (relative inf)",
        ),
        "frozen": (
            replace(one, tensors={**one.tensors, **in_memory([("frozen", torch.zeros(2, 3))])}),
            "weights: 'frozen' differs in 6 of 6 numbers",
        ),
        "buffer": (
            replace(one, buffers=in_memory([("mask", torch.zeros(4))])),
            "weights: 'mask' differs in 4 of 4 numbers, by at most 1 (relative 1)",
        ),
        "moment": (replace(one, slots=moments), "exp_avg_sq: 'b' differs in 3 of 3 numbers"),
        "step": (replace(one, steps=dict.fromkeys("abc", 5.0)), "step         4.0 -> 5.0 for 3 parameters"),
        "hyper-parameter": (
            replace(one, groups=groups),
            "betas        [0.9, 0.98] -> [0.9, 0.99] for 1 parameters, such as 'a'",
        ),
        "group": (
            replace(one, groups=(Group(("a", "b"), one.groups[0].hyper), Group(("c",), one.groups[1].hyper))),
            "weight_decay 0.0 -> 0.1 for 1 parameters, such as 'b'",
        ),
        "shape": (
            replace(one, tensors={**one.tensors, **in_memory([("frozen", torch.zeros(3, 2))])}),
            "weights: 1 have other shapes, such as 'frozen': (2, 3) in A, (3, 2) in B",
        ),
        "name": (
            replace(one, tensors={n: e for n, e in one.tensors.items() if n != "frozen"}, frozen=()),
            "weights: 1 only in A: frozen",
        ),
    }


@pytest.mark.parametrize("kind", variants())
@pytest.mark.parametrize("layout", [CheckpointLayout("zero", 1, 1), CheckpointLayout("zero", 3, 2)], ids=["1", "3"])
def test_one_change_is_found_and_named(tmp_path, capsys, kind, layout):
    theirs, said = variants()[kind]
    folders = foreign(tmp_path / "a"), foreign(tmp_path / "b", theirs, layout)
    code, out, err = lemon(capsys, "diff", *folders)
    assert code == 1 and said in out and "verdict      different" in out, out + err
    assert compared(capsys, *folders)[1]["equal"] is False


def test_without_configs_names_are_those_of_the_files(tmp_path, capsys):
    code, found = compared(
        capsys, foreign(tmp_path / "a"), foreign(tmp_path / "b", layout=CheckpointLayout("zero", 3, 4))
    )
    assert code == 0 and found["names"] == "of the files" and found["tensors"]["weights"]["equal"] == 5


def files(folder: Path, **tensors: torch.Tensor) -> Path:
    """A folder of weights with these names, of no supported model."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_worst_come_first(tmp_path):
    names = [f"n{number}" for number in range(9)]
    one = files(tmp_path / "a", **{name: torch.ones(3) for name in names})
    other = files(tmp_path / "b", **{name: torch.ones(3) + number * 0.25 for number, name in enumerate(names)})
    part = diff.compare(one, other).parts["weights"].as_json()
    assert (part["equal"], part["different"]) == (1, 8) and [gap["name"] for gap in part["worst"]] == [
        "n8",
        "n7",
        "n6",
        "n5",
        "n4",
    ]
    assert part["worst"][0] == {"name": "n8", "numbers": 3, "of": 3, "largest": 2.0, "relative": 2 / 3}


def test_bits_count(tmp_path):
    """0 and -0 differ, by nothing; a NaN is equal to itself; a number is the same in a wider type."""
    same = {"nan": torch.tensor([float("nan"), 1.0]), "empty": torch.empty(0)}
    one = files(tmp_path / "a", **same, zero=torch.zeros(2), types=torch.tensor([1.5], dtype=torch.bfloat16))
    other = files(tmp_path / "b", **same, zero=-torch.zeros(2), types=torch.tensor([1.5]))
    part = diff.compare(one, other).parts["weights"]
    assert part.equal == 3
    assert [(gap.name, gap.numbers, gap.largest, gap.relative) for gap in part.gaps] == [("zero", 2, 0.0, 0.0)]


def test_configs_bring_the_names_of_two_layouts_together(tmp_path, capsys):
    """ViT's module names are not those of its files: without the config of one side there is nothing to compare."""
    module, published = (
        source(tmp_path / "a", CheckpointLayout("zero", 2, 2), "vit"),
        source(tmp_path / "b", CheckpointLayout("huggingface"), "vit"),
    )
    assert compared(capsys, module, published, "--weights-only")[0] == 0
    code, found = compared(capsys, saved(tmp_path / "other", "vit"), published)
    assert code == 1 and found["tensors"]["weights"]["different"] == len(
        list(models.architecture_of(sample("vit")).rows())
    )
    for folder in (module, published):
        (folder / "manifest.json").unlink()
    (module / "config.json").unlink()
    code, out, _ = lemon(capsys, "diff", module, published, "--weights-only")
    assert (
        code == 1 and "names        as in the files: not both folders hold the config.json of a supported model" in out
    )


def test_bad_input_is_one_line(held, tmp_path, capsys):
    save_to = tmp_path / "hf"
    save_to.mkdir()
    save_file({"other": torch.zeros(2)}, save_to / "model.safetensors")
    for a, b, complaint in [
        (held["3 on 2"], tmp_path / "none", "none: no such folder"),
        (held["3 on 2"], save_to, "have no tensor name in common; names of two layouts come together where"),
        (held["3 on 2"], saved(tmp_path / "vit", "vit"), "have no tensor name in common; they hold different models"),
    ]:
        code, _, err = lemon(capsys, "diff", a, b)
        assert code == 2 and complaint in err and err.count("\n") == 1, err


def test_one_changed_number_of_a_hugging_face_folder(held, tmp_path, capsys):
    folder = Path(shutil.copytree(held["huggingface"], tmp_path / "copy"))
    (folder / "manifest.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.LayerNorm.bias"][3] += 1
    save_file(tensors, folder / "model.safetensors")
    code, out, _ = lemon(capsys, "diff", folder, held["huggingface"])
    assert code == 1 and "weights: 'bert.LayerNorm.bias' differs in 1 of 12 numbers" in out


@pytest.mark.parametrize(
    "changes, lines",
    [
        ({"rms_norm_eps": 0.5, "hidden_act": "relu"}, ["hidden_act silu -> relu", "rms_norm_eps 1e-06 -> 0.5"]),
        ({"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 2}, ["heads 3 -> 6", "head_dim 4 -> 2"]),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
            ["rope_parameters rope_theta 10000.0 -> 5.0"],
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000}, "bos_token_id": 3, "max_length": 9}, []),
    ],
    ids=["function", "heads", "rotary positions", "nothing that a model computes by"],
)
def test_equal_weights_of_another_function_differ(tmp_path, capsys, changes, lines):
    """The same numbers compute something else under another config."""
    one = saved(tmp_path / "one", "llama", kv_heads=3)
    other = edit(Path(shutil.copytree(one, tmp_path / "other")), **changes)
    code, out, _ = lemon(capsys, "diff", one, other, "--weights-only")
    assert code == (1 if lines else 0) and all(f"config       {line}" in out for line in lines), out
    assert len(compared(capsys, one, other)[1]["config"]) >= len(lines)


@pytest.mark.parametrize("dampening, same", [(0.0, True), (0.5, False)])
def test_zeros_that_an_optimizer_starts_with_are_as_good_as_none(tmp_path, dampening, same):
    """A damped momentum starts with the first gradient, and from zeros otherwise."""
    hyper = {"lr": 0.1, "momentum": 0.9, "dampening": dampening, "nesterov": False}
    none = replace(state(), slots={}, steps={}, groups=tuple(Group(g.names, hyper) for g in state().groups))
    zeros = {name: torch.zeros(none.tensors[name].shape) for group in none.groups for name in group.names}
    begun = replace(none, slots={"momentum_buffer": in_memory(zeros.items())})
    moved = replace(none, slots={"momentum_buffer": in_memory({**zeros, "b": torch.ones(3)}.items())})
    folders = [foreign(tmp_path / str(number), held) for number, held in enumerate((none, begun, moved))]
    assert diff.compare(folders[0], folders[1]).equal is diff.compare(folders[1], folders[0]).equal is same
    assert not diff.compare(folders[0], folders[2]).equal
