"""The README is true: its files exist, its tree is complete, its commands are commands."""

import ast
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
PICTURE = ARCHITECTURE.split("## The rooms")[1].split("```")[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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
    assert re.search(rf"^ *{re.escape(room.name)}/ ", PICTURE, re.MULTILINE), f"{room} is missing from the picture"


def test_the_floors_of_the_picture_are_those_that_are_tested():
    tree = ast.parse((ROOT / "tests" / "test_floors.py").read_text(encoding="utf-8"))
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    floors = [set(floor.split()) for floor in ast.literal_eval(values["FLOORS"]).strip().splitlines()]
    blocks = [set(re.findall(r"^  (\w+)(?:/|\.py) ", block, re.MULTILINE)) for block in PICTURE.split("\n\n")]
    assert [block - {"__init__"} for block in blocks] == floors[::-1]


CODE = re.compile(r"`(?:pipeline/)?([a-z_]+(?:/[a-z_0-9]+)*\.py)`")


@pytest.mark.parametrize(
    "page",
    ["CONTRIBUTING.md", "docs/architecture.md", "docs/growth.md", "docs/growth-math.md", "docs/adding-a-family.md"],
)
def test_files_of_the_code_exist(page):
    """A path in a page is one of the repository, or the end of one in the package."""
    paths = {
        path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("tests/**/*.py"))
    }
    for name in CODE.findall((ROOT / page).read_text(encoding="utf-8")):
        assert any(f"/{path}".endswith(f"/{name}") for path in paths), name


NAMES = re.compile(r"`([A-Z][a-z]+[A-Za-z]*[a-z])`|`(?:[a-z_]+\.)*([a-z]+_[a-z_]+)`")


def test_the_journeys_name_what_exists():
    """Every class and function that docs/architecture.md speaks of is a word of the package's code."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline").rglob("*.py"))
    for class_name, function in NAMES.findall(ARCHITECTURE):
        name = class_name or function
        assert re.search(rf"\b{name}\b", code), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_paths_and_pictures_exist():
    for path in re.findall(r"(?:configs|launch|docs)/[\w/.-]+\.(?:yaml|sh|png|md)", README):
        assert (ROOT / path).exists(), path


COMMANDS = build_parser()._subparsers._group_actions[0].choices


def test_every_command_is_in_the_readme():
    assert set(re.findall(r"`lemon (\w+)", README)) == set(COMMANDS)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "decisions.md"], ids=lambda page: page.name)
def test_commands_and_their_options_exist(page):
    """Decisions tell of options that are gone."""
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"(?:`|^ {4})lemon (\w+)", text, re.MULTILINE):
        assert command in COMMANDS, command
    known = {option for command in COMMANDS.values() for option in command._option_string_actions}
    foreign = {"--size", "--expand", "--check", "--print"}  # of the benchmarks, of ruff, of the launch scripts
    foreign |= {"--text", "--vocabulary", "--rounds", "--memory"}  # of benchmarks/prepare_speed.py
    foreign |= {"--faults", "--seed", "--report", "--imports", "--minutes", "--before"}  # of the soak, of benchmarks
    foreign |= {"--gpu", "--shapes", "--precisions", "--sides"}  # of benchmarks/training_speed.py
    foreign |= {"--folder", "--cores", "--shared"}  # of benchmarks/projection.py
    foreign |= {"--max-restarts", "--requeue", "--array"}  # of torchrun, of Slurm
    foreign |= {"--logdir", "--append"}  # of tensorboard, of wandb
    for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text):
        assert option in known | foreign, option


def test_the_example_is_the_quick_starts():
    config = load(ROOT / "configs" / "quickstart" / "bert.yaml")
    for name in ("small", "large"):
        sizes = config.models[name]
        assert (
            f"{name}: {{family: {sizes.family}, layers: {sizes.layers}, hidden: {sizes.hidden}, heads: {sizes.heads}}}"
            in README
        )
