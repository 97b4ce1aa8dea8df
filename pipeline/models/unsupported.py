"""What to say of a model of no supported family: which supported one is nearest in architecture, and what differs.

The knowledge is data: `RELATIVES` for the model types of `transformers` that are widely used, `SIGNS` for all others,
by the keys of their configs. Where neither says anything honest, nothing is nearest.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

PAGE = "docs/adding-a-family.md"
"""How to add a family."""

ENCODER_DECODER = "encoder and decoder"
EXPERTS = "mixture of experts"
PARALLEL = "parallel residual branches"
PARTLY_ROTARY = "rotary positions on a part of each head"
IN_PAIRS = "rotary positions that turn neighbouring pairs"
NORMS_BEHIND = "norms behind the residual branches"
QK_NORM = "norms over all queries and all keys at once"
NO_ATTENTION = "no attention"
SEES = "an image encoder in front of the language model"
SIDE_BY_SIDE = "an image encoder and a text encoder side by side"
HIERARCHY = "patches merged from stage to stage"


class Relative(NamedTuple):
    """nearest: the supported family that is nearest in architecture; None: none is near. differs: what sets the model
    apart from it, in one phrase."""

    nearest: str | None
    differs: str


RELATIVES: dict[str, Relative] = {
    kind: Relative(nearest, differs)
    for nearest, kinds in {
        "bert": {
            "albert": "one layer's weights for all layers, factorised embeddings",
            "electra": "embeddings with a width of their own, a discriminator's head",
            "deberta": "relative positions, scored apart from the content",
            "deberta-v2": "relative positions, scored apart from the content",
            "xlnet": "relative positions, two streams of attention",
            "xlm": "embeddings of languages, no token types",
            "ernie": "embeddings of tasks",
            "rembert": "embeddings of another width at the input and at the output",
            "roformer": "rotary positions",
            "nomic_bert": "rotary positions, a gated MLP",
            "gte": "rotary positions, a gated MLP",
            "jina_embeddings_v3": "rotary positions",
            "mobilebert": "a bottleneck around every layer",
            "squeezebert": "grouped convolutions for products",
            "convbert": "convolutions beside the heads of attention",
            "funnel": "a sequence that shrinks from block to block",
            "big_bird": "sparse attention by blocks",
            "nystromformer": "attention approximated by landmarks",
            "fnet": "Fourier transforms for attention",
            "layoutlm": "embeddings of places on a page",
            "bert-generation": "no token types, a head without a transform",
        },
        "bert-pre-ln": {
            "megatron-bert": "no norm behind the embeddings",
            "roberta-prelayernorm": "positions counted from behind the padding token",
            "xlm-roberta-xl": "positions counted from behind the padding token",
            "esm": "rotary positions, embeddings rescaled by the share of masked tokens",
        },
        "roberta": {
            "mpnet": "relative positions beside the absolute ones, no token types",
            "longformer": "attention in windows, with global tokens that have weights of their own",
            "luke": "entities beside the words",
            "ibert": "quantised products",
            "xmod": "adapters for each language in every layer",
            "data2vec-text": "the same parameters under other names",
        },
        "gpt2": {
            "openai-gpt": "norms of the sums, behind the branches (post-LN)",
            "gpt_neo": "attention in windows in every other layer, scores without a scale",
            "gpt_neox": f"{PARALLEL}, {PARTLY_ROTARY}",
            "gptj": f"{PARALLEL}, {PARTLY_ROTARY}",
            "codegen": f"{PARALLEL}, {PARTLY_ROTARY}",
            "phi": f"{PARALLEL}, {PARTLY_ROTARY}",
            "falcon": f"{PARALLEL}, rotary positions, keys and values that heads share",
            "gpt_bigcode": "keys and values that all heads share",
            "persimmon": f"{PARTLY_ROTARY}, norms over queries and keys",
            "bloom": "distances added to the scores (ALiBi) for positions, a norm behind the embeddings",
            "mpt": "distances added to the scores (ALiBi) for positions",
            "ctrl": "sinusoidal positions",
            "decision_transformer": "states, actions and returns for words",
        },
        "opt": {"biogpt": "embeddings scaled by the root of the width", "xglm": "sinusoidal positions"},
        "llama": {
            "stablelm": f"LayerNorm, {PARTLY_ROTARY}",
            "olmo": "norms without weights",
            "olmo2": f"{NORMS_BEHIND}, {QK_NORM}",
            "olmo3": f"{NORMS_BEHIND}, {QK_NORM}",
            "olmoe": f"{EXPERTS}, {QK_NORM}",
            "cohere": f"{PARALLEL}, LayerNorm, {IN_PAIRS}",
            "cohere2": f"{PARALLEL}, LayerNorm, {IN_PAIRS}",
            "glm": f"{PARTLY_ROTARY}, turning neighbouring pairs",
            "glm4": f"{PARTLY_ROTARY}, {NORMS_BEHIND} too",
            "glm4_moe": f"{EXPERTS}, {PARTLY_ROTARY}",
            "granite": "embeddings, residual branches and logits scaled by constants",
            "granitemoe": f"{EXPERTS}, branches scaled by constants",
            "helium": IN_PAIRS,
            "ernie4_5": IN_PAIRS,
            "ernie4_5_moe": f"{EXPERTS}, {IN_PAIRS}",
            "nemotron": f"LayerNorm, an MLP without a gate, {PARTLY_ROTARY}",
            "arcee": "an MLP without a gate",
            "smollm3": "layers without rotary positions among the others",
            "diffllama": "attention as the difference of two",
            "bitnet": "ternary weights, norms inside the branches",
            "eurobert": "attention in both directions",
            "llama4": f"{EXPERTS}, {SEES}",
            "llama4_text": EXPERTS,
            "deepseek_v2": f"{EXPERTS}, keys and values through a latent",
            "deepseek_v3": f"{EXPERTS}, keys and values through a latent",
            "gpt_oss": f"{EXPERTS}, attention sinks",
            "phimoe": f"{EXPERTS}, LayerNorm",
            "dbrx": f"{EXPERTS}, LayerNorm",
            "jetmoe": f"{EXPERTS}, of heads too",
            "jamba": f"{EXPERTS}, state-space layers among those with attention",
            "bamba": "state-space layers among those with attention",
            "recurrent_gemma": "recurrent layers among those with attention",
            "llava": SEES,
            "llava_next": SEES,
            "mllama": f"{SEES}, layers of cross-attention",
            "idefics3": SEES,
            "smolvlm": SEES,
        },
        "gemma2": {"gemma": "no norms at the ends of branches"},
        "gemma3_text": {"gemma3": SEES, "gemma3n": "an image and an audio encoder, several residual streams"},
        "mistral": {"mixtral": EXPERTS, "starcoder2": "LayerNorm, an MLP without a gate", "mistral3": SEES},
        "qwen2": {
            "qwen2_moe": EXPERTS,
            "qwen2_vl": f"{SEES}, rotary positions of three axes",
            "qwen2_5_vl": f"{SEES}, rotary positions of three axes",
            "qwen2_audio": "an audio encoder in front of the language model",
        },
        "qwen3": {
            "qwen3_moe": EXPERTS,
            "qwen3_next": f"{EXPERTS}, linear attention in most layers",
            "qwen3_vl": f"{SEES}, rotary positions of three axes",
            "apertus": "an MLP without a gate",
            "exaone4": NORMS_BEHIND,
            "hunyuan_v1_dense": "norms of queries and keys behind the rotary positions",
        },
        "vit": {
            "beit": "relative positions, layer scales, keys without a bias",
            "data2vec-vision": "relative positions, layer scales, keys without a bias",
            "swin": f"attention in shifted windows, {HIERARCHY}, relative positions",
            "swinv2": f"attention in shifted windows, {HIERARCHY}, relative positions",
            "segformer": f"{HIERARCHY}, keys and values of fewer tokens",
            "pvt": f"{HIERARCHY}, keys and values of fewer tokens",
            "vit_mae": "a decoder of masked patches",
            "ijepa": "no class token",
            "yolos": "tokens that detect objects",
            "videomae": "patches of films, a decoder of masked patches",
            "vivit": "patches of films",
            "timesformer": "attention over time and over space apart",
            "clip_vision_model": "a norm in front of the first layer, patches without a bias",
            "siglip_vision_model": "no class token, attention for pooling",
            "clip": SIDE_BY_SIDE,
            "chinese_clip": SIDE_BY_SIDE,
            "siglip": SIDE_BY_SIDE,
            "siglip2": SIDE_BY_SIDE,
        },
        "deit": {"audio-spectrogram-transformer": "spectrograms for images"},
        "dinov2-with-registers": {"dinov3_vit": "rotary positions"},
        None: {
            "t5": f"{ENCODER_DECODER}, relative positions",
            "mt5": f"{ENCODER_DECODER}, relative positions",
            "umt5": f"{ENCODER_DECODER}, relative positions",
            "longt5": f"{ENCODER_DECODER}, relative positions",
            "switch_transformers": f"{ENCODER_DECODER}, {EXPERTS}",
            "bart": ENCODER_DECODER,
            "mbart": ENCODER_DECODER,
            "blenderbot": ENCODER_DECODER,
            "pegasus": ENCODER_DECODER,
            "marian": ENCODER_DECODER,
            "m2m_100": ENCODER_DECODER,
            "led": f"{ENCODER_DECODER}, attention in windows",
            "prophetnet": ENCODER_DECODER,
            "encoder-decoder": ENCODER_DECODER,
            "vision-encoder-decoder": ENCODER_DECODER,
            "t5gemma": ENCODER_DECODER,
            "whisper": f"{ENCODER_DECODER}, convolutions over sound",
            "speech_to_text": f"{ENCODER_DECODER}, convolutions over sound",
            "wav2vec2": "convolutions over sound and for positions",
            "hubert": "convolutions over sound and for positions",
            "wavlm": "convolutions over sound and for positions, relative positions",
            "mamba": f"{NO_ATTENTION}, but state-space layers",
            "mamba2": f"{NO_ATTENTION}, but state-space layers",
            "falcon_mamba": f"{NO_ATTENTION}, but state-space layers",
            "rwkv": f"{NO_ATTENTION}, but a recurrence",
            "convnext": f"{NO_ATTENTION}, but convolutions",
            "convnextv2": f"{NO_ATTENTION}, but convolutions",
            "dinov3_convnext": f"{NO_ATTENTION}, but convolutions",
            "resnet": f"{NO_ATTENTION}, but convolutions",
            "regnet": f"{NO_ATTENTION}, but convolutions",
            "efficientnet": f"{NO_ATTENTION}, but convolutions",
            "poolformer": f"{NO_ATTENTION}, but pooling",
            "mobilevit": "convolutions around the layers with attention",
            "levit": "convolutions in front, distances added to the scores",
            "detr": f"{ENCODER_DECODER}, convolutions in front",
            "sam": f"{ENCODER_DECODER} of masks",
            "blip": f"{SIDE_BY_SIDE}, a decoder of text",
            "blip-2": "an image encoder, a querying transformer and a language model",
            "paligemma": SEES,
        },
    }.items()
    for kind, differs in kinds.items()
}
"""The model types of `transformers` that people bring, by the `model_type` of their configs."""

UNKNOWN = "what else differs, the config's keys do not say"

SIGNS: tuple[tuple[tuple[str, ...], Relative], ...] = (
    (("is_encoder_decoder",), Relative(None, ENCODER_DECODER)),
    (("text_config", "vision_config"), Relative(None, "several models in one")),
    (("num_local_experts", "rms_norm_eps"), Relative("llama", EXPERTS)),
    (("num_experts", "rms_norm_eps"), Relative("llama", EXPERTS)),
    (("n_routed_experts", "rms_norm_eps"), Relative("llama", EXPERTS)),
    (("rms_norm_eps", "rope_theta"), Relative("llama", UNKNOWN)),
    (("rms_norm_eps", "rope_parameters"), Relative("llama", UNKNOWN)),
    (("layer_norm_eps", "type_vocab_size"), Relative("bert", UNKNOWN)),
    (("image_size", "patch_size", "hidden_size", "num_attention_heads"), Relative("vit", UNKNOWN)),
    (("n_embd", "layer_norm_epsilon"), Relative("gpt2", UNKNOWN)),
)
"""Keys of a config that together tell what a model of an unlisted type is nearest to; the first whose keys all have a
value counts."""

UNTOLD = Relative(None, "neither its type nor its config's keys tell")


def relative(content: Mapping[str, Any]) -> Relative:
    """What is nearest to the model of a config.json's content, by its model_type, else by its keys."""
    kind = content.get("model_type")
    if isinstance(kind, str) and kind in RELATIVES:
        return RELATIVES[kind]
    return next((found for keys, found in SIGNS if all(content.get(key) for key in keys)), UNTOLD)


def is_unsupported(name: str) -> bool:
    """Whether a name is the model type of models that are known, and not supported."""
    return name in RELATIVES


def described(content: Mapping[str, Any]) -> str:
    """The type and the classes that a config.json names."""
    stated = content.get("architectures")
    classes = ", ".join(map(str, stated)) if isinstance(stated, list | tuple) and stated else "none"
    return f"model_type '{content.get('model_type')}' (architectures: {classes})"


def refusal(what: str, content: Mapping[str, Any], supported: Iterable[str]) -> str:
    """Why `what`, a model of no supported family with the config `content`, is refused; what is nearest; the way
    out."""
    nearest, differs = relative(content)
    return (
        f"{what} is not supported; nearest in architecture: {nearest or 'none'} ({differs}); supported: "
        f"{', '.join(sorted(supported))}; to add a family: {PAGE}"
    )
