"""What a stage may be continued with, and records of older versions."""

import copy
import json
from pathlib import Path

import pytest

from pipeline import config
from pipeline.cli import run_commands
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import TrainFacts, TrainSettings, parse
from pipeline.training import fingerprint, settled
from pipeline.training.fingerprint import Fingerprint, differences, require_same
from pipeline.training.stage import begun_anew, continued
from tests.helpers.invented_runs import SETTINGS, SMALL, common

BERT = Path(__file__).parents[2] / "configs" / "quickstart" / "bert.yaml"
OLDER = {
    "seed": 0,
    "data": {
        "kind": "text",
        "dataset": "embedded",
        "subset": None,
        "evaluation": None,
        "column": "text",
        "tokenizer": {"kind": "sentencepiece", "vocab_size": 2048, "path": None},
        "block": 64,
        "mask": 0.3,
        "evaluation_blocks": 256,
    },
    "model": {
        "family": "bert-pre-ln",
        "layers": 3,
        "hidden": 96,
        "heads": 3,
        "kv_heads": None,
        "mlp": None,
        "patch": None,
        "dropout": 0.0,
        "eps": 1e-12,
        "init": 0.05,
    },
    "stage": {
        "kind": "train",
        "name": "small",
        "model": "small",
        "start": None,
        "batch": 64,
        "micro_batch": None,
        "schedule": {
            "kind": "cosine",
            "peak": 0.002,
            "minimum": 0.0002,
            "initial": 0.0,
            "warmup": "50 steps",
            "horizon": "550 steps",
            "fraction": None,
        },
        "optimizer": {"betas": [0.9, 0.999], "eps": 1e-08, "weight_decay": 0.01, "clip": 1.0},
        "precision": "fp32",
        "zero_stage": 2,
        "activation_checkpointing": False,
        "evaluate_every": "50 steps",
        "save_every": "200 steps",
    },
    "origin": {},
}
"""As version 0.1.0 recorded it for the stage `small` of the quick start."""


def began(**facts) -> TrainFacts:
    """What stage.json says of a stage that has begun."""
    content = {
        **common("small", SMALL),
        "origin": None,
        "start": None,
        "steps": 100,
        "schedule": {},
        "settings": SETTINGS,
        "flops_per_step": {"train": 10, "recompute": 0},
        "samples_per_step": 4,
        "tokens_per_step": 32,
        "device": "one",
    }
    return TrainFacts(**{**content, **facts})


def begun(folder: Path, recorded: dict, *overrides: str) -> tuple[config.Config, StageFolder]:
    loaded = config.load(BERT, [f"folder={folder}", *overrides])
    stage = StageFolder(folder / recorded["stage"]["name"])
    stage.begin(began(fingerprint=recorded))
    return loaded, stage


def refusal(folder: Path, recorded: dict, *overrides: str) -> str:
    loaded, stage = begun(folder, recorded, *overrides)
    with pytest.raises(UserError) as caught:
        require_same(loaded, loaded.stage(recorded["stage"]["name"]))
    assert (
        str(caught.value).startswith(f"{stage.path}: begun with ")
        and str(stage.path) in str(caught.value).split("; ")[-1]
    )
    return str(caught.value)


def without(tree: dict, place: str) -> dict:
    """A copy of `tree` without the key at the dotted `place`."""
    tree = copy.deepcopy(tree)
    *parents, last = place.split(".")
    node = tree
    for part in parents:
        node = node[part]
    del node[last]
    return tree


def test_a_record_of_the_version_before_goes_on(tmp_path):
    loaded, _ = begun(tmp_path, OLDER)
    require_same(loaded, loaded.stage("small"))


YOUNGEST = {**OLDER, "model": {**OLDER["model"], "drop_path": None}}
YOUNGER = [
    "model.kv_heads",
    "model.dropout",
    "model.drop_path",
    "data.column",
    "data.tokenizer.path",
    "stage.optimizer.eps",
    "stage.precision",
    "stage.start",
    "stage.schedule.initial",
    "stage.schedule.fraction",
    "origin",
    "seed",
    "stage.schedule.kind",
]


