"""`lemon reshard`: a plain DeepSpeed script goes on from any other layout of what it wrote, as if nothing had been."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout, manifest, reshard
from pipeline.checkpoints.describe import layout_facts
from pipeline.checkpoints.layouts import zero_stage_0
from pipeline.checkpoints.layouts.deepspeed_pickles import DynamicLossScaler
from pipeline.checkpoints.state import State
from pipeline.cli import main
from pipeline.errors import UserError
from tests.helpers import plain_files
from tests.helpers.cli import run_python
from tests.helpers.rotation import rotated
from tests.helpers.workers import WorkerPools

SLOTS = ("exp_avg", "exp_avg_sq")
CASES = {
    "stage 0": {"stage": 0},
    "stage 0 bf16": {"stage": 0, "bf16": True},
    "stage 0 fp16": {"stage": 0, "fp16": True},
    "stage 1": {"stage": 1},
    "stage 1 bf16": {"stage": 1, "bf16": True},
    "stage 1 fp32 sums": {"stage": 1, "bf16": True, "fp32_sums": True},
    "stage 1 fp16": {"stage": 1, "fp16": True},
    "stage 2 bf16": {"stage": 2, "bf16": True},
    "stage 3 bf16": {"stage": 3, "bf16": True},
    "stage 3 fp16": {"stage": 3, "fp16": True},
    "stage 2 fp16": {"stage": 2, "fp16": True},
    "stage 2 extras": {"stage": 2, "extras": True},
    "stage 3": {"stage": 3},
    "stage 3 extras": {"stage": 3, "extras": True},
    "stage 3 sub-groups": {"stage": 3, "zero": {"sub_group_size": 3000}},
    "stage 3 of 3": {"stage": 3, "world": 3},
    "stage 1 of 1": {"stage": 1, "world": 1},
}
"""Every layout that DeepSpeed's engine writes here; `extras`: a frozen parameter and a buffer."""


@dataclass(frozen=True)
class PlainCheckpoints:
    """Two steps of the plain script in each case, trained when it is first asked for."""

    folder: Path
    workers: WorkerPools
    trained: dict[str, Path] = field(default_factory=dict)

    def __getitem__(self, case: str) -> Path:
        """The checkpoint's folder. The test is skipped where the device lacks the case's precision."""
        job = {"world": 2, **CASES[case]}
        if not self.workers.supports(**job):
            pytest.skip(f"{case}: DeepSpeed does not support this precision on this device")
        if case not in self.trained:
            place = self.folder / case.replace(" ", "-") / "two"
            self.workers.train(**job, first=0, steps=2, save=place)
            self.trained[case] = place
        return self.trained[case]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, workers) -> PlainCheckpoints:
    return PlainCheckpoints(tmp_path_factory.mktemp("theirs"), workers)


@pytest.fixture(scope="module")
def whole(workers) -> list[float]:
    """The losses of five steps that nothing interrupted."""
    return workers.train(stage=2, world=2, first=0, steps=5)


def rewritten(source: Path, out: Path, layout: CheckpointLayout, workers: int = 2) -> Path:
    reshard.execute_reshard(reshard.plan_reshard(source, layout), out, workers)
    manifest.verify(out)
    return out


def same(one: State, other: State) -> None:
    """Bit for bit: weights, moments, steps, hyper-parameters, frozen parameters and buffers."""
    assert [g.names for g in one.groups] == [g.names for g in other.groups] and one.steps == other.steps
    assert one.step == other.step
    assert [g.hyper for g in one.groups] == [g.hyper for g in other.groups]
    for name, entry in one.tensors.items():
        assert torch.equal(entry.tensor().float(), other.tensors[name].tensor()), name
    for slot in SLOTS:
        for name, entry in one.slots[slot].items():
            assert torch.equal(entry.tensor(), other.slots[slot][name].tensor()), (slot, name)


