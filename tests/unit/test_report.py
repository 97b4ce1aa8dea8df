"""The FLOPs report: hand-computed crossings and savings, results that are no savings, the page, the errors."""

import json
import math

import pytest
import yaml

from pipeline.accounting.recorded_runs import Evaluation
from pipeline.accounting.savings import Savings
from pipeline.accounting.totals import Amounts
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder, write_json
from pipeline.records.stage_records import EvaluationRecord, SaveRecord
from pipeline.report import build, figures, formatting, summary, tables, write
from pipeline.report.content import Report, Start
from tests.helpers.invented_runs import (
    LARGE,
    LARGE_LOSS,
    MEDIUM,
    SCRATCH_LOSS,
    SMALL,
    STAGES,
    expand,
    make_run,
    simple_run,
    train,
    training_record,
)
from tests.helpers.opened import opened
from tests.helpers.pages import Page, texts


def only(report: Report) -> Savings:
    (one,) = report.runs[0].comparisons
    return one


def test_savings_given_the_small_model_and_all_in(tmp_path):
    one = only(build([simple_run(tmp_path / "run")]))
    assert one.target.value == 4.0 and "final evaluation loss of 'scratch'" in one.target.meaning
    assert one.scratch.flops == 400
    assert one.given.flops == 150  # half way between 4.5 at 100 and 3.5 at 200
    assert one.given.saving_percent == pytest.approx(62.5)
    assert one.source.flops == 60 and one.all_in.flops == 210
    assert one.all_in.saving_percent == pytest.approx(47.5)


def test_all_in_counts_the_whole_chain(tmp_path):
    run = make_run(
        tmp_path / "run",
        {
            "small": "train",
            "grown-1": "expand",
            "medium": "train",
            "grown-2": "expand",
            "large": "train",
            "scratch": "train",
        },
    )
    train(run, "small", SMALL, {0: 8.0, 20: 5.5}, flops=3)
    expand(run, "grown-1", "small", MEDIUM)
    train(run, "medium", MEDIUM, {0: 5.5, 10: 5.0}, origin="grown-1", flops=5)
    expand(run, "grown-2", "medium", LARGE)
    train(run, "large", LARGE, LARGE_LOSS, origin="grown-2")
    train(run, "scratch", LARGE, SCRATCH_LOSS)
    report = build([run])
    one = only(report)
    assert [(source.stage, source.flops) for source in one.source.stages] == [("small", 60), ("medium", 50)]
    assert one.given.flops == 150 and one.all_in.flops == 260
    assert one.all_in.saving_percent == pytest.approx(35.0)
    starts = {source.stage: source.points[0].flops for source in one.curves.sources}
    assert starts == {"small": 0, "medium": 60}
    assert any("no stage that trains model 'model-12' from scratch" in text for text in report.runs[0].remarks)


def test_a_continued_stage_pays_for_all_steps_since_the_expansion(tmp_path):
    run = simple_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["stages"].append({"name": "more", "kind": "train"})
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    train(run, "more", LARGE, {0: 3.5, 10: 3.0}, origin="large")
    _, more = build([run], target=3.25).runs[0].comparisons
    assert (more.stage, more.given.flops, more.source.flops) == ("more", 250, 60)


def test_not_reached_is_a_result(tmp_path):
    run = simple_run(tmp_path / "run")
    report = build([run], target=3.0)
    one = only(report)
    assert one.scratch.flops is one.given.flops is one.all_in.saving_percent is None
    assert one.given.best == Evaluation(step=20, flops=200, loss=3.5, perplexity=math.exp(3.5))
    words = "lowest loss 3.5000 (step 20, 200 FLOPs), target 3.0000"
    assert f"'large' has not reached the target: {words}." in summary(report)
    assert words in Page(write(report, tmp_path / "out").read_text()).words


def test_only_the_expanded_stage_reached_the_target(tmp_path):
    report = build([simple_run(tmp_path / "run")], target=3.75)
    assert only(report).given.flops == 175 and only(report).given.saving_percent is None
    assert "'large' reached the target, training from scratch has not" in summary(report)


