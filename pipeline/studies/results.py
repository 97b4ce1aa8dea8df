"""What a study found: the content of study.json, a public format. Every number of the page follows from it."""

from typing import Any, Literal

from pipeline.accounting.flops import CONVENTION
from pipeline.accounting.recorded_runs import Content
from pipeline.accounting.totals import Amounts
from pipeline.studies.choice import TrialResult
from pipeline.studies.curves import Point
from pipeline.studies.statistics import Sample

Role = Literal["baseline", "frontier", "smaller", "arm"]


class Savings(Content):
    """Per cent of what the baseline costs under the same seed, at the target. given: own training FLOPs, the small
    model given; all_in: with the training of the sources; tuned: with all trials, those of the baseline added to its
    cost too; time: seconds of training steps, all-in. None where either has not ended or not reached the target, where
    a cost is not recorded, where the arm was not tuned, where the machines were not the same."""

    given: float | None = None
    all_in: float | None = None
    tuned: float | None = None
    time: float | None = None


class EqualFlops(Content):
    """Against training from scratch with a schedule that ends at the same all-in FLOPs, between two horizons that were
    trained, under the same seed. value: of scratch there; difference: the arm's final value less that; saving: per cent
    of the FLOPs at which scratch ends as the arm does, None where no two horizons enclose that."""

    value: float
    difference: float
    saving: float | None


class SeedResult(Content):
    """An arm under one seed. complete: whether it and the baseline have ended, without which it counts in no mean;
    target: what is to be reached and kept; flops: of own training in all, source: of that before it, None where it is
    not recorded of the checkpoint `unknown`; given: own FLOPs at the target, all_in: with the sources'; scratch: the
    baseline's there; seconds: all-in, at the target; memory: bytes that rank 0 took at most; before, behind: what was
    measured on either side of the last growth."""

    seed: int
    complete: bool
    final: float
    target: float
    flops: int
    source: int | None
    unknown: str | None
    given: int | None
    all_in: int | None
    scratch: int | None
    seconds: float | None
    memory: int | None
    before: float | None
    behind: float | None
    savings: Savings
    equal: EqualFlops | None
    curve: list[Point]


class Summary(Content):
    """Of one saving over the seeds, in per cent. of: the seeds under which it and the baseline have ended; reached:
    those under which it kept the target, scratch: those under which the baseline did; the sample is of both."""

    of: int
    reached: int
    scratch: int
    sample: Sample | None


class AtTarget(Content):
    """Mean savings in per cent over the seeds at another target, where all of them reach it."""

    target: float
    given: float
    all_in: float


class ArmResult(Content):
    """settings: those that were chosen; like: the arm whose choice it took; trial_flops: training FLOPs of all of its
    trials, 0 where it was not tuned; break_even: how many target models one small model must serve until all-in costs
    no more than scratch, None where that never is, or is not known (every complete seed must have reached the target);
    equal: differences of final values at equal FLOPs; source_final: what its source ends with, before the last growth,
    and source_enough: the seeds under which that is at the target already, nothing where both are of one schedule;
    chain: stages that share its schedule, so that nothing is given; remarks: what makes the comparison worth less;
    machines: devices and ranks of its training."""

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
    source_final: Sample | None
    source_enough: int
    break_even: float | None
    by_target: list[AtTarget]
    chain: list[str]
    remarks: list[str]
    machines: list[str]

    @property
    def nothing_given(self) -> bool:
        """Whether all that it costs is its own: it has grown within one schedule, or not at all."""
        return bool(self.chain) or self.role == "smaller"


class Spent(Content):
    """FLOPs of one of the study's runs: what savings count, and everything."""

    run: str
    training: Amounts
    everything: Amounts


class StudyResults(Content):
    """All of it. study: as its YAML says it; rule: fixed before the first run; added: what was planned later, and when;
    dropped: what was planned once and is no longer there; unfinished: stages that are missing, as `run/stage`; broken:
    trials that have broken down, with what was said; versions: of the baseline's last start."""

    format: Literal[1] = 1
    name: str
    question: str
    command: str
    convention: str = CONVENTION
    study: dict[str, Any]
    rule: dict[str, Any]
    began: str
    added: dict[str, str]
    dropped: list[str]
    unfinished: list[str]
    broken: dict[str, str]
    versions: dict[str, str]
    arms: list[ArmResult]
    spent: list[Spent]
    whole: Spent

    @property
    def baseline(self) -> ArmResult:
        return next(arm for arm in self.arms if arm.role == "baseline")
