"""Attention windows and rotary positions: every layer keeps its own, on texts longer than the windows."""

import json
from pathlib import Path

import pytest
import torch

from pipeline import checkpoints, models
from tests.helpers.checkpoints import saved, target_config_file
from tests.helpers.cli import lemon
from tests.helpers.growing import times
from tests.helpers.pretrained import apart, given_out, tokens
from tests.helpers.variations import FARTHER, LONG, MISREAD, SCALED, SLIDING, TYPES, edit, mixed


def expand(capsys, folder: Path, small: Path, variant: str, changes: dict | None = None, **sizes: object):
    target = target_config_file(folder / "target.json", variant, **{"positions": LONG, **sizes})
    edit(target, **(changes or {}))
    return lemon(capsys, "expand", "--source", small, "--target", target, "--out", folder / "large")


@pytest.mark.parametrize(
    "sizes, types",
    [
        ({"hidden": 24, "heads": 6, "mlp": 40}, TYPES),
        ({"layers": 4}, [TYPES[0], TYPES[0], TYPES[1], TYPES[1]]),
        ({"layers": 3, "hidden": 20, "heads": 5}, [TYPES[0], TYPES[0], TYPES[1]]),
    ],
    ids=["width", "depth", "both"],
)
def test_layers_keep_the_type_of_the_layer_they_come_from(tmp_path, capsys, sizes, types):
    small = mixed(tmp_path / "small")
    before = given_out(small, tokens(small, LONG))
    code, _, err = expand(capsys, tmp_path, small, "qwen3", SLIDING, **sizes)
    assert code == 0, err
    assert json.loads((tmp_path / "large" / "config.json").read_text())["layer_types"] == types
    assert apart(small, tmp_path / "large", tokens(small, LONG)) < 1e-5
    assert lemon(capsys, "verify", small, tmp_path / "large")[0] == 0
    edit(small, layer_types=TYPES[1:] * 2)  # the test can tell windows apart
    assert (before - given_out(small, tokens(small, LONG))).abs().max() > 1e-2 * before.abs().max()


@pytest.mark.parametrize("types, layers, grown", [("SFFS", 5, "SSFFS"), ("SFSF", 6, "SFSFSF"), ("SFF", 4, "SSFF")])
def test_gemmas_list_of_types_counts_not_the_number_beside_it(tmp_path, capsys, types, layers, grown):
    """Six as its class has it: the list follows another number, or none."""
    kinds = {"S": TYPES[0], "F": TYPES[1]}
    keys = {"sliding_window_pattern": 6, "_sliding_window_pattern": 6, "layer_types": [kinds[kind] for kind in types]}
    small = edit(saved_of(tmp_path / "small", models.family("gemma3_text").config_class, len(types)), **keys)
    edit(small, sliding_window=4)
    (tmp_path / "target.json").write_text(json.dumps({"num_hidden_layers": layers}))
    command = ["--source", small, "--target", tmp_path / "target.json", "--out", tmp_path / "large"]
    code, _, err = lemon(capsys, "expand", *command)
    assert code == 0, err
    content = json.loads((tmp_path / "large" / "config.json").read_text())
    assert content["layer_types"] == [kinds[kind] for kind in grown]
    assert content.get("sliding_window_pattern") == (2 if types == "SFSF" else None)
    assert apart(small, tmp_path / "large", tokens(small, LONG)) < 1e-5
    assert lemon(capsys, "verify", small, tmp_path / "large")[0] == 0


@pytest.mark.parametrize("method", [("lemon", "depth=random", "placement=last"), ("random",)])
@pytest.mark.parametrize("variant, before", [("gemma3_text", 5), ("modernbert", 2)])
def test_layers_that_begin_afresh_have_the_types_of_their_places(tmp_path, capsys, variant, before, method):
    """Also where the source is less than a pattern, whose types tell too little of it."""
    config = models.family(variant).config_class
    small, after = saved_of(tmp_path / "small", config, before), before + (6 if variant == "gemma3_text" else 3)
    (tmp_path / "target.json").write_text(json.dumps({"num_hidden_layers": after}))
    options = [text for option in method[1:] for text in ("--method-option", option)]
    grow = ["--source", small, "--target", tmp_path / "target.json", "--out", tmp_path / "large"]
    code, _, err = lemon(capsys, "expand", *grow, "--method", method[0], *options)
    assert code == 0, err
    found = json.loads((tmp_path / "large" / "config.json").read_text())["layer_types"]
    assert found == config(num_hidden_layers=after).layer_types
    assert lemon(capsys, "verify", small, tmp_path / "large")[0] == 1, "lossy, as declared"


