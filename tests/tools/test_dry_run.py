"""lemon run --dry-run: the plan of the cluster that is described, and what a run would refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import data, models
from pipeline.accounting.memory import activations
from pipeline.checkpoints import publish
from pipeline.config import load
from pipeline.data.inventory import inventory
from pipeline.records.run_folder import StageFolder
from pipeline.training.fingerprint import Fingerprint
from pipeline.training.losses import per_sample
from pipeline.training.stage import plan_training
from pipeline.training.subject import checkpoint_layers
from tests.helpers import invented_text
from tests.helpers.cli import lemon
from tests.helpers.invented_runs import SETTINGS, SMALL, train
from tests.helpers.parity_task import BATCH, batch, model_config
from tests.helpers.published import qwen3
from tests.helpers.runs import STEPS, tiny_run

ROOT = Path(__file__).resolve().parents[2]


def planned(capsys, *arguments: object) -> dict:
    code, out, err = lemon(capsys, "run", *arguments, "--dry-run", "--json")
    assert code == 0, err
    return json.loads(out)


def test_the_plan_is_what_the_run_would_do(tmp_path, capsys):
    """Held against the plan that the training itself makes, once the data are prepared."""
    path = tiny_run(tmp_path)
    before = planned(capsys, path)
    assert list(tmp_path.iterdir()) == [path], "something is written"
    config = load(path)
    data.prepare(config.data, config.seed, config.path / "data")
    content = planned(capsys, path)
    assert content["data"]["prepared"] and not before["data"]["prepared"]
    assert content["data"]["facts"]["training"] == before["data"]["facts"]["training"] == 1797 - 60
    small, grown, large, scratch = content["stages"]
    for stage in (small, scratch):
        plan = plan_training(config, config.training_stage(stage["name"]))
        assert stage["parameters"] == models.architecture_of(plan.model).parameters
        assert stage["schedule"]["steps"] == plan.rates.steps == STEPS
        assert stage["flops"]["train"] == STEPS * plan.pace.flops
        assert stage["flops"]["evaluation"] == 4 * 60 * plan.cost.forward, "before the first step, then every 8"
        assert all(rate == plan.rates.at(int(step)) for step, rate in stage["schedule"]["rates"].items())
    assert large["schedule"]["steps"] == STEPS // 2 and grown["method"] == "lemon"
    assert {stage["status"] for stage in content["stages"]} == {"to do"}


def test_the_cluster_is_the_one_that_is_described(tmp_path, capsys):
    path = ROOT / "configs" / "bert" / "base-from-6x384.yaml"
    content = planned(capsys, path, "processes=8", f"folder={tmp_path}/run", "--nodes", 4, "--master-addr", "n0")
    assert content["cluster"] == {"nodes": 4, "processes": 8, "ranks": 32}
    assert len(content["launch"]) == 4 and content["launch"][3].endswith(
        "--nodes 4 --node-rank 3 --master-addr n0 --master-port 29500"
    )
    small = content["stages"][0]
    assert (small["batch"]["micro_batch"], small["batch"]["accumulation"]) == (8, 1)
    assert small["schedule"]["steps"] == 220_000 and content["data"]["facts"]["training"] is None
    code, out, _ = lemon(capsys, "run", path, f"folder={tmp_path}/run", "--dry-run", "processes=8", "-v")
    assert code == 0 and "220,000 steps" in out and "ZeRO" in out and "tokenizer    google-bert/bert" in out
    assert "evaluate_every: 2000 steps" in out, "-v shows the resolved config"
    assert not list(tmp_path.iterdir())


def test_the_plan_of_a_published_model_that_is_grown(tmp_path, capsys, monkeypatch):
    """The shipped job of 8 GPUs, from a folder of Qwen3-0.6B's sizes: the target keeps its vocabulary, whatever the
    tokenizer's, and all else that is not a size."""
    monkeypatch.chdir(tmp_path)
    qwen3(tmp_path / "Qwen3-0.6B-Base")
    path = ROOT / "configs" / "qwen3" / "0.6b-to-1.2b.yaml"
    grown, large = planned(capsys, path)["stages"]
    width, mlp, vocabulary, block = 1536, 4608, 151_936, 4096
    matrices = 28 * (2 * width * 3072 + 2 * width * 1536 + 3 * width * mlp) + vocabulary * width
    norms = 28 * (2 * width + 2 * 128) + width
    assert grown["parameters"] == large["parameters"] == matrices + norms == 1_224_372_736
    assert large["zero_stage"] == 3 and large["batch"]["tokens"] == 256 * block
    forward = block * (2 * matrices + 28 * 4 * block * 3072)
    assert 256 * 3 * forward < large["batch"]["flops"] < 256 * 4 * forward, "and what activation checkpoints repeat"
    code, out, _ = lemon(capsys, "plan", "--source", "Qwen3-0.6B-Base", "--target", f"{path}:large")
    assert code == 0 and "rms_norm_eps: 1e-06 -> 6.66667e-07" in out and "result       lossless" in out


