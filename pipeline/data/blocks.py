"""The prepared text of a run as a stage reads it: in blocks of the stage's own length.

Rows lie behind each other in a file, so that other rows of the same ids are the same file, cut elsewhere; but for the
last, which fill no block, all ids are read. Every model of a run has positions for the longest block of its stages: its
weights may go on to another stage.
"""

from dataclasses import replace
from typing import Any

from pipeline.config.data import ImageData, TextData
from pipeline.config.schema import Config, ExpandStage, TrainStage
from pipeline.data.prepared import Prepared, open_prepared
from pipeline.errors import UserError


def data_of(config: Config, stage: TrainStage | ExpandStage | None = None) -> Prepared:
    """The prepared data of a run as a stage reads them; None: as the config of the data says. Raises UserError where
    there are none, or the text fills no block of the stage's."""
    return as_read(open_prepared(config.path / "data"), config, stage)


def as_read(prepared: Prepared, config: Config, stage: TrainStage | ExpandStage | None = None) -> Prepared:
    """The same of data that may not be prepared yet."""
    if isinstance(config.data, ImageData):
        return prepared
    facts, block = prepared.facts, config.block_of(stage) if stage else None
    if stage and block and block != facts["block"]:
        facts = _in_blocks(facts, config.data, block, f"stages.{stage.name}.data.block")
    return replace(prepared, facts={**facts, "positions": config.longest_block})


def _in_blocks(facts: dict[str, Any], data: TextData, block: int, where: str) -> dict[str, Any]:
    """The facts of the same ids in blocks of another length. `stored`: those that the files follow from."""
    stored = {key: facts[key] for key in ("block", "training", "evaluation")}
    tokens = {split: stored[split] * (stored["block"] - 2) for split in ("training", "evaluation")}
    rows = {split: count // (block - 2) for split, count in tokens.items()}
    if short := next((split for split, count in rows.items() if not count), None):
        raise UserError(
            f"{where}: the {short} text has {tokens[short]:,} tokens, fewer than a block of {block}; choose a shorter "
            "one, or give more text"
        )
    scored = data.model_copy(update={"block": block}).scored
    return {**facts, **rows, "block": block, "scored": scored, "tokens_per_sample": block, "stored": stored}
