"""A tiny config of every family and head, made from the sizes people speak of."""

from transformers import PretrainedConfig

from pipeline import models

VOCAB, POSITIONS, IMAGE, PATCH, CLASSES = 61, 14, 8, 4, 3
SMALL = {"layers": 2, "hidden": 12, "heads": 3, "mlp": 20}
BERT_LIKE = ("bert-pre-ln", "bert", "roberta", "xlm-roberta", "camembert")
ROTARY = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text")
BY_TURNS = ("gemma2", "gemma3_text", "modernbert")
EVERY_OTHER = 2
"""The families with so many layers for each of `layers`: one with a window, one without."""
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
"""Soft caps as small as the numbers of a sample, so that they count."""
IMAGES = tuple(name for name, family in models.FAMILIES.items() if family.data == "images")
VARIANTS = {
    "bert-pre-ln": {},
    "bert-pre-ln transform": {"mlm_transform": True},
    "bert-pre-ln untied": {"tie_word_embeddings": False},
    "bert-pre-ln transform untied": {"mlm_transform": True, "tie_word_embeddings": False},
    "bert-pre-ln encoder": {"head": "encoder"},
    "bert": {},
    "bert untied": {"tie_word_embeddings": False},
    "bert encoder": {"head": "encoder"},
    "bert encoder without pooler": {"head": "encoder", "has_pooler": False},
    "bert pre-training": {"head": "pre-training"},
    "bert pre-training untied": {"head": "pre-training", "tie_word_embeddings": False},
    "bert next-sentence": {"head": "next-sentence"},
    "bert text-classifier": {"head": "text-classifier", "num_labels": 3},
    "bert token-classifier": {"head": "token-classifier", "num_labels": 3},
    "bert question-answering": {"head": "question-answering"},
    "roberta": {},
    "roberta untied": {"tie_word_embeddings": False},
    "roberta encoder": {"head": "encoder"},
    "roberta text-classifier": {"head": "text-classifier", "num_labels": 3},
    "roberta token-classifier": {"head": "token-classifier", "num_labels": 3},
    "roberta question-answering": {"head": "question-answering"},
    "xlm-roberta": {},
    "xlm-roberta untied": {"tie_word_embeddings": False},
    "xlm-roberta encoder": {"head": "encoder"},
    "xlm-roberta text-classifier": {"head": "text-classifier", "num_labels": 3},
    "camembert": {},
    "camembert encoder": {"head": "encoder"},
    "distilbert": {},
    "distilbert untied": {"tie_word_embeddings": False},
    "distilbert text-classifier": {"head": "text-classifier", "num_labels": CLASSES},
    "distilbert token-classifier": {"head": "token-classifier", "num_labels": CLASSES},
    "distilbert question-answering": {"head": "question-answering"},
    "distilbert encoder": {"head": "encoder"},
    "modernbert": {},
    "modernbert untied": {"tie_word_embeddings": False},
    "modernbert encoder": {"head": "encoder"},
    "modernbert biases": dict.fromkeys(("attention_bias", "classifier_bias", "mlp_bias", "norm_bias"), True),
    "modernbert text-classifier": {"head": "text-classifier", "num_labels": CLASSES},
    "modernbert text-classifier of means": {
        "head": "text-classifier",
        "num_labels": CLASSES,
        "classifier_pooling": "mean",
        **dict.fromkeys(("classifier_bias", "norm_bias"), True),
    },
    "modernbert token-classifier": {
        "head": "token-classifier",
        "num_labels": CLASSES,
        **dict.fromkeys(("classifier_bias", "mlp_bias", "norm_bias"), True),
    },
    "modernbert question-answering": {"head": "question-answering"},
    "vit": {},
    "vit encoder": {"head": "encoder"},
    "vit encoder without pooler": {"head": "encoder", "has_pooler": False},
    "vit without bias": {"qkv_bias": False},
    "deit": {},
    "deit distilled": {"head": "distilled"},
    "deit encoder": {"head": "encoder"},
    "dinov2": {},
    "dinov2 encoder": {"head": "encoder"},
    "dinov2-with-registers": {"num_register_tokens": 3},
    "dinov2-with-registers encoder": {"head": "encoder", "num_register_tokens": 3},
    "gpt2": {},
    "gpt2 untied": {"tie_word_embeddings": False},
    "gpt2 encoder": {"head": "encoder"},
    "llama": {"tie_word_embeddings": False},
    "llama tied": {"tie_word_embeddings": True},
    "llama encoder": {"head": "encoder"},
    "llama biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"tie_word_embeddings": False},
    "mistral encoder": {"head": "encoder"},
    "qwen2": {"tie_word_embeddings": False},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen2 encoder": {"head": "encoder"},
    "qwen3": {"tie_word_embeddings": False},
    "qwen3 tied": {"tie_word_embeddings": True},
    "qwen3 encoder": {"head": "encoder"},
    "gemma2": {**CAPS, "query_pre_attn_scalar": 6},
    "gemma2 untied": {**CAPS, "tie_word_embeddings": False, "attention_bias": True},
    "gemma2 encoder": {"head": "encoder", **CAPS},
    "gemma3_text": {"query_pre_attn_scalar": 6},
    "gemma3_text untied": {"tie_word_embeddings": False, "final_logit_softcapping": 3.0, "attention_bias": True},
    "gemma3_text encoder": {"head": "encoder"},
    "phi3": {"tie_word_embeddings": False},
    "phi3 tied": {"tie_word_embeddings": True},
    "phi3 encoder": {"head": "encoder"},
    "opt": {},
    "opt untied": {"tie_word_embeddings": False},
    "opt encoder": {"head": "encoder"},
    "opt without bias": {"enable_bias": False},
    "opt without affine": {"layer_norm_elementwise_affine": False, "tie_word_embeddings": False},
}
"""Every family and head, by name; the first word is the family."""