def test_schedules_in_epochs_of_data_that_are_elsewhere(tmp_path, capsys):
    path = ROOT / "configs" / "vit" / "base-from-6x384.yaml"
    content = planned(capsys, path, "data.augment=none", f"folder={tmp_path}/run", "processes=8")
    assert content["flops"] is None and content["stages"][0]["schedule"] is None
    code, out, _ = lemon(capsys, "run", path, "data.augment=none", f"folder={tmp_path}/run", "--dry-run", "processes=8")
    assert code == 0 and "small: its steps follow from the number of samples, which is not known yet" in out


def test_a_stage_with_a_target_costs_at_most_what_its_schedule_does(tmp_path, capsys):
    path, stop = tiny_run(tmp_path), "stages.large.stop={eval_loss: small}"
    content = planned(capsys, path, stop)
    assert content["stages"][2]["stop"] == {"eval_loss": "small"} and content["stages"][3]["stop"] is None
    assert content["flops"] == planned(capsys, path)["flops"]
    code, out, _ = lemon(capsys, "run", path, "--dry-run", stop)
    assert code == 0 and "ends before that at the first evaluation with eval_loss at most that of 'small'" in out
    assert " up to 12 " in out and "FLOPs        at most " in out


@pytest.mark.parametrize(
    "override, complaint",
    [
        ("stages.small.batch=15", "stages.small: batch 15 is not a multiple of micro_batch 7 x 2 ranks"),
        ("stages.small.schedule.warmup=24 steps", "stages.small.schedule: the warm-up of 24 steps does not end before"),
        ("models.small.family=brt", "models.small: unknown model family 'brt'"),
        ("models.small.patch=3", "models.small: model family 'vit' needs a patch size that divides"),
        ("data.dataset=/no/images", "/no/images: no such file or folder; check data.dataset"),
        ("stages.grown.method=lemn", "stages.grown.method: unknown method 'lemn'"),
    ],
)
def test_what_a_run_refuses_is_refused(tmp_path, capsys, override, complaint):
    code, out, err = lemon(capsys, "run", tiny_run(tmp_path), "--dry-run", override)
    assert code == 2 and not out and err.startswith(f"lemon: {complaint}"), err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_other_data_in_the_folder_are_refused(tmp_path, capsys):
    path = tiny_run(tmp_path)
    config = load(path)
    data.prepare(config.data, config.seed, config.path / "data")
    code, _, err = lemon(capsys, "run", path, "--dry-run", "data.evaluation_images=50")
    assert code == 2 and "prepared with evaluation_images 60, and the config has 50" in err
    shutil.rmtree(config.path / "data")
    (config.path / "data").mkdir()
    (config.path / "data" / "mine.txt").touch()
    code, _, err = lemon(capsys, "run", path, "--dry-run")
    assert code == 2 and "not empty and not prepared data" in err


