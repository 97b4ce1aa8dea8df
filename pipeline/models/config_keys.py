"""What a growth does with each key of a family's config, and the keys that many families have."""

from dataclasses import dataclass, replace

TEXT_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
DROP_PATH_RATE = "drop_path_rate"
"""The key of stochastic depth: the rate of the last layer."""
BRANCH_AND_LAYER_DROPS = (DROP_PATH_RATE, "layerdrop")
"""Keys of the probability at which whole branches or layers are dropped."""


@dataclass(frozen=True)
class ConfigKeys:
    """What a growth does with each key of a family's config. A key in none of the lists counts as one of `function`.

    sizes: a growth changes them, the target's value counts. training: they matter to training alone, the target's value
    counts. kept: they decide nothing about a growth (no model reads them, or the plan decides), the source's value
    counts whatever the target says. function: they decide what a model computes, source and target must agree. derived:
    `transformers` computes them from the others. width: of `sizes`, those that go along with hidden_size where they
    equal it. undeclared: of `sizes` and `training`, those that are read where the config has them, though its class
    declares none; a target without them has none.
    """

    sizes: tuple[str, ...]
    training: tuple[str, ...]
    kept: tuple[str, ...]
    function: tuple[str, ...]
    derived: tuple[str, ...] = ()
    width: tuple[str, ...] = ()
    undeclared: tuple[str, ...] = ()

    @property
    def dropout(self) -> tuple[str, ...]:
        """Those of `training` that are a probability of dropout in a model's layers, dropping of whole branches or
        layers apart."""
        others = ("classifier", "summary", "qa", "seq_classif", *BRANCH_AND_LAYER_DROPS)
        return tuple(key for key in self.training if "drop" in key and not key.startswith(others))

    def extended(self, **more: tuple[str, ...]) -> "ConfigKeys":
        """The same lists with more keys in those that are named."""
        return replace(self, **{name: getattr(self, name) + keys for name, keys in more.items()})


COMMON_KEYS = ConfigKeys(
    sizes=(),
    training=("use_cache", "gradient_checkpointing"),
    kept=(
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cls_token_id",
        "decoder_start_token_id",
        "directionality",
        "dtype",
        "eos_token_id",
        "has_pooler",
        "id2label",
        "label2id",
        "mask_token_id",
        "n_special",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "output_scores",
        "pad_token_id",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "predict_special_tokens",
        "prefix",
        "problem_type",
        "quantization_config",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
    ),
    function=("is_encoder_decoder", "model_type", "tie_word_embeddings"),
)
"""The keys of every `PretrainedConfig`, and those that published files of older versions hold besides."""


ROPE = "rope_parameters"
"""The key of rotary positions in transformers 5."""
BASE = "rope_theta"
"""The key of their base, in transformers 4 of the config itself."""
SCALING = "rope_scaling"
"""The key of transformers 4 of how they are scaled."""
TURNING = "partial_rotary_factor"
"""The key of how much of a head they turn, in transformers 4 of the config itself."""
ORIGINAL = "original_max_position_embeddings"
"""The key of the number of positions before the scaling, for `longrope` in transformers 4 of the config itself."""
ROPE_BEFORE_5 = (BASE, SCALING, TURNING)
"""The keys of rotary positions in transformers 4."""
ROPE_AS_WRITTEN = "rope_as_written"
"""The attribute of a config that holds what its file says in those."""


LAYER_TYPES = "layer_types"
"""The key of every layer's kind of attention."""
LAYER_TYPES_STATED = "stated_layer_types"
"""The attribute of a target's config with what its file says there."""


COMPARED_APART = (ROPE, "tie_word_embeddings", "model_type")
"""Keys of `function` that are compared by what they mean: rotary positions, the names of parameters, the family."""


POSITIONS = "max_position_embeddings"
"""The key of the number of positions."""


DROPOUT_KEYS = ("attention_probs_dropout_prob", "hidden_dropout_prob", "initializer_range")
"""The training keys of BERT and of what was written after it."""


TEXT_KEYS = COMMON_KEYS.extended(sizes=TEXT_SIZES)


ROTARY_KEYS = TEXT_KEYS.extended(
    sizes=("head_dim",),
    training=("attention_dropout", "initializer_range"),
    kept=(LAYER_TYPES, LAYER_TYPES_STATED, ROPE_AS_WRITTEN),
    function=(ROPE,),
)
"""What the configs of models of text with rotary positions have."""


BERT_KEYS = TEXT_KEYS.extended(
    training=(*DROPOUT_KEYS, "classifier_dropout"),
    kept=("layer_norm_eps",),
    function=("add_cross_attention", "hidden_act", "is_decoder", "type_vocab_size"),
)


IMAGE_KEYS = COMMON_KEYS.extended(
    sizes=("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "image_size", "patch_size"),
    training=DROPOUT_KEYS,
    kept=("layer_norm_eps",),
    function=("hidden_act", "num_channels", "qkv_bias"),
    undeclared=("head_dim",),
)


LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
"""The keys of configs that say how many layers a model has."""