def sample(variant: str, **sizes) -> PretrainedConfig:
    """The config of a variant; `sizes` overrides SMALL, and may hold kv_heads, head_dim, vocab, positions, image,
    patch, eps (for which the configs of OPT and DistilBERT have no key)."""
    name, options = variant.split()[0], dict(VARIANTS[variant])
    family = models.family(name)
    head_name = options.pop("head", family.heads[0].name)
    head = next(head for head in family.heads if head.name == head_name)
    return family.config_class(**_named(name, SMALL | sizes), **options, architectures=[head.class_name])


def _named(name: str, sizes: dict) -> dict:
    layers, hidden, heads, mlp = (sizes[key] for key in ("layers", "hidden", "heads", "mlp"))
    vocab, positions, eps = sizes.get("vocab", VOCAB), sizes.get("positions", POSITIONS), sizes.get("eps", 1e-2)
    if name == "gpt2":
        return {
            "n_layer": layers,
            "n_embd": hidden,
            "n_head": heads,
            "n_inner": mlp,
            "vocab_size": vocab,
            "n_positions": positions,
            "layer_norm_epsilon": eps,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    common = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    if name in ROTARY:
        by_turns = {"num_hidden_layers": EVERY_OTHER * layers, "sliding_window": 4} if name in BY_TURNS else {}
        by_turns |= {"sliding_window_pattern": 2} if name == "gemma3_text" else {}
        return {
            **common,
            **by_turns,
            "num_key_value_heads": sizes.get("kv_heads", heads),
            "head_dim": sizes.get("head_dim", 4),
            "intermediate_size": mlp,
            "vocab_size": vocab,
            "rms_norm_eps": eps,
            "max_position_embeddings": positions,
            "pad_token_id": None,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    if name == "distilbert":
        return {
            "n_layers": layers,
            "dim": hidden,
            "n_heads": heads,
            "hidden_dim": mlp,
            "vocab_size": vocab,
            "max_position_embeddings": positions,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "qa_dropout": 0.0,
            "seq_classif_dropout": 0.0,
        }
    if name == "modernbert":
        return {
            **common,
            "num_hidden_layers": EVERY_OTHER * layers,
            "global_attn_every_n_layers": EVERY_OTHER,
            "local_attention": 6,
            "intermediate_size": mlp,
            "vocab_size": vocab,
            "norm_eps": eps,
            "max_position_embeddings": positions,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        }
    if name == "opt":
        return {
            **common,
            "ffn_dim": mlp,
            "vocab_size": vocab,
            "max_position_embeddings": positions,
            "dropout": 0.0,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    common |= {"layer_norm_eps": eps, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if name in BERT_LIKE:
        shift = models.family(name).reserved
        return {**common, "intermediate_size": mlp, "vocab_size": vocab, "max_position_embeddings": positions + shift}
    inner = (
        {"mlp_ratio": max(1, mlp // hidden), "layerscale_value": 0.7}
        if name.startswith("dinov2")
        else {"intermediate_size": mlp}
    )
    return {
        **common,
        **inner,
        **({"head_dim": sizes["head_dim"]} if "head_dim" in sizes else {}),
        "image_size": sizes.get("image", IMAGE),
        "patch_size": sizes.get("patch", PATCH),
        "id2label": {i: str(i) for i in range(CLASSES)},
        "label2id": {str(i): i for i in range(CLASSES)},
    }


def facts(variant: str) -> dict:
    """What a sample of the variant holds, as data facts."""
    family = models.family(variant.split()[0])
    if family.data == "images":
        return {"kind": "images", "size": IMAGE, "channels": 3, "class_names": [str(i) for i in range(CLASSES)]}
    causal = any(head.name == "causal-lm" for head in family.heads)
    return {"kind": "text", "vocab_size": VOCAB, "block": POSITIONS, "scored": POSITIONS if causal else 3}
