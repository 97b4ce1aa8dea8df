"""What a text encoder is, whatever head stands on it: a `Trunk` makes the architectures of both. The heads are in
text_heads.py."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from pipeline.models.architecture import (
    Architecture,
    Attention,
    LayerStack,
    NormEpsilon,
    ParamSpec,
    Space,
    heads,
    spaces,
)
from pipeline.models.family import has_pooler
from pipeline.models.layer_types import LayerPattern
from pipeline.models.rows import linear

Rows = tuple[ParamSpec, ...]


def _shared_width(config: PretrainedConfig) -> int:
    return int(config.hidden_size // config.num_attention_heads)


def positions_and_types(config: PretrainedConfig) -> tuple[Space, ...]:
    """What BERT looks up beside the vocabulary."""
    return (
        Space("positions", config.max_position_embeddings, "lookup"),
        Space("types", config.type_vocab_size, "lookup"),
    )


def _vocabulary_alone(config: PretrainedConfig) -> tuple[Space, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A text encoder, on which heads stand.

    family: its name. prefix: of its names in a model with a head. parameters: its own, by a config, the prefix (empty
    where it has no head), and whether a decoder is tied to the token embedding. head_modules: the modules of heads,
    which the bare encoder leaves out of the files of models that have one. output_space: the space that it gives out.
    lookups: the spaces of what it looks up beside the vocabulary. token_embedding: its module. mlp_size_key: the
    config's key of the size of its MLP. epsilon: the config's key of the norms' epsilon, or the constant that this is.
    head_dim: the size of a head, by a config. rope: whether positions are rotary. pattern: in which layers of two kinds
    take turns. pooler: whether it may end in BERT's pooler. buffers: what files of older versions hold besides.
    """

    family: str
    prefix: str
    parameters: Callable[[Any, str, bool], Rows]
    head_modules: tuple[str, ...]
    output_space: str = "embed"
    lookups: Callable[[Any], tuple[Space, ...]] = _vocabulary_alone
    token_embedding: str = "embeddings.word_embeddings"
    mlp_size_key: str = "intermediate_size"
    epsilon: str | float = "layer_norm_eps"
    head_dim: Callable[[Any], int] = _shared_width
    rope: bool = False
    pattern: LayerPattern | None = None
    pooler: bool = False
    buffers: tuple[str, ...] = ()

    def bare(self, config: PretrainedConfig) -> Architecture:
        """The encoder without a head, with its pooler where it has one."""
        params, outputs = self.parameters(config, "", False), {"last_hidden_state": self.output_space}
        if self.pooler and has_pooler(config):
            params, outputs = (*params, *self.pooler_rows("")), {**outputs, "pooler_output": "pooled"}
        heads = (f"{module}.*" for module in self.head_modules)
        return self._architecture(config, params, outputs, ignored=(*self.buffers, *heads))

    def under(
        self,
        config: PretrainedConfig,
        head: Rows,
        outputs: dict[str, str],
        *more: Space,
        tied: bool = False,
        beside: tuple[str, ...] = (),
        **options: Any,
    ) -> Architecture:
        """The encoder with the parameters of a head. more: spaces that no other head has. beside: patterns of what
        files may hold besides, a pooler that the head does not read and buffers apart."""
        pooler = f"{self.prefix}pooler."
        unread = self.pooler and not any(row.name.startswith(pooler) for row in head)
        ignored = (*(self.prefix + name for name in self.buffers), *((f"{pooler}*",) if unread else ()), *beside)
        params = (*self.parameters(config, self.prefix, tied), *head)
        return self._architecture(config, params, outputs, *more, tied=tied, ignored=ignored, **options)

    def norm_epsilon(self, config: PretrainedConfig) -> NormEpsilon:
        if isinstance(self.epsilon, float):
            return NormEpsilon(self.epsilon)
        return NormEpsilon(getattr(config, self.epsilon), self.epsilon)

    def pooler_rows(self, prefix: str) -> Rows:
        """BERT's pooler: a dense layer on the first token, and tanh."""
        return linear(f"{prefix}pooler.dense", self.output_space, "pooled", counted_per="sequence")

    def _architecture(
        self,
        config: PretrainedConfig,
        params: Rows,
        outputs: dict[str, str],
        *more: Space,
        tied: bool = False,
        **options: Any,
    ) -> Architecture:
        period = self.pattern.period(config) if self.pattern else 1
        touched = {name for param in params for axis in param.axes for name in axis.spaces} | {*outputs.values()}
        return Architecture(
            family=self.family,
            spaces=spaces(
                Space("embed", config.hidden_size, "residual"),
                *(space for space in _known_spaces(config, tied) if space.name in touched),
                *more,
                *heads(config.num_attention_heads, self.head_dim(config)),
                Space("mlp", getattr(config, self.mlp_size_key), "mlp"),
                Space("vocab", config.vocab_size, "lookup"),
                *self.lookups(config),
            ),
            stacks=(LayerStack("layers", config.num_hidden_layers, (Attention(rope=self.rope),), period),),
            params=params,
            epsilon=self.norm_epsilon(config),
            outputs=outputs,
            **options,
        )


def _known_spaces(config: PretrainedConfig, tied: bool) -> Iterator[Space]:
    """normed: what a pre-LN encoder's norms write. transformed, decoded: what a head's dense layer writes, and the norm
    behind it. pooled: what a dense layer writes whose output is given out or classified. score: one number for each
    token."""
    yield Space("normed", config.hidden_size, "normed")
    yield Space("transformed", config.hidden_size, "inner")
    yield Space("decoded", config.hidden_size, "tied" if tied else "normed")
    yield Space("pooled", config.hidden_size, "pooled")
    yield Space("classes", config.num_labels, "fixed")
    yield Space("score", 1, "number")