@rotated(one_in=2, of="case", alike=lambda case: (CASES[case]["stage"], "world" in CASES[case]))
@pytest.mark.parametrize(
    "to",
    [
        CheckpointLayout("zero", 1, 3),
        CheckpointLayout("zero", 2, 1),
        CheckpointLayout("zero", 3, 2),
        CheckpointLayout("zero", 3, 4),
        CheckpointLayout("universal"),
    ],
    ids=lambda f: f"{f.name}-{f.zero_stage}-{f.world_size}",
)
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_lost(tmp_path, theirs, case, to):
    source = checkpoints.raw(theirs[case])
    steps = (
        3.0 if case in ("stage 0 bf16", "stage 0 fp16") else 2.0
    )  # DeepSpeed makes that optimizer's state by a first step on zeros
    assert all(
        source.tensors[name].tensor().dtype == torch.float32 for group in source.groups for name in group.names
    )  # the masters
    assert set(source.slots) == set(SLOTS) and set(source.steps.values()) == {steps}
    again = checkpoints.raw(rewritten(theirs[case], tmp_path / "ours", to))
    if to.name == "universal":
        same(
            State(
                {n: e for n, e in source.tensors.items() if n not in source.frozen},
                slots=source.slots,
                step=source.step,
                steps=source.steps,
                groups=source.groups,
            ),
            again,
        )
    else:
        same(source, again)
        assert again.frozen == source.frozen and set(again.buffers) == set(source.buffers)
        assert all(torch.equal(entry.tensor(), again.buffers[name].tensor()) for name, entry in source.buffers.items())


@rotated(one_in=2, of=("case", "to", "stage", "world"), alike=lambda case, to, stage, world: (to, stage))
@pytest.mark.parametrize(
    "case, to, stage, world",
    [
        ("stage 0", "zero", 2, 2),
        ("stage 0", "zero", 3, 3),
        ("stage 1", "zero", 3, 1),
        ("stage 3", "zero", 1, 4),
        ("stage 3", "zero", 2, 3),
        ("stage 1 of 1", "zero", 3, 4),
        ("stage 3 of 3", "zero", 3, 2),
        ("stage 3 sub-groups", "zero", 2, 1),
        ("stage 3 of 3", "universal", 1, 2),
        ("stage 1", "universal", 2, 3),
        ("stage 3", "universal", 2, 4),
        ("stage 0", "universal", 1, 1),
    ],
)
def test_the_plain_script_goes_on_as_if_nothing_had_been(tmp_path, workers, theirs, whole, case, to, stage, world):
    """What its engine holds after the load is, to the bit, what the source held: it saves that again at once.
    Losses to 1e-5: other stages and world sizes sum gradients in another order (the parity test's tolerance)."""
    ours = rewritten(theirs[case], tmp_path / "ours" / "two", CheckpointLayout(to, stage, world))
    again = tmp_path / "again" / "two"
    losses = workers.train(
        stage=stage, world=world, first=2, steps=3, load=ours, again=again, universal=to == "universal"
    )
    same(checkpoints.raw(theirs[case]), checkpoints.raw(again))
    assert losses == pytest.approx(whole[2:], abs=1e-5)


@pytest.mark.parametrize("case", ["stage 2 extras", "stage 3", "stage 0", "stage 3 bf16", "stage 0 bf16"])
def test_stage_0_is_written_where_it_is_asked_for(tmp_path, workers, theirs, whole, case):
    """One file for any number of ranks, in the precision of the source."""
    job = CASES[case]
    bf16, extras = job.get("bf16", False), job.get("extras", False)
    ours = rewritten(theirs[case], tmp_path / "ours" / "two", CheckpointLayout("zero", 0, 2, bf16))
    assert [path.name for path in ours.glob("*.pt")] == ["mp_rank_00_model_states.pt"]
    again = tmp_path / "again" / "two"
    job = {"stage": 0, "bf16": bf16, "extras": extras, "world": 1, "first": 2}
    losses = workers.train(**job, steps=3, load=ours, again=again)
    source, held = checkpoints.raw(theirs[case]), checkpoints.raw(ours)
    same(source, held)
    same(source, checkpoints.raw(again))
    assert held.frozen == source.frozen and set(held.buffers) == set(source.buffers)
    assert bf16 or extras or losses == pytest.approx(whole[2:], abs=1e-5)


FP32_SUMS = {"stage": 1, "bf16": True, "fp32_sums": True}
"""An engine of stage 1 for which DeepSpeed has another optimizer, with files of its own."""


def fp32_sums(world: int) -> CheckpointLayout:
    """The layout of its files."""
    return CheckpointLayout("zero", 1, world, bf16=True, fp32_sums=True)


