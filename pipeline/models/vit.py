"""ViT as `transformers` has it, with an image classification head on the cls token.

transformers 5 renamed the modules inside the model; published files keep the names written here first.
"""

from transformers import PretrainedConfig, ViTConfig, ViTForImageClassification

from pipeline.axes import Axis, Param, Space, Table, linear, norm, spaces
from pipeline.config import ModelSizes
from pipeline.errors import UserError
from pipeline.models.family import Facts, Family, resized


def table(config: ViTConfig) -> Table:
    """The architecture at the sizes of `config`."""
    width, head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    layer, inside = "vit.encoder.layer.{i}.", "vit.layers.{i}."
    params = (
        *_embeddings(),
        *norm(layer + "layernorm_before", reads="embed", writes="normed", module=inside + "layernorm_before"),
        *(row for name, short in (("query", "q"), ("key", "k"), ("value", "v"))
          for row in linear(f"{layer}attention.attention.{name}", reads="normed", writes="heads", bias=config.qkv_bias,
                            module=f"{inside}attention.{short}_proj")),
        *linear(layer + "attention.output.dense", reads="heads", writes="embed", module=inside + "attention.o_proj"),
        *norm(layer + "layernorm_after", reads="embed", writes="normed", module=inside + "layernorm_after"),
        *linear(layer + "intermediate.dense", reads="normed", writes="mlp", module=inside + "mlp.fc1"),
        *linear(layer + "output.dense", reads="mlp", writes="embed", module=inside + "mlp.fc2"),
        *norm("vit.layernorm", reads="embed", writes="normed"),
        *linear("classifier", reads="normed", writes="classes", per="sequence"),
    )
    return Table(
        family="vit",
        spaces=spaces(
            Space("embed", width, "stream"), Space("normed", width, "normed"), Space("heads", width, "heads", head_dim),
            Space("mlp", config.intermediate_size, "mlp"), Space("one", 1, "fixed"),
            Space("positions", _patches(config) + 1, "fixed"), Space("channels", config.num_channels, "fixed"),
            Space("patch", config.patch_size, "fixed"), Space("classes", config.num_labels, "fixed"),
        ),
        layers=config.num_hidden_layers, params=params, attention="heads", eps="layer_norm_eps",
    )


def _embeddings() -> tuple[Param, ...]:
    one, embed = Axis("one", "reads"), Axis("embed", "writes")
    patch = Axis("patch", "reads")
    kernel, name = (embed, Axis("channels", "reads"), patch, patch), "vit.embeddings."
    return (
        Param(name + "cls_token", (one, one, embed), "add"),
        Param(name + "position_embeddings", (one, Axis("positions", "reads"), embed), "add"),
        Param(name + "patch_embeddings.projection.weight", kernel, "matmul", "patch", True, input_grad=False),
        Param(name + "patch_embeddings.projection.bias", (embed,), "add"),
    )


def _patches(config: ViTConfig) -> int:
    return (config.image_size // config.patch_size) ** 2


def configure(sizes: ModelSizes, facts: Facts) -> ViTConfig:
    """Image size, channels and classes come from the data. Raises UserError."""
    if facts["kind"] != "images":
        raise UserError(f"model family 'vit' reads images, the data are {facts['kind']}; choose an image data set")
    if not sizes.patch or facts["size"] % sizes.patch:
        raise UserError(f"model family 'vit' needs a patch size that divides the image size {facts['size']}, got {sizes.patch}; set models.….patch")
    return ViTConfig(
        layer_norm_eps=sizes.eps, image_size=facts["size"], patch_size=sizes.patch, num_channels=facts["channels"], **resized(sizes),
        id2label=dict(enumerate(facts["class_names"])), label2id={name: i for i, name in enumerate(facts["class_names"])},
    )


def positions(config: PretrainedConfig, facts: Facts) -> dict[str, int]:
    return {"token": _patches(config) + 1, "patch": _patches(config), "sequence": 1}


FAMILY = Family("vit", "images", ViTConfig, ViTForImageClassification, table, configure, positions)
