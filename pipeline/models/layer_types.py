"""Layers of two kinds: those that attend to all tokens, and those whose attention has a window.

transformers 5 lists every layer's kind, and has rotary positions by kind. transformers 4 has other keys: of how many
layers one attends to all tokens, a base of rotary positions for each kind, and one scaling. A written config has both.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig

from pipeline.models import rotary
from pipeline.models.config_keys import BASE, ROPE, SCALING

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
"""Kinds of attention: to all tokens, and to those of a window."""


def windows_everywhere(config: Any) -> tuple[int | None, ...]:
    """Of families whose layers all have the window, if there is one."""
    return tuple(config.sliding_window for _ in range(config.num_hidden_layers))


def windows_by_type(config: Any) -> tuple[int | None, ...]:
    """Of families whose layers have the window where their types say so."""
    return windows_of(config, config.sliding_window)


def windows_of(config: Any, tokens: int | None) -> tuple[int | None, ...]:
    """Of every layer, how many tokens its attention sees, where those with a window see `tokens`; None: all."""
    return tuple(tokens if kind == SLIDING_ATTENTION else None for kind in config.layer_types)


@dataclass(frozen=True, kw_only=True)
class LayerPattern:
    """The pattern in which a family's layers take turns: of every `period` one attends to all tokens.

    full: the place of that layer in a pattern; -1: the last. usual: the period of a config that states none.
    period_key: the key that states it; transformers 4 reads it. types_read: whether transformers 4 reads the list of
    types too, and before it. bases: kind -> how transformers 4 says the base of its rotary positions. scaled: the kinds
    whose rotary positions it scales where it says that any are.
    """

    full: int
    usual: int
    period_key: str | None = None
    types_read: bool = True
    bases: dict[str, str] = field(default_factory=dict)
    scaled: tuple[str, ...] = ()

    def types(self, period: int, layers: int) -> list[str]:
        """The kinds of so many layers."""
        place = self.full % period
        return [FULL_ATTENTION if layer % period == place else SLIDING_ATTENTION for layer in range(layers)]

    def followed(self, config: PretrainedConfig) -> int | None:
        """The period that a config's layers follow: the stated or usual one where they do, be they fewer than that;
        else the least; None where they follow none."""
        types = config.layer_types
        periods = (self._stated(config), *range(1, len(types) + 1))
        return next((period for period in periods if types == self.types(period, len(types))), None)

    def period(self, config: PretrainedConfig) -> int:
        """Of how many layers the patterns are that a growth keeps; 1 where layers follow none, each of its own kind."""
        return self.followed(config) or 1

    def _stated(self, config: PretrainedConfig) -> int:
        stated = getattr(config, self.period_key, None) if self.period_key else None
        return stated if isinstance(stated, int) and stated > 0 else self.usual

    def older_keys(self, config: PretrainedConfig) -> dict[str, Any]:
        """What transformers 4 reads of the layers' kinds and of their rotary positions; None: what it has no word
        for."""
        keys: dict[str, Any] = {key: getattr(config, ROPE)[kind][BASE] for kind, key in self.bases.items()}
        if self.scaled:
            keys[SCALING] = self._scaling(config) if self._scaling_is_read(config) else None
            keys |= rotary.original_of(config, getattr(config, ROPE)[self.scaled[0]]) if keys[SCALING] else {}
        return keys | ({self.period_key: self.followed(config)} if self.period_key else {})

    def misread(self, config: PretrainedConfig) -> tuple[str, ...]:
        """What transformers 4 makes otherwise of a written config, in words."""
        lines = []
        if not self.types_read and self.followed(config) is None:
            lines.append(
                f"transformers 4 knows by {self.period_key} alone which layers attend to all tokens, and here they are "
                "in no such order: the result says null there, on which it fails; load it with transformers 5"
            )
        if not self._scaling_is_read(config):
            never = [kind for kind in self.bases if kind not in self.scaled]
            others = f", those of {' and '.join(never)} never" if never else ""
            lines.append(
                f"transformers 4 scales the rotary positions of all layers of {' and '.join(self.scaled)} alike"
                f"{others}, and here {ROPE} does otherwise; {rotary.OTHERWISE}"
            )
        return tuple(lines)

    def _scaling(self, config: PretrainedConfig) -> dict[str, Any] | None:
        """How rotary positions are scaled of the layers that transformers 4 scales; None: not at all."""
        return rotary.scaling(getattr(config, ROPE)[self.scaled[0]]) if self.scaled else None

    def _scaling_is_read(self, config: PretrainedConfig) -> bool:
        """Whether transformers 4, told that, scales those of every kind of layers as the model does."""
        told, rope = self._scaling(config), getattr(config, ROPE)
        return all(rotary.scaling(rope[kind]) == (told if kind in self.scaled else None) for kind in self.bases)
