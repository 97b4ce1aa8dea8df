"""DINOv2, with registers and without, as `transformers` has them: pre-LN, a layer scale behind each branch, a
classifier that reads the final norm twice. Their own code does stochastic depth, at the same rate in every layer.

Registers stand behind the cls token, have no positions, and the classifier does not read them.
"""

from dataclasses import replace
from typing import Any, TypeAlias

from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models.architecture import Axis, ParamSpec, reads, writes
from pipeline.models.config_keys import DROP_PATH_RATE, IMAGE_KEYS
from pipeline.models.fresh_configs import image_resized
from pipeline.models.images import ImageTrunk, attention, embeddings, image_family
from pipeline.models.rows import linear, norm

Config: TypeAlias = Dinov2Config | Dinov2WithRegistersConfig


def registers(config: Config) -> int:
    """Tokens between the cls token and the patches."""
    return config.num_register_tokens if isinstance(config, Dinov2WithRegistersConfig) else 0


def parameters(config: Config, prefix: str) -> tuple[ParamSpec, ...]:
    """Embeddings (the mask token behind the cls token), layers and the final norm. Raises
    UserError."""
    _require_supported(config)
    layer = prefix + "encoder.layer.{i}."
    cls, *others = embeddings(prefix + "embeddings.", ("cls_token",))
    mask = ParamSpec(prefix + "embeddings.mask_token", (reads("one"), writes("embed")), "add")
    own = ParamSpec(prefix + "embeddings.register_tokens", (reads("one"), reads("registers"), writes("embed")), "add")
    first, second = (f"{layer}layer_scale{n}.lambda1" for n in (1, 2))
    return (
        cls,
        *([mask] if getattr(config, "use_mask_token", True) else []),
        *([own] if registers(config) else []),
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


def _require_supported(config: Config) -> None:
    """Raises UserError for the SwiGLU variant, whose published files fuse what its modules hold apart, and for a model
    that has registers, none of them."""
    if config.use_swiglu_ffn:
        raise UserError(
            "DINOv2 with use_swiglu_ffn is not supported; "
            "its published files fuse two tensors that its modules hold apart"
        )
    if isinstance(config, Dinov2WithRegistersConfig) and config.num_register_tokens < 1:
        raise UserError(f"num_register_tokens {config.num_register_tokens} is less than 1; choose a DINOv2 without any")


def resize(sizes: ModelSizes) -> dict[str, Any]:
    """The MLP's size is a whole multiple of the width. Raises UserError for another."""
    if sizes.mlp_units % sizes.hidden:
        raise UserError(
            f"model family '{sizes.family}' needs an mlp that is a multiple of hidden {sizes.hidden}, "
            f"got {sizes.mlp_units}"
        )
    named = image_resized(sizes)
    del named["intermediate_size"]
    return {**named, "mlp_ratio": sizes.mlp_units // sizes.hidden}


KEYS = IMAGE_KEYS.extended(
    sizes=("mlp_ratio",),
    training=(DROP_PATH_RATE, "layerscale_value"),
    function=("apply_layernorm", "reshape_hidden_states", "use_swiglu_ffn"),
    derived=("out_features", "out_indices", "stage_names"),
)

TRUNK = ImageTrunk(
    family="dinov2",
    prefix="dinov2.",
    parameters=parameters,
    registers=registers,
    mlp_size=lambda config: int(config.hidden_size * config.mlp_ratio),
    classified=("normed", "normed"),  # the cls token, and the mean of the patches
)
DINOV2 = image_family(
    TRUNK,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    KEYS.extended(function=("use_mask_token",)),
    resize=resize,
    fresh={"use_mask_token": False},  # a classifier has no use for one
)
WITH_REGISTERS = image_family(
    replace(TRUNK, family="dinov2-with-registers", prefix="dinov2_with_registers."),
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    KEYS.extended(function=("num_register_tokens",)),
    resize=resize,
)
