"""Plain attention: which models compute with nothing else.

A soft cap on attention scores, cap * tanh(score / cap), is a key of a config that only plain attention obeys: with
torch's fused kernels transformers 5 refuses such a model, and 4.57 forgets the cap without a word.
"""

from transformers import PretrainedConfig, PreTrainedModel

CAP = "attn_logit_softcapping"
"""The key of the soft cap on attention scores."""


def is_needed(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> bool:
    """Whether a model computes its own function with plain attention alone."""
    return getattr(config, CAP, None) is not None or not model_class._supports_sdpa
