"""What a config says of rotary positions."""

from typing import Any

from transformers import PretrainedConfig

from pipeline.models.config_keys import BASE, POSITIONS, ROPE, ROPE_AS_WRITTEN, SCALING, TURNING

KIND, KIND_BEFORE = "rope_type", "type"
"""What transformers calls the kind of a scaling, and called it once."""


def rotation(config: PretrainedConfig) -> dict[str, Any]:
    """All that decides the rotary positions of a model; empty where it has none."""
    return stated(config) | ({POSITIONS: getattr(config, POSITIONS)} if rotation_counts_positions(config) else {})


def stated(config: PretrainedConfig) -> dict[str, Any]:
    """What its key of transformers 5 says of them, every value by one name."""
    by_types = {kind: _by_one_name(rope) for kind, rope in _nested(config).items()}
    return by_types or _by_one_name(getattr(config, ROPE, None) or {})


def rotation_counts_positions(config: PretrainedConfig) -> bool:
    """Whether rotary positions are scaled by the number of positions."""
    written = getattr(config, ROPE_AS_WRITTEN, {}).get("rope_scaling")
    return any(_counts_positions(rope, written or rope) for rope in ropes(config))


def ropes(config: PretrainedConfig) -> list[dict[str, Any]]:
    """What a config says of rotary positions, once for each type of layers that has its own."""
    return [*_nested(config).values()] or [getattr(config, ROPE, None) or {}]


def _nested(config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """By types of layers, where these have their own."""
    return {kind: rope for kind, rope in (getattr(config, ROPE, None) or {}).items() if isinstance(rope, dict)}


def _by_one_name(rope: dict[str, Any]) -> dict[str, Any]:
    """What has a value, without the kind's old name where it has the new one too, as transformers 5 saves it."""
    doubled = {KIND_BEFORE} if KIND in rope else set()
    return {key: value for key, value in rope.items() if value is not None and key not in doubled}


def _counts_positions(rope: dict[str, Any], written: dict[str, Any]) -> bool:
    if rope.get("rope_type", "default") in ("default", "linear"):
        return False
    return not (rope["rope_type"] == "llama3" and "original_max_position_embeddings" in written)


def older_keys(config: PretrainedConfig) -> dict[str, Any]:
    """What transformers 4 reads of rotary positions that all layers share; empty where a model has none."""
    rope = stated(config)
    if BASE not in rope:
        return {}
    turning = {TURNING: rope[TURNING]} if rope.get(TURNING, 1.0) != 1.0 else {}
    scaling = {} if rope[KIND] == "default" else {SCALING: _scaling(config, rope)}
    return {BASE: rope[BASE], **turning, **scaling}


def _scaling(config: PretrainedConfig, rope: dict[str, Any]) -> dict[str, Any]:
    """Without what the config says besides, as Phi-3's does of the positions before the scaling; transformers 4 then
    takes no other fields than those, under the kind's old name."""
    beside = {key for key in rope if hasattr(config, key)}
    scaling = {key: value for key, value in rope.items() if key not in {BASE, TURNING, *beside}}
    return {KIND_BEFORE: scaling.pop(KIND), **scaling} if beside - {BASE, TURNING} else scaling


def as_written(config: PretrainedConfig) -> dict[str, Any]:
    """The same, what the config's file says of it going before."""
    written: dict[str, Any] = getattr(config, ROPE_AS_WRITTEN, {})
    return written | older_keys(config) | {key: value for key, value in written.items() if value is not None}
