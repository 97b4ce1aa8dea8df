"""`lemon profile`: where the time of a step goes, on real workers, beside a run that stays as it is."""

import json
import os
import sys
from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.errors import UserError
from pipeline.runs import profile
from tests.helpers.cli import environment, lemon, run_python
from tests.helpers.ports import free_port
from tests.helpers.runs import BATCH, copied, tiny_run

SHARES = ("data", "forward", "backward", "communication", "optimizer", "other")
FUSED = "aten::_fused_adamw_"


def content(folder: Path) -> dict[str, int]:
    """Everything in a run, locks and folders too, with the time of its last change."""
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in (folder, *sorted(folder.rglob("*")))}


def operators(trace: Path) -> set[str]:
    """The names in a trace of torch's profiler."""
    return {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}


def profiled(capfd, config: Path, *options: object) -> tuple[dict, str]:
    """The budget, and what was said meanwhile."""
    code, out, error = lemon(capfd, "profile", config, "--steps", 4, "--json", *options)
    assert code == 0, error
    return json.loads(out), error


def test_the_budget_of_a_stage_that_has_ended(finished, capfd):
    """Measured as if it began, though it has; its FLOPs are those of its ledger."""
    before = content(finished / "run")
    told, _ = profiled(capfd, finished / "tiny.yaml", "--stage", "scratch")
    assert content(finished / "run") == before
    settings, work = told["settings"], told["work"]
    facts = json.loads((finished / "run" / "scratch" / "stage.json").read_text())
    assert (settings["ranks"], settings["zero_stage"], settings["origin"]) == (2, 3, "fresh weights")
    assert (settings["micro_batch"], settings["micro_batches"], work["samples"]) == (BATCH // 2, 1, BATCH)
    assert work["flops"] == facts["flops_per_step"]["train"] and work["again"] == 0 and told["steps"] == 4
    assert tuple(told["parts"]) == SHARES and all(told["parts"][name]["median"] > 0 for name in SHARES)
    assert sum(part["share"] for part in told["parts"].values()) == pytest.approx(1)
    seconds = told["step"]["median"]
    assert told["samples_per_second"] == pytest.approx(BATCH / seconds)
    assert told["mfu"] == told["hfu"] == pytest.approx(work["flops"] / seconds / work["peak"])
    assert len(told["memory"]) == 2 and min(told["memory"]) > 50 * 2**20


def test_a_stage_starts_from_what_is_there(finished, tmp_path, capfd):
    """Fresh weights of the same shape, where the stage before it has not ended, and that is said; data too are made
    aside. Overrides count."""
    grown, _ = profiled(capfd, finished / "tiny.yaml", "--stage", "large")
    assert grown["settings"]["origin"] == str((finished / "run/grown/checkpoints/step-0000000").resolve())
    more = ("stages.large.activation_checkpointing=true", "processes=1")
    fresh, said = profiled(capfd, tiny_run(tmp_path), "--stage", "large", *more)
    assert "large: 'grown' has not ended; measured with fresh weights of the sizes that the config names" in said
    assert "no data are prepared; made for this profile alone" in said and "large: 4 measured steps" in said
    assert fresh["settings"]["origin"] == "fresh weights" and fresh["settings"]["ranks"] == 1
    assert fresh["work"]["flops"] == grown["work"]["flops"] and fresh["work"]["again"] > 0
    assert fresh["hfu"] > fresh["mfu"]
    assert not (tmp_path / "run").exists()


def test_a_target_that_is_another_stages_result_ends_no_measurement(tmp_path, capfd):
    stop = "stages.large.stop={eval_loss: small}"
    told, _ = profiled(capfd, tiny_run(tmp_path), "--stage", "large", stop, "processes=1")
    assert told["steps"] == 4


def test_a_fit_is_measured_as_it_has_begun(finished, tmp_path, capfd):
    """Its attention is not chosen anew, nor its micro-batch, nor the kernel of its optimizer."""
    path = copied(finished, tmp_path, "small")
    fit = ["stages.grown.method=ligo", "stages.grown.fit={steps: 2, warmup: 0, accept: true}", "processes=1"]
    settled = ["stages.grown.fit.micro_batch=8", "stages.grown.fit.attention=eager"]
    assert lemon(capfd, "train", path, "--stage", "grown", *fit, *settled)[0] == 0
    record, trace = tmp_path / "run" / "grown-fit" / "stage.json", tmp_path / "trace.json"
    facts = json.loads(record.read_text())
    assert facts["settings"]["optimizer_kernel"] == "fused"
    facts["settings"]["optimizer_kernel"] = "default"  # as a torch without the fused one would have begun it
    record.write_text(json.dumps(facts))
    told, _ = profiled(capfd, path, "--stage", "grown-fit", "--trace", trace, *fit)
    assert told["settings"]["attention"] == "eager" and told["settings"]["micro_batch"] == 8
    assert FUSED not in operators(trace)


def test_people_get_a_table_and_a_trace(finished, tmp_path, capfd):
    """What the stage chose when it began is measured, not chosen again."""
    trace = tmp_path / "trace.json"
    more = ("--steps", 3, "--trace", trace, "processes=1", "stages.small.attention=auto")
    code, said, _ = lemon(capfd, "profile", finished / "tiny.yaml", "--stage", "small", *more)
    assert code == 0
    for word in ("one step, over 3 measured ones", "communication", "host", "MFU", "FLOPs of the model / (", "RssAnon"):
        assert word in said
    assert "attention sdpa, eager layers" in said and "a layer takes" not in said
    listed = {line.split()[0] for line in said.splitlines() if line.startswith("aten::")}
    assert {"aten::addmm", FUSED} <= operators(trace)
    assert listed and listed <= operators(trace)  # which of them take longest is the machine's matter


BAD = [
    (
        ["--stage", "grown"],
        "stage 'grown' of config 'tiny' is an expansion; its training stages: small, large, scratch",
    ),
    (["--stage", "smal"], "no stage 'smal' in config 'tiny'; did you mean 'small'?"),
    ([], "config 'tiny' has 3 training stages; choose one with --stage: small, large, scratch"),
    (["--stage", "small", "--trace", "/nowhere/t.json"], "--trace /nowhere/t.json: its folder does not exist"),
    (["--stage", "small", "--trace", "/"], "--trace /: is a folder; name a file"),
    (["--stage", "small", "--steps", "0"], "argument --steps: '0' is no whole number of at least 1"),
    (
        ["--stage", "small", "stages.small.batch=15"],
        "stages.small: batch 15 is not a multiple of micro_batch 7 x 2 ranks",
    ),
]


@pytest.mark.parametrize("options, complaint", BAD, ids=[bad[1][:30] for bad in BAD])
def test_bad_input_is_one_line(finished, tmp_path, capfd, options, complaint):
    path = copied(finished, tmp_path)
    before = content(tmp_path)
    code, _, error = failed(capfd, "profile", path, *options)
    assert code == 2 and complaint in error and error.count("\n") == 1
    assert content(tmp_path) == before


def failed(capfd, *arguments: object) -> tuple[int, str, str]:
    """As `lemon`, also of what argparse ends."""
    try:
        return lemon(capfd, *arguments)
    except SystemExit as end:
        return int(str(end.code)), *capfd.readouterr()


def test_workers_of_another_launcher_find_the_data_prepared(tmp_path):
    """They share no folder but the run's, in which nothing is written."""
    with pytest.raises(
        UserError, match=r"run/data: no prepared data here; prepare them first \(lemon prepare CONFIG\)"
    ):
        profile.work(load(tiny_run(tmp_path)), profile.Wanted("small", steps=1))


@pytest.mark.slow
def test_workers_of_torchrun_measure_too(finished, tmp_path):
    path = copied(finished, tmp_path)
    torchrun = Path(sys.executable).parent / "torchrun"
    started = ("--nproc_per_node=2", f"--master_port={free_port()}", "-m", "pipeline")
    command = ("profile", path, "--stage", "small", "--steps", 2, "--json")
    done = run_python(torchrun, *started, *command, env=environment(OMP_NUM_THREADS="1"), timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["settings"]["ranks"] == 2 and told["parts"]["communication"]["median"] > 0
    assert os.listdir(tmp_path / "run") == ["data"]
