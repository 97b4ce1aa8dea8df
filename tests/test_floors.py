"""Imports go down only, and only two places may know DeepSpeed."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "pipeline"
FLOORS = [
    {"errors"}, {"durations", "streams", "processes", "versions", "complaints"}, {"config", "ledger"}, {"schedule", "folders"},
    {"axes", "state", "hardware"}, {"flops"},
    {"models", "data", "progress"}, {"growth"},
    {"checkpoints"}, {"engine", "launcher"},
    {"accounting", "targets"}, {"train", "expand", "report"}, {"check", "outlook", "comparison"}, {"reshard", "inspection", "difference", "export"},
    {"run", "offline"}, {"__main__"},
]
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
MAY_IMPORT_DEEPSPEED = {"engine", "checkpoints"}


def parts() -> list[tuple[str, Path]]:
    return [(path.relative_to(ROOT).parts[0].removesuffix(".py"), path) for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT or path.name != "__init__.py"]


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "pipeline" else {node.module or ""}
    return found


def test_every_part_has_a_floor():
    assert {name for name, _ in parts()} == set(HEIGHT)


def test_imports_go_down_only():
    for name, path in parts():
        for imported in imports(path):
            top = imported.split(".")
            if top[0] == "pipeline" and len(top) > 1 and top[1] != name and top[1] != "__version__":
                assert HEIGHT[top[1]] < HEIGHT[name], f"{path.relative_to(ROOT)} imports {imported}, which does not lie below it"


def test_only_the_engine_and_the_checkpoints_know_deepspeed():
    for name, path in parts():
        if name not in MAY_IMPORT_DEEPSPEED:
            assert not any(imported.split(".")[0] == "deepspeed" for imported in imports(path)), path


def test_axes_knows_no_torch():
    assert not any(imported.startswith("torch") for imported in imports(ROOT / "axes.py"))


def test_files_and_functions_keep_their_size():
    for _, path in parts():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 300, f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{path.relative_to(ROOT)}: {node.name} is too long"
