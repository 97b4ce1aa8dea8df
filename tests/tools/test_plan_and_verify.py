"""`lemon plan` says what an expansion will do without reading a tensor; `lemon verify` measures what one did."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout, manifest
from pipeline.checkpoints.layouts.huggingface import HuggingFace
from pipeline.checkpoints.serialization.writer_pool import write_files
from pipeline.checkpoints.state import Group, State
from pipeline.checkpoints.tensors import LazyTensor, in_memory
from pipeline.growth.verification.probe import probe
from pipeline.optim.optimizers import AdamW, Slot
from tests.helpers.checkpoints import change, saved, target_config_file
from tests.helpers.cli import lemon
from tests.helpers.growing import randomised
from tests.helpers.rotation import rotated
from tests.helpers.samples import sample

ROOT = Path(__file__).parents[2]
LARGE = {"layers": 4, "hidden": 20, "heads": 5, "mlp": 33}


class UnreadableTensor(LazyTensor):
    @property
    def dtype(self) -> torch.dtype:
        return torch.float32  # a file's header says it

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        raise AssertionError("a tensor was read")


def planned(capsys, folder, variant: str, *more: object, **sizes) -> tuple[dict, str]:
    target = target_config_file(folder / "target.json", variant, **{**LARGE, **sizes})
    code, out, err = lemon(
        capsys, "plan", "--source", folder / "small", "--target", target, "--out", folder / "plan.json", *more
    )
    assert code == 0, err
    return json.loads((folder / "plan.json").read_text()), out


def expanded(capsys, folder, *more: object) -> None:
    """The expansion that `planned` was told of."""
    places = ("--source", folder / "small", "--target", folder / "target.json", "--out", folder / "large")
    code, _, err = lemon(capsys, "expand", *places, *more)
    assert code == 0, err


def test_no_tensor_is_read(tmp_path, capsys, monkeypatch):
    saved(tmp_path / "small", "bert-pre-ln")
    stored = checkpoints.raw(tmp_path / "small")
    closed = {name: UnreadableTensor(tensor.shape) for name, tensor in stored.tensors.items()}
    monkeypatch.setattr(HuggingFace, "read", lambda layout, folder: State(closed))
    content, _ = planned(capsys, tmp_path, "bert-pre-ln")
    assert len(content["tensors"]) == 3 + 2 + 1 + 4 * 16


def test_the_plan_is_what_happens(tmp_path, capsys):
    """Its rows, its parameters, its config change and its disk are those of the expansion that follows."""
    saved(tmp_path / "small", "bert-pre-ln")
    content, out = planned(capsys, tmp_path, "bert-pre-ln")
    expanded(capsys, tmp_path)
    state, config = checkpoints.read(tmp_path / "large")
    assert {row["target"]: tuple(row["shape"]) for row in content["tensors"]} == {
        name: entry.shape for name, entry in state.tensors.items()
    }
    assert content["parameters"][1] == sum(entry.tensor().numel() for entry in state.tensors.values())
    assert content["config_change"] == {
        "layer_norm_eps": pytest.approx(1e-6 * 12 / 20)
    } and config.layer_norm_eps == pytest.approx(1e-6 * 12 / 20)
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert content["needs"]["disk"] <= size < content["needs"]["disk"] + 20_000  # the header
    assert (
        f"parameters   {content['parameters'][0]:,} -> {content['parameters'][1]:,}" in out
        and "layers       0 0+ 1 1+" in out
        and "lossless, and held to the gates" in out
    )


@pytest.mark.parametrize("layout, stage", [("zero", 1), ("zero", 3), ("universal", 1)])
def test_the_disk_it_names_is_the_disk_it_takes(tmp_path, capsys, layout, stage):
    """Large enough that headers and counters (some kB a file) do not matter."""
    saved(tmp_path / "small", "bert-pre-ln", hidden=96, heads=24, mlp=400, vocab=2000)
    sizes = {"hidden": 160, "heads": 40, "mlp": 700, "layers": 3, "vocab": 2000}
    more = ("--format", layout, *(("--zero-stage", stage) if layout == "zero" else ()))
    content, _ = planned(capsys, tmp_path, "bert-pre-ln", *more, **sizes)
    expanded(capsys, tmp_path, *more)
    held = sum(path.stat().st_size for path in (tmp_path / "large").rglob("*") if path.is_file())
    assert held == pytest.approx(content["needs"]["disk"], rel=0.05)


@pytest.mark.parametrize(
    "variant, words",
    [
        (
            "llama",
            [
                "RMSNorm sees 1 full copy and 8 zeros; the config's rms_norm_eps becomes 6e-07",
                "rotary positions: head_dim stays 4",
            ],
        ),
        ("vit", ["LayerNorm sees 1 full copy and the mean 8 times; the config's layer_norm_eps becomes 6e-07"]),
    ],
)
def test_the_conditions_it_rests_on(tmp_path, capsys, variant, words):
    saved(tmp_path / "small", variant)
    content, out = planned(capsys, tmp_path, variant)
    assert set(words) <= set(content["conditions"]) and all(word in out for word in words)


def test_what_is_lossy_and_why(tmp_path, capsys):
    saved(tmp_path / "small", "vit")
    content, out = planned(capsys, tmp_path, "vit", image=16)
    assert content["lossy"] == ["positions grows from 5 to 17 by interpolation"] and "LOSSY: positions grows" in out


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, capsys):
    saved(tmp_path / "small", "bert")
    target = target_config_file(tmp_path / "target.json", "bert", **LARGE)
    code, _, err = lemon(
        capsys, "plan", "--source", tmp_path / "small", "--target", target, "--out", tmp_path / "plan.json"
    )
    assert code == 2 and "post-LN cannot grow losslessly from 12 to 20" in err and not (tmp_path / "plan.json").exists()


def grown(capsys, folder, variant: str, *more: object, **sizes) -> None:
    saved(folder / "small", variant)
    target_config_file(folder / "target.json", variant, **{**LARGE, **sizes})
    expanded(capsys, folder, *more)


def measured(capsys, folder) -> tuple[int, dict]:
    code, out, err = lemon(capsys, "verify", folder / "small", folder / "large", "--json")
    assert not err, err
    return code, json.loads(out)


def test_verify_measures_outputs_layers_and_copies(tmp_path, capsys):
    grown(capsys, tmp_path, "bert-pre-ln")
    code, out, _ = lemon(capsys, "verify", tmp_path / "small", tmp_path / "large")
    assert code == 0
    for word in (
        "outputs in float64",
        "outputs in float32",
        "residual stream after layer 1",
        "symmetry     mlp",
        "verdict      lossless",
    ):
        assert word in out
    assert lemon(capsys, "verify", tmp_path / "small", tmp_path / "large", "--json")[1].startswith("{")


def lion(folder: Path) -> Path:
    """A checkpoint of an optimizer that is not known here: one slot, and AdamW's names of hyper-parameters."""
    config = sample("bert-pre-ln", hidden=96, heads=24, mlp=400, vocab=2000, eps=1e-6)
    weights = {name: tensor.float() for name, tensor in randomised(config).items()}
    groups = (
        Group(group.names, {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": decay})
        for group, decay in zip(checkpoints.fresh_groups(config, AdamW()), (1.0, 0.0), strict=True)
    )
    tensors = in_memory(weights.items())
    state = State(tensors, slots={"exp_avg": tensors}, step=3, groups=tuple(groups))
    names = {row.name: row.module_name for row in models.architecture_of(config).rows()}
    layout = CheckpointLayout("zero", 1, 2)
    folder.mkdir()
    # as DeepSpeed writes them: this pipeline's own writer refuses an optimizer that it does not know
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(State, "optimizer", lambda state: Lion())
        write_files(checkpoints.files(state.renamed(names), folder, layout), folder)
    (folder / "config.json").write_text(models.config_text(config))
    return folder


class Lion(AdamW):
    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("exp_avg", 1),)


def test_an_unknown_optimizer_is_planned_as_it_is_expanded(tmp_path, capsys):
    """A fresh optimizer needs to know nothing of the source's: it is AdamW as torch has it, with both its moments."""
    lion(tmp_path / "small")
    sizes = {"hidden": 192, "heads": 48, "mlp": 800, "vocab": 2000, "layers": 2}
    content, out = planned(capsys, tmp_path, "bert-pre-ln", **sizes)
    unknown = "optimizer state 'exp_avg' belongs to no optimizer that is known here"
    assert unknown in out and unknown in content["optimizer_state"][0]
    growth = ["--source", tmp_path / "small", "--target", tmp_path / "target.json"]
    code, _, err = lemon(capsys, "expand", *growth, "--out", tmp_path / "large")
    assert code == 0, err
    held = sum(path.stat().st_size for path in (tmp_path / "large").rglob("*") if path.is_file())
    assert held == pytest.approx(content["needs"]["disk"], rel=0.05)
    groups = checkpoints.raw(tmp_path / "large").groups
    assert [(g.hyper["lr"], tuple(g.hyper["betas"]), g.hyper["weight_decay"]) for g in groups] == [
        (1e-3, (0.9, 0.999), 0.01),
        (1e-3, (0.9, 0.999), 0.0),
    ]
    for command in ("plan", "expand"):
        more = ["--optimizer-state", "grow", "--out", tmp_path / "grown"]
        code, _, err = lemon(capsys, command, *growth, *more)
        assert code == 2 and unknown in err and err.count("\n") == 1, err


def test_verify_finds_a_weight_that_changed(tmp_path, capsys):
    """Behind the layer where it stands the stream drifts; in front of it it does not."""
    grown(capsys, tmp_path, "bert-pre-ln")

    def nudge(tensors: dict) -> None:
        tensors["bert.encoder.layer.3.output.dense.bias"][0] += 1e-2

    (tmp_path / "large" / manifest.NAME).unlink()
    change(tmp_path / "large", nudge)
    code, out, _ = lemon(capsys, "verify", tmp_path / "small", tmp_path / "large", "--json")
    found = json.loads(out)
    assert code == 1 and not found["lossless"] and found["drift"][0] < 1e-6 < 1e-4 < found["drift"][1]


TABLES = [
    ("llama", "model.embed_tokens.weight", {"vocab": 400}),
    ("gpt2", "transformer.wpe.weight", {"positions": 40}),
    ("dinov2", "dinov2.embeddings.mask_token", {}),
]


@pytest.mark.parametrize("plan", [True, False], ids=["with its plan", "without"])
@pytest.mark.parametrize("variant, name, sizes", TABLES)
def test_verify_finds_a_row_that_the_probe_does_not_look_up(tmp_path, capsys, variant, name, sizes, plan):
    """Of a table's rows a probe draws some; the last position lies behind it; it has no masks."""
    saved(tmp_path / "small", variant, **sizes)
    target_config_file(tmp_path / "target.json", variant, **{**LARGE, **sizes})
    expanded(capsys, tmp_path)
    code, found = measured(capsys, tmp_path)
    assert code == 0 and found["tables"] < 1e-6 and found["lossless"]
    (tmp_path / "large" / manifest.NAME).unlink()
    if not plan:
        (tmp_path / "large" / "plan.json").unlink()
    drawn = probe(checkpoints.read(tmp_path / "small")[1]).get("input_ids", torch.zeros(0))
    row = max(set(range(sizes.get("vocab", 0))) - set(drawn.flatten().tolist()), default=-1)
    change(tmp_path / "large", lambda tensors: tensors[name][row, :1].add_(1e-2))
    code, found = measured(capsys, tmp_path)
    assert code == 1 and not found["lossless"] and (found["table"], found["float64"] < 1e-6) == (name, True)
    assert 1e-4 < found["tables"] < 1
    assert f"rows of '{name}' differ" in lemon(capsys, "verify", tmp_path / "small", tmp_path / "large")[1]
    change(tmp_path / "large", lambda tensors: tensors[name][row, :1].fill_(torch.nan))
    code, _, err = lemon(capsys, "verify", tmp_path / "small", tmp_path / "large")
    assert code == 2 and f"'{name}' holds NaN or infinite values" in err and err.count("\n") == 1


def test_verify_needs_a_growth(tmp_path, capsys):
    saved(tmp_path / "small", "vit")
    saved(tmp_path / "other", "vit", hidden=8, heads=2)
    code, _, err = lemon(capsys, "verify", tmp_path / "small", tmp_path / "other")
    assert code == 2 and "cannot have grown from" in err and "embed shrinks from 12 to 8" in err


@pytest.mark.parametrize("content", ["{}", '{"options": {"method": "magic"}}', '{"options": {"color": "red"}}'])
def test_verify_names_a_plan_that_is_none(tmp_path, capsys, content):
    grown(capsys, tmp_path, "vit")
    (tmp_path / "large" / manifest.NAME).unlink()
    (tmp_path / "large" / "plan.json").write_text(content)
    code, _, err = lemon(capsys, "verify", tmp_path / "small", tmp_path / "large")
    assert code == 2 and "plan.json: " in err and "remove it and manifest.json to compare by LEMON's rules" in err


WHOLE = {"hidden": 24, "heads": 6, "mlp": 48}


@rotated(one_in=2, of=("variant", "dtype"), alike=lambda variant, dtype: variant)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "variant, sizes, more",
    [
        ("bert-pre-ln", {}, ["--method-option", "depth=cancel", "--method-option", "placement=top", "--seed", 3]),
        ("llama", {"vocab": 70}, ["--method-option", "noise=0.5"]),
        ("bert", WHOLE, []),
        ("dinov2", {}, []),
        ("vit", {"layers": 2, **WHOLE}, ["--method", "fpi", "--seed", 1]),
    ],
    ids=["cancel", "vocabulary", "post-LN", "layer scales", "fpi"],
)
def test_verify_tells_rounding_from_growing(tmp_path, capsys, variant, sizes, more, dtype):
    """Grown once more as its plan says, a rounded result has the verdict that it was published with."""
    grown(capsys, tmp_path, variant, "--dtype", dtype, *more, **sizes)
    code, found = measured(capsys, tmp_path)
    published = manifest.read(tmp_path / "large").verification
    assert code == 0 and found["lossless"] and 1e-5 < found["stored"] < 0.1
    assert {name: found[name] for name in published} == published
    assert (
        f"rounding makes the difference {found['stored']:.2e}; the verdict is that of the float32"
        in lemon(capsys, "verify", tmp_path / "small", tmp_path / "large")[1]
    )


