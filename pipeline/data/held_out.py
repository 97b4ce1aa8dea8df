"""Which of the evaluation samples are evaluated: all of them, or one of two halves that are the same in every run.

What is chosen by looking at one half (`validation`) can be claimed on the other (`test`), which nobody has looked at.
The halves of text lie behind each other, so that at most one document is in both; images are drawn, for they may lie
class by class.
"""

import numpy as np

from pipeline.config.data import Evaluated
from pipeline.data.sampler import position
from pipeline.errors import UserError
from pipeline.rng import derive


def evaluated(part: Evaluated, kind: str, size: int) -> np.ndarray:
    """(count,) rows in rising order, of `size` evaluation samples. Raises UserError where a half would be empty."""
    if part == "all":
        return np.arange(size)
    if size < 2:
        raise UserError(f"data.evaluate: {part} is a half of the evaluation set, which has {size} sample; give it more")
    order = np.arange(size) if kind == "text" else position(derive(0, "halves"), 0, np.arange(size), size)
    middle = size // 2
    rows: np.ndarray = np.sort(order[:middle] if part == "validation" else order[middle:])
    return rows
