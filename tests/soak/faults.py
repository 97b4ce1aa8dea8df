"""What is done to a run, and how its command may end then."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.errors import FAULT
from pipeline.training import preemption
from tests.soak.chains import TRAINED, Chain
from tests.soak.commands import Command, send, workers
from tests.soak.network import Network

TRAINING, OFFLINE = ("training", "saving"), ("expanding", "resharding")
PHASES = ("starting", *TRAINING, *OFFLINE)
BAD, STOPPED, KILLED = 2, preemption.REQUEUE, -signal.SIGKILL
"""Exit codes: one line says why; it has saved and goes on when it is started again; killed. Of faults: `FAULT`."""


class Disk:
    """The small one on which a run lives."""

    def __init__(self, folder: Path):
        self.folder, self.filler = folder, folder / "filler"

    def fill(self) -> None:
        """To the last byte."""
        with self.filler.open("ab") as file, suppress(OSError):
            while free := shutil.disk_usage(self.folder).free:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free)

    def empty(self) -> None:
        self.filler.unlink(missing_ok=True)


@dataclass
class Scene:
    """Where a fault happens. network: of a command on two hosts. phase: what the command was at. told: what was done,
    for the record."""

    chain: Chain
    command: Command
    disk: Disk
    network: Network | None
    phase: str
    draw: random.Random
    told: str = ""

    def a_worker(self) -> int:
        """Any of them; the command itself where it has none."""
        found = workers(self.command)
        number = self.draw.randrange(len(found)) if found else 0
        self.told = f"worker {number} of {len(found)}" if found else "the command"
        return found[number] if found else self.command.processes[0].pid


@dataclass(frozen=True)
class Kind:
    """A fault. act: begins it. codes: exit codes that are right behind it. hold: called again and again until the
    command has ended. behind: called when all has ended. ends: whether the command must end."""

    act: Callable[[Scene], None]
    phases: tuple[str, ...] = PHASES
    codes: tuple[int, ...] = ()
    hold: Callable[[Scene], None] = lambda scene: None
    behind: Callable[[Scene], None] = lambda scene: None
    ends: bool = True


def kill_worker(scene: Scene) -> None:
    send(scene.a_worker(), signal.SIGKILL)


def kill_command(scene: Scene) -> None:
    send(scene.command.processes[0].pid, signal.SIGKILL)


def ask_to_stop(scene: Scene) -> None:
    """The command, or one of its workers where all of them hear it."""
    one = scene.phase in TRAINING and scene.draw.random() < 0.5
    number = scene.draw.choice([signal.SIGTERM, signal.SIGUSR1]) if scene.phase != "resharding" else signal.SIGTERM
    pid = scene.a_worker() if one else scene.command.processes[0].pid
    scene.told = f"{number.name} to {scene.told or 'the command'}"
    send(pid, number)


def fill_disk(scene: Scene) -> None:
    scene.disk.fill()


def make_room(scene: Scene) -> None:
    scene.disk.empty()


def slow_down(scene: Scene) -> None:
    """A process that is stopped and goes on in turns, or for some seconds."""
    pid, turns = scene.a_worker(), scene.draw.choice([[(0.3, 0.1)] * 6, [(0.05, 0.02)] * 30, [(3.0, 0.0)]])
    scene.told += f" stopped {len(turns)} times for {turns[0][0]} s"
    try:
        for stopped, running in turns:
            send(pid, signal.SIGSTOP)
            time.sleep(stopped)
            send(pid, signal.SIGCONT)
            time.sleep(running)
    finally:
        send(pid, signal.SIGCONT)


def stop_worker(scene: Scene) -> None:
    send(scene.a_worker(), signal.SIGSTOP)


def cut_link(scene: Scene) -> None:
    if scene.network:
        scene.network.cut()


def mend_link(scene: Scene) -> None:
    if scene.network:
        scene.network.mend()


def flip_bit(scene: Scene) -> None:
    def flip(data: bytearray) -> None:
        data[scene.draw.randrange(len(data))] ^= 1 << scene.draw.randrange(8)

    _damage(scene, flip)


def truncate(scene: Scene) -> None:
    def cut(data: bytearray) -> None:
        del data[scene.draw.randrange(len(data)) :]

    _damage(scene, cut)


def _damage(scene: Scene, change: Callable[[bytearray], None]) -> None:
    """Any file of the newest checkpoint, where the stage has another one."""
    stage = scene.chain.part
    found = scene.chain.checkpoints(stage) if stage in TRAINED else []
    if len(found) < 2:
        return
    file = scene.draw.choice(sorted(path for path in found[-1].rglob("*") if path.is_file()))
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)
    scene.chain.damaged.add(found[-1].stat().st_ino)
    scene.told = str(file.relative_to(scene.chain.folder))


KINDS = {
    "worker killed": Kind(kill_worker, codes=(FAULT, BAD, KILLED)),
    "command killed": Kind(kill_command, codes=(KILLED,)),
    "asked to stop": Kind(ask_to_stop, codes=(STOPPED, 0, -signal.SIGTERM, -signal.SIGUSR1)),
    "full disk": Kind(fill_disk, codes=(BAD, 0), hold=fill_disk, behind=make_room),
    "slow rank": Kind(slow_down, phases=(*TRAINING, *OFFLINE), ends=False),
    "flipped bit": Kind(kill_command, TRAINING, codes=(KILLED,), behind=flip_bit),
    "truncated file": Kind(kill_command, TRAINING, codes=(KILLED,), behind=truncate),
    "cut link": Kind(cut_link, TRAINING, codes=(FAULT,), behind=mend_link),
    "worker stopped": Kind(stop_worker, TRAINING, codes=(FAULT,)),
}
"""By name."""
TWO_HOSTS = "cut link"
"""The kind that needs them."""
DAMAGE = ("flipped bit", "truncated file")
"""Which cost the newest checkpoint."""
COSTLY = (*DAMAGE, "full disk")
"""Which may cost it."""


def in_state(process: psutil.Process) -> str:
    """What a process that should have ended is, for the record."""
    with suppress(psutil.NoSuchProcess):
        return f"{process.pid} {process.status()}: {' '.join(process.cmdline())[-120:]}"
    return f"{process.pid} ended"
