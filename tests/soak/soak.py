"""The soak itself: runs one after the other, each under its faults, each compared at its end."""

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from tests.soak import commands
from tests.soak.chains import TRAINED, VARIANTS, Chain, Variant
from tests.soak.commands import Command, Process
from tests.soak.comparison import gaps
from tests.soak.disturbed import POLL, Disturbed, last_line
from tests.soak.faults import TWO_HOSTS, Disk
from tests.soak.log import End, Log
from tests.soak.network import CABLE, Network, on_both
from tests.soak.phases import OFFLINE, Start, seconds_to_save
from tests.soak.plans import plan

CHAIN = 20
"""Faults of one run."""
MEBIBYTES = 96
"""Of the small disk."""


class Soak:
    """folder: holds everything. kinds: of faults. imports: start each command as users do, with its imports. say: gets
    a line for each run."""

    def __init__(
        self, folder: Path, seed: str, kinds: Sequence[str], imports: bool = False, say: Callable[[str], None] = print
    ):
        self.folder, self.seed, self.kinds, self.imports, self.say = folder, seed, kinds, imports, say
        for name in ("temporary", "said", "disk"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.log = Log(folder / "soak.jsonl")
        self.disk = Disk(folder / "disk")
        self.network = Network() if TWO_HOSTS in kinds else None

    def go(self, count: int) -> None:
        """Until there are `count` faults, and the run that they came to has ended."""
        commands.adopt_orphans()
        if not self.imports:
            commands.import_once()
        with self._small_disk():
            while (left := count - len(self.log.faults)) > 0:
                self._chain(self.log.next_chain, min(CHAIN, left))

    @contextmanager
    def _small_disk(self) -> Iterator[None]:
        """Empty. Without faults that fill it, any disk does."""
        place = self.folder / "disk"
        if "full disk" not in self.kinds:
            yield
            return
        unmount(place)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m", "lemon-soak", str(place)], check=True)
        try:
            yield
        finally:
            commands.kill_all()
            unmount(place)

    def _chain(self, number: int, count: int) -> None:
        variant = VARIANTS[(number + random.Random(self.seed).randrange(len(VARIANTS))) % len(VARIANTS)]
        plain, durations = self._plain(variant)
        chain = Chain(variant, self.disk.folder / f"chain-{number}")
        chain.begin()
        self.say(f"run {number}: {variant.name}, {count} faults")
        under = Disturbed(chain, number, self.log, self.disk, self.network, self._start, durations)
        seed = f"{self.seed} {number}"
        found = under.through(plan(variant, count, self.kinds, seed), seed) or list(
            gaps(chain, plain, self.log.redone(number))
        )
        self.log.add(End(number, variant.name, found))
        wrong = [*(text for fault in self.log.of_chain(number) for text in fault.wrong), *found]
        self.say(f"run {number}: " + ("\n  ".join(wrong) or "ends as if nothing had been"))
        if wrong:
            shutil.copytree(chain.folder, self.folder / "wrong" / chain.folder.name, dirs_exist_ok=True)
        shutil.rmtree(chain.folder)

    def _start(self, chain: Chain, network: Network | None = None) -> Command:
        """The run's next command."""
        arguments, now = chain.command(), (time.monotonic(), time.time())
        said = self.folder / "said" / f"{chain.folder.name}-{now[1]:.2f}"
        variables = {"TMPDIR": str(self.folder / "temporary"), "OMP_NUM_THREADS": "1"}
        if network is None or arguments[0] == "reshard":
            return Command(arguments, [Process(arguments, said, variables, self.imports)], *now)
        variables["GLOO_SOCKET_IFNAME"] = CABLE
        hosts = [
            Process(each, said.with_suffix(f".{host}"), variables, self.imports, partial(network.enter, host))
            for host, each in enumerate(on_both(arguments))
        ]
        return Command(arguments, hosts, *now)

    def _plain(self, variant: Variant) -> tuple[Chain, dict[str, float]]:
        """The run that nobody disturbs, and the seconds that its phases take."""
        chain = Chain(variant, self.folder / "plain" / variant.name)
        facts = chain.folder / "durations.json"
        if not facts.exists():
            chain.begin()
            facts.write_text(json.dumps(self._measured(chain)))
        return chain, json.loads(facts.read_text())

    def _measured(self, chain: Chain) -> dict[str, float]:
        """Run a chain to its end. Returns seconds by phase."""
        spent = dict.fromkeys(("starting", "training", "saving", "ending", *OFFLINE.values()), 0.0)
        while not chain.finished("large"):
            start = Start(chain, self._start(chain))
            last = start.command.begun
            while start.command.code is None:
                now = time.monotonic()
                spent[start.phase] += now - last
                last = now
                time.sleep(POLL)
            if start.command.code:
                raise AssertionError(f"an undisturbed run fails: {last_line(start.command.text)}")
        return {**spent, "starting": spent["starting"] / len(TRAINED), "saving": median(seconds_to_save(chain))}


def unmount(place: Path) -> None:
    while os.path.ismount(place):
        subprocess.run(["umount", "--lazy", str(place)], check=True)
