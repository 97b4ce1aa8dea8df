"""The command line, inside this process and as a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from tests.helpers.forked_workers import workers_forked
from tests.helpers.processes import Child

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
LAUNCHER_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|CROSS_)?(RANK|WORLD_SIZE|SIZE)|MASTER_(ADDR|PORT)|KUBERNETES_SERVICE_HOST"
    r"|(SLURM|OMPI|PMI|MPI|PET|TORCHELASTIC)_.*"
)


def launcher_variable(name: str) -> bool:
    """Whether a launcher says with it what it has started."""
    return LAUNCHER_VARIABLES.fullmatch(name) is not None


def environment(**more: str) -> dict[str, str]:
    """The environment of a child process: this checkout first, DeepSpeed on the CPU, no launcher around it."""
    inherited = {name: value for name, value in os.environ.items() if not launcher_variable(name)}
    return {**inherited, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "TRANSFORMERS_VERBOSITY": "error", **more}


@contextmanager
def environment_kept() -> Iterator[None]:
    """What a launch leaves in this process's environment is taken back. Its workers are forks."""
    before = dict(os.environ)
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        with workers_forked():
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def lemon(capture: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that runs in this process, which has imported everything already; what
    workers say is captured by `capfd` only."""
    capture.readouterr()  # what made its folders has its own things to say
    with environment_kept():
        code = main(list(map(str, arguments)))
    captured = capture.readouterr()
    return code, captured.out, captured.err


def lemon_here(*arguments: object) -> None:
    """A command that must succeed, in this process; its workers are processes."""
    with environment_kept():
        assert main(list(map(str, arguments))) == 0


def run_python(
    *arguments: object,
    timeout: float = 120,
    env: Mapping[str, str] | None = None,
    interpreter: str = sys.executable,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """A script or module (`-m name`) run to its end by this interpreter, or another, from the repository's root."""
    command = [interpreter, *map(str, arguments)]
    options = {"capture_output": True, "cwd": ROOT, **options}
    return subprocess.run(command, text=True, env=env or environment(), timeout=timeout, check=False, **options)


def run_lemon(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """A command run to its end in a process of its own."""
    return run_python("-m", "pipeline", *arguments, timeout=timeout)


def start_lemon(said: Path, *arguments: object) -> Child:
    """A command that goes on in a fork of this process. said: the file that takes its stderr."""
    with environment_kept():
        return Child(lambda: main(list(map(str, arguments))), said)
