"""What a config says of rotary positions."""

from typing import Any

from transformers import PretrainedConfig

from pipeline.models.config_keys import POSITIONS, ROPE, ROPE_AS_WRITTEN


def rotation(config: PretrainedConfig) -> dict[str, Any]:
    """All that decides the rotary positions of a model; empty where it has none."""
    stated = {key: value for key, value in (getattr(config, ROPE, None) or {}).items() if value is not None}
    stated = {key: value for key, value in stated.items() if isinstance(value, dict)} or stated  # by types of layers
    return stated | ({POSITIONS: getattr(config, POSITIONS)} if rotation_counts_positions(config) else {})


def rotation_counts_positions(config: PretrainedConfig) -> bool:
    """Whether rotary positions are scaled by the number of positions."""
    written = getattr(config, ROPE_AS_WRITTEN, {}).get("rope_scaling")
    return any(_counts_positions(rope, written or rope) for rope in ropes(config))


def ropes(config: PretrainedConfig) -> list[dict[str, Any]]:
    """What a config says of rotary positions, once for each type of layers that has its own."""
    rope = getattr(config, ROPE, None) or {}
    own = [each for each in rope.values() if isinstance(each, dict)]
    return own or [rope]


def _counts_positions(rope: dict[str, Any], written: dict[str, Any]) -> bool:
    if rope.get("rope_type", "default") in ("default", "linear"):
        return False
    return not (rope["rope_type"] == "llama3" and "original_max_position_embeddings" in written)
