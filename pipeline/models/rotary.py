"""What a config says of rotary positions."""

from typing import Any

from transformers import PretrainedConfig

from pipeline.models.config_keys import BASE, ORIGINAL, POSITIONS, ROPE, ROPE_AS_WRITTEN, SCALING, TURNING

KIND, KIND_BEFORE = "rope_type", "type"
"""What transformers calls the kind of a scaling, and called it once."""
PLAIN, LONG = "default", "longrope"
"""The kind that is no scaling; the kind that has other factors behind the original number of positions."""
OTHERWISE = "it loads this result without a complaint and computes something else: load it with transformers 5"
SCALED_BEHIND = ("llama3", "yarn", LONG)
"""The kinds that ask for that number."""


def rotation(config: PretrainedConfig) -> dict[str, Any]:
    """All that decides the rotary positions of a model; empty where it has none."""
    return decided(config) | ({POSITIONS: getattr(config, POSITIONS)} if rotation_counts_positions(config) else {})


def decided(config: PretrainedConfig) -> dict[str, Any]:
    """What its key of transformers 5 gives a value."""
    return {key: _valued(value) if isinstance(value, dict) else value for key, value in _valued(stated(config)).items()}


def _valued(rope: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in rope.items() if value is not None}


def stated(config: PretrainedConfig) -> dict[str, Any]:
    """All that its key of transformers 5 says of them, every value by one name."""
    by_types = {kind: _by_one_name(rope) for kind, rope in _nested(config).items()}
    if by_types:
        return by_types
    rope, original = getattr(config, ROPE, None) or {}, getattr(config, ORIGINAL, None)
    if original is not None and rope.get(KIND) in SCALED_BEHIND:
        rope = rope | {ORIGINAL: original}  # as transformers does where it builds a model, and not before
    return _by_one_name(rope)


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
    """Without the kind's old name where it has the new one too, as transformers 5 saves it."""
    return {key: value for key, value in rope.items() if key != KIND_BEFORE or KIND not in rope}


def _counts_positions(rope: dict[str, Any], written: dict[str, Any]) -> bool:
    if rope.get(KIND, PLAIN) in (PLAIN, "linear"):
        return False
    return not (rope[KIND] == "llama3" and ORIGINAL in written)


def scaling(rope: dict[str, Any]) -> dict[str, Any] | None:
    """How rotary positions are scaled, by what a config says of all layers or of one type; None: not at all."""
    said = {key: value for key, value in _by_one_name(rope).items() if key not in (BASE, TURNING)}
    return None if said.get(KIND, PLAIN) == PLAIN else said


def repeated(config: PretrainedConfig) -> set[str]:
    """The keys of a config itself that say once more what it says of rotary positions."""
    rope = decided(config)
    said = [rope] if BASE in rope else [each for each in rope.values() if isinstance(each, dict)]
    usual = {TURNING: 1.0, ORIGINAL: None}
    return {key for key in usual if getattr(config, key, usual[key]) in [rope.get(key, usual[key]) for rope in said]}


def older_keys(config: PretrainedConfig) -> dict[str, Any]:
    """What transformers 4 reads of rotary positions that all layers share; empty where a model has none."""
    rope = stated(config)
    if rope.get(BASE) is None:
        return {}
    turning, scaled = rope.get(TURNING) or 1.0, scaling(rope)
    older = {BASE: rope[BASE]} | ({} if turning == 1.0 else {TURNING: turning})
    return older if scaled is None else older | {SCALING: _apart(config, scaled)} | original_of(config, rope)


def original_of(config: PretrainedConfig, rope: dict[str, Any]) -> dict[str, Any]:
    """Of `longrope` the number of positions before the scaling, as a key of the config itself, where transformers 4
    reads it; it then takes the factor from the numbers of positions, and else from the scaling."""
    original = rope.get(ORIGINAL)
    unscaled = original == getattr(config, POSITIONS) and rope.get("factor") is not None
    return {} if rope.get(KIND) != LONG or original is None or unscaled else {ORIGINAL: original}


def _apart(config: PretrainedConfig, scaled: dict[str, Any]) -> dict[str, Any]:
    """Without what the config's class declares besides, as Phi-3's does of the positions before the scaling;
    transformers 4 then takes no other fields than those, under the kind's old name."""
    own = {key: value for key, value in scaled.items() if not hasattr(type(config), key)}
    return {KIND_BEFORE: own.pop(KIND), **own} if own.keys() != scaled.keys() else own


def spelled(config: PretrainedConfig, older: dict[str, Any]) -> dict[str, Any]:
    """`older`, what a written config says in keys of transformers 4, in the words of the config's file where these say
    the same."""
    written = getattr(config, ROPE_AS_WRITTEN, {})
    return older | {key: value for key, value in written.items() if _says(config, key, value, older)}


def misread(config: PretrainedConfig, older: dict[str, Any]) -> tuple[str, ...]:
    """What transformers 4 makes otherwise of the config's file, which says more than `older`, or of `older` itself, in
    words."""
    written = getattr(config, ROPE_AS_WRITTEN, {})
    corrected = tuple(
        f"the source's config.json says {key} {value!r}; the result says {older.get(key)!r}, as transformers 5 reads "
        "that file, which is another function than transformers 4 makes of it"
        for key, value in written.items()
        if value is not None and not _says(config, key, value, older)
    )
    return (*corrected, *(line for rope in ropes(config) for line in _factor_misread(config, _valued(rope), older)))


def _factor_misread(config: PretrainedConfig, rope: dict[str, Any], older: dict[str, Any]) -> tuple[str, ...]:
    """Of `longrope`: see `original_of`. Phi-3's class takes no factor at all."""
    factor = rope.get("factor")
    if rope.get(KIND) != LONG or factor is None:
        return ()
    if hasattr(type(config), ORIGINAL):
        return (f"transformers 4 takes no factor in {SCALING} and refuses this result; load it with transformers 5",)
    original = older.get(ORIGINAL, getattr(config, ORIGINAL, None))
    if not original or "attention_factor" in rope or factor == (taken := getattr(config, POSITIONS) / original):
        return ()
    return (f"transformers 4 takes {taken:g} for the factor of {LONG}, and it is {factor}; {OTHERWISE}",)


def _says(config: PretrainedConfig, key: str, value: Any, older: dict[str, Any]) -> bool:
    """Whether a key of transformers 4 says what `older` does, or nobody reads it."""
    told = ({TURNING: 1.0, SCALING: None} | older).get(key, value)
    if key != SCALING:
        return bool(value is not None and value == told)
    said, told = (scaling({KIND: each.get(KIND_BEFORE), **each} if each else {}) for each in (value, told))
    if said is None or told is None:
        return said is told
    positions = {ORIGINAL: getattr(config, POSITIONS)} if ORIGINAL in told and said[KIND] != LONG else {}
    return all(told.get(name, getattr(config, name, None)) == each for name, each in (positions | said).items())
