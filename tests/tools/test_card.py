"""The model card: front matter that the hub's own library reads, and numbers that are those of the run's records."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id

from pipeline.accounting.device_time import PowerFactors
from pipeline.accounting.lineage import lineage
from pipeline.accounting.recorded_runs import RecordReader
from pipeline.errors import UserError
from pipeline.export.base_model import hub_id, require_id
from pipeline.export.card import Origins, card
from pipeline.export.footprint import Footprint
from pipeline.records.run_folder import StageFolder
from pipeline.records.time_records import SpentRecord, StartRecord
from tests.helpers.checkpoints import saved, target_config_file
from tests.helpers.cli import lemon
from tests.helpers.invented_runs import SETTINGS, simple_run
from tests.helpers.samples import sample

FACTORS = ("--device-power", "400", "--pue", "1.1", "--carbon-intensity", "50", "--location", "Quebec, Canada")
SMALL_TRAINING, SMALL_ALL = 20 * 3, 20 * 3 + 2 * 7
"""FLOPs of the invented run's small model: 20 steps of 3; evaluated twice, at 7."""
GROWN_ALL = 3 + 5
"""Of its expansion: growing and verifying."""
LARGE_TRAINING, LARGE_ALL = 20 * (8 + 2), 20 * (8 + 2) + 3 * 7
"""Of the large one: 20 steps of 8 and 2 of recomputation, evaluated three times."""


def timed(run: Path, stage: str) -> None:
    """An hour of a start that is killed; from step 5 on half an hour more. Waiting is no device time."""
    StageFolder(run / stage).times.append(
        StartRecord(step=-1, began=0.0, unrecorded=0.0),
        SpentRecord(step=5, seconds={"start": 600.0, "forward": 1200.0}, until=1800.0),
        SpentRecord(step=8, seconds={"forward": 1500.0}, until=3300.0),
        StartRecord(step=5, began=90_000.0, unrecorded=300.0),
        SpentRecord(step=20, seconds={"backward": 1800.0}, until=91_800.0),
    )


def starts(*world_sizes: int) -> dict:
    of_start = {"device": "H100", "flops_per_step": {"train": 8, "recompute": 2}, "versions": {}}
    steps = (0, 5)
    return {
        "starts": [
            {**of_start, "step": step, "settings": {**SETTINGS, "world_size": size}}
            for step, size in zip(steps, world_sizes, strict=True)
        ]
    }


def of_run(folder: Path, factors: PowerFactors | None = None, **more) -> str:
    """The card of the invented run's large stage."""
    reader = RecordReader()
    ancestors = lineage(folder / "large", reader)[::-1]
    origins = Origins(ancestors, Footprint.of(ancestors, reader, factors), **more)
    return card("large", sample("bert-pre-ln"), "float32", origins, {}, tokenizer=False)


def line(text: str, begin: str) -> str:
    (found,) = [each for each in text.splitlines() if each.startswith(f"* {begin}")]
    return found


