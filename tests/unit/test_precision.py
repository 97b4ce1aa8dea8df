"""A precision that the devices do not support is told before anything starts."""

import os
import signal
from pathlib import Path
from typing import get_args

import pytest

from pipeline import config
from pipeline.config.number_formats import Precision
from pipeline.errors import FaultError, UserError
from pipeline.training import device_precisions
from pipeline.training.device_precisions import precisions_of_workers, require_precision, supported_precisions
from tests.helpers.cli import run_python

BERT = Path(__file__).parents[2] / "configs" / "quickstart" / "bert.yaml"


def test_an_unsupported_precision_is_one_line():
    stage = config.load(BERT, ["stages.small.precision=bf16"]).stage("small")
    require_precision(stage, {"fp32", "bf16"})
    with pytest.raises(
        UserError, match=r"^stages\.small\.precision: bf16 is not supported by this machine's .* devices; choose fp32$"
    ):
        require_precision(stage, {"fp32"})


def test_what_is_supported_is_asked_of_deepspeed():
    assert {"fp32"} <= supported_precisions() <= set(get_args(Precision))
    assert precisions_of_workers() == supported_precisions()


def test_a_script_that_asks_beside_a_gpu_is_not_run_again(tmp_path):
    """One without a guard, in whose process CUDA may have begun; it lies elsewhere and finds the package by its own
    `sys.path`."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(device_precisions.__file__).parents[2])!r})\n"
        "print('began')\nimport torch\nfrom pipeline.training import device_precisions\n"
        "torch.cuda.is_available = lambda: True\nprint(*sorted(device_precisions.precisions_of_workers()))\n"
    )
    done = run_python(script, timeout=120)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["began", " ".join(sorted(supported_precisions()))])


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_that_is_killed_while_it_asks_is_a_fault(monkeypatch):
    monkeypatch.setattr(device_precisions, "supported_precisions", killed)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # beside a GPU another Python is asked
    with pytest.raises(FaultError, match=r"was killed \(out of memory\?\); run the command again to resume$"):
        precisions_of_workers()