@rotated(one_in=3, of=("case", "world"))
@pytest.mark.parametrize(
    "case, world",
    [("stage 1 fp32 sums", 1), ("stage 1 fp32 sums", 2), ("stage 1 bf16", 2), ("stage 3", 1), ("stage 0 bf16", 2)],
)
def test_files_of_fp32_sums_are_written(tmp_path, workers, theirs, case, world):
    """The engine holds to the bit what the source held, and its own files are of the same layout; where the source was
    of the same ranks, it goes on as if nothing had been."""
    ours = rewritten(theirs[case], tmp_path / "ours" / "two", fp32_sums(world))
    again = tmp_path / "again" / "two"
    losses = workers.train(**FP32_SUMS, world=world, first=2, steps=2, load=ours, again=again)
    source = checkpoints.raw(theirs[case])
    same(source, checkpoints.raw(ours))
    same(source, checkpoints.raw(again))
    for folder in (ours, again):
        assert layout_facts(folder) == {"layout": "zero", **fp32_sums(world).as_json()}
    if case == "stage 1 fp32 sums" and world == 2:
        assert losses == workers.train(**FP32_SUMS, world=2, first=0, steps=4)[2:]


def test_files_of_fp32_sums_become_any_other(tmp_path, workers, theirs):
    """Of stage 2 on other ranks, universal, and back: DeepSpeed's own files, number by number."""
    source = theirs["stage 1 fp32 sums"]
    two = rewritten(source, tmp_path / "two" / "two", CheckpointLayout("zero", 2, 3, bf16=True))
    universal = rewritten(two, tmp_path / "universal" / "two", CheckpointLayout("universal"))
    back = rewritten(universal, tmp_path / "back" / "two", fp32_sums(2))
    assert not list(plain_files.differences(source, back))
    again = tmp_path / "again" / "two"
    workers.train(**FP32_SUMS, world=1, first=2, steps=0, load=universal, save=again, universal=True)
    same(checkpoints.raw(source), checkpoints.raw(again))


@pytest.mark.parametrize("case, sums", [("stage 1 fp32 sums", False), ("stage 1 bf16", True)])
def test_either_engine_of_stage_1_restores_the_files_of_the_other(tmp_path, workers, theirs, case, sums):
    """DeepSpeed's do by themselves, to the bit."""
    job = {"stage": 1, "bf16": True, "fp32_sums": sums}
    workers.train(**job, world=2, first=2, steps=0, load=theirs[case], save=tmp_path / "again" / "two")
    same(checkpoints.raw(theirs[case]), checkpoints.raw(tmp_path / "again" / "two"))
    assert layout_facts(tmp_path / "again" / "two")["fp32_sums"] is sums