def test_a_loss_is_called_a_loss(tmp_path):
    report = build([simple_run(tmp_path / "run", small_flops=15)])
    assert only(report).all_in.saving_percent == pytest.approx(-12.5)
    assert "it costs 12.5 % more" in summary(report)


def test_a_target_met_before_training_saves_nothing(tmp_path):
    report = build([simple_run(tmp_path / "run")], target=9.0)
    assert only(report).given.saving_percent is None and "nothing to save" in summary(report)


def test_a_source_that_meets_the_target_is_called_so(tmp_path):
    report = build([simple_run(tmp_path / "run")], target=5.0)
    assert only(report).given.flops == 0 and only(report).all_in.saving_percent == pytest.approx(70.0)
    assert "'small' has reached the target already: as 'large' begins, nothing is left to train." in summary(report)


def test_a_start_outside_any_run_is_compared_as_given(tmp_path):
    run = simple_run(tmp_path / "run", origin="elsewhere/model")
    assert only(build([run])).given.flops == 150 and only(build([run])).source.unknown == "elsewhere/model"
    write(build([run]), run)


def test_unfinished_stages_are_named(tmp_path):
    run = simple_run(tmp_path / "run", finished=False, steps=60)
    (run / "scratch" / "stage.json").unlink()
    report = build([run])
    assert report.runs[0].unfinished == ["stage 'large' at step 20 of 60", "stage 'scratch' not started"]
    assert not report.runs[0].comparisons
    page = Page(write(report, run).read_text())
    assert "Unfinished: stage 'large' at step 20 of 60; stage" in page.words and "is not compared" in page.words


def test_an_unfinished_baseline_is_called_so(tmp_path):
    run = simple_run(tmp_path / "run")
    train(make_run(tmp_path / "other", {}), "x", SMALL, {0: 1.0})  # a stage outside any config is not read
    scratch = StageFolder(run / "scratch")
    scratch.begin(scratch.facts.model_copy(update={"steps": 90}))
    assert "unfinished (step 40 of 90)" in only(build([run])).target.meaning


def test_a_run_that_has_not_started(tmp_path):
    report = build([make_run(tmp_path / "run", STAGES)])
    assert report.runs[0].ledger.everything == Amounts()
    assert not Page(write(report, tmp_path / "out").read_text()).pictures


def test_no_expansion_and_no_baseline_say_why(tmp_path):
    plain = make_run(tmp_path / "plain", {"scratch": "train"})
    train(plain, "scratch", LARGE, SCRATCH_LOSS)
    assert build([plain]).runs[0].remarks == ["Nothing is compared: the run has no expansion."]
    grown = make_run(tmp_path / "grown", {"small": "train", "grown": "expand"})
    train(grown, "small", SMALL, {0: 8.0, 20: 5.0})
    expand(grown, "grown", "small", LARGE)
    assert build([grown]).runs[0].remarks == [
        "Expansion 'grown' is not compared: no training stage has started from it yet."
    ]


def test_a_baseline_and_a_source_in_other_runs(tmp_path):
    source = make_run(tmp_path / "source", {"small": "train"})
    train(source, "small", SMALL, {0: 8.0, 10: 6.0, 20: 5.0}, flops=3)
    checkpoint = source / "small" / "checkpoints" / "step-0000010"
    baseline = make_run(tmp_path / "baseline", {"scratch": "train"})
    train(baseline, "scratch", LARGE, SCRATCH_LOSS)
    run = make_run(tmp_path / "run", {"grown": "expand", "large": "train"})
    expand(run, "grown", str(checkpoint), LARGE)
    train(run, "large", LARGE, LARGE_LOSS, origin="grown")
    (one,) = build([run, baseline]).runs[0].comparisons
    assert (one.baseline.run, one.baseline.stage) == ("baseline", "scratch")
    assert one.source.flops == 30  # the first ten steps: what the checkpoint holds
    page = Page(write(build([run, baseline]), tmp_path / "out").read_text())
    assert "All runs" in page.words and any("baseline: scratch" in texts(picture) for picture in page.pictures)
    assert ["run", "large", "4.0000", "400 FLOPs", "150 FLOPs", "62.5 %", "180 FLOPs", "55.0 %"] in page.rows


