"""ViT and DeiT as `transformers` has them: classifiers on the cls token (and the distillation token), bare encoders.

transformers 5 renamed the modules inside the models; published files keep the names written here first.
"""

from dataclasses import replace
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

from pipeline.models.architecture import ParamSpec
from pipeline.models.config_keys import DROP_PATH_RATE, IMAGE_KEYS
from pipeline.models.family import Head
from pipeline.models.images import ImageTrunk, attention, embeddings, image_family
from pipeline.models.rows import linear, norm


def parameters(tokens: tuple[str, ...], config: ViTConfig, prefix: str) -> tuple[ParamSpec, ...]:
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


KEYS = IMAGE_KEYS.extended(
    sizes=("intermediate_size", "pooler_output_size"),
    function=("encoder_stride", "pooler_act"),
    training=(DROP_PATH_RATE,),
    width=("pooler_output_size",),
    undeclared=(DROP_PATH_RATE,),
)


VIT_TRUNK = ImageTrunk(
    family="vit",
    prefix="vit.",
    parameters=partial(parameters, ("cls_token",)),
    pooler=True,
    head_modules=("classifier", "cls_classifier", "distillation_classifier"),
)
DEIT_TRUNK = replace(
    VIT_TRUNK,
    family="deit",
    prefix="deit.",
    parameters=partial(parameters, ("cls_token", "distillation_token")),
    placed=2,
)
DISTILLED = partial(DEIT_TRUNK.classifier, names=("cls_classifier", "distillation_classifier"))
"""A classifier of the cls token and one of the distillation token."""
VIT = image_family(VIT_TRUNK, ViTConfig, ViTForImageClassification, ViTModel, KEYS, drops_paths=True)
DEIT = image_family(
    DEIT_TRUNK,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTModel,
    KEYS,
    (Head("distilled", DeiTForImageClassificationWithTeacher, DISTILLED),),
    drops_paths=True,
)
