"""ViT and DeiT as `transformers` has them: classifiers on the cls token (and the distillation token), bare encoders.

transformers 5 renamed the modules inside the models; published files keep the names written here first.
"""

from functools import partial
from typing import Any, Literal

from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    PretrainedConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models import drop_path
from pipeline.models.architecture import (
    Architecture,
    LayerStack,
    NormEpsilon,
    ParamSpec,
    Space,
    heads,
    linear,
    norm,
    reads,
    spaces,
    writes,
)
from pipeline.models.family import (
    IMAGE_KEYS,
    Facts,
    Family,
    Head,
    class_keys,
    has_pooler,
    head_dim,
    image_probe,
    image_resized,
    require_kind,
)


def _encoder(prefix: str, tokens: tuple[str, ...], config: ViTConfig) -> tuple[ParamSpec, ...]:
    """Embeddings, layers and the final norm."""
    layer, inside = prefix + "encoder.layer.{i}.", prefix + "layers.{i}."
    return (
        *embeddings(prefix + "embeddings.", tokens, "zeros" if config.model_type == "deit" else "normal"),
        *norm(layer + "layernorm_before", "embed", "normed", module=inside + "layernorm_before"),
        *attention(layer, inside, config.qkv_bias),
        *linear(layer + "attention.output.dense", "context", "embed", module=inside + "attention.o_proj"),
        *norm(layer + "layernorm_after", "embed", "normed", module=inside + "layernorm_after"),
        *linear(layer + "intermediate.dense", "normed", "mlp", module=inside + "mlp.fc1"),
        *linear(layer + "output.dense", "mlp", "embed", module=inside + "mlp.fc2"),
        *norm(prefix + "layernorm", "embed", "normed"),
    )


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
            *heads(config.num_attention_heads, head_dim(config)),
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


CLASSIFIERS = ("classifier.*", "cls_classifier.*", "distillation_classifier.*")
"""What files of models with a head hold besides the encoder."""
TOKENS = {"vit": ("cls_token",), "deit": ("cls_token", "distillation_token")}


def classifier(family: str, names: tuple[str, ...], config: ViTConfig) -> Architecture:
    """A dense layer from the final norm's output to the classes, once for each name."""
    ends = tuple(row for name in names for row in linear(name, "normed", "classes", counted_per="sequence"))
    params = (*_encoder(f"{family}.", TOKENS[family], config), *ends)
    return image_architecture(
        family, config, params, config.intermediate_size, len(TOKENS[family]), {"logits": "classes"}
    )


def encoder(family: str, config: ViTConfig) -> Architecture:
    """The bare encoder with its pooler, where it has one; a classifier's file may be read for it."""
    params, outputs = _encoder("", TOKENS[family], config), {"last_hidden_state": "normed"}
    if has_pooler(config):
        params += linear("pooler.dense", "normed", "pooled", counted_per="sequence")
        outputs["pooler_output"] = "pooled"
    sizes = config.intermediate_size, len(TOKENS[family])
    return image_architecture(family, config, params, *sizes, outputs, ignored=CLASSIFIERS)


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


def configure(config_class: type[PretrainedConfig], sizes: ModelSizes, facts: Facts) -> PretrainedConfig:
    """Raises UserError."""
    return config_class(**image_keys(sizes, facts), **image_resized(sizes))


def positions(prefix: int, config: PretrainedConfig, facts: Facts) -> dict[str, int]:
    return {"token": patches(config) + prefix, "patch": patches(config), "sequence": 1}


KEYS = IMAGE_KEYS.extended(
    sizes=("intermediate_size", "pooler_output_size"),
    function=("encoder_stride", "pooler_act"),
    training=(drop_path.KEY,),
    width=("pooler_output_size",),
    undeclared=(drop_path.KEY,),
)

VIT = Family(
    name="vit",
    data="images",
    config_class=ViTConfig,
    heads=(
        Head("classifier", ViTForImageClassification, partial(classifier, "vit", ("classifier",))),
        Head("encoder", ViTModel, partial(encoder, "vit"), pooler="pooler"),
    ),
    keys=KEYS,
    resize=image_resized,
    positions=partial(positions, 1),
    probe_inputs=image_probe,
    configure=partial(configure, ViTConfig),
    optional_sizes=("patch", "drop_path"),
    drops_paths=True,
)
DEIT = Family(
    name="deit",
    data="images",
    config_class=DeiTConfig,
    heads=(
        Head("classifier", DeiTForImageClassification, partial(classifier, "deit", ("classifier",))),
        Head(
            "distilled",
            DeiTForImageClassificationWithTeacher,
            partial(classifier, "deit", ("cls_classifier", "distillation_classifier")),
        ),
        Head("encoder", DeiTModel, partial(encoder, "deit"), pooler="pooler"),
    ),
    keys=KEYS,
    resize=image_resized,
    positions=partial(positions, 2),
    probe_inputs=image_probe,
    configure=partial(configure, DeiTConfig),
    optional_sizes=("patch", "drop_path"),
    drops_paths=True,
)
