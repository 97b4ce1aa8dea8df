"""What an evaluation costs: one loader for the whole stage, and right answers are counted in it alone."""

from pathlib import Path
from unittest import mock

from pipeline.training import engine, loop
from tests.helpers.cli import lemon_here
from tests.helpers.runs import copied, records


def noting(file: Path, function):
    """The same function, which leaves a line in a file each time: workers are forks, which take it over."""

    def noted(*arguments: object, **named: object):
        with file.open("a") as lines:
            lines.write("once\n")
        return function(*arguments, **named)

    return noted


def test_evaluations_share_a_loader_and_training_counts_no_answers(finished, tmp_path):
    """60 images in micro-batches of 16, at steps 0, 2 and 4."""
    loaders, answers = tmp_path / "loaders", tmp_path / "answers"
    with (
        mock.patch.object(loop, "evaluation_batches", noting(loaders, loop.evaluation_batches)),
        mock.patch.object(engine, "per_sample", noting(answers, engine.per_sample)),
    ):
        steps = ("stages.small.schedule.steps=4 steps", "stages.small.evaluate_every=2 steps")
        lemon_here("train", copied(finished, tmp_path), "--stage", "small", "processes=1", *steps)
    evaluations = [record for record in records(tmp_path / "run", "small") if "eval_loss" in record]
    assert [record["step"] for record in evaluations] == [0, 2, 4] and all("top1" in record for record in evaluations)
    assert len(loaders.read_text().splitlines()) == 1
    assert len(answers.read_text().splitlines()) == 3 * 4