def test_the_whole_lineage_counts_and_the_growth_is_a_share_of_its_source(tmp_path):
    text = of_run(simple_run(tmp_path / "run"))
    total = SMALL_TRAINING + LARGE_TRAINING
    compute = line(text, "Training compute")
    assert f": {total:.4g} FLOPs ({total:,})." in compute and "epoch.ai" in compute and "at least" not in compute
    growth = line(text, "Training since the growth `grown`")
    share = f"{100 * LARGE_TRAINING / SMALL_TRAINING:.4g}"
    assert f"200 FLOPs ({LARGE_TRAINING:,}), {share} % of the 60 FLOPs ({SMALL_TRAINING:,}) of its source." in growth
    assert line(text, "Training time") == "* Training time: not recorded."
    table = [[cell.strip(" *") for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("|")]
    listed = sum(int(row[-1].replace(",", "")) for row in table[2:-1])
    assert listed == SMALL_ALL + GROWN_ALL + LARGE_ALL and "Annex XI" in text


def test_device_time_counts_the_ranks_of_each_start_and_no_waiting(tmp_path):
    """Large: 3300 + 300 seconds on two ranks, 1800 on four; small: all of it on two."""
    run = simple_run(tmp_path / "run", **starts(2, 4))
    timed(run, "small")
    timed(run, "large")
    said = line(of_run(run), "Training time")
    small, large = 5400 * 2 / 3600, (3600 * 2 + 1800 * 4) / 3600
    assert f"`small` 1.5 hours on 2 x CPU <x86>, {small:.4g} hours of devices; " in said
    assert f"`large` 1.5 hours on 2 x H100 and 4 x H100, {large:.4g} hours of devices; " in said
    assert f"; {small + large:.4g} hours of devices in all, " in said


def test_time_that_is_not_recorded_is_named(tmp_path):
    run = simple_run(tmp_path / "run", **starts(2, 4))
    timed(run, "large")
    said = line(of_run(run, PowerFactors(400, 1.1)), "Training time")
    assert "at least 4 hours of devices in all" in said and said.endswith(
        "It lacks that of `small`, of which nothing is recorded."
    )
    assert "at least 1.76 kWh" in line(of_run(run, PowerFactors(400, 1.1)), "Energy")


def test_emissions_follow_from_stated_factors_by_the_formula_that_is_shown(tmp_path):
    run = simple_run(tmp_path / "run", **starts(2, 4))
    timed(run, "small")
    timed(run, "large")
    text = of_run(run, PowerFactors(400, 1.1, 50, "Quebec, Canada"))
    kwh = 7 * 400 * 1.1 / 1000
    emissions = ModelCard(text).data.to_dict()["co2_eq_emissions"]
    formula = "7 device-hours x 400 W x PUE 1.1 / 1000 x 50 g/kWh in Quebec, Canada"
    assert emissions["emissions"] == pytest.approx(kwh * 50)
    assert formula in emissions["source"] and emissions["training_type"] == "pre-training"
    assert emissions["geographical_location"] == "Quebec, Canada"
    assert emissions["hardware_used"] == "2 x CPU <x86>, 2 x H100, 4 x H100"
    assert f"{kwh:.4g} kWh, {kwh * 50:.4g} g of CO2 equivalents ({formula})" in line(text, "Energy")


def test_without_factors_there_is_no_word_of_emissions(tmp_path):
    run = simple_run(tmp_path / "run", **starts(2, 4))
    timed(run, "large")
    text = of_run(run)
    assert "co2" not in text.lower() and "kWh" not in text and "device-hours" not in text
    only_energy = of_run(run, PowerFactors(400))
    assert "co2_eq_emissions" not in only_energy and "1.6 kWh" in only_energy


def test_factors_without_any_time_are_refused(tmp_path):
    with pytest.raises(UserError, match="--device-power: no device time is recorded"):
        of_run(simple_run(tmp_path / "run"), PowerFactors(400))


def test_a_run_from_scratch_has_no_base_model(tmp_path):
    data = ModelCard(of_run(simple_run(tmp_path / "run"))).data
    assert data.base_model is None and data.library_name == "transformers" and "model-growth" in data.tags


def exported(capsys, tmp_path: Path, source: Path, *more: str) -> ModelCard:
    code, _, err = lemon(capsys, "export", source, "--out", tmp_path / "hf", *more)
    assert code == 0, err
    return ModelCard.load(tmp_path / "hf" / "README.md")


def of_the_hub(folder: Path, name: str | None) -> Path:
    """A model's folder whose config says that it was loaded as `name`."""
    path = saved(folder, "gpt2") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **({"_name_or_path": name} if name else {})}))
    return folder


def grown(capsys, tmp_path: Path, small: Path) -> Path:
    target = target_config_file(tmp_path / "target.json", "gpt2", hidden=24, heads=6, mlp=40)
    code, _, err = lemon(capsys, "expand", "--source", small, "--target", target, "--out", tmp_path / "grown")
    assert code == 0, err
    return tmp_path / "grown"


