"""What a study found: the content of study.json, a public format. Every number of the page follows from it."""

from typing import Any, Literal

from pipeline.accounting.flops import CONVENTION
from pipeline.accounting.recorded_runs import Content
from pipeline.accounting.totals import Amounts
from pipeline.studies.choice import TrialResult
from pipeline.studies.curves import Point
from pipeline.studies.statistics import Sample

Role = Literal["baseline", "frontier", "arm"]


class Savings(Content):
    """Per cent of the baseline's cost under the same seed, at the target; None where that is not reached. given: own
    training FLOPs, the small model given; all_in: with the training of the sources; tuned: with the training of all
    trials of either side, too; time: seconds of training steps, all-in."""

    given: float | None
    all_in: float | None
    tuned: float | None
    time: float | None


class EqualFlops(Content):
    """Against training from scratch with a schedule that ends at the same all-in FLOPs, between two horizons that were
    trained, under the same seed. value: of scratch there; difference: the arm's final value less that; saving: per cent
    of the FLOPs at which scratch ends as the arm does, None where no two horizons enclose that."""

    value: float
    difference: float
    saving: float | None


class SeedResult(Content):
    """An arm under one seed. target: what is to be reached and kept; flops: of own training in all, source: of that
    before it; given: own FLOPs at the target, all_in: with the sources'; seconds: all-in, at the target; memory: bytes
    that rank 0 took at most; before, behind: what was measured on either side of the last growth."""

    seed: int
    finished: bool
    final: float
    target: float
    flops: int
    source: int
    given: int | None
    all_in: int | None
    seconds: float | None
    memory: int | None
    before: float | None
    behind: float | None
    savings: Savings
    equal: EqualFlops | None
    curve: list[Point]


class Summary(Content):
    """Of one saving over the seeds, in per cent. of: the seeds that were trained; reached: those that kept the target,
    of which alone is the sample."""

    of: int
    reached: int
    sample: Sample | None


class AtTarget(Content):
    """Mean savings in per cent over the seeds at another target, where all of them reach it."""

    target: float
    given: float
    all_in: float


class ArmResult(Content):
    """settings: those that were chosen; like: the arm whose choice it took; trial_flops: training FLOPs of all of its
    trials; break_even: how many target models one small model must serve until all-in costs no more than scratch, None
    where that never is; equal: differences of final values at equal FLOPs."""

    name: str
    about: str
    role: Role
    stages: list[str]
    settings: dict[str, Any]
    like: str | None
    trials: list[TrialResult]
    trial_flops: int
    seeds: list[SeedResult]
    given: Summary
    all_in: Summary
    tuned: Summary
    time: Summary
    final: Sample | None
    equal: Sample | None
    break_even: float | None
    by_target: list[AtTarget]


class Spent(Content):
    """FLOPs of one of the study's runs: what savings count, and everything."""

    run: str
    training: Amounts
    everything: Amounts


class StudyResults(Content):
    """All of it. rule: fixed before the first run; added: arms and seeds that came later than its first day;
    unfinished: stages that are missing, as `run/stage`; machine: device and versions of the baseline's last start."""

    format: Literal[1] = 1
    name: str
    question: str
    command: str
    convention: str = CONVENTION
    rule: dict[str, Any]
    began: str
    added: dict[str, str]
    unfinished: list[str]
    machine: dict[str, str]
    arms: list[ArmResult]
    spent: list[Spent]
    whole: Spent

    @property
    def baseline(self) -> ArmResult:
        return next(arm for arm in self.arms if arm.role == "baseline")
