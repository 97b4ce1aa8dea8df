"""What models of images share: the spaces and embeddings of a vision Transformer, its tokens, its heads, its family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from transformers import PretrainedConfig, PreTrainedModel

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models.architecture import (
    Architecture,
    LayerStack,
    NormEpsilon,
    ParamSpec,
    Space,
    head_dim_of,
    heads,
    reads,
    spaces,
    writes,
)
from pipeline.models.config_keys import ConfigKeys
from pipeline.models.family import Family, Head, has_pooler
from pipeline.models.fresh_configs import Facts, class_keys, image_resized, require_kind
from pipeline.models.probes import image_probe
from pipeline.models.rows import linear


def attention(layer: str, inside: str, bias: bool) -> tuple[ParamSpec, ...]:
    """The three projections, in published names and in module names."""
    return tuple(
        row
        for name, space in (("query", "query"), ("key", "key"), ("value", "value"))
        for row in linear(
            f"{layer}attention.attention.{name}", "normed", space, bias=bias, module=f"{inside}attention.{name[0]}_proj"
        )
    )


def embeddings(
    name: str, tokens: tuple[str, ...], fresh: Literal["normal", "zeros"] = "normal"
) -> tuple[ParamSpec, ...]:
    """Prefix tokens (rows of the residual stream), the position table, the patch convolution. fresh: how the first two
    begin."""
    one, embed, patch = reads("one"), writes("embed"), reads("patch")
    return (
        *(ParamSpec(name + token, (one, one, embed), "add", fresh=fresh) for token in tokens),
        ParamSpec(name + "position_embeddings", (one, reads("positions"), embed), "add", fresh=fresh),
        ParamSpec(
            name + "patch_embeddings.projection.weight",
            (embed, reads("channels"), patch, patch),
            "matmul",
            "patch",
            True,
            input_grad=False,
            fresh="normal",
        ),
        ParamSpec(name + "patch_embeddings.projection.bias", (embed,), "add"),
    )


def patches(config: PretrainedConfig) -> int:
    return int(config.image_size // config.patch_size) ** 2


def _no_registers(config: PretrainedConfig) -> int:
    return 0


def _stated_mlp_size(config: PretrainedConfig) -> int:
    return int(config.intermediate_size)


@dataclass(frozen=True, kw_only=True)
class ImageTrunk:
    """An encoder of images, on which heads stand.

    family: its name. prefix: of its names in a model with a head. parameters: its own, by a config and the prefix
    (empty where it has no head). placed: tokens before the patches that have a place in the position table. registers:
    how many tokens have none, by a config. mlp_size: of a config. classified: the spaces that a classifier reads.
    pooler: whether it may end in a pooler. head_modules: the modules of heads, which the bare encoder leaves out of the
    files of models that have one.
    """

    family: str
    prefix: str
    parameters: Callable[[Any, str], tuple[ParamSpec, ...]]
    placed: int = 1
    registers: Callable[[Any], int] = _no_registers
    mlp_size: Callable[[Any], int] = _stated_mlp_size
    classified: tuple[str, ...] = ("normed",)
    pooler: bool = False
    head_modules: tuple[str, ...] = ()

    def positions(self, config: PretrainedConfig, facts: Facts) -> dict[str, int]:
        """`positions` of a `Family`."""
        tokens = patches(config) + self.placed + self.registers(config)
        return {"token": tokens, "patch": patches(config), "sequence": 1}

    def classifier(self, config: PretrainedConfig, names: tuple[str, ...] = ("classifier",)) -> Architecture:
        """With a dense layer to the classes, once for each name."""
        ends = (
            row for name in names for row in linear(name, reads(*self.classified), "classes", counted_per="sequence")
        )
        return self._architecture(config, (*self.parameters(config, self.prefix), *ends), {"logits": "classes"})

    def bare(self, config: PretrainedConfig) -> Architecture:
        """The encoder without a head, with its pooler where it has one; a classifier's file may be read for it."""
        params, outputs = self.parameters(config, ""), {"last_hidden_state": "normed"}
        if self.pooler and has_pooler(config):
            params += linear("pooler.dense", "normed", "pooled", counted_per="sequence")
            outputs["pooler_output"] = "pooled"
        ignored = tuple(f"{module}.*" for module in self.head_modules)
        return self._architecture(config, params, outputs, ignored=ignored)

    def _architecture(
        self,
        config: PretrainedConfig,
        params: tuple[ParamSpec, ...],
        outputs: dict[str, str],
        ignored: tuple[str, ...] = (),
    ) -> Architecture:
        width, registers = int(config.hidden_size), self.registers(config)
        pooled = [Space("pooled", config.pooler_output_size or width, "pooled")] if "pooled" in outputs.values() else []
        classes = [Space("classes", config.num_labels or 0, "fixed")] if "classes" in outputs.values() else []
        return Architecture(
            family=self.family,
            spaces=spaces(
                Space("embed", width, "residual"),
                Space("normed", width, "normed"),
                *pooled,
                *heads(config.num_attention_heads, head_dim_of(config)),
                Space("mlp", self.mlp_size(config), "mlp"),
                Space("one", 1, "fixed"),
                Space("positions", patches(config) + self.placed, "grid", prefix=self.placed),
                Space("channels", config.num_channels, "fixed"),
                Space("patch", config.patch_size, "pixels"),
                *classes,
                *([Space("registers", registers, "fixed")] if registers else []),
            ),
            stacks=(LayerStack("layers", config.num_hidden_layers),),
            params=params,
            epsilon=NormEpsilon(config.layer_norm_eps, "layer_norm_eps"),
            outputs=outputs,
            ignored=ignored,
        )


def image_keys(sizes: ModelSizes, facts: Facts) -> dict[str, Any]:
    """What the data decide of an image model, and the epsilon: image size, channels and classes. Raises UserError."""
    require_kind(sizes, facts, "images")
    if not sizes.patch or facts["size"] % sizes.patch:
        raise UserError(
            f"model family '{sizes.family}' needs a patch size that divides the image size {facts['size']}, "
            f"got {sizes.patch}; set patch"
        )
    return {
        "layer_norm_eps": sizes.eps,
        "image_size": facts["size"],
        "num_channels": facts["channels"],
        **class_keys(facts),
    }


def image_family(
    trunk: ImageTrunk,
    config_class: type[PretrainedConfig],
    labelled: type[PreTrainedModel],
    bare: type[PreTrainedModel],
    keys: ConfigKeys,
    beside: tuple[Head, ...] = (),
    *,
    resize: Callable[[ModelSizes], dict[str, Any]] = image_resized,
    fresh: Mapping[str, Any] = MappingProxyType({}),
    drops_paths: bool = False,
) -> Family:
    """A family of models of images. labelled, bare: its models with a classifier, and without. beside: other heads.
    fresh: further keys of a new model's config."""
    encoder = Head("encoder", bare, trunk.bare, "pooler" if trunk.pooler else None)
    return Family(
        name=trunk.family,
        data="images",
        config_class=config_class,
        heads=(Head("classifier", labelled, trunk.classifier), *beside, encoder),
        keys=keys,
        resize=resize,
        positions=trunk.positions,
        probe_inputs=image_probe,
        configure=lambda sizes, facts: config_class(**image_keys(sizes, facts), **resize(sizes), **fresh),
        optional_sizes=("patch", "drop_path"),
        drops_paths=drops_paths,
    )
