"""Files beside the weights that name a size which grew: they get the new one, and it is said."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from pipeline.errors import UserError
from pipeline.records.run_folder import read_json, write_json

logger = logging.getLogger(__name__)

PREPROCESSORS = ("preprocessor_config.json", "image_processor_config.json", "processor_config.json")
IMAGE_SIZES = ("crop_size", "size")
POOLING = "1_Pooling/config.json"
"""Of sentence-transformers: which width it pools."""


def fit_to_sizes(folder: Path, small: PretrainedConfig, large: PretrainedConfig) -> list[str]:
    """Rewrite the files of the staged `folder` that name a size of `small` which is another in `large`. Returns their
    names."""
    changed = []
    for name, keys, before, after in _rules(small, large):
        if before == after or not (folder / name).is_file():
            continue
        try:
            content = read_json(folder / name)
        except UserError as error:
            logger.warning(f"expand: {error}; it goes along as it is, and may name the size {before}, now {after}")
            continue
        lines = list(_rescale(content, keys, before, after))
        if lines:
            write_json(folder / name, content)
            changed.append(name)
            logger.warning(f"expand: {name}: {'; '.join(lines)}")
    return changed


def _rules(small: PretrainedConfig, large: PretrainedConfig) -> Iterator[tuple[str, tuple[str, ...], int, int]]:
    """(file, its keys, the size before, the size after)."""
    images = [getattr(config, "image_size", None) for config in (small, large)]
    widths = [getattr(config, "hidden_size", None) for config in (small, large)]
    if isinstance(images[0], int) and isinstance(images[1], int):
        for name in PREPROCESSORS:
            yield name, IMAGE_SIZES, images[0], images[1]
    if isinstance(widths[0], int) and isinstance(widths[1], int):
        yield POOLING, ("word_embedding_dimension",), widths[0], widths[1]


def _rescale(content: dict[str, Any], keys: tuple[str, ...], before: int, after: int) -> Iterator[str]:
    """Multiply the sizes under `keys`, wherever they stand, by after / before. Yields what changed, in words."""
    for key, value in content.items():
        if key in keys:
            content[key] = _scaled(value, before, after)
            if content[key] != value:
                yield f"{key} {value} -> {content[key]}"
        elif isinstance(value, dict):
            yield from _rescale(value, keys, before, after)


def _scaled(value: Any, before: int, after: int) -> Any:
    """A size, or sizes by name: of a crop of 224 from 256, 448 from 512."""
    if isinstance(value, dict):
        return {name: _scaled(size, before, after) for name, size in value.items()}
    return round(value * after / before) if isinstance(value, int) and not isinstance(value, bool) else value
