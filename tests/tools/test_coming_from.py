"""docs/coming-from.md: every command of the page runs, on real models and checkpoints, and does what the page says."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint
from accelerate.commands.merge import merge_command, merge_command_parser
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, LlamaConfig, PretrainedConfig

from tests.helpers.cli import ROOT, lemon
from tests.helpers.docs_code import commands_of, python_of
from tests.helpers.scripts import plain_deepspeed
from tests.helpers.scripts.accelerated import IDS
from tests.helpers.universal import convert
from tests.helpers.workers import WorkerPools

PAGE = ROOT / "docs" / "coming-from.md"
MERGEKIT = "mergekit: frankenmerges and identity blocks"
RESIZE = "resize_token_embeddings under ZeRO-3"
PRO = "LLaMA Pro: block expansion"
CLONING = "HyperCloning: twice the width"
SOLAR = "SOLAR: depth up-scaling"
UNIVERSAL = "DeepSpeed: ds_to_universal"
ACCELERATE = "accelerate"
SECTIONS = {"The target": 0, MERGEKIT: 2, RESIZE: 1, PRO: 1, CLONING: 1, SOLAR: 1, UNIVERSAL: 2, ACCELERATE: 5}
"""How many commands each section has."""
TINY = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
WIDE = {key: size if key == "head_dim" else 2 * size for key, size in TINY.items()}
WORDS = {"vocab_size": 64, "max_position_embeddings": 32, "tie_word_embeddings": False}
MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = ("fp32", *MOMENTS)
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def workers() -> Iterator[WorkerPools]:
    with WorkerPools() as pools:
        yield pools


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("coming-from")


@pytest.fixture
def place(shared, monkeypatch) -> Path:
    """Where the commands of the page run."""
    monkeypatch.chdir(shared)
    return shared


@pytest.fixture(scope="module", autouse=True)
def llama(shared) -> Path:
    """A Llama of 32 layers, every number of it random, in float32, with a file beside it; and the targets."""
    folder, config = shared / "llama", LlamaConfig(**TINY, **WORDS, num_hidden_layers=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    for layers in (36, 48):
        wanted(shared / f"llama-{layers}", config, num_hidden_layers=layers)
    wanted(shared / "llama-wide", config, **WIDE)
    wanted(shared / "model", config, num_hidden_layers=2)
    wanted(shared / "wide", config, **WIDE, num_hidden_layers=2)
    return folder


def wanted(folder: Path, config: PretrainedConfig, **sizes: int) -> None:
    type(config)(**{**config.to_dict(), **sizes}).save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(shared, workers) -> Path:
    """A DeepSpeed training under ZeRO-3 on two ranks, of a BERT; its config, and that of one with more words."""
    config = plain_deepspeed.model(0).config
    for name, words in (("bert", 101), ("bert-108", 108)):
        config.vocab_size = words
        config.save_pretrained(shared / name)
    workers.train(stage=3, world=2, first=0, steps=2, save=shared / "checkpoints" / "step-2")
    return shared / "checkpoints"


@pytest.fixture
def run(place, capsys) -> Callable[[list[str]], str]:
    """Runs the words of a command, which must succeed; what `lemon` printed."""
    return partial(_run, capsys)


def _run(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    if words[0] == "lemon":
        code, said, errors = lemon(capsys, *words[1:])
        assert code == 0, errors
        return said + errors
    assert words[:2] == ["accelerate", "merge-weights"]
    merge_command(merge_command_parser().parse_args(words[2:]))
    return ""


def weights(folder: str | Path) -> Weights:
    return load_file(Path(folder) / "model.safetensors")


def logits(folder: str | Path) -> Tensor:
    """Of IDS, in float64, by the model that from_pretrained makes of a folder."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)(IDS).logits


def same_function(one: str, other: str, tolerance: float = 1e-12) -> bool:
    before, after = logits(one), logits(other)
    return bool((before - after).abs().max() <= tolerance * before.abs().max())


def in_layer(tensors: Weights, layer: int) -> Weights:
    """By the names inside a layer."""
    start = f"model.layers.{layer}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def require_layers(folder: str, origins: list[int], new: set[int] = frozenset()) -> None:
    """Every layer is its origin's to the bit, but for what new ones write to the residual stream, which is 0; so are
    the embedding and what is behind the layers."""
    small, large = weights("llama"), weights(folder)
    for layer, origin in enumerate(origins):
        for name, tensor in in_layer(small, origin).items():
            written = layer in new and name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            expected = torch.zeros_like(tensor) if written else tensor
            assert torch.equal(in_layer(large, layer)[name], expected), (layer, name)
    outside = {name for name in small if ".layers." not in name}
    assert outside == {name for name in large if ".layers." not in name} and len(outside) == 3
    assert all(torch.equal(small[name], large[name]) for name in outside)
    assert not in_layer(large, len(origins))
    assert (Path(folder) / "tokenizer.json").read_text() == "{}"


