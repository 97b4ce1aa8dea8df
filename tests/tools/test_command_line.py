"""What the command line says of a mistake: one line, whatever a name, an option or the system holds against it."""

import pytest

import pipeline
from pipeline.cli.output import printable
from pipeline.errors import UserError
from pipeline.training.launcher import Nodes
from tests.helpers.checkpoints import saved, target_config_file
from tests.helpers.cli import environment, lemon, run_python


def refused(capsys, complaint: str, *command: object) -> None:
    code, _, err = lemon(capsys, *command)
    assert code == 2 and err.startswith("lemon: ") and complaint in err and err.count("\n") == 1, err


def test_a_path_that_the_system_refuses(tmp_path, capsys):
    """In the Python API it is the same exception as any bad input."""
    path = tmp_path / ("n" * 300)
    for command in (["inspect", path], ["check", path], ["plan", "--source", path, "--target", path]):
        refused(capsys, "cannot be read or written (File name too long); check the path", *command)
    with pytest.raises(UserError, match="File name too long"):
        pipeline.describe(path)


def test_what_a_terminal_obeys_is_written_out(tmp_path, capsys):
    refused(capsys, r"a\nb\x1b[31m: no such folder", "inspect", tmp_path / "a\nb\x1b[31m")
    assert printable("2 mistakes\n  ä\tb\n  …\x00") == "2 mistakes\n  ä\\tb\n  …\\x00"
    assert printable("name \udcff") == r"name \udcff"


def test_a_name_that_the_terminal_cannot_print(tmp_path):
    small = saved(tmp_path / "größe", "vit")
    done = run_python("-m", "pipeline", "inspect", small, env=environment(PYTHONIOENCODING="ascii"))
    assert done.returncode == 0 and r"gr\xf6\xdfe" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "more, complaint",
    [
        (["--seed", "abc"], "lemon plan: argument --seed: invalid int value: 'abc'; see lemon plan --help\n"),
        (["--world-size", "0"], "'0' is no whole number of at least 1"),
        (["--world-size", "two"], "'two' is no whole number of at least 1"),
        (["--zero-stage", "5"], "invalid choice: 5"),
        (["--sed", "3"], "unrecognized arguments: --sed 3"),
    ],
)
def test_a_mistake_in_an_option_is_one_line(capsys, more, complaint):
    with pytest.raises(SystemExit) as stopped:
        lemon(capsys, "plan", "--source", "small", "--target", "large.json", *more)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and complaint in err and err.count("\n") == 1, err


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "--source", "", "--target", "x"],
        ["reshard", "x", "--out", " "],
        ["inspect", ""],
        ["run", ""],
        ["report", "x", "--out", ""],
    ],
    ids=lambda command: command[0],
)
def test_an_unset_variable_is_no_folder(capsys, command):
    """An empty path is the current folder to the system, whose newest checkpoint would be taken."""
    with pytest.raises(SystemExit) as stopped:
        lemon(capsys, *command)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and "an empty name; is a variable unset?" in err and err.count("\n") == 1, err


def test_an_empty_layout_is_no_default(tmp_path, capsys):
    small = saved(tmp_path / "small", "vit")
    target = target_config_file(tmp_path / "target.json", "vit", hidden=24, heads=6, mlp=48)
    refused(capsys, "unknown layout ''", "plan", "--source", small, "--target", target, "--format", "")


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_does_not_exist(port):
    with pytest.raises(UserError, match=f"--master-port {port}: ports are numbers from 1 to 65535"):
        Nodes(2, 0, "127.0.0.1", port)
