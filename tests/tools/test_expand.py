"""The expansion as a tool: any layout out, nothing published that is not lossless, one line for bad input."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, AutoModelForMaskedLM

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout, manifest
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.expansion import expand, planning
from pipeline.growth import methods
from tests.helpers.checkpoints import FACTS, configure, published

LARGE = {"layers": 4, "hidden": 20, "heads": 5}
TARGETS = """\
name: t
data: {kind: text}
models:
  large: {family: bert-pre-ln, layers: 4, hidden: 20, heads: 5}
  tall: {family: bert-pre-ln, layers: 4, hidden: 12, heads: 3}
stages:
  - {kind: train, name: a, model: large, batch: 2, schedule: {peak: 1, horizon: 1 steps}}
"""

FORMATS = [
    CheckpointLayout("huggingface"),
    CheckpointLayout("universal"),
    CheckpointLayout("zero", 1, 3),
    CheckpointLayout("zero", 1, 2, bf16=True, fp32_sums=True),
    CheckpointLayout("zero", 2, 2, bf16=True),
    CheckpointLayout("zero", 3, 2),
]


@pytest.mark.parametrize("layout", FORMATS, ids=lambda f: f"{f.name}-{f.zero_stage}-{f.world_size}")
@pytest.mark.parametrize("name", FACTS)
def test_every_layout_in_and_out(tmp_path, name, layout):
    """Source and result in the same layout; the result is read back and verified from its files."""
    small = published(tmp_path, name, layout)
    job = planning.plan_expansion(small, configure(name, **LARGE), methods.parse("lemon", {"depth": "cancel"}), layout)
    measured = expand.execute_expansion(job, tmp_path / "large")
    facts = manifest.verify(tmp_path / "large")
    assert measured.lossless and facts.verification["lossless"] and facts.provenance["flops"] > 1000
    state, config = checkpoints.read(tmp_path / "large")
    assert config.hidden_size == 20 and config.layer_norm_eps == pytest.approx(1e-12 * 12 / 20)
    assert {n: e.shape for n, e in state.tensors.items()} == {
        r.name: models.architecture_of(config).shape(r) for r in models.architecture_of(config).rows()
    }


@pytest.mark.parametrize(
    "name, auto", [("vit", AutoModelForImageClassification), ("bert-pre-ln", AutoModelForMaskedLM)]
)
def test_a_hugging_face_result_loads_with_nothing_else(tmp_path, name, auto):
    job = planning.plan_expansion(
        published(tmp_path, name), configure(name, **LARGE), methods.parse(), CheckpointLayout("huggingface")
    )
    expand.execute_expansion(job, tmp_path / "large")
    model, report = auto.from_pretrained(tmp_path / "large", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.num_hidden_layers == 4


def test_a_lossy_result_is_not_published(tmp_path, caplog):
    """A target that keeps the old epsilon is not lossless; the tool measures it and refuses, and calls nothing
    verified."""
    caplog.set_level("INFO", "pipeline")
    job = planning.plan_expansion(
        published(tmp_path), configure("bert-pre-ln", **LARGE), methods.parse(), CheckpointLayout("huggingface")
    )
    job.large.layer_norm_eps = 0.1
    with pytest.raises(
        UserError,
        match=r"claims to be lossless and is not: relative difference of the outputs .* nothing was published",
    ):
        expand.execute_expansion(job, tmp_path / "large")
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    assert "tensors" in caplog.text and "verified" not in caplog.text


def test_noise_that_rounding_cannot_cancel_is_refused_with_the_way_out(tmp_path):
    """What is stored in float32 cancels up to its rounding, and that grows with the noise."""
    method = methods.parse("lemon", {"noise": "1e5", "depth": "cancel"})
    job = planning.plan_expansion(
        published(tmp_path), configure("bert-pre-ln", **LARGE), method, CheckpointLayout("huggingface")
    )
    with pytest.raises(UserError, match=r"nothing was published; less noise than 100000 leaves less to round$"):
        expand.execute_expansion(job, tmp_path / "large")
    assert not (tmp_path / "large").exists()


def test_weights_that_are_not_finite_are_named(tmp_path):
    broken = torch.full((12,), float("nan"))
    small = published(tmp_path, **{"bert.LayerNorm.bias": broken})
    job = planning.plan_expansion(
        small, configure("bert-pre-ln", **LARGE), methods.parse(), CheckpointLayout("huggingface")
    )
    with pytest.raises(UserError, match=r"'bert\.LayerNorm\.bias' holds NaN or infinite values"):
        expand.execute_expansion(job, tmp_path / "large")
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def run(capsys, tmp_path: Path, *arguments: object) -> tuple[int, str]:
    (tmp_path / "t.yaml").write_text(TARGETS)
    code = main(["expand", *map(str, arguments)])
    return code, capsys.readouterr().err


def test_the_command(tmp_path, capsys):
    code, _ = run(
        capsys,
        tmp_path,
        "--source",
        published(tmp_path),
        "--target",
        tmp_path / "t.yaml:large",
        "--out",
        tmp_path / "large",
        "--zero-stage",
        2,
    )  # which says --format zero
    assert code == 0 and manifest.read(tmp_path / "large").zero_stage == 2


def test_the_target_may_be_a_hugging_face_config(tmp_path, capsys):
    configure("bert-pre-ln", **LARGE).save_pretrained(tmp_path / "wanted")
    code, _ = run(
        capsys,
        tmp_path,
        "--source",
        published(tmp_path),
        "--target",
        tmp_path / "wanted",
        "--out",
        tmp_path / "large",
        "--format",
        "huggingface",
    )
    assert code == 0 and (tmp_path / "large" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"--target": "t.yaml:larg"}, "no model 'larg'"),
        ({"--source": "nothing"}, "nothing: no such folder"),
        ({"--method-option": "depth=cancel", "--target": "t.yaml:tall"}, "use depth 'zero'"),
        ({"--out": "small"}, "exists already; choose another --out or remove it"),
        ({"--target": "missing.json"}, "missing.json: cannot read it (No such file or directory)"),
    ],
    ids=["model", "source", "cancel", "out", "target"],
)
def test_bad_input_is_one_line(tmp_path, capsys, change, complaint):
    published(tmp_path)
    options = {"--source": "small", "--target": "t.yaml:large", "--out": "large", **change}
    paths = [
        part
        for key, value in options.items()
        for part in (key, value if key == "--method-option" else tmp_path / value)
    ]
    code, said = run(capsys, tmp_path, *paths)
    assert code == 2 and complaint in said and said.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small", "t.yaml"]


def test_a_foreign_folder_needs_the_sources_config(tmp_path, capsys):
    small = published(tmp_path, layout=CheckpointLayout("zero", 2, 2))
    config = (small / "config.json").rename(tmp_path / "config.json")
    (small / "manifest.json").unlink()
    arguments = ["--source", small, "--target", tmp_path / "t.yaml:large", "--out", tmp_path / "large"]
    code, said = run(capsys, tmp_path, *arguments)
    assert code == 2 and "name the source's config with --source-config" in said
    assert run(capsys, tmp_path, *arguments, "--source-config", config)[0] == 0
    assert manifest.read(tmp_path / "large").provenance["flops"] == "unknown"


def test_a_config_that_contradicts_the_weights(tmp_path, capsys):
    small = published(tmp_path, layout=CheckpointLayout("zero", 2, 2))
    (small / "manifest.json").unlink()
    for sizes, complaint in (
        ({"hidden": 24}, "has shape"),
        ({"layers": 3}, "are missing"),
        ({"layers": 1}, "belong to no part"),
    ):
        configure("bert-pre-ln", **sizes).save_pretrained(tmp_path / "wrong")
        code, said = run(
            capsys,
            tmp_path,
            "--source",
            small,
            "--source-config",
            tmp_path / "wrong",
            "--target",
            tmp_path / "t.yaml:large",
            "--out",
            tmp_path / "large",
        )
        assert code == 2 and complaint in said, said
