"""The README is true: its files exist, its tree is complete, its commands are commands."""

import re
import subprocess
from pathlib import Path

import pytest

from pipeline.cli import parser
from pipeline.config import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = README.split("## The tree")[1]


def tracked(*folders: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *folders], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    return listed.split()


LISTED = [
    path
    for path in tracked("configs", "launch", "tools", "pipeline")
    if "/report/" not in path and path != "pipeline/__init__.py"
]
"""One line stands for the report's parts."""


@pytest.mark.parametrize("path", LISTED)
def test_the_tree_is_complete(path):
    name = "/".join(Path(path).parts[1:])
    assert re.search(rf"(?<![\w/]){re.escape(name)}(?!\w)", TREE), f"{path} is missing from the README's tree"


def test_every_file_the_tree_names_exists():
    folder = ""
    for line in TREE.splitlines():
        if heading := re.match(r"^    (\w+)/$", line):
            folder = heading[1]
        elif folder and line.startswith("      "):
            for name in re.findall(r"[\w/-]+\.(?:py|yaml|sh)", line):
                assert (ROOT / folder / name).exists(), name


def test_paths_and_pictures_exist():
    for path in re.findall(r"(?:configs|launch|docs)/[\w/.-]+\.(?:yaml|sh|png|md)", README):
        assert (ROOT / path).exists(), path


def test_commands_are_commands():
    known = set(parser()._subparsers._group_actions[0].choices)
    used = set(re.findall(r"`lemon (\w+)", README))
    assert used <= known and {"run", "prepare", "train", "expand", "report"} <= used


def test_the_example_is_the_quick_starts():
    config = load(ROOT / "configs" / "quickstart" / "bert.yaml")
    for name in ("small", "large"):
        sizes = config.models[name]
        assert (
            f"{name}: {{family: {sizes.family}, layers: {sizes.layers}, hidden: {sizes.hidden}, heads: {sizes.heads}}}"
            in README
        )