def test_a_rounded_result_of_a_lossy_method_stays_lossy(tmp_path, capsys):
    grown(capsys, tmp_path, "gpt2", "--dtype", "bfloat16", "--method", "aki")
    code, found = measured(capsys, tmp_path)
    assert code == 1 and found["float64"] > 1e-3 and found["stored"] != found["float64"]


def test_without_a_plan_the_rounding_is_part_of_the_difference(tmp_path, capsys):
    grown(capsys, tmp_path, "llama", "--dtype", "bfloat16")
    for name in ("plan.json", manifest.NAME):
        (tmp_path / "large" / name).unlink()
    code, found = measured(capsys, tmp_path)
    assert code == 1 and found["stored"] is None and found["float64"] > 1e-5
    assert (
        "the rounding is part of the difference" in lemon(capsys, "verify", tmp_path / "small", tmp_path / "large")[1]
    )


NUDGED = "bert.encoder.layer.3.output.dense.weight"


@pytest.mark.parametrize("value", ["next", "nan"])
def test_verify_names_a_stored_tensor_that_is_no_rounding(tmp_path, capsys, value):
    """One number by its last bit is enough."""
    grown(capsys, tmp_path, "bert-pre-ln", "--dtype", "bfloat16")

    def nudge(tensors: dict) -> None:
        held = tensors[NUDGED].view(-1)
        place = held.abs().argmax()
        held[place] = (
            torch.nextafter(held[place], torch.tensor(9.0, dtype=held.dtype)) if value == "next" else torch.nan
        )

    (tmp_path / "large" / manifest.NAME).unlink()
    change(tmp_path / "large", nudge)
    code, _, err = lemon(capsys, "verify", tmp_path / "small", tmp_path / "large")
    assert code == 2 and err.count("\n") == 1
    assert (
        f"{tmp_path / 'large'}: '{NUDGED}' is not what its plan.json makes of {tmp_path / 'small'}, "
        "rounded to bfloat16 (1 of 660 numbers differ)" in err
    )
    assert (
        "name the source it grew from, or remove plan.json and manifest.json to measure what is stored by LEMON's rules"
        in err
    )