def saved_of(folder: Path, config: type, layers: int) -> Path:
    """A model of so many layers, in its config's own pattern."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": 61}
    keys = {"num_key_value_heads": 2, "head_dim": 4} if "num_key_value_heads" in config().to_dict() else {}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    models.build(config(num_hidden_layers=layers, **sizes, **keys, **ids), seed=1).save_pretrained(folder)
    return folder


def told_of(folder: Path, variant: str, keys: dict, capsys) -> dict[str, tuple[Path, list[str]]]:
    """A model with these keys, grown, exported and resharded: each result, and what is said of transformers 4."""
    small = edit(saved(folder / "small", variant, positions=LONG), **keys)
    target = edit(target_config_file(folder / "target.json", variant, positions=LONG, **times(2)), **keys)
    native = ["--format", "zero", "--zero-stage", 1, "--world-size", 1]
    results = {}
    for name, command in {
        "grown": ["expand", "--source", small, "--target", target],
        "exported": ["export", small],
        "native": ["reshard", small, *native],
        "grown native": ["expand", "--source", small, "--target", target, *native],
        "resharded": ["reshard", folder / "native", "--format", "huggingface"],
    }.items():
        code, out, err = lemon(capsys, *command, "--out", folder / name)
        assert code == 0, err
        results[name] = folder / name, [line for line in (out + err).splitlines() if "transformers 4" in line]
    return results


@pytest.mark.parametrize("name", MISREAD)
def test_what_transformers_4_reads_otherwise_is_null_and_said(tmp_path, capsys, name):
    """In one line, of Hugging Face files; `test_transformers_4.py` shows that it is so."""
    variant, keys = MISREAD[name]
    sayable = {"global_attn_every_n_layers"} if variant == "modernbert" and "layer_types" not in keys else set()
    sayable |= {"rope_scaling"} if variant == "llama" else set()
    for result, (folder, lines) in told_of(tmp_path, variant, keys, capsys).items():
        assert len(lines) == ("native" not in result), lines
        assert all(line.endswith("load it with transformers 5") for line in lines)
        content = json.loads((folder / "config.json").read_text())
        assert {key for key in ("global_attn_every_n_layers", "rope_scaling") if content.get(key)} == sayable
        assert {key: content[key] for key in keys} == keys


@pytest.mark.parametrize("variant", ["modernbert", "gemma3_text", "gemma2", "qwen3"])
def test_nothing_is_said_where_transformers_4_reads_the_same(tmp_path, capsys, variant):
    """Gemma's and Qwen's lists of types it reads, in any order."""
    keys = {} if variant == "modernbert" else {"layer_types": [TYPES[1], TYPES[0], TYPES[0], TYPES[1]]}
    keys = {**SLIDING, "layer_types": TYPES[::-1]} if variant == "qwen3" else keys
    assert not [lines for _, lines in told_of(tmp_path, variant, keys, capsys).values() if lines]


@pytest.mark.parametrize(
    "types, followed",
    [(TYPES, False), ([*TYPES, *TYPES], False), ([TYPES[0], TYPES[0], TYPES[1], TYPES[1]], True), (..., True)],
    ids=["as many as the source's", "others", "the same", "none"],
)
def test_a_target_with_layer_types_of_its_own(tmp_path, capsys, types, followed):
    small = mixed(tmp_path / "small")
    code, out, err = expand(capsys, tmp_path, small, "qwen3", {**SLIDING, "layer_types": types}, layers=4)
    assert code == 0, err
    said = "the target's layer_types are not followed: every layer keeps the type of the source's layer that it"
    assert (said in out) is not followed, out
    assert "stated_layer_types" not in json.loads((tmp_path / "large" / "config.json").read_text())


@pytest.mark.parametrize(
    "variant, changes",
    [("qwen3", {"layer_types": TYPES[::-1]}), ("mistral", {"sliding_window": 20}), ("phi3", {"sliding_window": 20})],
)
def test_other_windows_than_the_sources_are_never_verified(tmp_path, capsys, variant, changes):
    """They are longer than the probe, which cannot show them."""
    small = mixed(tmp_path / "small") if variant == "qwen3" else saved(tmp_path / "small", variant, positions=LONG)
    same = {"sliding_window": 4096} if variant != "qwen3" else SLIDING
    small = edit(small, **same) if variant == "phi3" else small
    code, _, err = expand(capsys, tmp_path, small, variant, same, hidden=24, heads=6, mlp=40)
    assert code == 0, err
    (tmp_path / "large" / "manifest.json").unlink()
    edit(tmp_path / "large", **changes)
    code, out, err = lemon(capsys, "verify", small, tmp_path / "large")
    assert code == 2 and "long texts have other outputs" in err and "lossless" not in out, err


@pytest.mark.parametrize("scaling", [None, SCALED, {"type": "linear", "factor": 2.0}], ids=["none", "llama3", "linear"])
def test_the_keys_of_transformers_4_stay_beside_those_of_5(tmp_path, capsys, scaling):
    small = edit(
        saved(tmp_path / "small", "llama", positions=LONG), rope_parameters=..., rope_theta=5e5, rope_scaling=scaling
    )
    rope = {"rope_parameters": ..., "rope_theta": 5e5, "rope_scaling": scaling}
    code, _, err = expand(capsys, tmp_path, small, "llama", rope, hidden=24, heads=6, mlp=40, positions=2 * LONG)
    assert code == 0, err
    content = json.loads((tmp_path / "large" / "config.json").read_text())
    assert (content["rope_theta"], content["rope_scaling"]) == (5e5, scaling)
    assert content["rope_parameters"]["rope_theta"] == 5e5
    assert apart(small, tmp_path / "large", tokens(small, LONG)) < 1e-5
    again = checkpoints.read(tmp_path / "large")[1]
    assert again.rope_parameters == checkpoints.read(small)[1].rope_parameters


@pytest.mark.parametrize(
    ("variant", "rope", "older"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        ("qwen2", {**SCALED, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": SCALED}),
        (
            "phi3",
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
    ],
)
def test_a_source_of_transformers_5_gets_the_keys_of_4_besides(tmp_path, capsys, variant, rope, older):
    """Without them transformers 4 would take its defaults, without a word."""
    small = edit(saved(tmp_path / "small", variant, positions=LONG), rope_parameters=rope)
    code, _, err = expand(capsys, tmp_path, small, variant, {"rope_parameters": rope}, layers=3)
    assert code == 0, err
    content = json.loads((tmp_path / "large" / "config.json").read_text())
    named = {"rope_theta", "rope_scaling", "partial_rotary_factor", "rope_as_written"}
    assert {key: value for key, value in content.items() if key in named} == older
    assert content["rope_parameters"] == rope
    again = checkpoints.read(tmp_path / "large")[1]
    assert again.rope_parameters == checkpoints.read(small)[1].rope_parameters
    assert apart(small, tmp_path / "large", tokens(small, LONG)) < 1e-5
    assert lemon(capsys, "verify", small, tmp_path / "large")[0] == 0


@pytest.mark.parametrize(
    ("variant", "keys", "told"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": 1e4},
            {"rope_theta": (1e4, 1e6)},
        ),
        (
            "gemma3_text",
            {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 8.0}},
            {"rope_scaling": ({"type": "linear", "factor": 8.0}, None)},
        ),
    ],
)
def test_what_a_file_says_to_transformers_4_alone_is_corrected_and_said(tmp_path, capsys, variant, keys, told):
    """transformers 5 reads the base in `rope_parameters`, and no scaling of Gemma 3 by the old name of its kind."""
    small = edit(saved(tmp_path / "small", variant, positions=LONG), **keys)
    code, out, err = expand(capsys, tmp_path, small, variant, keys, layers=3 if variant == "llama" else 4)
    assert code == 0, err
    content = json.loads((tmp_path / "large" / "config.json").read_text())
    for key, (source, result) in told.items():
        assert content.get(key) == result
        assert f"the source's config.json says {key} {source!r}; the result says {result!r}" in out + err
    assert apart(small, tmp_path / "large", tokens(small, LONG)) < 1e-5


@pytest.mark.parametrize("beside", [True, False], ids=["beside the rest", "among the rest"])
@pytest.mark.parametrize("kind", ["yarn", "llama3", "longrope"])
def test_positions_before_a_scaling_are_kept(tmp_path, capsys, kind, beside):
    """Wherever a file of transformers 5 says them; and grown once more."""
    rope = {
        "yarn": {"factor": 4.0},
        "llama3": {key: value for key, value in SCALED.items() if key != "original_max_position_embeddings"},
        "longrope": {**FARTHER, "factor": 4.0},
    }[kind] | {"rope_type": kind, "rope_theta": 777.0}
    original = {"original_max_position_embeddings": LONG // 4}
    keys = {"rope_parameters": rope, **original} if beside else {"rope_parameters": rope | original}
    small = edit(saved(tmp_path / "small", "llama", positions=LONG), **keys)
    for source, large in (("small", "large"), ("large", "larger")):
        sizes = {"layers": 3} if large == "large" else {"layers": 4}
        target = edit(target_config_file(tmp_path / "target.json", "llama", positions=LONG, **sizes), **keys)
        code, _, err = lemon(
            capsys, "expand", "--source", tmp_path / source, "--target", target, "--out", tmp_path / large
        )
        assert code == 0, err
        assert lemon(capsys, "verify", tmp_path / source, tmp_path / large)[0] == 0
        assert apart(small, tmp_path / large, tokens(small, LONG)) < 1e-5


def test_a_kind_of_scaling_by_both_its_names_is_one(tmp_path, capsys):
    """As transformers 5 saves what came from an older file; the target has the new name alone."""
    both = {"type": "linear", "rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    small = edit(saved(tmp_path / "small", "llama", positions=LONG), rope_parameters=both)
    new = {"rope_parameters": {key: value for key, value in both.items() if key != "type"}}
    code, _, err = expand(capsys, tmp_path, small, "llama", new, layers=3)
    assert code == 0 and apart(small, tmp_path / "large", tokens(small, LONG)) < 1e-5, err
    assert lemon(capsys, "verify", small, tmp_path / "large")[0] == 0


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_positions_that_scale_with_their_number_keep_it(tmp_path, capsys, rope):
    changes = {"rope_parameters": ..., "rope_scaling": rope, "rope_theta": 1e4}
    small = edit(saved(tmp_path / "small", "llama", positions=LONG), **changes)
    code, _, err = expand(capsys, tmp_path, small, "llama", changes, layers=3, positions=2 * LONG)
    assert code == 2 and f"('{rope['rope_type']}') depend on max_position_embeddings" in err, err
    code, _, err = expand(capsys, tmp_path, small, "llama", changes, layers=3)
    assert code == 0, err
    assert apart(small, tmp_path / "large", tokens(small, LONG)) < 1e-5


LONGROPE = {"type": "longrope", "short_factor": [1.0], "long_factor": [3.0]}


@pytest.mark.parametrize("partly", [{}, {"partial_rotary_factor": 0.5}], ids=["all of a head", "half of it"])
def test_phi3s_long_texts_turn_as_the_sources_do(tmp_path, capsys, partly):
    """By other factors behind the original number of positions."""
    scaling = LONGROPE if partly else LONGROPE | {"short_factor": [1.0, 1.0], "long_factor": [3.0, 4.0]}
    changes = {"rope_parameters": ..., "rope_theta": 1e4, "rope_scaling": scaling, **partly}
    changes["original_max_position_embeddings"] = LONG // 2
    small = edit(saved(tmp_path / "small", "phi3", positions=LONG), **changes)
    sizes = {"hidden": 24, "heads": 6, "kv_heads": 6, "mlp": 40, "layers": 3}
    code, _, err = expand(capsys, tmp_path, small, "phi3", changes, **sizes, positions=2 * LONG)
    assert code == 2 and "('longrope') depend on max_position_embeddings" in err, err
    code, _, err = expand(capsys, tmp_path, small, "phi3", changes, **sizes)
    assert code == 0, err
    content = json.loads((tmp_path / "large" / "config.json").read_text())
    assert content["rope_scaling"] == scaling and content.get("partial_rotary_factor") == partly.get(
        "partial_rotary_factor"
    )
    assert apart(small, tmp_path / "large", tokens(small, LONG)) < 1e-5
    before = given_out(small, tokens(small, LONG))
    edit(small, original_max_position_embeddings=LONG)  # the test can tell the factors apart
    assert (before - given_out(small, tokens(small, LONG))).abs().max() > 1e-2 * before.abs().max()
    assert lemon(capsys, "verify", small, tmp_path / "large")[0] == 2


@pytest.mark.parametrize("value", [0.5, 1.0])
def test_how_much_of_a_head_turns_is_kept(tmp_path, capsys, value):
    """In the keys of transformers 5, and where the source says nothing."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": value}
    small = saved(tmp_path / "small", "phi3", positions=LONG)
    small = edit(small, rope_parameters=rope) if value != 1 else small
    code, _, err = expand(capsys, tmp_path, small, "phi3", {"rope_parameters": {**rope, "partial_rotary_factor": 0.25}})
    assert code == 2 and "a growth keeps it" in err, err
    code, _, err = expand(capsys, tmp_path, small, "phi3", {"rope_parameters": rope}, layers=3)
    assert code == 0 and apart(small, tmp_path / "large", tokens(small, LONG)) < 1e-5, err


