"""The soak's plans, its log, its tables; the soak itself is run by tests/distributed/test_soak.py."""

from collections import Counter

import pytest

from tests.soak.chains import SAVE_EVERY, STEPS, TRAINED, VARIANTS
from tests.soak.faults import DAMAGE, KINDS
from tests.soak.log import End, Log, Record
from tests.soak.plans import plan, shared_out
from tests.soak.table import report


def some_faults(log: Log) -> None:
    log.add(Record(0, 0, "worker killed", "training", "training", 1.0, code=2, detection=0.5, redone={"small": 3}))
    log.restarted(2.0)
    log.add(Record(0, 1, "slow rank", "saving", "saving", 1.0))
    log.add(Record(0, 2, "worker killed", "saving", "saving", 1.0, code=2, detection=1.5, redone={"large": 1}))
    log.add(End(0, "zero2-zero1-reset", []))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("count", [1, 6, 20])
def test_a_plan_follows_from_its_seed(variant, count):
    plans = [plan(variant, count, list(KINDS), seed) for seed in ("a", "a", "b")]
    assert plans[0] == plans[1] != plans[2] and {len(each) for each in plans} == {count}
    assert [part for part, _ in shared_out(variant, count)] == list(variant.parts)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_faults_come_in_order_and_where_they_can(variant):
    planned = plan(variant, 20, list(KINDS), "1")
    parts = [variant.parts.index(fault.part) for fault in planned]
    assert parts == sorted(parts) and set(parts) == set(range(len(variant.parts)))
    for stage in TRAINED:
        steps = [fault.steps for fault in planned if fault.part == stage]
        assert steps == sorted(steps) and all(1 <= first <= last < STEPS for first, last in steps)
    for part in set(variant.parts) - set(TRAINED):
        ends = [KINDS[fault.kind].ends for fault in planned if fault.part == part]
        assert ends == sorted(ends, reverse=True)
    assert all(fault.phase in KINDS[fault.kind].phases for fault in planned)
    assert all(fault.steps[0] > 2 * SAVE_EVERY for fault in planned if fault.kind in DAMAGE)


def test_every_kind_comes():
    dealt = Counter(fault.kind for number in range(5) for fault in plan(VARIANTS[0], 20, list(KINDS), f"1 {number}"))
    assert set(dealt) == set(KINDS) and min(dealt.values()) >= 5


def test_a_log_goes_on_behind_a_line_that_was_cut(tmp_path):
    log = Log(tmp_path / "soak.jsonl")
    some_faults(log)
    with log.path.open("a") as file:
        file.write('{"chain": 1, "numb')
    again = Log(log.path)
    assert again.faults == log.faults and again.ends == log.ends and again.next_chain == 1
    again.add(Record(1, 3, "full disk", "saving", "saving", 1.0, redone={"small": 1}, wrong=["hang: alive"]))
    last = Log(log.path)
    assert len(last.faults) == 4 and last.redone(0) == {"small": 3, "large": 1} and last.redone(1) == {"small": 1}
    assert last.wrong == ["chain 1, fault 3: hang: alive"]


def test_the_table(tmp_path):
    log = Log(tmp_path / "soak.jsonl")
    some_faults(log)
    said = report(log)
    assert said.startswith(
        "3 faults in 1 runs; 1 of these ended as if nothing had been; hangs: 0, orphans: 0, all that"
    )
    assert "| worker killed |  | 1 | 1 |  |  | 2 |" in said
    assert "| worker killed | 1.00, at most 1.50 | 2.00, at most 2.00 | 2, at most 3 |" in said
