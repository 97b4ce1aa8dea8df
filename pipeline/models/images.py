"""What models of images share: the spaces and embeddings of a vision Transformer, its tokens, its family."""

from collections.abc import Callable, Mapping
from functools import partial
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
from pipeline.models.family import Family, Head
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


def image_architecture(
    family: str,
    config: PretrainedConfig,
    params: tuple[ParamSpec, ...],
    mlp: int,
    prefix: int,
    outputs: dict[str, str],
    *more: Space,
    ignored: tuple[str, ...] = (),
) -> Architecture:
    """The spaces of a vision Transformer with `prefix` tokens before its patches in the position table, and `more` of
    its own."""
    width = int(config.hidden_size)
    pooled = [Space("pooled", config.pooler_output_size or width, "pooled")] if "pooled" in outputs.values() else []
    classes = [Space("classes", config.num_labels or 0, "fixed")] if "classes" in outputs.values() else []
    return Architecture(
        family=family,
        spaces=spaces(
            Space("embed", width, "residual"),
            Space("normed", width, "normed"),
            *pooled,
            *heads(config.num_attention_heads, head_dim_of(config)),
            Space("mlp", mlp, "mlp"),
            Space("one", 1, "fixed"),
            Space("positions", patches(config) + prefix, "grid", prefix=prefix),
            Space("channels", config.num_channels, "fixed"),
            Space("patch", config.patch_size, "pixels"),
            *classes,
            *more,
        ),
        stacks=(LayerStack("layers", config.num_hidden_layers),),
        params=params,
        epsilon=NormEpsilon(config.layer_norm_eps, "layer_norm_eps"),
        outputs=outputs,
        ignored=ignored,
    )


def patches(config: PretrainedConfig) -> int:
    return int(config.image_size // config.patch_size) ** 2


def positions(prefix: int, config: PretrainedConfig, facts: Facts) -> dict[str, int]:
    return {"token": patches(config) + prefix, "patch": patches(config), "sequence": 1}


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
    name: str,
    config_class: type[PretrainedConfig],
    architectures: Mapping[str, tuple[type[PreTrainedModel], Callable[..., Architecture]]],
    keys: ConfigKeys,
    *,
    counts: Callable[[Any, Facts], dict[str, int]],
    resize: Callable[[ModelSizes], dict[str, Any]] = image_resized,
    fresh: Mapping[str, Any] = MappingProxyType({}),
    pooler: str | None = None,
    drops_paths: bool = False,
) -> Family:
    """A family of models of images. architectures: by a head's name the model's class, and its architecture by the
    family's name and the config. counts: `positions` of a `Family`. fresh: further keys of a new model's config.
    pooler: the module that a bare encoder may lack."""
    return Family(
        name=name,
        data="images",
        config_class=config_class,
        heads=tuple(
            Head(head, model_class, partial(build, name), pooler if head == "encoder" else None)
            for head, (model_class, build) in architectures.items()
        ),
        keys=keys,
        resize=resize,
        positions=counts,
        probe_inputs=image_probe,
        configure=lambda sizes, facts: config_class(**image_keys(sizes, facts), **resize(sizes), **fresh),
        optional_sizes=("patch", "drop_path"),
        drops_paths=drops_paths,
    )
