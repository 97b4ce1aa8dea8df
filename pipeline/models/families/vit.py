"""ViT and DeiT as `transformers` has them: classifiers on the cls token (and the distillation token), bare encoders.

transformers 5 renamed the modules inside the models; published files keep the names written here first.
"""

from functools import partial

from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from pipeline.models.architecture import Architecture, ParamSpec
from pipeline.models.config_keys import DROP_PATH_RATE, IMAGE_KEYS
from pipeline.models.family import has_pooler
from pipeline.models.images import attention, embeddings, image_architecture, image_family, positions
from pipeline.models.rows import linear, norm


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


CLASSIFIERS = ("classifier.*", "cls_classifier.*", "distillation_classifier.*")
"""What files of models with a head hold besides the encoder."""
TOKENS = {"vit": ("cls_token",), "deit": ("cls_token", "distillation_token")}


def classifier(family: str, config: ViTConfig, names: tuple[str, ...] = ("classifier",)) -> Architecture:
    """A dense layer from the final norm's output to the classes, once for each name."""
    ends = tuple(row for name in names for row in linear(name, "normed", "classes", counted_per="sequence"))
    params = (*_encoder(f"{family}.", TOKENS[family], config), *ends)
    return image_architecture(
        family, config, params, config.intermediate_size, len(TOKENS[family]), {"logits": "classes"}
    )


def distilled_classifier(family: str, config: ViTConfig) -> Architecture:
    """One for the cls token, one for the distillation token."""
    return classifier(family, config, ("cls_classifier", "distillation_classifier"))


def encoder(family: str, config: ViTConfig) -> Architecture:
    """The bare encoder with its pooler, where it has one; a classifier's file may be read for it."""
    params, outputs = _encoder("", TOKENS[family], config), {"last_hidden_state": "normed"}
    if has_pooler(config):
        params += linear("pooler.dense", "normed", "pooled", counted_per="sequence")
        outputs["pooler_output"] = "pooled"
    sizes = config.intermediate_size, len(TOKENS[family])
    return image_architecture(family, config, params, *sizes, outputs, ignored=CLASSIFIERS)


KEYS = IMAGE_KEYS.extended(
    sizes=("intermediate_size", "pooler_output_size"),
    function=("encoder_stride", "pooler_act"),
    training=(DROP_PATH_RATE,),
    width=("pooler_output_size",),
    undeclared=(DROP_PATH_RATE,),
)


VIT = image_family(
    "vit",
    ViTConfig,
    {"classifier": (ViTForImageClassification, classifier), "encoder": (ViTModel, encoder)},
    KEYS,
    counts=partial(positions, 1),
    pooler="pooler",
    drops_paths=True,
)
DEIT = image_family(
    "deit",
    DeiTConfig,
    {
        "classifier": (DeiTForImageClassification, classifier),
        "distilled": (DeiTForImageClassificationWithTeacher, distilled_classifier),
        "encoder": (DeiTModel, encoder),
    },
    KEYS,
    counts=partial(positions, 2),
    pooler="pooler",
    drops_paths=True,
)
