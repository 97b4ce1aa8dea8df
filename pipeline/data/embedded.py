"""The quick-start corpora: real text and real images that are already on the machine, so no network is needed.

Text: Python's own reference manual (`pydoc_data.topics`) and the docstrings of the running interpreter's
standard library, read from its source files and never imported. It differs a little between Python versions.
Images: the 1,797 handwritten digits of scikit-learn (8x8 pixels, grey values 0 to 16; E. Alpaydin and C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI, 1998).
"""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from pipeline.errors import UserError

EXCLUDED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}
"""Folders of the standard library without documentation."""


def documents() -> Iterator[str]:
    """One document per topic of the manual, then one per module that has docstrings; sorted by name."""
    for name in sorted(topics):
        yield topics[name]
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if EXCLUDED.isdisjoint(path.relative_to(root).parts):
            docstrings = "\n\n".join(_docstrings(_parse(path)))
            if docstrings:
                yield docstrings


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn about invalid escapes in old strings
        return ast.parse(path.read_bytes(), filename=str(path))


def _docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings in `node`, in source order. Only statements are visited: expressions contain none."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield text
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, field, ()):
            yield from _docstrings(child)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """(pixels (1797, 8, 8) uint8 with 16 grey levels spread over 0 to 255, labels (1797,) int64).

    Raises UserError when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "data.dataset 'embedded' needs scikit-learn for its images; pip install -e '.[quickstart]'"
        ) from error
    dataset = load_digits()
    return np.rint(dataset.images * (255 / 16)).astype(np.uint8), dataset.target.astype(np.int64)
