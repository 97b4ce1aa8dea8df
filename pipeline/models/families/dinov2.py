"""DINOv2 as `transformers` has it: pre-LN, a layer scale behind each branch, a classifier that reads the final norm
twice. Its own code does stochastic depth, at the same rate in every layer."""

from functools import partial
from typing import Any

from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models.architecture import Architecture, Axis, ParamSpec, linear, norm, reads, writes
from pipeline.models.families.vit import attention, embeddings, image_architecture, image_keys, positions
from pipeline.models.family import IMAGE_KEYS, Facts, Family, Head, image_probe, image_resized


def _encoder(prefix: str, config: Dinov2Config) -> tuple[ParamSpec, ...]:
    """Embeddings (the mask token behind the cls token), layers and the final norm."""
    layer = prefix + "encoder.layer.{i}."
    cls, *others = embeddings(prefix + "embeddings.", ("cls_token",))
    mask = ParamSpec(prefix + "embeddings.mask_token", (reads("one"), writes("embed")), "add")
    first, second = (f"{layer}layer_scale{n}.lambda1" for n in (1, 2))
    return (
        cls,
        *([mask] if config.use_mask_token else []),
        *others,
        *norm(layer + "norm1", "embed", "normed"),
        *attention(layer, layer, config.qkv_bias),
        *linear(
            layer + "attention.output.dense", "context", "embed", module=layer + "attention.o_proj", scaled_by=first
        ),
        ParamSpec(first, (Axis(("embed",), "scales"),), "add", fresh="ones", std=config.layerscale_value),
        *norm(layer + "norm2", "embed", "normed"),
        *linear(layer + "mlp.fc1", "normed", "mlp"),
        *linear(layer + "mlp.fc2", "mlp", "embed", scaled_by=second),
        ParamSpec(second, (Axis(("embed",), "scales"),), "add", fresh="ones", std=config.layerscale_value),
        *norm(prefix + "layernorm", "embed", "normed"),
    )


def _architecture(config: Dinov2Config, params: tuple[ParamSpec, ...], outputs: dict[str, str]) -> Architecture:
    """Raises UserError for the SwiGLU variant: its published files fuse what its modules hold apart."""
    if config.use_swiglu_ffn:
        raise UserError(
            "DINOv2 with use_swiglu_ffn is not supported; "
            "its published files fuse two tensors that its modules hold apart"
        )
    return image_architecture("dinov2", config, params, int(config.hidden_size * config.mlp_ratio), 1, outputs)


def classifier(config: Dinov2Config) -> Architecture:
    """A dense layer from the cls token and the mean of the patches, both behind the final norm."""
    end = linear("classifier", reads("normed", "normed"), "classes", counted_per="sequence")
    return _architecture(config, (*_encoder("dinov2.", config), *end), {"logits": "classes"})


def encoder(config: Dinov2Config) -> Architecture:
    return _architecture(config, _encoder("", config), {"last_hidden_state": "normed"})


def resize(sizes: ModelSizes) -> dict[str, Any]:
    """The MLP's size is a whole multiple of the width. Raises UserError for another."""
    if sizes.mlp_units % sizes.hidden:
        raise UserError(
            f"model family 'dinov2' needs an mlp that is a multiple of hidden {sizes.hidden}, got {sizes.mlp_units}"
        )
    named = image_resized(sizes)
    del named["intermediate_size"]
    return {**named, "mlp_ratio": sizes.mlp_units // sizes.hidden}


def configure(sizes: ModelSizes, facts: Facts) -> Dinov2Config:
    """Without a mask token, which a classifier has no use for. Raises UserError."""
    return Dinov2Config(**image_keys(sizes, facts), **resize(sizes), use_mask_token=False)


FAMILY = Family(
    name="dinov2",
    data="images",
    config_class=Dinov2Config,
    heads=(Head("classifier", Dinov2ForImageClassification, classifier), Head("encoder", Dinov2Model, encoder)),
    keys=IMAGE_KEYS.extended(
        sizes=("mlp_ratio",),
        training=("drop_path_rate", "layerscale_value"),
        function=("apply_layernorm", "reshape_hidden_states", "use_mask_token", "use_swiglu_ffn"),
        derived=("out_features", "out_indices", "stage_names"),
    ),
    resize=resize,
    positions=partial(positions, 1),
    probe_inputs=image_probe,
    configure=configure,
    optional_sizes=("patch", "drop_path"),
)