def test_what_was_grown_from_a_model_of_the_hub_names_it_and_no_relation(tmp_path, capsys):
    """None of those that the hub knows is a growth; and what the base model has cost is not known."""
    made = exported(capsys, tmp_path, grown(capsys, tmp_path, of_the_hub(tmp_path / "small", "org/a-model")))
    assert made.data.base_model == "org/a-model" and "base_model_relation" not in made.data.to_dict()
    assert "the hub knows adapter, finetune, merge and quantized, and none of them is what was done here" in made.text
    compute = line(made.text, "Training compute")
    assert ": at least 0 FLOPs (0)." in compute and "It lacks that of `small`, of which nothing is recorded." in compute
    assert "source whose training compute is not known: no share can be stated" in line(made.text, "Training since")


@pytest.mark.parametrize("name", [None, "/data/a-model", "./a/model", "gpt2", "a/b/c", "small/nested", 5])
def test_a_path_is_no_base_model(tmp_path, capsys, name):
    (tmp_path / "small" / "nested").mkdir(parents=True)
    assert hub_id(of_the_hub(tmp_path / "small", name)) is None


IDS = ["org/a-model", "Org_1/a.model-2", "a/b", "a--b/c", "a/b..c", "-a/b", "a/b-", "a/.b", "a/b.git", "a/b c", "a/ä"]
IDS += ["a", "/a", "a/", "a/b/c", "a\n/b", "a/" + "b" * 94, "a/" + "b" * 95, "a/" + "b" * 97]


@pytest.mark.parametrize("name", IDS)
def test_an_id_is_what_the_hubs_own_library_takes(name):
    try:
        validate_repo_id(name)
        taken = name.count("/") == 1
    except HFValidationError:
        taken = False
    if taken:
        assert require_id(name) == name
    else:
        with pytest.raises(UserError, match="is no id of a model on the hub"):
            require_id(name)


def test_the_hubs_cache_says_which_model_it_holds(tmp_path):
    assert hub_id(tmp_path / "models--org--a-model" / "snapshots" / "1f") == "org/a-model"
    assert hub_id(tmp_path / "models--gpt2" / "snapshots" / "1f") == "gpt2"


def test_a_base_model_may_be_stated(tmp_path, capsys):
    made = exported(capsys, tmp_path, of_the_hub(tmp_path / "small", None), "--base-model", "org/other")
    assert made.data.base_model == "org/other"


def test_what_the_sources_card_says_stays_where_nothing_nearer_is_known(tmp_path, capsys):
    small = of_the_hub(tmp_path / "small", None)
    (small / "README.md").write_text("---\nbase_model: a/b\nbase_model_relation: finetune\nlicense: mit\n---\n")
    assert exported(capsys, tmp_path, small).data.to_dict()["base_model_relation"] == "finetune"
    (tmp_path / "hf").rename(tmp_path / "first")
    data = exported(capsys, tmp_path, grown(capsys, tmp_path, small)).data.to_dict()
    assert (data["base_model"], data["license"]) == ("a/b", "mit") and "base_model_relation" not in data


@pytest.mark.parametrize(
    "options, complaint",
    [
        (FACTORS[2:4], "--pue: it says nothing without --device-power; add that, or leave it out"),
        (FACTORS[4:6], "--carbon-intensity: it says nothing without --device-power"),
        ((*FACTORS[:2], *FACTORS[6:]), "--location: it says nothing without --carbon-intensity"),
        (("--device-power", "-1"), "'-1' is no number above 0"),
        (("--device-power", "nan"), "'nan' is no number above 0"),
        ((*FACTORS[:2], "--pue", "0.9"), "'0.9' is below 1"),
        (("--base-model", "/data/a-model"), "--base-model: '/data/a-model' is no id of a model on the hub"),
        (FACTORS, "--device-power: no device time is recorded of what led to this checkpoint; leave it out"),
    ],
)
def test_statements_that_say_nothing_are_one_line(tmp_path, capsys, options, complaint):
    small = saved(tmp_path / "small", "gpt2")
    try:
        code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "hf", *options)
    except SystemExit as end:
        code, err = end.code, capsys.readouterr().err
    assert code == 2 and complaint in err and err.count("\n") == 1 and not (tmp_path / "hf").exists(), err
