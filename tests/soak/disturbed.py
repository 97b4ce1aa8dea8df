"""A run under its faults, from its first command to the end of its last."""

import random
import time
from collections.abc import Callable, Mapping, Sequence

from tests.helpers.waiting import patience
from tests.soak import commands
from tests.soak.chains import SAVE_EVERY, TRAINED, Chain
from tests.soak.commands import Command
from tests.soak.faults import COSTLY, DAMAGE, KINDS, TWO_HOSTS, Disk, Kind, Scene, in_state
from tests.soak.log import Log, Record
from tests.soak.network import Network
from tests.soak.phases import Start
from tests.soak.plans import Planned

POLL = 0.004
"""Seconds."""
DEADLINE = 180.0
"""Seconds within which a command must do the next thing: finish a step, a stage, or end. Far above what it takes."""
GONE = 5.0
"""Seconds after a command's end within which no process of it may be left."""


class StuckError(Exception):
    """The run cannot go on."""


class Disturbed:
    """chain: the run, number: of it in the log. start: starts its next command, on one host or on both hosts of a
    network. durations: seconds that phases take."""

    def __init__(
        self,
        chain: Chain,
        number: int,
        log: Log,
        disk: Disk,
        network: Network | None,
        start: Callable[[Chain, Network | None], Command],
        durations: Mapping[str, float],
    ):
        self.chain, self.number, self.log, self.disk, self.network = chain, number, log, disk, network
        self._next, self._durations = start, durations
        self._ahead: list[Planned] = []
        self._start: Start | None = None
        self._over = False
        self._awaited = False  # the first step behind a fault
        self._redo = {stage: chain.to_redo(stage) for stage in TRAINED}
        self._state: object = None
        self._since = self._part_since = 0.0

    def through(self, planned: Sequence[Planned], seed: str) -> list[str]:
        """Every fault, then the rest of the run. Returns what kept it from its end."""
        try:
            for position, fault in enumerate(planned):
                self._ahead = list(planned[position:])
                if self._go_on(until=lambda fault=fault: self._due(fault)):
                    self._happen(fault, random.Random(f"{seed} {position}"))
            self._ahead = []
            self._go_on(until=lambda: False)
        except StuckError as error:
            commands.kill_all()
            return [str(error)]
        return []

    def _go_on(self, until: Callable[[], bool]) -> bool:
        """Let the run go on, starting its commands. Returns whether the moment came before the end."""
        while not self._over:
            start = self._start or self._begin()
            if start.command.code is not None:
                self._ended(start.command)
                continue
            self._look(start)
            if until():
                return True
            time.sleep(POLL)
        return False

    def _begin(self) -> Start:
        self._awaited = self.chain.part in TRAINED and self._was_ended()
        ends = next((fault.kind for fault in self._ahead if KINDS[fault.kind].ends), None)
        self._start = Start(self.chain, self._next(self.chain, self.network if ends == TWO_HOSTS else None))
        return self._start

    def _was_ended(self) -> bool:
        """Whether a fault has ended the command before."""
        before = self.log.of_chain(self.number)
        return bool(before) and before[-1].detection is not None and before[-1].restart is None

    def _ended(self, command: Command) -> None:
        """By itself."""
        if command.code != 0:
            raise StuckError(
                f"'{command.arguments[0]}' ends with {command.code} without a fault: {last_line(command.text)}"
            )
        self._start, self._over = None, command.arguments[0] == "run"

    def _look(self, start: Start) -> None:
        """Note what has changed. Raises StuckError where nothing has for too long."""
        part, now = self.chain.part, time.monotonic()
        state = (start, part, start.phase, start.steps(part) if part in TRAINED else 0)
        if state != self._state:
            if self._state is None or state[:2] != self._state[:2]:
                self._part_since = now
            self._state, self._since = state, now
        if self._awaited and part in TRAINED and start.steps(part):
            self.log.restarted(round(now - start.command.begun, 3))
            self._awaited = False
        if now - self._since > DEADLINE:
            raise StuckError(f"hang: nothing new for {DEADLINE:.0f} s, {part}, {start.phase}: {self._left()}")

    def _left(self) -> str:
        return "; ".join(map(in_state, commands.below()))

    def _due(self, fault: Planned) -> bool:
        start, parts, part = self._start, self.chain.variant.parts, self.chain.part
        if part is None or parts.index(part) > parts.index(fault.part):
            return True
        if part != fault.part:
            return False
        share = time.monotonic() - self._part_since >= fault.share * self._durations[fault.phase]
        if part not in TRAINED or (fault.phase == "starting" and not start.steps(part)):
            return share
        steps = start.steps(part)
        if fault.phase != "saving" or steps >= fault.steps[1]:
            return steps >= max(1, fault.steps[0])
        if steps >= fault.steps[0] and self.chain.saving(part):
            time.sleep(fault.share * self._durations["saving"])
            return True
        return False

    def _happen(self, fault: Planned, draw: random.Random) -> None:
        start, kind, now = self._start, KINDS[fault.kind], time.monotonic()
        network = self.network if len(start.command.processes) > 1 else None
        if fault.kind == TWO_HOSTS and not network:
            return
        scene = Scene(self.chain, start.command, self.disk, network, start.phase, draw)
        moment = now - start.command.begun
        record = Record(self.number, len(self.log.faults), fault.kind, scene.phase, fault.phase, round(moment, 3))
        kind.act(scene)
        if not kind.ends:
            self._survive(start, record)
        elif not self._end(scene, kind, record, now):
            return  # it came too late: the command had ended
        record.told = scene.told
        if fault.kind in DAMAGE and not scene.told:
            record.kind = "command killed"
        self._redone(record)
        self.log.add(record)

    def _survive(self, start: Start, record: Record) -> None:
        """The command must go on as if nothing had been."""
        before = self._state
        self._go_on(until=lambda: self._state != before)
        if self._start is start:
            record.said = last_line(start.command.text)

    def _end(self, scene: Scene, kind: Kind, record: Record, begun: float) -> bool:
        """Wait for the command's end, and for that of all its processes. Returns whether the fault was in time."""
        command = scene.command
        while command.code is None and time.monotonic() - begun < DEADLINE:
            kind.hold(scene)
            time.sleep(POLL)
        if command.code is None:
            record.wrong.append(f"hang: alive {DEADLINE:.0f} s behind the fault: {self._left()}")
            commands.kill_all()
        record.detection = round(time.monotonic() - begun, 3)
        self._gone(record)
        self._start = None
        kind.behind(scene)
        record.code, record.said = command.code, last_line(command.text)
        if command.code == 0 and command.code not in kind.codes:
            return False
        if command.code not in kind.codes:
            record.wrong.append(f"exit code {command.code}, expected one of {kind.codes}: {record.said}")
        if "Traceback" in command.text:
            record.wrong.append(f"a traceback in {command.processes[0].said}")
        return True

    def _gone(self, record: Record) -> None:
        begun = time.monotonic()
        while (left := commands.below()) and time.monotonic() - begun < patience(GONE):
            time.sleep(POLL)
        record.gone = round(time.monotonic() - begun, 3)
        if left:
            record.wrong.append(f"orphans {GONE:.0f} s behind the end: {self._left()}")
            commands.kill_all()
        commands.reap()

    def _redone(self, record: Record) -> None:
        """Steps that the next start will do again, unless an earlier fault has counted them: one save interval at most,
        and one more for each checkpoint that was damaged, could not be written, or was being written still."""
        for stage in TRAINED:
            most = SAVE_EVERY * (1 + (record.kind in COSTLY) + self.chain.saving(stage))
            state = self.chain.to_redo(stage)
            if record.detection is not None and state != self._redo[stage] and state[0]:
                record.redone[stage] = state[0]
                if state[0] > most:
                    record.wrong.append(f"{stage}: {state[0]} steps to redo, at most {most} are expected")
            if record.detection is not None:
                self._redo[stage] = state


def last_line(text: str) -> str:
    """Of what a command has said, the error first."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("lemon: ")]
    return (errors or lines or [""])[-1][:300]
