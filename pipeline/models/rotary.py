"""What a config says of rotary positions."""

from typing import Any

from transformers import PretrainedConfig

from pipeline.models.config_keys import BASE, POSITIONS, ROPE, ROPE_AS_WRITTEN, SCALING, TURNING

KIND, KIND_BEFORE, PLAIN = "rope_type", "type", "default"
"""What transformers calls the kind of a scaling, and called it once; the kind that is none."""


def rotation(config: PretrainedConfig) -> dict[str, Any]:
    """All that decides the rotary positions of a model; empty where it has none."""
    return stated(config) | ({POSITIONS: getattr(config, POSITIONS)} if rotation_counts_positions(config) else {})


def stated(config: PretrainedConfig) -> dict[str, Any]:
    """What its key of transformers 5 says of them, every value by one name."""
    by_types = {kind: _by_one_name(rope) for kind, rope in _nested(config).items()}
    return by_types or _by_one_name(getattr(config, ROPE, None) or {})


def rotation_counts_positions(config: PretrainedConfig) -> bool:
    """Whether rotary positions are scaled by the number of positions."""
    written = getattr(config, ROPE_AS_WRITTEN, {}).get(SCALING)
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
    if rope.get(KIND, PLAIN) in (PLAIN, "linear"):
        return False
    return not (rope[KIND] == "llama3" and "original_max_position_embeddings" in written)


def scaling(rope: dict[str, Any]) -> dict[str, Any] | None:
    """How rotary positions are scaled, by what a config says of all layers or of one type; None: not at all."""
    said = {key: value for key, value in _by_one_name(rope).items() if key not in (BASE, TURNING)}
    return None if said.get(KIND, PLAIN) == PLAIN else said


def older_keys(config: PretrainedConfig) -> dict[str, Any]:
    """What transformers 4 reads of rotary positions that all layers share; empty where a model has none."""
    rope = stated(config)
    if BASE not in rope:
        return {}
    turning, scaled = rope.get(TURNING, 1.0), scaling(rope)
    return {
        BASE: rope[BASE],
        **({} if turning == 1.0 else {TURNING: turning}),
        **({} if scaled is None else {SCALING: _apart(config, scaled)}),
    }


def _apart(config: PretrainedConfig, scaled: dict[str, Any]) -> dict[str, Any]:
    """Without what the config says besides, as Phi-3's does of the positions before the scaling; transformers 4 then
    takes no other fields than those, under the kind's old name."""
    own = {key: value for key, value in scaled.items() if not hasattr(config, key)}
    return {KIND_BEFORE: own.pop(KIND), **own} if own.keys() != scaled.keys() else own


def spelled(config: PretrainedConfig, older: dict[str, Any]) -> dict[str, Any]:
    """`older`, what a written config says in keys of transformers 4, in the words of the config's file where these say
    the same."""
    written = getattr(config, ROPE_AS_WRITTEN, {})
    return older | {key: value for key, value in written.items() if _says(config, key, value, older)}


def corrected(config: PretrainedConfig, older: dict[str, Any]) -> tuple[str, ...]:
    """What the config's file says otherwise than `older`, in words."""
    written = getattr(config, ROPE_AS_WRITTEN, {})
    return tuple(
        f"the source's config.json says {key} {value!r}; the result says {older.get(key)!r}, as transformers 5 reads "
        "that file, which is another function than transformers 4 makes of it"
        for key, value in written.items()
        if value is not None and not _says(config, key, value, older)
    )


def _says(config: PretrainedConfig, key: str, value: Any, older: dict[str, Any]) -> bool:
    """Whether a key of transformers 4 says what `older` does, or nobody reads it."""
    told = ({TURNING: 1.0, SCALING: None} | older).get(key, value)
    if key != SCALING:
        return bool(value is not None and value == told)
    said, told = (scaling({KIND: each.get(KIND_BEFORE), **each} if each else {}) for each in (value, told))
    if said is None or told is None:
        return said is told
    return all(told.get(name, getattr(config, name, None)) == each for name, each in said.items())
