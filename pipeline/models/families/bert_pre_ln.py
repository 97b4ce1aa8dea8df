"""LEMON's BERT: pre-LN, no embedding norm, a final norm, decoder tied to the token embedding or not; optional MLM
transform.

Source: Wang et al., "LEMON: Lossless Model Expansion", ICLR 2024 (arXiv:2310.07999), section 5. Parameter names
follow BERT's in `transformers`, with the norms standing in front of their branch.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform, eager_attention_forward

from pipeline.models.architecture import ParamSpec
from pipeline.models.config_keys import BERT_KEYS, DROP_PATH_RATE
from pipeline.models.fresh_configs import dropped, resized
from pipeline.models.rows import embedding, linear, norm
from pipeline.models.scored_masked_lm import ScoredMaskedLM
from pipeline.models.text_encoders import Trunk, positions_and_types
from pipeline.models.text_heads import Decoder, encoder, masked_lm, text_family, transformed


class BertPreLNConfig(BertConfig):
    """mlm_transform: dense -> activation -> norm in front of the decoder, as BERT has it; LEMON's model has none.
    drop_path_rate: of stochastic depth in the last layer."""

    model_type = "bert-pre-ln"
    mlm_transform: bool = False
    drop_path_rate: float | int = 0.0


class Embeddings(nn.Module):
    def __init__(self, config: BertPreLNConfig):
        super().__init__()
        self.word_embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """(B, S) token ids to (B, S, D)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        hidden_BSD = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        embedded_BSD: Tensor = self.dropout(hidden_BSD + self.token_type_embeddings(types))
        return embedded_BSD


class SelfAttention(nn.Module):
    def __init__(self, config: BertPreLNConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, normed_BSD: Tensor, attention_mask: Tensor | None) -> Tensor:
        shape = (*normed_BSD.shape[:2], -1, self.head_dim)
        query, key, value = (
            part(normed_BSD).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        heads_BSHK, _ = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.head_dim**-0.5)
        context_BSD: Tensor = heads_BSHK.flatten(2)
        return context_BSD


class Dense(nn.Module):
    """A dense layer under the name `dense`, as `transformers` has it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)


class Attention(nn.Module):
    def __init__(self, config: BertPreLNConfig):
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self = SelfAttention(config)
        self.output = Dense(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BSD: Tensor, attention_mask: Tensor | None) -> Tensor:
        written_BSD: Tensor = self.output.dense(self.self(self.LayerNorm(hidden_BSD), attention_mask))
        return written_BSD


class Intermediate(Dense):
    def __init__(self, config: BertPreLNConfig):
        super().__init__(config.hidden_size, config.intermediate_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        units_BSM: Tensor = self.activation(self.dense(self.LayerNorm(hidden_BSD)))
        return units_BSM


class Layer(GradientCheckpointingLayer):
    def __init__(self, config: BertPreLNConfig):
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Dense(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BSD: Tensor, attention_mask: Tensor | None) -> Tensor:
        hidden_BSD = hidden_BSD + self.dropout(self.attention(hidden_BSD, attention_mask))
        branch_BSD: Tensor = self.dropout(self.output.dense(self.intermediate(hidden_BSD)))
        return hidden_BSD + branch_BSD


class Encoder(nn.Module):
    def __init__(self, config: BertPreLNConfig):
        super().__init__()
        self.layer = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])


class BertPreLNPreTrainedModel(PreTrainedModel):
    config_class = BertPreLNConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["Embeddings", "Layer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PredictionHead):
            init.zeros_(module.bias)


class BertPreLNModel(BertPreLNPreTrainedModel):
    """The encoder: token ids to the final norm's output."""

    def __init__(self, config: BertPreLNConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, **_: Any
    ) -> BaseModelOutput:
        """input_ids (B, S); attention_mask (B, S), 1 where a token counts. Returns last_hidden_state (B, S, D)."""
        hidden_BSD = self.embeddings(input_ids, token_type_ids)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_BSD, attention_mask=attention_mask)
        for layer in self.encoder.layer:
            hidden_BSD = layer(hidden_BSD, mask)
        return BaseModelOutput(last_hidden_state=self.LayerNorm(hidden_BSD))


