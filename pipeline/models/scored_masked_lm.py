"""Masked language models that are scored at some positions only."""

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class ScoredMaskedLM(PreTrainedModel):
    """To stand in front of a masked language model's class: the same parameters; the head runs on a fixed number of
    positions per sequence.

    scored_head: the module that is the head. Where the class's code runs several, `predictions` says how instead."""

    scored_head: ClassVar[str]

    def predictions(self, hidden: Tensor) -> Tensor:
        """The head alone: hidden states (…, D) to logits (…, V)."""
        logits: Tensor = self.get_submodule(self.scored_head)(hidden)
        return logits

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """Logits (B, M, V) at `masked_positions` (B, M), or (B, S, V) everywhere when none are given; with `labels` of
        the logits' leading shape (-100: does not count) their cross-entropy in float32 as well."""
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden_BSD = self.base_model(input_ids, attention_mask=attention_mask, **segments).last_hidden_state
        logits = self.predictions(_at(hidden_BSD, masked_positions))
        loss = None if labels is None else F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Its weights start as those of its base class do, which transformers knows."""
        return False


def _at(hidden_BSD: Tensor, positions_BM: Tensor | None) -> Tensor:
    """(B, M, D): the hidden states at some positions, or all."""
    if positions_BM is None:
        return hidden_BSD
    return hidden_BSD.gather(1, positions_BM.unsqueeze(-1).expand(-1, -1, hidden_BSD.shape[-1]))
