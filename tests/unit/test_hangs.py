"""What counts as a hang, and who is named: from beats and a clock alone."""

import pytest

from pipeline.config.hang import HangChoice
from pipeline.training.hangs.beat import Beat
from pipeline.training.hangs.channel import State
from pipeline.training.hangs.judgement import Member, Observer, Verdict, judge, judge_first
from pipeline.training.hangs.limits import MARGIN, Limits

ALLOWED = {"step": 8.0, "save": 118.0}


def limits(**keys) -> Limits:
    return Limits(HangChoice(**keys))


def test_what_was_never_timed_has_the_longest_limit():
    fresh = limits()
    assert {phase: fresh.of(phase) for phase in ("start", "step", "evaluation", "save", "end")} == dict.fromkeys(
        ("start", "step", "evaluation", "save", "end"), 600
    )


def test_a_step_has_ten_seconds_or_five_medians():
    learnt = limits()
    learnt.took("step", 300.0)  # it compiles
    assert learnt.of("step") == 1500
    for _ in range(3):
        learnt.took("step", 0.2)
    assert learnt.of("step") == 10
    for _ in range(40):
        learnt.took("step", 4.0)
    assert learnt.of("step") == 20
    assert learnt.standstill("step") == 20 - MARGIN


def test_evaluations_and_saves_have_their_last_time_and_the_start_is_never_learnt():
    learnt = limits(pause="1 minute", factor=3)
    for phase in ("start", "evaluation", "save", "end"):
        learnt.took(phase, 2.0)
    assert [learnt.of(phase) for phase in ("start", "evaluation", "save", "end")] == [600, 60, 60, 600]
    learnt.took("save", 90.0)
    assert [learnt.of(phase) for phase in ("evaluation", "save")] == [60, 270]
    learnt.took("save", 2.0)
    assert learnt.of("save") == 60


def test_a_short_limit_is_not_used_up_by_the_margin():
    learnt = limits(step="1 second")
    learnt.took("step", 0.01)
    assert learnt.standstill("step") == 0.5


@pytest.mark.parametrize("key", ["step", "pause", "first"])
def test_collectives_wait_longer_than_the_watch(key):
    with pytest.raises(ValueError, match=f"hang.{key}: '2 hours' is longer than hang.collective, '30 minutes'"):
        HangChoice(**{key: "2 hours"})


