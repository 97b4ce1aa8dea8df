"""What a command takes, all of its processes together."""

import os
import resource
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.memory import anonymous

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "DS_ACCELERATOR": "cpu",
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True)
class Taken:
    """Seconds of the clock, seconds of CPUs (user and system), the largest RssAnon of any process in bytes, and what
    was printed."""

    seconds: float
    cpu: float
    memory: int
    output: str = ""

    def __add__(self, other: "Taken") -> "Taken":
        """One command behind the other."""
        return Taken(self.seconds + other.seconds, self.cpu + other.cpu, max(self.memory, other.memory))


def taken(command: list[str]) -> Taken:
    """Run it. Raises SystemExit with its output when it fails."""
    begun, before = time.perf_counter(), _cpu()
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output[-3000:]}")
    return Taken(time.perf_counter() - begun, _cpu() - before, peak[0], output)


def shell(text: str) -> Taken:
    """The same of a line for bash."""
    return taken(["bash", "-c", f"set -e; {text}"])


def _cpu() -> float:
    """Seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spread(values: list[float], digits: int = 1) -> str:
    """The median, with the smallest and the largest."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