def test_an_unrecorded_source_leaves_all_in_open(tmp_path):
    run = simple_run(tmp_path / "run")
    expand(run, "grown", "elsewhere/model", LARGE)
    report = build([run])
    assert only(report).given.saving_percent == 62.5 and only(report).all_in.flops is None
    assert "All-in is not known: the training of 'elsewhere/model' is not recorded." in summary(report)
    write(report, run)


def test_integers_add_exactly(tmp_path):
    huge = 10**20 + 1  # not a float
    run = simple_run(tmp_path / "run", flops=huge, recompute=1)
    write(build([run]), run)
    book = json.loads((run / "report.json").read_text())["runs"][0]["ledger"]
    train_flops = 20 * 3 + 20 * huge + 40 * 10
    assert book["by_kind"]["train"]["flops"] == train_flops
    assert book["training"]["flops"] == train_flops + 20
    assert book["everything"]["flops"] == train_flops + 20 + 9 * 7 + 3 + 5
    sums = {unit: sum(row[unit] for row in book["rows"]) for unit in ("flops", "samples", "tokens")}
    assert book["everything"] == sums
    assert sum(row["share_percent"] for row in book["rows"]) == pytest.approx(100)
    assert [row["kind"] for row in book["rows"] if row["stage"] == "large"] == ["train", "recompute", "evaluate"]


def test_continuity_speed_and_models(tmp_path):
    run = simple_run(tmp_path / "run")
    expand(run, "grown", "small", LARGE, verification={"float64": 3e-8, "float32": 2e-5, "gates": {"float32": 1e-5}})
    content = build([run]).runs[0]
    (one,) = content.continuity
    assert one.source_loss == 5.0 and one.started == [Start(stage="large", loss=5.0, difference=0.0)]
    assert [verdict.within for verdict in one.verification] == [None, False]
    assert content.unigram_entropy == 6.2
    speed = content.speed[1]
    assert (speed.samples_per_second, speed.mfu, speed.wall_seconds) == (8.0, None, 10.0)
    assert [model["hidden"] for model in content.models] == [8, 16]


def test_the_page_is_whole_and_self_contained(tmp_path):
    runs = [simple_run(tmp_path / "a"), simple_run(tmp_path / "b")]
    text = write(build(runs), tmp_path / "out").read_text()
    page = Page(text)
    assert not page.unclosed and not page.crossed
    assert len(page.pictures) == len(page.loads) == 14  # three a run, one for both, each light and dark; nothing else
    for picture in page.pictures:
        assert texts(picture) and "href" not in picture.replace('xlink:href="#', "")
    for outside in ("http://", "https://", "@import", "url(", "<script", "<link"):
        assert outside not in text
    assert "CPU &lt;x86&gt;" in text and f"{runs[0]} {runs[1]}" in text  # escaped; the command


def test_every_text_is_escaped(tmp_path):
    run = simple_run(tmp_path / "<u>&")
    page = Page(text := write(build([run]), run).read_text())
    assert "<u>" not in text and "FLOPs report: <u>&" in page.words and not page.unclosed and not page.crossed


def test_times_count_every_step_of_a_window(tmp_path):
    run = make_run(tmp_path / "run", {"scratch": "train"})
    stage = train(run, "scratch", LARGE, {0: 8.0})
    for step in (10, 20, 25):
        stage.metrics.append(training_record(step, 3.0, window=10 if step < 25 else 5, mfu=1.12))
        stage.metrics.append(EvaluationRecord(step=step, eval_loss=4.0, evaluation_seconds=1.5))
        stage.metrics.append(SaveRecord(step=step, save_seconds=0.25))
    (speed,) = build([run]).runs[0].speed
    assert (speed.wall_seconds, speed.evaluation_seconds, speed.save_seconds) == (12.5, 4.5, 0.75)
    assert speed.mfu is None  # above 100 % the peak was measured too low
    row = next(row for row in Page(write(build([run]), run).read_text()).rows if "12.5 s" in row)
    assert row[3:7] == ["–", "12.5 s", "4.50 s", "0.75 s"]