def test_verify_finds_that_a_rounded_result_has_another_source(tmp_path, capsys):
    grown(capsys, tmp_path, "vit", "--dtype", "bfloat16")
    change(tmp_path / "small", lambda tensors: tensors["vit.layernorm.bias"].add_(0.1))
    code, _, err = lemon(capsys, "verify", tmp_path / "small", tmp_path / "large")
    assert code == 2 and "'vit.layernorm.bias' is not what its plan.json makes of" in err


def test_verify_of_a_rounded_result_that_another_processor_grew(tmp_path, capsys):
    """Without vector instructions sums come out in another order, and some numbers are rounded to their other side."""
    sizes = {"hidden": 160, "heads": 40, "mlp": 700, "layers": 3}
    saved(tmp_path / "small", "bert-pre-ln", hidden=96, heads=24, mlp=400)
    target = target_config_file(tmp_path / "target.json", "bert-pre-ln", **sizes)
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "expand",
        "--source",
        tmp_path / "small",
        "--target",
        target,
        "--dtype",
        "bfloat16",
        "--out",
        tmp_path / "large",
    ]
    subprocess.run(command, env={**os.environ, "ATEN_CPU_CAPABILITY": "default"}, cwd=ROOT, check=True)
    code, found = measured(capsys, tmp_path)
    assert code == 0 and found["lossless"]
