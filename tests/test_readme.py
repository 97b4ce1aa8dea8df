"""The README is true: its files exist, its tree is complete, its commands are commands."""

import re
import subprocess
from pathlib import Path

import pytest

from pipeline.cli import build_parser
from pipeline.config import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = README.split("## The tree")[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def tracked(*folders: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *folders], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    return listed.split()


def test_the_tree_names_every_folder():
    """Folders at the top, each once; what lies in pipeline/ is docs/architecture.md's to tell."""
    named = re.findall(r"^    (\w+)/ ", TREE, re.MULTILINE)
    assert sorted(named) == sorted({path.split("/")[0] for path in tracked() if "/" in path and path[0] != "."})


ROOMS = [path.parent.relative_to(ROOT / "pipeline") for path in sorted((ROOT / "pipeline").rglob("__init__.py"))]


@pytest.mark.parametrize("room", [room for room in ROOMS if room != Path(".")], ids=str)
def test_the_architecture_names_every_room(room):
    picture = ARCHITECTURE.split("## The rooms")[1].split("```")[1]
    assert re.search(rf"^ *{re.escape(room.name)}/ ", picture, re.MULTILINE), f"{room} is missing from the picture"


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda page: page.name,
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_paths_and_pictures_exist():
    for path in re.findall(r"(?:configs|launch|docs)/[\w/.-]+\.(?:yaml|sh|png|md)", README):
        assert (ROOT / path).exists(), path


def test_commands_are_commands():
    known = set(build_parser()._subparsers._group_actions[0].choices)
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
