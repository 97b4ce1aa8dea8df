"""Who uses the package as a library sees nothing: progress is shown where the logger `pipeline` shows INFO."""

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.checkpoints.serialization.progress import ByteProgress
from pipeline.training import launcher
from pipeline.training.progress import Progress
from tests.helpers.invented_runs import training_record


def train_and_evaluate(folder: Path) -> str:
    """Returns log.txt, which is written in any case."""
    with Progress("small", 10, folder, "text", first=True) as progress:
        progress.begin(5, None, 2, "cpu fp32")
        progress.step(training_record(6, 3.0))
        progress.evaluation(6, {"eval_loss": 2.5, "perplexity": 12.0})
    return (folder / "log.txt").read_text()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    package = logging.getLogger("pipeline")
    before = package.level
    yield package
    package.setLevel(before)


@pytest.mark.parametrize("level, shown", [(logging.DEBUG, True), (logging.INFO, True), (logging.WARNING, False)])
def test_progress_is_shown_as_the_logger_says(tmp_path, capsys, logger, level, shown):
    logger.setLevel(level)
    log = train_and_evaluate(tmp_path)
    assert "small: resumed at step 5 of 10" in log and "small: step 6 of 10  evaluation loss 2.5000" in log
    assert ("evaluation loss 2.5000" in capsys.readouterr().out) is shown


@pytest.mark.parametrize("rank, level", [("0", logging.DEBUG), ("0", logging.WARNING), ("1", logging.ERROR)])
def test_the_first_worker_says_as_much_as_its_parent_and_the_others_nothing(tmp_path, monkeypatch, logger, rank, level):
    logger.setLevel(min(level, logging.WARNING))
    told = launcher.worker_environment(tmp_path, launcher.Nodes())
    logger.setLevel(logging.INFO)
    for name, value in {**told, "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    launcher.take_over_log_level()
    assert logger.level == level


def test_a_missing_peak_is_told_whatever_else_is_not(tmp_path, caplog, capsys, logger):
    logger.setLevel(logging.WARNING)
    log = train_and_evaluate(tmp_path)
    line = "small: the peak of this device (cpu fp32) is not known; no MFU is reported"
    assert caplog.messages == [line] and line in log and capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "level, stderr, shown",
    [
        (logging.DEBUG, Terminal, True),
        (logging.INFO, Terminal, True),
        (logging.WARNING, Terminal, False),
        (logging.NOTSET, Terminal, False),  # nobody has configured logging: a library's use
        (logging.INFO, io.StringIO, False),
    ],
)
def test_bars_of_bytes_are_shown_on_a_terminal_as_the_logger_says(monkeypatch, logger, level, stderr, shown):
    logger.setLevel(level)
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    monkeypatch.setattr(sys, "stderr", stderr())
    with ByteProgress("hashing", 10) as bar:
        bar.advance(10)
    assert ("hashing" in sys.stderr.getvalue()) is shown
