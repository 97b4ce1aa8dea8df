"""BERT as `transformers` has it (post-LN, MLM transform), scored at the masked positions only."""

from torch import Tensor
from transformers import BertConfig, BertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from pipeline.axes import Space, Table, embedding, linear, norm
from pipeline.models.family import Family, masked_lm_positions, masked_lm_table, text_config


class BertForScoredMaskedLM(BertForMaskedLM):
    """`BertForMaskedLM` with the same parameters; the head runs on a fixed number of positions per sequence."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
                masked_positions: Tensor | None = None, **_) -> MaskedLMOutput:
        """Logits (B, M, V) at `masked_positions` (B, M), or (B, S, V) everywhere when none are given."""
        hidden_BSD = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
        if masked_positions is not None:
            hidden_BSD = hidden_BSD.gather(1, masked_positions.unsqueeze(-1).expand(-1, -1, hidden_BSD.shape[-1]))
        return MaskedLMOutput(logits=self.cls(hidden_BSD))


def table(config: BertConfig) -> Table:
    """The architecture at the sizes of `config`. The norms write the residual stream itself."""
    layer, head = "bert.encoder.layer.{i}.", "cls.predictions."
    params = (
        *embedding("bert.embeddings.word_embeddings", "vocab", "embed", tied=True, decay=True),
        *embedding("bert.embeddings.position_embeddings", "positions", "embed"),
        *embedding("bert.embeddings.token_type_embeddings", "types", "embed"),
        *norm("bert.embeddings.LayerNorm", reads="embed", writes="embed"),
        *linear(layer + "attention.self.query", reads="embed", writes="heads"),
        *linear(layer + "attention.self.key", reads="embed", writes="heads"),
        *linear(layer + "attention.self.value", reads="embed", writes="heads"),
        *linear(layer + "attention.output.dense", reads="heads", writes="embed"),
        *norm(layer + "attention.output.LayerNorm", reads="embed", writes="embed"),
        *linear(layer + "intermediate.dense", reads="embed", writes="mlp"),
        *linear(layer + "output.dense", reads="mlp", writes="embed"),
        *norm(layer + "output.LayerNorm", reads="embed", writes="embed"),
        *linear(head + "transform.dense", reads="embed", writes="transformed", per="scored"),
        *norm(head + "transform.LayerNorm", reads="transformed", writes="decoded"),
        *linear(head.rstrip("."), reads="decoded", writes="vocab", per="scored")[1:],  # its weight is the token embedding
    )
    return masked_lm_table("bert", config, params, Space("transformed", config.hidden_size, "inner"))


FAMILY = Family(
    "bert", "text", BertConfig, BertForScoredMaskedLM, table,
    lambda sizes, facts: text_config(BertConfig, sizes, facts), masked_lm_positions,
)