@pytest.mark.parametrize("place", YOUNGER)
def test_a_key_that_the_record_lacks_has_its_default(tmp_path, place):
    loaded, _ = begun(tmp_path, without(YOUNGEST, place))
    require_same(loaded, loaded.stage("small"))


def test_a_key_that_the_record_lacks_is_compared_by_its_default(tmp_path):
    said = refusal(
        tmp_path, without(OLDER, "stage.optimizer.weight_decay"), "stages.small.optimizer={weight_decay: 0.1}"
    )
    assert "stage.optimizer.weight_decay was 0.01, is now 0.1; take" in said and "None" not in said


def test_a_recorded_value_counts_whatever_the_default_is_now(tmp_path):
    """As if version 0.1.0 had had another default for `clip`: it recorded the value, so nothing is guessed."""
    recorded = copy.deepcopy(OLDER)
    recorded["stage"]["optimizer"]["clip"] = 0.5
    assert "stage.optimizer.clip was 0.5, is now 1.0" in refusal(tmp_path, recorded)
    loaded, _ = begun(tmp_path, recorded, "stages.small.optimizer={clip: 0.5}")
    require_same(loaded, loaded.stage("small"))


def test_a_recorded_key_that_is_unknown_is_named(tmp_path):
    recorded = copy.deepcopy(OLDER)
    recorded["stage"]["optimizer"]["amsgrad"] = True
    assert "settings that this version does not know: stage.optimizer.amsgrad: unknown key" in refusal(
        tmp_path, recorded
    )


def test_all_differences_are_told_at_once(tmp_path):
    said = refusal(
        tmp_path,
        OLDER,
        "seed=3",
        "stages.small.batch=32",
        "data.mask=0.15",
        "models.small.mlp=100",
        "stages.small.schedule={kind: wsd, peak: 0.002, horizon: 550 steps, decay: 9 steps}",
    )
    for part in (
        "seed was 0, is now 3",
        "data.mask was 0.3, is now 0.15",
        "model.mlp was not set, is now 100",
        "stage.batch was 64, is now 32",
        "stage.schedule.kind was cosine, is now wsd",
        "stage.schedule.decay was not set, is now 9 steps",
    ):
        assert part in said
    assert "\n" not in said


FREE = [
    "evaluate_every=7 steps",
    "save_every=7 steps",
    "log_every=10",
    "keep=5",
    "micro_batch=8",
    "activation_checkpointing=true",
    "activation_checkpointing=3",
    "tensorboard=true",
    "trackers=[tensorboard, wandb]",
    "zero_stage=1",
    "deepspeed.zero_optimization.reduce_bucket_size=1000",
]


@pytest.mark.parametrize("setting", FREE)
def test_what_changes_no_numbers_may_change(tmp_path, setting):
    loaded, _ = begun(tmp_path, OLDER, f"stages.small.{setting}", "data.workers=2")
    require_same(loaded, loaded.stage("small"))


DECIDING = [
    "batch=32",
    "precision=bf16",
    "schedule.peak=1e-3",
    "schedule.warmup=9 steps",
    "optimizer={betas: [0.9, 0.95]}",
    "deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}",
]


@pytest.mark.parametrize("setting", DECIDING)
def test_what_changes_numbers_may_not(tmp_path, setting):
    assert f"stage.{setting.partition('=')[0]}" in refusal(tmp_path, OLDER, f"stages.small.{setting}")


def test_an_optimizer_may_move_to_host_memory_where_it_is_allowed(tmp_path):
    change = "stages.small.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}"
    assert "--allow deepspeed" in refusal(tmp_path, OLDER, change)
    loaded, _ = begun(tmp_path, OLDER, change)
    require_same(loaded, loaded.stage("small"), ["deepspeed"])
    offloaded = Fingerprint.of(loaded, loaded.stage("small")).settings()
    again, _ = begun(tmp_path, offloaded, "stages.small.deepspeed={zero_optimization: {reduce_bucket_size: 5}}")
    require_same(again, again.stage("small"), ["deepspeed"])