def begun(folder: Path) -> Path:
    """The config of a run whose stage `small` was begun on two ranks."""
    path = tiny_run(folder)
    loaded = load(path)
    fingerprint = Fingerprint.of(loaded, loaded.stage("small")).settings()
    settings = {**SETTINGS, "batch": 16, "micro_batch": 8, "world_size": 2, "zero_stage": 2}
    losses = {0: 5.0, 7: 4.0}
    train(loaded.path, "small", SMALL, losses, finished=False, steps=STEPS, fingerprint=fingerprint, settings=settings)
    checkpoint = loaded.path / "small" / "checkpoints" / "step-0000007"
    publish.publish(publish.staging(checkpoint), checkpoint, {"kind": "train", "step": 7})
    return path


def test_a_stage_that_has_begun_keeps_its_micro_batches(tmp_path, capsys):
    small = planned(capsys, begun(tmp_path), "processes=1")["stages"][0]
    assert small["batch"]["micro_batch"] == 8 and small["batch"]["accumulation"] == 2
    folder = StageFolder(load(tmp_path / "tiny.yaml").path / "small")
    folder.finish(folder.facts)
    stages = planned(capsys, tmp_path / "tiny.yaml", "processes=4")["stages"]
    assert stages[0]["status"] == "finished" and stages[0]["batch"]["accumulation"] == 1, "on two ranks, as it was"
    assert stages[2]["batch"]["micro_batch"] == 4


def test_what_a_run_may_change_when_it_is_told_to(tmp_path, capsys):
    path, changed = begun(tmp_path), "stages.small.precision=bf16"
    code, _, err = lemon(capsys, "run", path, changed, "--dry-run")
    assert code == 2 and "(--allow precision)" in err
    content = planned(capsys, path, changed, "--allow", "precision")
    assert content["launch"] == [f"lemon run {path} {changed} --allow=precision"]


def test_text_with_evaluation_text_of_its_own_loses_none_to_it(tmp_path):
    made = invented_text.text_file(tmp_path / "a.txt", invented_text.some_documents())
    other = invented_text.text_file(tmp_path / "b.txt", invented_text.some_documents())
    text = invented_text.config(made)
    cut, whole = (
        inventory(each, 0, tmp_path / "data").data.facts["training"]
        for each in (text, text.model_copy(update={"evaluation": str(other)}))
    )
    assert whole == cut + text.evaluation_blocks


def test_json_is_of_a_dry_run_alone(tmp_path, capsys):
    code, _, err = lemon(capsys, "run", tiny_run(tmp_path), "--json")
    assert code == 2 and err.startswith("lemon: --json goes with --dry-run")


def test_text_is_counted_by_its_size(tmp_path):
    """Within a factor of 2: these words have about 3 characters in a piece, English has 4."""
    made = invented_text.text_file(tmp_path / "a.txt", invented_text.some_documents())
    text = invented_text.config(made)
    expected = inventory(text, 0, tmp_path / "data").data.facts
    found = data.prepare(text, 0, tmp_path / "data").facts
    assert expected["vocab_size"] == found["vocab_size"] and expected["scored"] == found["scored"]
    assert 0.5 < expected["training"] / found["training"] < 2


@pytest.mark.parametrize("family", ["bert-pre-ln", "vit", "llama"])
@pytest.mark.parametrize("every", [0, 1, 2])
def test_activations_are_about_what_torch_saves(family, every):
    """Within a tenth; under checkpointing the one layer that is recomputed comes besides, in the backward pass."""
    config = model_config(family, layers=4, hidden=96, mlp=384)
    net = models.build(config, seed=0).train()
    net.config.use_cache = False
    if every:
        checkpoint_layers(net, every)
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = batch(family, 0, 0, BATCH)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = per_sample(net(**inputs.inputs).logits, inputs.labels)[0].mean()
    facts = {"block": 14, "scored": 3}
    positions = models.of_config(config).positions(config, facts)
    expected, plain = (
        activations(models.architecture_of(config), positions, micro_batch=BATCH, bf16=False, every=each)
        for each in (every, 0)
    )
    assert loss.requires_grad
    if every:
        assert sum(saved.values()) < expected < plain
    else:
        assert sum(saved.values()) == pytest.approx(expected, rel=0.1)