def numbers(folder: Path, out: Path, config: str = "bert") -> dict[str, Weights]:
    """Parameter -> weights and moments, flat, as DeepSpeed's own converter reads a checkpoint of a config's model."""
    convert(folder, out)
    return read_universal(out, config)


def read_universal(folder: Path, config: str = "bert") -> dict[str, Weights]:
    """DeepSpeed's converter leaves stage 3's padding behind a parameter's own numbers."""
    with torch.device("meta"):
        loader = AutoModelForMaskedLM if config.startswith("bert") else AutoModelForCausalLM
        model = loader.from_config(AutoConfig.from_pretrained(config))
    return {
        name: {
            key: _flat(torch.load(folder / "zero" / name / f"{key}.pt", weights_only=False))[: parameter.numel()]
            for key in STATE
        }
        for name, parameter in model.named_parameters()
    }


def _flat(held: Tensor | dict) -> Tensor:
    """In some layouts a file holds more than the tensor."""
    return (held if isinstance(held, Tensor) else held["param"]).flatten()


def require_equal(one: dict[str, Weights], other: dict[str, Weights]) -> None:
    assert one.keys() == other.keys() and len(one) > 20
    for name, held in one.items():
        assert all(torch.equal(held[key], other[name][key]) for key in STATE), name


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_has_the_commands_that_are_tested(section):
    assert len(commands_of(PAGE, section)) == SECTIONS[section]