MUON = "{kind: muon, clip: 1.0}"
OF_A_ZERO_STAGE = [
    ["zero_stage=0", f"optimizer={MUON}"],
    ["zero_stage=0", "precision=bf16", "gradient_sums=bf16", "optimizer={kind: muon}"],
    ["zero_stage=1", "precision=fp16", "deepspeed={fp16: {loss_scale: 8}}"],
    ["zero_stage=2", "precision=bf16", "deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}"],
]


@pytest.mark.parametrize("keys", OF_A_ZERO_STAGE, ids=lambda keys: ", ".join(keys))
def test_what_goes_with_its_zero_stage_alone_goes_on(tmp_path, keys):
    """A record names no ZeRO stage, which decides no number."""
    keys = [f"stages.small.{key}" for key in keys]
    loaded = config.load(BERT, [f"folder={tmp_path}", *keys])
    recorded = Fingerprint.of(loaded, loaded.stage("small")).settings()
    again, _ = begun(tmp_path, recorded, *keys)
    require_same(again, again.stage("small"))


def test_how_a_fit_communicates_may_change(tmp_path):
    growth = ["stages.grown.method=ligo", f"folder={tmp_path}"]
    bucket = "stages.grown.fit.deepspeed={zero_optimization: {reduce_bucket_size: 1000}}"
    offload = "stages.grown.fit.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}"
    before, other, offloaded = (
        Fingerprint.of(loaded, loaded.stage("grown")).settings()
        for loaded in (config.load(BERT, [*growth, *more]) for more in ([], [bucket], [offload]))
    )
    assert before == other != offloaded


@pytest.mark.parametrize("key, before, other", [("attention", "sdpa", "eager"), ("compile", False, True)])
def test_what_a_stage_settled_stays_and_may_be_left_open(tmp_path, key, before, other):
    """A record without the key is of a stage that had no choice."""
    assert f"stage.{key} was {before}, is now {other}; go on with it all the same (--allow {key})" in refusal(
        tmp_path / "old", OLDER, f"stages.small.{key}={other}"
    )
    for value in ("auto", before):
        loaded, _ = begun(tmp_path / str(value), OLDER, f"stages.small.{key}={value}")
        require_same(loaded, loaded.stage("small"))
    loaded, stage = begun(tmp_path / "new", {**OLDER, "stage": {**OLDER["stage"], key: other}})
    stage.begin(stage.facts.model_copy(update={"settings": TrainSettings(**{**SETTINGS, key: other})}))
    require_same(loaded, loaded.stage("small"))
    assert getattr(settled.as_begun(loaded.stage("small"), stage), key) == other


def test_an_origin_counts_by_what_decides_its_numbers(tmp_path):
    loaded = config.load(BERT, [f"folder={tmp_path}"])
    recorded = Fingerprint.of(loaded, loaded.stage("large")).settings()
    changed, _ = begun(tmp_path, recorded, "stages.small.save_every=9 steps")
    require_same(changed, changed.stage("large"))
    assert "origin.origin.stage.batch was 64, is now 32" in refusal(tmp_path, recorded, "stages.small.batch=32")
    assert "origin.stage.method.noise was 1.0, is now 0.5" in refusal(
        tmp_path, recorded, "stages.grown.method.noise=0.5"
    )
    assert "stage.start was grown, is now not set; origin was set, is now not set" in refusal(
        tmp_path, recorded, "stages.large.start=null"
    )


OLD_GPU, OLD_CPU = "NVIDIA A100-SXM4-80GB", "CPU, 1 thread(s) per rank"


def older(precision: str, **more: str) -> dict:
    """A record of 0.2.0, which says nothing of number formats but the precision; or what it would have said."""
    return {**OLDER, "stage": {**OLDER["stage"], "precision": precision, **more}}


