"""What commands take."""

import pytest

from pipeline.cli import build_parser, main


def test_data_are_prepared_for_all_stages(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "configs/quickstart/bert.yaml", "--stage", "small"])
    assert "unrecognized arguments: --stage" in capsys.readouterr().err


def test_an_expansion_is_a_stage_that_train_runs_too():
    assert "run one stage, a training or an expansion" in " ".join(build_parser().format_help().split())
