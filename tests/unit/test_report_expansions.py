"""What the report says of expansions: what was declared and measured, and that lossy as declared is no failure."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.records.run_folder import write_json
from pipeline.report import build, figures, write
from tests.helpers.invented_runs import LARGE, LARGE_LOSS, SCRATCH_LOSS, SMALL, expand, make_run, simple_run, train
from tests.helpers.pages import Page

GATES = {"float64": 2e-6, "float32": 1e-5}
REASONS = ["new units come from the next layer", "layers repeat from 2 to 4"]


def measured(difference: float, **more) -> dict:
    """What a verification leaves in stage.json."""
    return {"float64": difference, "float32": difference, "samples": 2, "gates": GATES, **more}


def grown(folder: Path, **facts) -> Path:
    """A run whose expansion has these facts."""
    run = simple_run(folder)
    expand(run, "grown", "small", LARGE, **facts)
    return run


def lossy_run(folder: Path) -> Path:
    found = measured(0.9, symmetry={"mlp": 0.0})
    run = grown(folder, method="aki", lossless=False, optimizer_state="reset", verification=found)
    write_json(run / "grown" / "plan.json", {"rows": [], "lossy": REASONS, "lossless": False})
    return run


def page(run: Path) -> Page:
    shown = Page(write(build([run]), run).read_text())
    assert not shown.unclosed and not shown.crossed
    return shown


def test_lossy_as_declared_is_no_failure(tmp_path):
    run = lossy_run(tmp_path / "run")
    (one,) = build([run]).runs[0].continuity
    assert (one.method, one.lossless, one.lossy, one.optimizer_state) == ("aki", False, REASONS, "reset")
    assert [verdict.difference for verdict in one.verification] == [0.9, 0.9]
    shown = page(run)
    for precision in ("float64", "float32"):
        assert ["grown", precision, "9.0e−01", "–", "lossy, as declared"] in shown.rows
    assert f"'grown' is lossy, as declared: {REASONS[0]}; {REASONS[1]}." in shown.words
    assert "Grown by method 'aki', lossy, as declared." in shown.words
    assert "misses the gate" not in shown.words and "within the gate" not in shown.words


def test_a_lossless_method_is_held_to_its_gates(tmp_path):
    kept = page(grown(tmp_path / "kept", verification=measured(1e-8)))
    missed = page(grown(tmp_path / "missed", verification=measured(1e-3)))
    assert kept.words.count("within the gate") == 2 and "misses the gate" not in kept.words
    assert "lossy" not in kept.words.split("FLOPs ledger")[-1]
    assert missed.words.count("misses the gate") == 2 and "within the gate" not in missed.words
    assert "Grown by method 'lemon', lossless." in kept.words


def test_everything_a_verification_measured_is_shown(tmp_path):
    more = {
        "tolerance": 3e-7,
        "drift": [1e-9, 4e-8],
        "symmetry": {"query": 0.25, "embed": 2e-3, "mlp": 0.0},
        "loss": [6.9290, 6.9523],
        "stored": 1.9e-3,
    }
    run = grown(tmp_path / "run", optimizer_state="grow", verification=measured(1e-8, **more))
    (one,) = build([run]).runs[0].continuity
    assert {key: getattr(one, key) for key in more} == more
    shown = page(run)
    for words in (
        "hold 3.0e−07 for post-LN depth",
        "the loss goes from 6.9290 to 6.9523",
        "drifts by 4.0e−08 at most",
        "Rounding to the stored dtype makes the difference of 'grown' 1.9e−03 in float64",
    ):
        assert words in shown.words, words
    for row in (
        ["grown", "small", "lemon", "lossless", "grow"],
        ["expansion", "query", "embed", "mlp"],
        ["grown", "0.250", "2.0e−03", "0"],
    ):
        assert row in shown.rows, row
    assert "0.0" in shown.titles  # the exact measure, under the pointer


def test_spaces_without_copies_leave_a_gap(tmp_path):
    """Two expansions that hold copies in different spaces share one table."""
    run = make_run(tmp_path / "run", {"small": "train", "wide": "expand", "tall": "expand"})
    train(run, "small", SMALL, {0: 8.0, 20: 5.0})
    expand(run, "wide", "small", LARGE, verification=measured(1e-8, symmetry={"query": 0.5}))
    expand(run, "tall", "small", LARGE, verification=measured(1e-8, symmetry={"mlp": 0.75}))
    rows = page(run).rows
    assert ["wide", "0.500", "–"] in rows and ["tall", "–", "0.750"] in rows


def test_a_run_that_recorded_less_stays_readable(tmp_path):
    run = simple_run(tmp_path / "run")
    (one,) = build([run]).runs[0].continuity
    nothing = {"lossy": [], "tolerance": 0.0, "drift": [], "symmetry": {}, "loss": None, "stored": None}
    assert {key: getattr(one, key) for key in nothing} == nothing
    words = page(run).words
    assert "Symmetry" not in words and "post-LN" not in words and words.count("within the gate") == 2


def test_an_expansion_that_has_only_begun(tmp_path):
    run = grown(tmp_path / "run", verification={})
    assert "Verification" not in page(run).words


def test_a_start_outside_any_run_names_no_method(tmp_path):
    run = simple_run(tmp_path / "run", origin="elsewhere/model")
    (one,) = build([run]).runs[0].comparisons
    assert one.expansion is None and "Grown by method" not in page(run).words


def test_error_damaged_plan(tmp_path):
    run = lossy_run(tmp_path / "run")
    (run / "grown" / "plan.json").write_text("{half")
    with pytest.raises(UserError, match=r"grown/plan.json: not valid JSON .*; the file is damaged"):
        build([run])


METHODS = {"by-lemon": True, "by-fpi": True, "by-aki": False, "by-stack": False}


def many(folder: Path, methods: list[str]) -> Path:
    """One source, one baseline, and an expansion with its training for each method."""
    names = [name for method in methods for name in (method, method.removeprefix("by-"))]
    kinds = {name: "expand" if name.startswith("by-") else "train" for name in names}
    run = make_run(folder, {"small": "train", **kinds, "scratch": "train"})
    train(run, "small", SMALL, {0: 8.0, 20: 5.0}, flops=3)
    for method in methods:
        name, lossless = method.removeprefix("by-"), METHODS[method]
        found = measured(1e-8 if lossless else 0.5)
        expand(run, method, "small", LARGE, method=name, lossless=lossless, verification=found)
        train(run, name, LARGE, LARGE_LOSS, origin=method)
    train(run, "scratch", LARGE, SCRATCH_LOSS)
    return run


def test_four_methods_have_four_colours_and_one_figure(tmp_path):
    content = build([many(tmp_path / "run", list(METHODS))]).runs[0]
    assert [one.expansion.method for one in content.comparisons] == ["lemon", "fpi", "aki", "stack"]
    assert len({figures.colours(content)[stage] for stage in ("lemon", "fpi", "aki", "stack", "scratch", "small")}) == 6
    labels = [line.label for line in figures.compared(content, content.comparisons).lines if line.label]
    assert "stack, expanded: 150 FLOPs, saves 62.5 %" in labels and not any("all-in" in label for label in labels)
    page(tmp_path / "run")


def test_two_methods_show_what_their_sources_cost(tmp_path):
    content = build([many(tmp_path / "run", ["by-lemon", "by-aki"])]).runs[0]
    labels = [line.label for line in figures.compared(content, content.comparisons).lines]
    assert "aki, all-in: 210 FLOPs, saves 47.5 %" in labels and labels.count("small") == 1


@pytest.mark.parametrize("steep, highest", [(True, 2.0), (False, 9.0)])
def test_only_a_steep_beginning_is_cut_off(steep, highest):
    """The beginning is where the curve itself begins: behind its source's training that is not 0."""
    line = figures.Line([100, 105, 110, 200], [9.0, 8.0, 2.0, 1.0], "blue", steep=steep)
    assert highest < figures.settled([line])[1] < highest + 1


def test_a_flat_line_lies_in_the_middle():
    low, high = figures.settled([figures.Line([0, 1], [1e-3, 1e-3], "blue")])
    assert 0 < low < 1e-3 < high < 2e-3
