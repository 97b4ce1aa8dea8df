"""Folders as the hub has them, of a real model's sizes and of no weight: sparse files take no disk."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from pipeline import models
from tests.helpers.invented_text import some_documents

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""The config.json of Qwen3-0.6B-Base."""


def qwen3(folder: Path) -> Path:
    """Qwen3-0.6B-Base, every weight 0, with a tokenizer of as many pieces (invented ones)."""
    pieces = {**{f"w{number}": number for number in range(151_668)}, "<|endoftext|>": 151_668}
    words = Tokenizer(tokenizer_models.WordLevel(pieces, unk_token="w0"))
    special = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(QWEN3))
    _, config = models.read_config(folder / "config.json")
    architecture, header, end = models.architecture_of(config), {}, 0
    for row in architecture.rows():
        start, end = end, end + 2 * architecture.numel(row)
        header[row.name] = {"dtype": "BF16", "shape": architecture.shape(row), "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def byte_pairs(folder: Path, **special: str) -> Path:
    """A tokenizer as causal models have it, learned from invented words."""
    learned = Tokenizer(tokenizer_models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pieces = sorted(set(special.values()))
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=pieces, initial_alphabet=alphabet)
    learned.train_from_iterator(some_documents(), trainer)
    PreTrainedTokenizerFast(tokenizer_object=learned, **special).save_pretrained(folder)
    return folder