class PredictionHead(nn.Module):
    def __init__(self, config: BertPreLNConfig):
        super().__init__()
        if config.mlm_transform:
            self.transform = BertPredictionHeadTransform(config)
        self.decoder: nn.Module = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        """(B, S, D) to logits (B, S, V)."""
        logits_BSV: Tensor = self.decoder(self.transform(hidden_BSD) if hasattr(self, "transform") else hidden_BSD)
        return logits_BSV


class Predictions(nn.Module):
    def __init__(self, config: BertPreLNConfig):
        super().__init__()
        self.predictions = PredictionHead(config)


class BertPreLNForMaskedLM(ScoredMaskedLM, BertPreLNPreTrainedModel):
    """The encoder and a decoder tied to the token embedding."""

    scored_head = "cls.predictions"
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: BertPreLNConfig):
        super().__init__(config)
        self.bert = BertPreLNModel(config)
        self.cls = Predictions(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Linear)
        self.cls.predictions.decoder = value
        self.cls.predictions.bias = value.bias


def parameters(config: BertPreLNConfig, prefix: str, tied: bool) -> tuple[ParamSpec, ...]:
    """Embeddings, layers, and the final norm; without the transform a decoder reads what this norm writes."""
    layer, has_head = prefix + "encoder.layer.{i}.", prefix != ""
    ended = "decoded" if has_head and not config.mlm_transform else "normed"
    return (
        *embedding(prefix + "embeddings.word_embeddings", "vocab", "embed", tied=tied, decay=tied),
        *embedding(prefix + "embeddings.position_embeddings", "positions", "embed"),
        *embedding(prefix + "embeddings.token_type_embeddings", "types", "embed"),
        *norm(layer + "attention.LayerNorm", "embed", "normed"),
        *linear(layer + "attention.self.query", "normed", "query"),
        *linear(layer + "attention.self.key", "normed", "key"),
        *linear(layer + "attention.self.value", "normed", "value"),
        *linear(layer + "attention.output.dense", "context", "embed"),
        *norm(layer + "intermediate.LayerNorm", "embed", "normed"),
        *linear(layer + "intermediate.dense", "normed", "mlp"),
        *linear(layer + "output.dense", "mlp", "embed"),
        *norm(prefix + "LayerNorm", "embed", ended),
    )


def transform(config: BertPreLNConfig, counted_per: str) -> tuple[ParamSpec, ...]:
    """BERT's, or none."""
    head = "cls.predictions.transform."
    return (
        transformed(head + "dense", head + "LayerNorm", "normed")(config, counted_per) if config.mlm_transform else ()
    )


TRUNK = Trunk(
    family="bert-pre-ln",
    prefix="bert.",
    parameters=parameters,
    output_space="normed",
    lookups=positions_and_types,
    head_modules=("cls",),
)
DECODER = Decoder("cls.predictions.decoder", bias="cls.predictions", read_in_4=False)
FAMILY = text_family(
    TRUNK,
    BertPreLNConfig,
    (masked_lm(TRUNK, BertPreLNForMaskedLM, transform, DECODER), encoder(TRUNK, BertPreLNModel)),
    resize=lambda sizes: resized(sizes) | dropped(sizes),
    keys=BERT_KEYS.extended(training=(DROP_PATH_RATE,), function=("mlm_transform",)),
    optional_sizes=("drop_path",),
    drops_paths=True,
)

AutoConfig.register("bert-pre-ln", BertPreLNConfig)
AutoModel.register(BertPreLNConfig, BertPreLNModel)
AutoModelForMaskedLM.register(BertPreLNConfig, BertPreLNForMaskedLM)