def test_a_record_without_a_window_stands_for_the_steps_before_it(tmp_path):
    run = make_run(tmp_path / "run", {"scratch": "train"})
    stage = train(run, "scratch", LARGE, {0: 8.0})
    speed = {"samples_per_second": 8.0, "tokens_per_second": 64.0, "mfu": None}
    with stage.metrics.path.open("a") as file:
        for step in (10, 20, 25):
            record = {"step": step, "loss": 3.0, "lr": 1e-3, "grad_norm": None, "seconds": 0.5, **speed}
            file.write(json.dumps(record) + "\n")
    (speed,) = build([run]).runs[0].speed
    assert (speed.wall_seconds, speed.evaluation_seconds, speed.save_seconds) == (12.5, None, None)


def test_report_json_is_the_content(tmp_path):
    report = build([simple_run(tmp_path / "run")])
    write(report, tmp_path / "out")
    held = json.loads((tmp_path / "out" / "report.json").read_text())
    assert held["format"] == 3 and Report.model_validate(held) == report


def test_every_file_is_read_once(tmp_path):
    runs = [simple_run(tmp_path / "a"), simple_run(tmp_path / "b")]
    for run in runs:
        (run / "grown" / "checkpoints" / "step-0000000").mkdir(parents=True)
        write_json(run / "grown" / "checkpoints" / "step-0000000" / "manifest.json", {"kind": "expand"})
        write_json(run / "grown" / "plan.json", {"lossy": []})
    with opened() as counts:
        build(runs)
    files = [path for run in runs for path in run.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "config.yaml",
        "data.json",
        "stage.json",
        "plan.json",
        "manifest.json",
        "metrics.jsonl",
        "ledger.jsonl",
    }
    assert {path: counts[path] for path in files} == dict.fromkeys(files, 1)


def test_light_and_dark_figures_differ_in_colours_alone(tmp_path):
    chart = figures.compared(run := build([simple_run(tmp_path / "run")]).runs[0], run.comparisons)
    light, dark = (figures.svg(chart, palette).decode() for palette in ("light", "dark"))
    assert texts(light) == texts(dark)
    pairs = zip((light, dark), figures.PALETTES.values(), strict=True)
    inks = [{name for name, colour in palette.items() if colour in svg} for svg, palette in pairs]
    assert inks[0] == inks[1] == {"ink", "muted", "rule", "blue", "orange", "grey"}
    assert not any(colour in dark for colour in figures.PALETTES["light"].values())


def test_the_legend_says_what_the_target_cost(tmp_path):
    run = build([simple_run(tmp_path / "run")]).runs[0]
    words = texts(figures.svg(figures.compared(run, run.comparisons), "light").decode())
    for label in (
        "scratch, from scratch: 400 FLOPs",
        "large, expanded: 150 FLOPs, saves 62.5 %",
        "large, all-in: 210 FLOPs, saves 47.5 %",
        "small",
        "target 4.0000",
    ):
        assert label in words, words


def test_images_get_top1_figures(tmp_path):
    run = make_run(tmp_path / "run", STAGES, "images")
    stage = train(run, "scratch", LARGE, SCRATCH_LOSS)
    stage.metrics.append(EvaluationRecord(step=40, eval_loss=4.0, top1=0.625))
    page = Page(write(build([run]), run).read_text())
    assert "62.5 %" in page.words and any("top-1 accuracy, %" in texts(picture) for picture in page.pictures)


def test_the_page_is_the_same_every_time(tmp_path):
    report = build([simple_run(tmp_path / "run")])
    assert write(report, tmp_path / "1").read_bytes() == write(report, tmp_path / "2").read_bytes()


def test_thinning_keeps_a_spike():
    steps = [training_record(step, 9.0 if step == 4321 else 2.0) for step in range(20_000)]
    record = tables.training(steps)
    assert (4321, 9.0) in record.raw and len(record.raw) <= 2 * tables.POINTS
    assert max(value for _, value in tables.smooth([(s, v) for s, v in enumerate([1, 1, 4, 1, 1])], 3)) == 2.0