class Ranks:
    """Ranks that beat each half second, two on a node."""

    def __init__(self, size: int, per_node: int = 2):
        nodes = -(-size // per_node)
        self.members = [Member(rank, rank // per_node, "abc"[rank // per_node], nodes) for rank in range(size)]
        self.observer, self.now, self.number = Observer(range(size), 0.0), 0.0, 0
        self.beats = {rank: Beat(0, 120, 1000, "step", 120) for rank in range(size)}

    def pass_time(self, seconds: float, silent: tuple[int, ...] = (), phase: str = "step") -> Verdict | None:
        """The first verdict, if any."""
        for _ in range(int(seconds * 2)):
            self.now, self.number = self.now + 0.5, self.number + 1
            for rank in set(self.beats) - set(silent):
                last = self.beats[rank]
                self.beats[rank] = Beat(self.number, last.order, last.collectives, phase, last.step, last.work)
            self.observer.see(self.beats, self.now)
            if verdict := judge(self.observer, self.members, self.now, ALLOWED.__getitem__):
                return verdict
        return None

    def train(self, *but: int) -> None:
        for rank in set(self.beats) - set(but):
            last = self.beats[rank]
            self.beats[rank] = Beat(last.number, last.order + 1, last.collectives + 3, "step", last.step + 1)


def test_as_long_as_all_go_on_nothing_hangs():
    ranks = Ranks(4)
    for _ in range(10):
        ranks.train()
        assert ranks.pass_time(8) is None
    assert ranks.pass_time(100, phase="save") is None


def found(ranks: Ranks, **more) -> str:
    verdict = ranks.pass_time(9.5, **more)
    assert verdict is not None and ranks.now <= 9.5 and verdict.folder == "step-0000120"
    return verdict.what


def test_a_rank_without_beats_is_named():
    ranks = Ranks(2)
    assert found(ranks, silent=(1,)) == "rank 1 has given no sign of life for 8 s in step 120: stopped, or lost"
    ranks = Ranks(4)
    assert found(ranks, silent=(2,)).startswith("rank 2 of node 1 (b) has given no sign of life for ")
    ranks = Ranks(4, per_node=4)
    assert found(ranks, silent=(1, 3)).startswith("rank 1 and rank 3 have given no sign of life ")


def test_a_rank_stopped_right_behind_a_pause_has_the_limit_of_the_step_that_others_wait_in():
    """Its last beat, of half a second before, is from the evaluation, which may take a hundred times as long."""
    ranks = Ranks(2)
    ranks.beats[1] = Beat(0, 119, 990, "evaluation", 119)
    assert ranks.pass_time(0.5) is None
    assert found(ranks, silent=(1,)) == "rank 1 has given no sign of life for 8 s in step 120: stopped, or lost"


def test_a_node_without_beats_is_named_with_the_link():
    said = "has answered for 8 s in step 120: the node, or the link to node 0 (a), is lost"
    ranks = Ranks(6)
    assert found(ranks, silent=(2, 3)) == f"no rank of node 1 (b) {said}"
    ranks = Ranks(6)
    assert found(ranks, silent=(2, 3, 4, 5)) == f"no rank of node 1 (b) and node 2 (c) {said}"
    ranks = Ranks(6)
    assert found(ranks, silent=(1, 2, 3)).startswith("rank 1 of node 0 (a), rank 2 of node 1 (b) and rank 3 ")


def test_a_rank_that_beats_and_does_not_come_is_named():
    ranks = Ranks(4)
    ranks.beats = {rank: Beat(0, 120, 1000 + (rank != 3), "step", 120) for rank in range(4)}
    said = "rank 3 of node 1 (b) has not come to what the others wait in for 8 s in step 120"
    assert found(ranks) == said
    assert ranks.pass_time(0.5).answering == 4


def test_where_all_wait_for_the_same():
    said = "all 4 ranks have waited in the same place for 8 s in step 120: a link between two of them is lost"
    assert found(Ranks(4)) == said


def test_silence_is_told_from_a_short_standstill():
    ranks = Ranks(2)
    assert judged_after(ranks, 2.0, silent=(1,)).startswith("rank 1 has given no sign of life for ")


def judged_after(ranks: Ranks, seconds: float, silent: tuple[int, ...]) -> str:
    """With another limit."""
    assert ranks.pass_time(seconds + 1, silent) is None
    return judge(ranks.observer, ranks.members, ranks.now, lambda phase: seconds).what


def test_many_are_not_all_named():
    ranks = Ranks(1000, per_node=1000)
    said = found(ranks, silent=tuple(range(10, 100)))
    assert said.startswith("rank 10, rank 11, ") and "rank 17 and 82 more have given no sign of life" in said


def test_what_the_watch_slept_through_is_no_hang():
    """Slurm suspends jobs; a process may be starved."""
    ranks = Ranks(4)
    assert ranks.pass_time(5) is None
    ranks.now += 3600
    assert ranks.pass_time(4) is None
    assert ranks.pass_time(4) is not None


def test_rank_0_is_looked_at_by_the_others():
    observer, own = Observer(range(1), 0.0), Beat(1, 7, 0, "step", 7)
    alone, two = [Member(0, 0, "a", 1), Member(1, 0, "a", 1)], [Member(0, 0, "a", 2), Member(4, 1, "b", 2)]
    for half in range(20):
        observer.see({0: Beat(3, 0, 0, "start", 0)}, half / 2)
    assert judge_first(observer, alone, own, 9.0, 9.0) is None
    said = judge_first(observer, alone, own, 9.5, 9.0)
    assert said == "rank 0 has given no sign of life for 10 s in step 7: stopped, or lost"
    said = judge_first(observer, two, own, 9.5, 9.0)
    assert said.endswith("stopped, or lost, or the link to it from node 1 (b)")


def test_what_is_said_arrives():
    beat, verdict = Beat(3, 120, 4711, "evaluation", 60), Verdict("rank 1 „é“", "step-0000120", 3)
    assert Beat.parse(str(beat)) == beat and beat.place == "the evaluation at step 60"
    assert State.parse(str(State(5)).encode()) == State(5)
    assert State.parse(str(State(5, verdict)).encode()) == State(5, verdict)


def test_who_waits_for_a_rank_that_works_alone_does_not_hang():
    ranks = Ranks(4)
    for work in range(60):
        ranks.beats[3] = Beat(0, 120, 1000, "step", 120, work)
        assert ranks.pass_time(1) is None
    assert ranks.pass_time(9) is not None
