"""What commands take."""

from dataclasses import fields

import pytest

from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.layouts import LAYOUTS, huggingface
from pipeline.checkpoints.manifest import Manifest
from pipeline.cli import arguments, build_parser, main

COMMANDS = build_parser()._subparsers._group_actions[0].choices


def test_data_are_prepared_for_all_stages(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "configs/quickstart/bert.yaml", "--stage", "small"])
    assert "unrecognized arguments: --stage" in capsys.readouterr().err


def test_an_expansion_is_a_stage_that_train_runs_too():
    assert "run one stage, a training or an expansion" in " ".join(build_parser().format_help().split())


@pytest.mark.parametrize("command", ["plan", "expand", "reshard"])
def test_every_layout_and_its_keys_are_known_to_the_commands(command):
    options, text = COMMANDS[command]._option_string_actions, COMMANDS[command].format_help()
    for layout in LAYOUTS.values():
        flags = [f"--{key.replace('_', '-')}" for key in layout.keys]
        assert set(flags) <= set(options)
        assert f"  {layout.name}: {layout.title}" + (f" ({', '.join(flags)})" if flags else "") in text


def test_every_key_of_a_layout_can_be_written_down():
    keys = {key for layout in LAYOUTS.values() for key in layout.keys}
    assert keys <= {field.name for field in fields(CheckpointLayout)} and keys <= set(Manifest.model_fields)
    assert tuple(huggingface.DTYPES) == arguments.DTYPES