def test_a_broken_training_is_named(tmp_path):
    run = simple_run(tmp_path / "run")
    StageFolder(run / "large").metrics.append(training_record(21, math.nan))
    StageFolder(run / "large").metrics.append(EvaluationRecord(step=21, eval_loss=math.nan))
    report = build([run])
    assert "Stage 'large' broke down: its training loss is not a number at step 21." in summary(report)
    assert only(report).given.flops == 150
    write(report, run)


def test_colours_follow_the_role(tmp_path):
    chosen = figures.colours(build([simple_run(tmp_path / "run")]).runs[0])
    assert (chosen["scratch"], chosen["large"], chosen["small"]) == ("blue", "orange", "grey")


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 FLOPs"), (999, "999 FLOPs"), (1_234_000_000_000_000, "1.23 PFLOPs"), (999_600, "1.00 MFLOPs"), (None, "–")],
)
def test_flops_are_readable(amount, text):
    assert formatting.flops(amount) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(33.24, "saves 33.2 %"), (-4.0, "costs 4.0 % more"), (0.01, "costs the same"), (None, "no saving can be stated")],
)
def test_savings_in_words(share, text):
    assert formatting.saving(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.2, "4.20 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (273_700, "3 d 4 h"), (3599.7, "1 h 00 min")],
)
def test_durations_are_readable(seconds, text):
    assert formatting.duration(seconds) == text


def test_summary_names_the_files(tmp_path):
    report = build([simple_run(tmp_path / "run")])
    text = summary(report, write(report, tmp_path / "out"))
    assert "Given 'small', 'large' saves 62.5 % against training from scratch." in text
    assert "All-in, with the training of 'small' added, it saves 47.5 %." in text
    assert text.endswith(f"report: {tmp_path}/out/report.html\ndata:   {tmp_path}/out/report.json")


def test_error_not_a_run(tmp_path):
    with pytest.raises(UserError) as error:
        build([tmp_path / "nothing"])
    assert str(error.value) == (
        f"{tmp_path}/nothing: not a run folder (no config.yaml in it); "
        f"name a folder that 'lemon run' wrote, such as runs/NAME"
    )