def goes_on(folder: Path, *overrides: str, allowed: tuple[str, ...] = ()) -> tuple[str, str | None, str]:
    """The number formats of the stage `small` as it goes on. Raises UserError where it may not."""
    loaded = config.load(BERT, [f"folder={folder}", *overrides])
    require_same(loaded, stage := loaded.training_stage("small"), allowed)
    return stage.precision, stage.sums, stage.products


def recorded(folder: Path, device: str, precision: str, **more: str) -> None:
    settings = {key: value for key, value in SETTINGS.items() if key != "matmul_precision"}
    facts = {"settings": {**settings, "precision": precision, **more}, "device": device}
    StageFolder(folder / "small").begin(began(fingerprint=older(precision, **more), **facts))


@pytest.mark.parametrize("device, products", [(OLD_GPU, "high"), (OLD_CPU, "highest")])
@pytest.mark.parametrize("precision, sums", [("fp32", None), ("bf16", "bf16")])
def test_a_record_without_number_formats_keeps_those_it_had(tmp_path, device, products, precision, sums):
    """Gradients of bf16 were summed in bf16, and products of fp32 were TF32 on GPUs."""
    recorded(tmp_path, device, precision)
    here = f"stages.small.precision={precision}"
    assert goes_on(tmp_path, here) == (precision, sums, products)
    others = ["matmul_precision=medium", *(["gradient_sums=fp32"] if sums else [])]
    for other in others:
        key, _, value = other.partition("=")
        before = {"matmul_precision": products, "gradient_sums": sums}[key]
        with pytest.raises(UserError, match=rf"stage\.{key} was {before}, is now {value}; go on .*--allow {key}"):
            goes_on(tmp_path, here, f"stages.small.{other}")
        assert value in goes_on(tmp_path, here, f"stages.small.{other}", allowed=(key,))


def test_number_formats_are_those_that_were_recorded(tmp_path):
    recorded(tmp_path, OLD_GPU, "bf16", gradient_sums="fp32", matmul_precision="medium")
    here = "stages.small.precision=bf16"
    assert goes_on(tmp_path, here) == ("bf16", "fp32", "medium")
    assert goes_on(tmp_path, "stages.small.precision=fp32", allowed=("precision",)) == ("fp32", None, "medium")
    dumped = tmp_path / "config.yaml"
    dumped.write_text(config.dump(config.load(BERT, [f"folder={tmp_path}", here])))
    assert config.load(dumped).training_stage("small").matmul_precision == "medium"


def test_a_new_stage_has_the_defaults(tmp_path):
    assert goes_on(tmp_path) == ("fp32", None, "highest")
    assert goes_on(tmp_path, "stages.small.precision=bf16") == ("bf16", "fp32", "highest")
    with pytest.raises(UserError, match="gradient_sums bf16 belongs to precision bf16, this is fp32; leave it out"):
        goes_on(tmp_path, "stages.small.gradient_sums=bf16")


def test_an_origin_of_an_old_record_is_not_asked_for_what_it_does_not_say(tmp_path):
    """The origin's own record does."""
    loaded = config.load(BERT, [f"folder={tmp_path}"])
    settings = Fingerprint.of(loaded, loaded.stage("large")).settings()
    for key in ("gradient_sums", "matmul_precision"):
        del settings["origin"]["origin"]["stage"][key]
    changed, _ = begun(tmp_path, settings, "stages.small.matmul_precision=high")
    require_same(changed, changed.stage("large"))
    said = Fingerprint.of(loaded, loaded.stage("large")).settings()
    assert "origin.origin.stage.matmul_precision was highest, is now high" in refusal(
        tmp_path, said, "stages.small.matmul_precision=high"
    )


