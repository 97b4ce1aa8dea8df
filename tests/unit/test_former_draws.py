"""A stage of an earlier release, whose stage.json has no version of draws, says that its images change."""

import json

import pytest

from pipeline.config.data import ImageData, TextData
from pipeline.data.augment import DRAWS
from pipeline.records.run_folder import StageFolder
from pipeline.training import former_draws
from tests.helpers.invented_runs import LARGE, LARGE_LOSS, train


@pytest.mark.parametrize(
    "data, version, said",
    [
        (ImageData(kind="images", augment="deit"), None, True),
        (ImageData(kind="images", augment="deit"), DRAWS, False),
        (ImageData(kind="images", augment="shift"), None, False),
        (TextData(kind="text"), None, False),
    ],
)
def test_other_draws_are_told(tmp_path, caplog, data, version, said):
    stage = train(tmp_path, "large", LARGE, LARGE_LOSS, finished=False, steps=40)
    facts = json.loads(stage.facts_file.read_text())
    for settings in (facts["settings"], *(start["settings"] for start in facts["starts"])):
        settings.pop("image_draws", None)
        settings |= {} if version is None else {"image_draws": version}
    stage.facts_file.write_text(json.dumps(facts))
    former_draws.tell("large", data, StageFolder(stage.path).facts, 20)
    assert ("from step 20 on its images are augmented by other draws" in caplog.text) is said