@pytest.mark.parametrize("content", ["stages: [", "just text", "name: x\nstages: []\n"])
def test_error_broken_config(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config.yaml: not the config of a run \(.*\); restore it") as error:
        build([tmp_path])
    assert "\n" not in str(error.value)


def test_error_damaged_records(tmp_path):
    run = simple_run(tmp_path / "run")
    (run / "large" / "ledger.jsonl").write_text("{half\n{}\n")
    with pytest.raises(UserError, match=r"large/ledger.jsonl: not valid JSONL .*; the file is damaged"):
        build([run])


@pytest.mark.parametrize("key, value, said", [
    ("name", "../x", "not the facts of a stage (train.name: Value error, '../x' cannot name a folder; use at most 200"),
    ("family", "bert-pre-lm", "unknown model family 'bert-pre-lm'; did you mean 'bert-pre-ln'?; the file is damaged"),
])  # fmt: skip
def test_error_damaged_facts(tmp_path, key, value, said):
    run = simple_run(tmp_path / "run")
    file = run / "large" / "stage.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(UserError) as caught:
        build([run])
    assert str(caught.value).startswith(f"{file}: {said}"), caught.value


@pytest.mark.parametrize("name", ["../x", "/x", "a" * 256, ""])
def test_error_a_stage_outside_the_run(tmp_path, name):
    run = simple_run(tmp_path / "run")
    file = run / "config.yaml"
    content = yaml.safe_load(file.read_text())
    content["stages"][0]["name"] = name
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as caught:
        build([run])
    assert str(caught.value).startswith(f"{file}: not the config of a run ('{name:.60}' cannot name a folder; ")


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_error_impossible_target(tmp_path, target):
    with pytest.raises(UserError, match=r"a target is an evaluation loss above 0 such as 3\.5"):
        build([simple_run(tmp_path / "run")], target=target)


def test_error_no_run_and_no_place(tmp_path):
    with pytest.raises(UserError, match="no run folder; name"):
        build([])
    report = build([simple_run(tmp_path / "run")])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be written .*; choose another --out"):
        write(report, tmp_path / "file")


ON = {"fingerprint": {"stage": {"schedule": {"continue": True}}}}


def grown_run(folder, losses=None):
    """`small` for 20 steps of 3 FLOPs, `large` on with its schedule for 20 of 10; scratch 400 FLOPs to loss 4."""
    run = make_run(folder, STAGES)
    train(run, "small", SMALL, losses or {0: 8.0, 20: 5.0}, flops=3)
    expand(run, "grown", "small", LARGE)
    train(run, "large", LARGE, LARGE_LOSS, origin="grown", **ON)
    train(run, "scratch", LARGE, SCRATCH_LOSS)
    return run


def test_a_run_that_grows_is_one_curve_and_its_cost_the_sum(tmp_path):
    """4 is reached half way between 100 and 200 FLOPs of `large`, behind 60 of `small`."""
    report = build([grown_run(tmp_path / "run")])
    one = only(report)
    assert one.chain == ["small", "large"] and one.source.stages == []
    assert one.given.flops == one.all_in.flops == 210
    chart = figures.compared(report.runs[0], [one])
    whole = next(line for line in chart.lines if line.label and line.label.startswith("large, grown within its run"))
    assert whole.x == [0, 60, 60, 160, 260] and whole.y == [8.0, 5.0, 5.0, 4.5, 3.5]
    assert "all-in" not in str(chart.lines) and "small" not in {line.label for line in chart.lines}
    page = summary(report, tmp_path / "report.html")
    assert "The run that ends as 'large', 'small' counted, saves 47.5 % against training from scratch." in page
    assert "Whole run" in page and "Given the small model" not in page
    losses, rates = figures.training(report.runs[0]), figures.rates(report.runs[0])
    for chart in (losses, rates):
        behind = next(line for line in chart.lines if line.label == "large")
        assert min(behind.x) == 21 and max(behind.x) == 40


def test_a_target_may_be_reached_before_the_growth(tmp_path):
    """4 lies between 8 at 0 FLOPs and 3.9 at 30; behind the growth the loss is 5 again, and 4 for good at 210."""
    run = grown_run(tmp_path / "run", {0: 8.0, 10: 3.9, 20: 3.8})
    first = only(build([run], target="lowest"))
    assert first.given.flops == first.all_in.flops == round(30 * 4 / 4.1)
    assert only(build([run])).given.flops == 210


def test_a_run_that_began_from_a_small_model_is_given_that_alone(tmp_path):
    """60 FLOPs of `seed`, from which `small` was grown, that grew into `large` within its run."""
    run = make_run(tmp_path / "run", {"seed": "train", "first": "expand", **STAGES})
    train(run, "seed", SMALL, {0: 8.0, 20: 6.0}, flops=3)
    expand(run, "first", "seed", SMALL)
    train(run, "small", SMALL, {0: 6.0, 20: 5.0}, flops=3, origin="first")
    expand(run, "grown", "small", LARGE)
    train(run, "large", LARGE, LARGE_LOSS, origin="grown", **ON)
    train(run, "scratch", LARGE, SCRATCH_LOSS)
    one = next(each for each in build([run]).runs[0].comparisons if each.stage == "large")
    assert one.chain == ["small", "large"] and [each.stage for each in one.source.stages] == ["seed"]
    assert (one.given.flops, one.all_in.flops) == (210, 270)


def test_a_chain_without_a_baseline_is_drawn_behind_what_came_before(tmp_path):
    run = make_run(tmp_path / "run", {"small": "train", "grown": "expand", "large": "train"})
    train(run, "small", SMALL, {0: 8.0, 20: 5.0}, flops=3)
    expand(run, "grown", "small", LARGE)
    train(run, "large", LARGE, LARGE_LOSS, origin="grown", **ON)
    chart = figures.uncompared(build([run]).runs[0])
    assert [(line.label, line.x) for line in chart.lines] == [("small", [0, 60]), ("large", [60, 160, 260])]