def test_what_an_origin_has_changed_is_told_once_and_what_was_begun_from_it_is_named(tmp_path):
    loaded = config.load(BERT, [f"folder={tmp_path}"])
    for name in ("small", "grown"):
        begun(tmp_path, Fingerprint.of(loaded, loaded.stage(name)).settings())
    changed = config.load(BERT, [f"folder={tmp_path}", "stages.small.batch=32"])
    with pytest.raises(
        UserError, match=rf"stage\.batch was 64, is now 32; .* remove {tmp_path}/small and .* \(grown\)$"
    ):
        require_same(changed, changed.stage("small"), each=True)
    require_same(changed, changed.stage("grown"), each=True)
    with pytest.raises(UserError, match=r"origin\.stage\.batch was 64"):
        require_same(changed, changed.stage("grown"))


def test_options_of_a_method_that_are_its_defaults_need_not_be_written(tmp_path):
    """Written out or not, inside the method or as the keys of the stage that they were in older configs."""
    loaded = config.load(BERT, [f"folder={tmp_path}"])
    settings = Fingerprint.of(loaded, loaded.stage("grown")).settings()
    assert settings["stage"]["method"] == {"name": "lemon", "depth": "cancel", "placement": "even", "noise": 1.0}
    stage = {key: value for key, value in settings["stage"].items() if key != "method"}
    former = {"method": "lemon", "depth": "cancel", "placement": "even", "noise": 1.0}
    for method in ({"method": {"name": "lemon", "depth": "cancel"}}, former):
        recorded = {**settings, "stage": {**stage, **method}}
        changed, _ = begun(tmp_path, recorded)
        require_same(changed, changed.stage("grown"))
        assert "stage.method.depth was cancel, is now zero" in refusal(tmp_path, recorded, "stages.grown.method=lemon")


def test_what_is_recorded_is_read_as_the_same():
    loaded = config.load(BERT)
    for stage in loaded.stages:
        settings = Fingerprint.of(loaded, stage).settings()
        assert Fingerprint.model_validate(json.loads(json.dumps(settings))).settings() == settings


def test_the_command_line_allows_what_may_be_allowed():
    assert set(run_commands.ALLOWABLE) == fingerprint.ALLOWABLE


def test_differences_are_leaves():
    before, now = {"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": 1}}, {"a": {"b": 1, "c": 5}, "e": {"f": 1}, "g": 0}
    assert list(differences(before, now)) == [("a.c", 2, 5), ("d", 3, None), ("g", None, 0)]


def test_a_continued_stage_says_what_each_start_was_made_with():
    recorded, smaller = began(start="somewhere"), TrainSettings(**{**SETTINGS, "world_size": 1})
    second = continued(recorded, began(settings=smaller), 40)
    assert (second.settings, second.start) == (smaller, "somewhere")
    assert [(each.step, each.settings.world_size) for each in second.starts] == [(0, 2), (40, 1)]
    third = continued(second, began(settings=smaller, device="two"), 30)
    assert [(each.step, each.device) for each in third.starts] == [(0, "one"), (40, "one"), (30, "two")]
    assert [third.start_of(step).step for step in (1, 30, 31, 40, 41)] == [0, 0, 30, 30, 30]
    assert begun_anew(third, began()).starts == (*third.starts, *began().starts)


def test_starts_of_version_0_2_are_told_from_what_had_changed():
    """Until step 40 with another micro_batch, until step 60 on another device."""
    content = began().model_dump(mode="json", exclude={"starts"})
    before = {"settings": {**SETTINGS, "micro_batch": 1}, "flops_per_step": None, "device": None, "versions": None}
    earlier = [{**before, "until_step": 40}, {"until_step": 60, "device": "none yet"}]
    facts = parse(Path("stage.json"), {**content, "earlier": earlier})
    told = [(each.step, each.settings.micro_batch, each.device) for each in facts.starts]
    assert told == [(0, 1, "none yet"), (40, 2, "none yet"), (60, 2, "one")]
    assert parse(Path("stage.json"), facts.model_dump(mode="json")) == facts
    with pytest.raises(UserError, match=r"until_step.*damaged"):
        parse(Path("stage.json"), {**content, "earlier": [{"device": "one"}]})