@pytest.mark.parametrize("layout", [CheckpointLayout("zero", 0, 2), fp32_sums(2)], ids=lambda layout: layout.words)
def test_a_loss_scale_has_no_place_where_there_is_none(tmp_path, theirs, layout):
    plan, scaler = reshard.plan_reshard(theirs["stage 1"], layout), DynamicLossScaler()
    vars(scaler).update(cur_scale=256.0, dynamic=True)
    scaled = replace(plan, state=replace(plan.state, scaling={"loss_scaler": scaler, "dynamic_loss_scale": True}))
    said = rf"its loss scale \(256\) has no place in a checkpoint of ZeRO stage {layout.zero_stage}"
    with pytest.raises(UserError, match=said):
        reshard.execute_reshard(scaled, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("case, stage", [("stage 2 extras", 3), ("stage 3 extras", 2)])
def test_frozen_parameters_and_buffers_arrive_in_the_engine(tmp_path, workers, theirs, case, stage):
    """The script loads ours at another seed, takes no step, and saves: what was in the source is in its file."""
    ours = rewritten(theirs[case], tmp_path / "ours" / "two", CheckpointLayout("zero", stage, 2))
    workers.train(stage=stage, world=2, first=2, steps=0, load=ours, save=tmp_path / "again" / "two", extras=True)
    source, again = checkpoints.raw(theirs[case]), checkpoints.raw(tmp_path / "again" / "two")
    same(source, again)
    assert (
        torch.equal(source.buffers["seen"].tensor(), again.buffers["seen"].tensor())
        and source.buffers["seen"].tensor().sum() > 0
    )


def test_sub_groups_are_cut_as_the_engine_cuts_them(tmp_path, workers, theirs, whole):
    """Written with DeepSpeed's own limit of this case, the engine resumes it."""
    from pipeline.checkpoints.layouts import zero_write
    from pipeline.checkpoints.serialization.writer_pool import write_files

    ours = tmp_path / "ours" / "two"
    ours.mkdir(parents=True)
    write_files(zero_write.files(checkpoints.raw(theirs["stage 1"]), ours, stage=3, world=2, sub_group=3000), ours)
    losses = workers.train(stage=3, world=2, first=2, steps=2, load=ours, zero={"sub_group_size": 3000})
    assert losses == pytest.approx(whole[2:4], abs=1e-5)


def convert(*arguments: object) -> None:
    done = run_python(*arguments)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@rotated(one_in=2, of="stage")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeeds_own_converters_read_ours(tmp_path, theirs, stage):
    ours = rewritten(theirs["stage 1"], tmp_path / "ours" / "two", CheckpointLayout("zero", stage, 3))
    (tmp_path / "ours" / "latest").write_text("two")
    convert(theirs["stage 1"].parent / "zero_to_fp32.py", tmp_path / "ours", tmp_path / "fp32")
    source = checkpoints.raw(theirs["stage 1"])
    held = torch.load(tmp_path / "fp32" / "pytorch_model.bin", weights_only=True)
    assert all(torch.equal(held[name], entry.tensor()) for name, entry in source.tensors.items())
    convert(
        "-m",
        "deepspeed.checkpoint.ds_to_universal",
        "--inject_missing_state",
        "--input_folder",
        ours,
        "--output_folder",
        tmp_path / "universal",
    )
    again = checkpoints.raw(tmp_path / "universal")
    assert [g.names for g in again.groups] == [g.names for g in source.groups]
    for name, entry in source.tensors.items():
        assert torch.equal(entry.tensor(), again.tensors[name].tensor()), name
        assert all(
            torch.equal(source.slots[slot][name].tensor(), again.slots[slot][name].tensor()) for slot in SLOTS
        ), name


def test_the_result_does_not_depend_on_the_workers(tmp_path, theirs):
    for workers in (1, 2, 5):
        rewritten(theirs["stage 3"], tmp_path / str(workers), CheckpointLayout("zero", 2, 3), workers)
    files = [manifest.read(tmp_path / str(workers)).files for workers in (1, 2, 5)]
    assert files[0] == files[1] == files[2]


def test_mixed_shards_are_refused(tmp_path, workers):
    folder = tmp_path / "mixed"
    workers.train(stage=2, world=2, first=0, steps=1, save=folder / "one")
    name = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    other = tmp_path / "other"
    workers.train(stage=2, world=2, first=0, steps=2, save=other / "two")
    (folder / "one" / name).write_bytes((other / "two" / name).read_bytes())
    with pytest.raises(
        UserError, match=r"stand at different steps \(rank 0: 1, rank 1: 2\); shards of two checkpoints are mixed"
    ):
        reshard.plan_reshard(folder / "one", CheckpointLayout("zero", 1, 2))


def test_names_of_stage_0_that_cannot_be_told():
    module = [("a", (2,)), ("b", (2,)), ("c", (3,))]
    assert len(zero_stage_0.merges(module, [[(2,)], [(2,), (3,)]], lambda a, b: a == b)) == 2
    assert zero_stage_0.merges(module, [[(2,), (2,)], [(3,)]], lambda a, b: a == b) == [[["a", "b"], ["c"]]]
    assert zero_stage_0.merges([("a", (1,)), ("b", (2,)), ("c", (3,))], [[(1,), (3,)]], lambda a, b: a == b) == [
        [["a", "c"]]
    ]
    assert zero_stage_0.merges(module, [[(9,)]], lambda a, b: a == b) == []


def test_the_command(tmp_path, theirs, capsys):
    assert (
        main(
            [
                "reshard",
                str(theirs["stage 3"]),
                "--out",
                str(tmp_path / "ours"),
                "--zero-stage",
                "1",
                "--world-size",
                "4",
            ]
        )
        == 0
    )
    assert "reshard: wrote" in capsys.readouterr().out and manifest.read(tmp_path / "ours").world_size == 4
    assert main(["reshard", str(theirs["stage 3"]), "--out", str(tmp_path / "ours")]) == 2
    assert "exists already; choose another --out or remove it" in capsys.readouterr().err
    assert main(["reshard", str(theirs["stage 3"]), "--out", str(tmp_path / "universal"), "--format", "universal"]) == 0
    assert "in stage 3 it gives every group the first group's hyper-parameters" in capsys.readouterr().out
    assert main(["reshard", str(theirs["stage 3"]), "--out", str(tmp_path / "hf"), "--format", "huggingface"]) == 2
    assert "holds no config.json; name the source's config with --source-config" in capsys.readouterr().err