def test_the_page_has_no_other_section():
    headings = [line.removeprefix("## ") for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    assert headings == list(SECTIONS)


def test_the_target_is_a_config(place):
    exec(python_of(PAGE, "The target"), {})
    assert json.loads(Path("llama-40/config.json").read_text())["num_hidden_layers"] == 40


def test_identity_blocks_of_mergekit(run):
    run(commands_of(PAGE, MERGEKIT)[0])
    require_layers("appended", [*range(32), 31, 31, 31, 31], {32, 33, 34, 35})
    assert same_function("llama", "appended")


def test_a_frankenmerge(run):
    said = run(commands_of(PAGE, MERGEKIT)[1])
    require_layers("frankenmerge", [*range(16), *range(8, 24), *range(16, 32)])
    assert "lossy" in said and not same_function("llama", "frankenmerge")


def test_block_expansion_of_llama_pro(run):
    exec(python_of(PAGE, "The target"), {})
    run(*commands_of(PAGE, PRO))
    origins = [layer for group in range(8) for layer in (*range(4 * group, 4 * group + 4), 4 * group + 3)]
    new = set(range(4, 40, 5))
    require_layers("llama-pro", origins, new)
    assert same_function("llama", "llama-pro")
    names: dict = {}
    exec(python_of(PAGE, PRO), names)
    trained = {name for name, parameter in names["model"].named_parameters() if parameter.requires_grad}
    of_new = tuple(f"model.layers.{layer}." for layer in new)
    assert trained == {name for name in weights("llama-pro") if name.startswith(of_new)}


def test_solars_layers(run):
    said = run(*commands_of(PAGE, SOLAR))
    require_layers("solar", [*range(24), *range(8, 32)])
    assert "lossy" in said and json.loads(Path("solar/plan.json").read_text())["lossy"]


def test_twice_the_width(run):
    run(*commands_of(PAGE, CLONING))
    small, large = weights("llama"), weights("cloned")
    name = "model.embed_tokens.weight"
    assert torch.equal(large[name], small[name].repeat(1, 2))
    name = "model.layers.3.self_attn.o_proj.weight"
    assert large[name].shape == (32, 32)
    halves = sum(part.double() for part in large[name][:16].split(16, 1))
    assert (halves - small[name]).abs().max() < 1e-6  # both halves read copies, and add up to the source's
    assert same_function("llama", "cloned", 2e-6)  # noise cancels up to the rounding of the stored weights


@pytest.mark.distributed
def test_a_resized_vocabulary_keeps_rows_and_moments_under_zero_3(run, place, bert):
    run(*commands_of(PAGE, RESIZE))
    before = numbers(bert / "step-2", place / "before")
    after = numbers(bert / "resized", place / "after", "bert-108")
    assert before.keys() == after.keys()
    sizes = {name: len(held["fp32"]) for name, held in before.items()}
    grown = {name: len(after[name]["fp32"]) for name in before if len(after[name]["fp32"]) != sizes[name]}
    assert grown == {"bert.embeddings.word_embeddings.weight": 108 * 32, "cls.predictions.bias": 108}
    for name, held in before.items():
        assert all(torch.equal(held[key], after[name][key][: sizes[name]]) for key in STATE), name
    words, bias = ({key: after[name][key][sizes[name] :] for key in STATE} for name in sorted(grown))
    assert words["fp32"].std() > 0.01 and not bias["fp32"].any()
    assert not words["exp_avg"].any() and (words["exp_avg_sq"] > 0).all()
    assert len(list(Path("checkpoints/resized").glob("zero_pp_rank_*_optim_states.pt"))) == 2
    saved = torch.load("checkpoints/resized/zero_pp_rank_0_mp_rank_00_model_states.pt", weights_only=False)
    assert saved["global_steps"] == 2


@pytest.mark.distributed
def test_the_universal_layout_is_deepspeeds(run, place, bert):
    run(commands_of(PAGE, UNIVERSAL)[0])
    require_equal(read_universal(place / "universal"), numbers(bert / "step-2", place / "theirs"))


@pytest.mark.distributed
def test_another_number_of_ranks(run, place, bert):
    run(commands_of(PAGE, UNIVERSAL)[1])
    assert len(list(Path("three/step-2").glob("zero_pp_rank_*_optim_states.pt"))) == 3
    two, three = (
        numbers(place / folder / "step-2", place / f"{folder}-universal") for folder in ("checkpoints", "three")
    )
    require_equal(two, three)


@pytest.fixture(scope="module")
def saved_state(shared, workers) -> float:
    """What `save_state` of accelerate writes under ZeRO-3 on two ranks; the loss at that point."""
    job = {"config": str(shared / "model"), "stage": 3, "load": None, "save": str(shared / "state")}
    return workers.run("tests.helpers.scripts.accelerated:train", job, 2)


@pytest.mark.distributed
def test_deepspeeds_folder_of_accelerate_grows_and_is_loaded_again(run, place, saved_state, workers):
    run(commands_of(PAGE, ACCELERATE)[0])
    job = {"config": str(place / "wide"), "stage": 3, "load": str(place / "state-large"), "save": None}
    loss = workers.run("tests.helpers.scripts.accelerated:train", job, 2)
    assert loss == pytest.approx(saved_state, rel=1e-5)
    before = numbers(place / "state" / "pytorch_model", place / "state-before", "model")
    after = numbers(place / "state-large" / "pytorch_model", place / "state-after", "wide")
    small, large = (held["model.embed_tokens.weight"] for held in (before, after))
    assert torch.equal(large["fp32"], small["fp32"].view(64, 16).repeat(1, 2).flatten())
    halved = small["exp_avg"].view(64, 16).repeat(1, 2).flatten() / 2
    assert torch.allclose(large["exp_avg"], halved, rtol=1e-6, atol=0) and halved.any()


@pytest.mark.distributed
def test_deepspeeds_folder_of_accelerate_is_exported(run, place, saved_state):
    run(commands_of(PAGE, ACCELERATE)[1])
    held = numbers(place / "state" / "pytorch_model", place / "state-weights", "model")
    exported = weights("exported")
    assert exported.keys() == held.keys()
    assert all(torch.equal(exported[name], held[name]["fp32"].view_as(exported[name])) for name in held)
    model = AutoModelForCausalLM.from_pretrained("exported")
    assert model(IDS, labels=IDS).loss.item() == pytest.approx(saved_state, rel=1e-5)


@pytest.mark.distributed
def test_a_folder_of_ddp(run, place, workers):
    job = {"config": str(place / "model"), "stage": None, "load": None, "save": str(place / "state-ddp")}
    loss = workers.run("tests.helpers.scripts.accelerated:train", job, 2)
    said = run(commands_of(PAGE, ACCELERATE)[2])
    assert "left behind beside the weights that were read: optimizer.bin" in said
    small, large = (weights(folder)["model.embed_tokens.weight"] for folder in ("state-ddp", "ddp-large"))
    assert torch.equal(large, small.repeat(1, 2))
    model = AutoModelForCausalLM.from_pretrained("ddp-large")
    assert model(IDS, labels=IDS).loss.item() == pytest.approx(loss, rel=1e-5)


def test_shards_of_fsdp_are_merged_first(run, place, capsys):
    """Shards as accelerate has torch write them."""
    config = LlamaConfig.from_pretrained("model")
    held = {
        "model": {
            name: tensor.detach() for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
    }
    distributed_checkpoint.save(held, checkpoint_id="state-fsdp/pytorch_model_fsdp_0", no_dist=True)
    for folder in ("state-fsdp", "state-fsdp/pytorch_model_fsdp_0"):
        code, _, said = lemon(capsys, "inspect", folder)
        assert code == 2 and "merge their weights: accelerate merge-weights DIR OUT" in said
    for command in commands_of(PAGE, ACCELERATE)[3:]:
        run(command)
    merged, original = weights("merged"), held["model"]
    assert merged.keys() == original.keys() and all(torch.equal(merged[name], original[name]) for name in merged)
    assert weights("fsdp-large")["model.norm.weight"].shape == (32,)
