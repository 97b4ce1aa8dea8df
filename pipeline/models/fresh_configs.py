"""Configs of fresh models: a model's sizes and what the data state, in the keys of `transformers`."""

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models.config_keys import DROP_PATH_RATE

Facts = Mapping[str, Any]
"""What `prepare` states about the data. `kind`; of text vocab_size (rows of a fresh model's table), pieces (of the
tokenizer; none stated: as many), block (tokens of a sample), scored (positions that a masked model predicts of it) and
special (ids by name, where they are known); of images size, channels and class_names."""


def resized(sizes: ModelSizes, **others: str) -> dict[str, Any]:
    """What a model's sizes are called in a config of `transformers`, in most families. others: the keys of a family
    that calls some otherwise, by those of most."""
    keys = {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp_units,
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.dropout,
        "initializer_range": sizes.init,
    }
    return {others.get(key, key): value for key, value in keys.items()}


def dropped(sizes: ModelSizes) -> dict[str, Any]:
    """The rate of stochastic depth in the config of a family that has it."""
    return {DROP_PATH_RATE: sizes.drop_path or 0.0}


def image_resized(sizes: ModelSizes) -> dict[str, Any]:
    """`resized` for models of images, whose patch may be left as it is."""
    return resized(sizes) | dropped(sizes) | ({} if sizes.patch is None else {"patch_size": sizes.patch})


def class_keys(facts: Facts) -> dict[str, Any]:
    """The classes of the data in a config."""
    names = facts["class_names"]
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def positions_of(facts: Facts) -> int:
    """Tokens of the longest block that the models of a run read."""
    return int(facts.get("positions", facts["block"]))


def masked_keys(sizes: ModelSizes, facts: Facts) -> dict[str, Any]:
    """What the data decide of a masked model: the vocabulary and the number of positions. Raises UserError."""
    require_kind(sizes, facts, "text")
    if "mask" not in facts.get("special", {"mask"}):
        raise UserError(
            f"models of family '{sizes.family}' are trained by masking, and the tokenizer of the data has no mask "
            "token; choose a tokenizer that has one, or a causal model"
        )
    return {"vocab_size": facts["vocab_size"], "max_position_embeddings": positions_of(facts), "pad_token_id": None}


def causal_keys(sizes: ModelSizes, facts: Facts) -> dict[str, Any]:
    """What the data decide of a causal model: vocabulary, and the tokens that begin and separate texts. Raises
    UserError."""
    require_kind(sizes, facts, "text")
    special = facts.get("special", {})
    return {
        "vocab_size": facts["vocab_size"],
        "bos_token_id": special.get("cls"),
        "eos_token_id": special.get("sep"),
        "pad_token_id": None,  # blocks are packed, and an embedding would not learn that row
    }


def require_kind(sizes: ModelSizes, facts: Facts, kind: Literal["text", "images"]) -> None:
    """Raises UserError where the data are of another kind."""
    if facts["kind"] != kind:
        raise UserError(
            f"model family '{sizes.family}' reads {kind}, the data are {facts['kind']}; choose "
            + ("a text data set" if kind == "text" else "an image data set")
        )


def stated(**keys: Any) -> dict[str, Any]:
    """The keys that have a value."""
    return {key: value for key, value in keys.items() if value is not None}
