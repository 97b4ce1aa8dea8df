"""Imports go down only, and only some may ask certain libraries. After a move only the tables below change."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pipeline"

FLOORS = """
    errors
    durations rng
    records
    optim
    config
    data models
    accounting
    growth report
    checkpoints
    training export
    expansion doctor
    runs
    studies
    cli
    __main__
"""
"""Files and folders at the top of the package, from the ground up: each imports from the lines above its own only."""

ALLOWED = {"deepspeed": {"training", "checkpoints"}}
"""Libraries that only these parts may import."""
FORBIDDEN = {"models/architecture.py": {"torch"}}
"""Files, or folders with all that they hold, that import none of these libraries."""
LONGEST_FUNCTION = 40
"""Lines, the first and the last included."""


def part(path: Path) -> str:
    """The file or folder at the top of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))
TOP = PACKAGE / "__init__.py"
"""The package's own file: what it offers may come from any floor."""
PARTS = {part(path) for path in FILES if path != TOP}
HEIGHT = {name: height for height, floor in enumerate(FLOORS.strip().splitlines()) for name in floor.split()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, also inside functions; `from a import b` is a.b."""
    inside = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    """The parts that a file imports from."""
    found = {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")}
    return (found & PARTS) - {part(path)}


def libraries(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_every_part_has_its_floor():
    assert set(HEIGHT) == PARTS
    assert len(FLOORS.split()) == len(HEIGHT), "a part is named twice"


@pytest.mark.parametrize("name", sorted(PARTS))
def test_imports_go_down_only(name):
    for path in (path for path in FILES if path != TOP and part(path) == name):
        for other in parts_imported(path):
            assert HEIGHT[other] < HEIGHT[name], (
                f"{path.relative_to(ROOT)} imports {other}, which does not lie below it"
            )


def test_imports_make_no_circle():
    """From the files alone, whatever the table says: remove what imports none of the rest, until all is gone."""
    left = {name: set[str]() for name in PARTS}
    for path in FILES:
        if path != TOP:
            left[part(path)] |= parts_imported(path)
    while free := {name for name, below in left.items() if not below & set(left)}:
        left = {name: below for name, below in left.items() if name not in free}
    assert not left, f"a circle of imports runs through {', '.join(sorted(left))}"


@pytest.mark.parametrize("library", ALLOWED)
def test_few_parts_know_the_library(library):
    users = {part(path) for path in FILES if library in libraries(path)}
    assert users == ALLOWED[library]


@pytest.mark.parametrize("place", FORBIDDEN)
def test_what_a_place_may_not_know(place):
    files = [path for path in FILES if path.relative_to(PACKAGE).is_relative_to(place)]
    assert files
    for path in files:
        assert not libraries(path) & FORBIDDEN[place], path


def test_every_folder_with_code_is_a_package():
    """A folder without an __init__.py can be imported in the checkout, and is missing from what pip installs."""
    lacking = {path.parent.relative_to(ROOT) for path in FILES if not (path.parent / "__init__.py").exists()}
    assert not lacking


def test_functions_are_short():
    long = {
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    }
    assert not long


def test_no_test_module_imports_another():
    """What tests share lies in tests/helpers."""
    for path in (ROOT / "tests").rglob("*.py"):
        modules = {
            word
            for name in imports(path)
            if name.split(".")[0] == "tests" or name.startswith("test_")
            for word in name.split(".")
        }
        assert not {word for word in modules if word.startswith("test_")}, path.relative_to(ROOT)
