"""Memory does not grow with the model: anonymous memory, for mapped pages are the files' own."""

import json
import sys

import pytest

from benchmarks.commands import taken
from benchmarks.states import gpt2, written
from pipeline import models
from pipeline.checkpoints import CheckpointLayout

SMALL, LARGE = gpt2(6, 256, 8), gpt2(9, 384, 12)
LIBRARIES = 300 * 2**20


def bound(config, command: str) -> int:
    """A reshard holds nothing that grows with the model. An expansion: three times the largest tensor's states."""
    if command == "reshard":
        return LIBRARIES
    architecture = models.architecture_of(config)
    return 3 * 3 * 4 * max(architecture.numel(row) for row in architecture.rows()) + LIBRARIES


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return written(tmp_path_factory.mktemp("source") / "small", SMALL, CheckpointLayout("zero", 3, 2))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return written(tmp_path_factory.mktemp("published") / "small", SMALL, CheckpointLayout("huggingface"))


@pytest.mark.parametrize(
    "arguments, largest",
    [
        (["reshard", "SOURCE", "--out", "OUT", "--zero-stage", "2", "--world-size", "3"], SMALL),
        (["reshard", "SOURCE", "--out", "OUT", "--format", "universal"], SMALL),
        (
            [
                "expand",
                "--source",
                "SOURCE",
                "--target",
                "TARGET",
                "--out",
                "OUT",
                "--optimizer-state",
                "grow",
                "--method-option",
                "depth=cancel",
            ],
            LARGE,
        ),
        (["expand", "--source", "PUBLISHED", "--target", "TARGET", "--out", "OUT"], LARGE),
    ],
    ids=["native", "universal", "expand and verify", "what from_pretrained loads"],
)
def test_anonymous_memory_stays_below_its_bound(tmp_path, source, published, arguments, largest):
    target = tmp_path / "target.json"
    target.write_text(json.dumps(LARGE.to_dict()))
    names = {"SOURCE": source, "PUBLISHED": published, "OUT": tmp_path / "out", "TARGET": target}
    peak = taken([sys.executable, "-m", "pipeline", *(str(names.get(word, word)) for word in arguments)]).memory
    whole = 12 * models.architecture_of(largest).parameters
    assert peak < bound(largest, arguments[0]), f"{peak / 2**20:.0f} MiB, of a state of {whole / 2**20:.0f} MiB"
