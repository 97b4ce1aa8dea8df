"""Run by an environment that has the wheel: is everything in it, is everything declared?

Leaves a tiny model in the working folder.

    check_installed.py SOURCE      SOURCE: the tree that the wheel was built from

Writes ./small, a GPT-2 saved by transformers, and ./target.json, the config of a larger one.
"""

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pipeline

INSTALLED = Path(pipeline.__file__).parent


def canonical(name: str) -> str:
    """A distribution's name as all indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def require_every_file(source: Path) -> None:
    """Whatever lies in the package's folders is in the wheel."""
    files = {path.relative_to(source / "pipeline") for path in (source / "pipeline").rglob("*") if path.is_file()}
    if lacking := sorted(str(path) for path in files if not (INSTALLED / path).exists()):
        raise SystemExit(f"not in the wheel: {', '.join(lacking)}")


def imported() -> set[str]:
    """Top-level names of all imports that are not the standard library's."""
    found = set()
    for path in INSTALLED.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.split(".")[0] for name in names}
    return found - sys.stdlib_module_names - {"pipeline"}


def require_declared_imports() -> None:
    """Whatever the package imports is a dependency of its own, or of an extra for users."""
    wanted = [each for each in requires("lemon-pipeline") or () if not re.search(r"extra == .(test|dev)", each)]
    declared = {canonical(re.split(r"[^\w.-]", each)[0]) for each in wanted}
    providers = packages_distributions()
    missing = {name for name in imported() if not declared & {canonical(each) for each in providers.get(name, [name])}}
    if missing:
        raise SystemExit(f"imported and not declared in setup.py: {', '.join(sorted(missing))}")


def save_model() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    small, large = (
        GPT2Config(
            n_layer=layers,
            n_embd=width,
            n_head=width // 16,
            vocab_size=101,
            n_positions=16,
            bos_token_id=0,
            eos_token_id=0,
        )
        for layers, width in ((2, 32), (3, 48))
    )
    GPT2LMHeadModel(small).save_pretrained("small")
    large.architectures = ["GPT2LMHeadModel"]
    Path("target.json").write_text(large.to_json_string(use_diff=False))


def main(source: Path) -> None:
    if INSTALLED.is_relative_to(source) or "site-packages" not in INSTALLED.parts:
        raise SystemExit(f"the package of {INSTALLED} is not the installed one")
    require_every_file(source)
    require_declared_imports()
    save_model()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
