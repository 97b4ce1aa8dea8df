"""Where two configs of one family contradict each other on what their models compute."""

from typing import Any

from transformers import PretrainedConfig

from pipeline import models
from pipeline.models import rotary
from pipeline.models.config_keys import ROPE


def contradictions(source: PretrainedConfig, target: PretrainedConfig) -> dict[str, str]:
    """Keys of which the target says otherwise than the source, each with both values in words: those of `function`, and
    those in no list of the family's. Of a key that no class declares, and the target does not have, it says nothing."""
    keys = models.of_config(source).keys
    decided = {*keys.sizes, *keys.training, *keys.kept, *keys.derived}
    before, after = _stated(source), _stated(target)
    return {
        key: f"the target's config has {key} {after[key]!r} where the source's has {before.get(key)!r}"
        for key in sorted(set(after) - decided)
        if before.get(key) != after[key]
    }


def _stated(config: PretrainedConfig) -> dict[str, Any]:
    """Rotary positions once, though a written config says some of them twice."""
    content: dict[str, Any] = config.to_dict()
    if ROPE not in content:
        return content
    repeated = rotary.repeated(config)
    return {key: value for key, value in content.items() if key not in repeated} | {ROPE: rotary.decided(config)}
