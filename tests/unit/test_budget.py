"""The parts of a step, what they add up to, and kernels that overlap."""

import pytest
from rich.console import Console

from pipeline.accounting.budget import PARTS, Budget, Settings, Work, kernels, parts, utilization
from pipeline.runs import budget_tables

STEPS = [
    {"data": 1.0, "forward": 2.0, "backward": 4.0, "communication": 1.0, "optimizer": 1.0, "other": 1.0},
    {"data": 1.0, "forward": 2.0, "backward": 5.0, "communication": 3.0, "optimizer": 1.0, "other": 0.0},
    {"data": 1.0, "forward": 2.0, "backward": 6.0, "compile": 100.0, "optimizer": 1.0, "other": 0.0},
]
"""Of one rank: 10, 12 and 10 seconds; compiling is no part of a step."""


def test_parts_add_up_to_the_step():
    step, of = parts([STEPS])
    assert (step.median, step.least, step.most, step.share) == (10.0, 10.0, 12.0, 1.0)
    assert list(of) == list(PARTS) and sum(part.share for part in of.values()) == pytest.approx(1.0)
    assert (of["backward"].median, of["backward"].least, of["backward"].most) == (5.0, 4.0, 6.0)
    assert of["communication"].share == pytest.approx(4 / 32) and of["communication"].median == 1.0


def test_times_are_of_rank_0_beside_the_slowest():
    slow = [{**step, "data": 7.0} for step in STEPS]
    step, of = parts([STEPS, slow])
    assert (of["data"].median, of["data"].slowest, step.median, step.slowest) == (1.0, 7.0, 10.0, 16.0)


def test_what_hides_behind_computing_is_not_exposed():
    """Two steps: one kernel of communication inside another's time, one that ends a second after it."""
    told = kernels([(0.0, 4.0), (10.0, 14.0)], [(1.0, 3.0), (13.0, 15.0), (13.5, 14.5)], steps=2)
    assert (told.computing, told.communicating, told.exposed) == (4.0, 2.0, 0.5)
    assert kernels([], [], steps=1).exposed == 0.0


def test_a_share_of_the_peak():
    assert utilization(300, 2.0, 1000.0) == 0.15 and utilization(300, 2.0, None) is None


SETTINGS = {
    "stage": "large",
    "model": "base",
    "origin": "fresh weights",
    "device": "NVIDIA H100",
    "ranks": 2,
    "zero_stage": 1,
    "micro_batch": 8,
    "micro_batches": 4,
    "numbers": "bf16",
    "attention": "sdpa",
    "compile": True,
    "activation_checkpointing": 2,
}


def a_budget(peak: float | None) -> Budget:
    step, of = parts([STEPS])
    work = Work(samples=64, tokens=8192, flops=3000, again=1000, peak=peak, peak_of="from data sheets")
    return Budget(
        settings=Settings.model_validate(SETTINGS),
        work=work,
        steps=len(STEPS),
        step=step,
        parts=of,
        compile_seconds=100.0,
        samples_per_second=6.4,
        tokens_per_second=819.2,
        mfu=utilization(3000, step.median, peak),
        hfu=utilization(4000, step.median, peak),
        memory=[3 * 2**30, 2**30],
        memory_of="allocated on the device",
    )


def shown(budget: Budget) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        budget_tables.show(budget, console)
    return captured.get()


def test_the_table_has_the_numbers_of_the_json():
    """Every part with its median, share, least, most and slowest; the quotients with what they are made of."""
    budget = Budget.model_validate_json(a_budget(1000.0).model_dump_json())
    words = shown(budget)
    rows = {line.split()[0]: line.split() for line in words.splitlines() if line.endswith("ms") or " ms " in line}
    for name, part in [*budget.parts.items(), ("step", budget.step)]:
        numbers = [float(word) for word in rows["host" if name == "other" else name] if word[0].isdigit()]
        told = (1e3 * part.median, 100 * part.share, 1e3 * part.least, 1e3 * part.most, 1e3 * part.slowest)
        assert numbers == pytest.approx(list(told), abs=0.06)
    assert "64 samples = 8 x 4 x 2" in words and "6.4 samples/s, 819 tokens/s" in words
    assert "MFU          30 % = 3e+03 FLOPs of the model / (10 s x 1e+03 FLOP/s)" in words
    assert "HFU          40 % = 4e+03 FLOPs with those besides the model's / (10 s x 1e+03 FLOP/s)" in words
    assert "1e+03 FLOP/s of all 2 rank(s) together, from data sheets" in words
    assert "3.00 GiB, 1.00 GiB at most" in words and "compiled layers, activation_checkpointing 2" in words


def test_a_peak_that_is_not_known_is_said():
    budget = a_budget(None)
    assert budget.mfu is None and budget.hfu is None
    assert "MFU, HFU     not known: no data sheet here has the peak of NVIDIA H100" in shown(budget)