@pytest.mark.parametrize(
    "other",
    [
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
        {"max_position_embeddings": 4 * LONG},
    ],
    ids=["scaled behind the last position", "another number of positions"],
)
def test_other_rotary_positions_than_the_sources_are_never_verified(tmp_path, capsys, other):
    """Scaling by length begins behind the last token of a probe."""
    small = saved(tmp_path / "small", "llama", positions=LONG)
    if "max_position_embeddings" in other:
        edit(small, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4})
    same = {"rope_parameters": json.loads((small / "config.json").read_text())["rope_parameters"]}
    code, _, err = expand(capsys, tmp_path, small, "llama", same, layers=3)
    assert code == 0 and lemon(capsys, "verify", small, tmp_path / "large")[0] == 0, err
    (tmp_path / "large" / "manifest.json").unlink()
    edit(tmp_path / "large", **other)
    code, out, err = lemon(capsys, "verify", small, tmp_path / "large")
    assert code == 2 and "the rotary positions of the target are" in err and "lossless" not in out, err
    assert "long texts have other outputs" in err and err.count("\n") == 1


def test_a_growth_keeps_the_words_of_a_file_whose_class_keeps_a_key_of_them(tmp_path, capsys):
    """Phi-3's leaves the share of a head that turns where it stands."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    keys = {"rope_parameters": rope, "rope_theta": 5e3, "rope_scaling": None, "partial_rotary_factor": 0.5}
    small = edit(saved(tmp_path / "small", "phi3", positions=LONG), **keys)
    code, out, err = expand(capsys, tmp_path, small, "phi3", keys, layers=3)
    assert code == 0 and "says rope_theta 5000.0; the result says 10000.0" in out + err, err
    content = json.loads((tmp_path / "large" / "config.json").read_text())
    assert {key: content[key] for key in keys} == keys | {"rope_theta": 1e4}


def test_a_model_that_transformers_does_not_run_is_refused_in_one_line(tmp_path, capsys):
    """Its layers have a window, and no key says of how many tokens."""
    small = edit(saved(tmp_path / "small", "qwen2", positions=LONG), **SLIDING)
    keys = {**SLIDING, "sliding_window": None, "layer_types": TYPES}
    code, _, err = expand(capsys, tmp_path, edit(small, **keys), "qwen2", keys, hidden=24, heads=6, mlp=40)
    assert code == 2 and "own code does not run on a probe" in err and err.count("\n") <= 2, err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["gemma2", "gemma3_text"])
def test_gemma_is_published_in_less_than_float32(tmp_path, capsys, variant, dtype):
    """In which its code rounds the root of the width; what is compared is the function in float32."""
    small = saved(tmp_path / "small", variant, dtype, positions=LONG)
    code, out, err = expand(capsys, tmp_path, small, variant, **times(2))
    assert code == 0 and "verified" in out + err, err
    roots = "3.46875, 4.89898 to 4.90625" if dtype == torch.bfloat16 else "3.46484, 4.89898 to 4.89844"
    assert f"rounds what it multiplies token embeddings by (3.4641 to {roots})" in out + err
    assert apart(small, tmp_path / "large", tokens(small, LONG)) < 1e-5
    assert lemon(capsys, "verify", small, tmp_path / "large")[0] == 0
