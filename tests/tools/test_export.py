"""Any checkpoint as a Hugging Face folder: the same logits, the tokenizer of its run, a card that tells the truth."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from transformers import AutoTokenizer

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout, loader, manifest
from pipeline.data import tokenizers
from pipeline.errors import UserError
from pipeline.growth.verification.probe import probe
from tests.helpers.checkpoints import change, reseal, saved, source
from tests.helpers.cli import lemon, lemon_here, run_python
from tests.helpers.growing import randomised
from tests.helpers.rotation import rotated
from tests.helpers.samples import sample

FORMATS = [
    CheckpointLayout("zero", 1, 3),
    CheckpointLayout("zero", 2, 2, bf16=True),
    CheckpointLayout("zero", 3, 2),
    CheckpointLayout("universal"),
    CheckpointLayout("huggingface"),
]
HEADS = {
    "bert-pre-ln": "import pipeline.models",
    "vit": "import ViTForImageClassification",
    "gpt2": "import GPT2LMHeadModel",
    "llama": "import LlamaForCausalLM",
    "bert encoder": "import BertModel",
    "bert-pre-ln encoder": "import AutoModel\n",
}


def documents(count: int, seed: int = 0) -> list[str]:
    """Text of invented words."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(["ka", "lo", "mi", "ren", "tus", "va", "sol", "ne"], k=2)) for _ in range(200)]
    return [" ".join(draw.choices(words, k=80)) for _ in range(count)]


def exported(capsys, folder: Path, *more: object) -> Path:
    code, _, err = lemon(capsys, "export", folder, "--out", folder.parent / "hf", *more)
    assert code == 0, err
    return folder.parent / "hf"


def snippet(card: str, folder: Path) -> dict:
    """What the card's code makes when it is run as it stands, where the folder lies."""
    code = card.split("```python\n")[1].split("```")[0].replace(f'"{folder.name}"', repr(str(folder)))
    made: dict = {}
    exec(code, made)
    return made


def outputs(model: torch.nn.Module, config) -> torch.Tensor:
    inputs = {
        key: value
        for key, value in probe(config, seed=1, samples=2).items()
        if isinstance(value, torch.Tensor) and key != "masked_positions"
    }
    with torch.no_grad():
        return model.eval()(**inputs)[0]


@pytest.mark.parametrize("layout", FORMATS, ids=lambda layout: f"{layout.name}-{layout.zero_stage}-{layout.world_size}")
def test_every_layout_loads_with_the_same_logits(tmp_path, capsys, layout):
    folder = exported(capsys, source(tmp_path, layout))
    config = sample("bert-pre-ln")
    weights = randomised(config, seed=1)
    model = snippet((folder / "README.md").read_text(), folder)["model"]
    assert torch.equal(
        outputs(model, config), outputs(models.fill(models.build(config), lambda name: weights[name].float()), config)
    )
    assert manifest.verify(folder).kind == "export" and not list(tmp_path.glob(".staging*"))


@rotated(one_in=2, of="variant")
@pytest.mark.parametrize("variant", HEADS)
def test_the_cards_code_runs_for_every_kind_of_model(tmp_path, capsys, variant):
    folder = exported(capsys, source(tmp_path, CheckpointLayout("zero", 2, 2), variant))
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers" and variant.split()[0] in front["tags"]
    assert f"of {models.architecture_of(sample(variant)).parameters:,} parameters" in card and HEADS[variant] in card
    weights = randomised(sample(variant), seed=1)
    for row in models.architecture_of(sample(variant)).rows():
        assert torch.equal(
            dict(snippet(card, folder)["model"].named_parameters())[row.module], weights[row.name].float()
        ), row.name


def test_what_a_foreign_checkpoint_cost_is_unknown(tmp_path, capsys):
    small = saved(tmp_path / "small", "vit")
    (small / "preprocessor_config.json").write_text("{}")
    folder = exported(capsys, small)
    card = (folder / "README.md").read_text()
    assert "1. **small**: made elsewhere; how it was made, and what that cost, is unknown." in card
    assert "| small | not recorded |  |  | unknown |" in card and "**unknown**" in card
    assert manifest.read(folder).provenance["flops"] == "unknown" and (folder / "preprocessor_config.json").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_stored_type_is_chosen(tmp_path, capsys, dtype):
    small = source(tmp_path, CheckpointLayout("zero", 3, 2), "llama")
    folder = exported(capsys, small, "--dtype", dtype)
    held, wanted = checkpoints.raw(folder).tensors, checkpoints.read(small)[0].tensors
    for name, entry in held.items():
        assert torch.equal(entry.tensor(), wanted[name].tensor().to(getattr(torch, dtype)))
    assert (
        transformers.LlamaForCausalLM.from_pretrained(folder).dtype == getattr(torch, dtype)
        and f"stored in {dtype}" in (folder / "README.md").read_text()
    )


def test_a_number_that_float16_cannot_hold_does_not_hide_behind_a_nan(tmp_path, capsys):
    def spoil(tensors: dict) -> None:
        tensors["classifier.bias"][:2] = torch.tensor([float("nan"), -1e6])

    small = change(saved(tmp_path / "small", "vit"), spoil)
    code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "hf", "--dtype", "float16")
    assert code == 2 and "'classifier.bias' does not fit into float16 (largest number 1e+06)" in err, err


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys):
    small = source(tmp_path, CheckpointLayout("zero", 2, 2))
    for arguments, complaint in [
        ((small, "--out", small), "small: exists already; choose another --out or remove it"),
        ((tmp_path / "none", "--out", tmp_path / "hf"), "none: no such folder"),
        (
            (small, "--out", tmp_path / "hf", "--source-config", small / "manifest.json"),
            "manifest.json: it names no model_type: add it",
        ),
    ]:
        code, _, err = lemon(capsys, "export", *arguments)
        assert code == 2 and complaint in err and err.count("\n") == 1, err
    path = small / "mp_rank_00_model_states.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "hf")
    assert code == 2 and "mp_rank_00_model_states.pt: its BLAKE3 is not the manifest's" in err
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_checkpoint_without_a_config_takes_one(tmp_path, capsys):
    small = source(tmp_path, CheckpointLayout("zero", 2, 2))
    (small / "manifest.json").unlink()
    config = (small / "config.json").rename(tmp_path / "config.json")
    code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "hf")
    assert code == 2 and "name the source's config with --source-config" in err
    folder = exported(capsys, small, "--source-config", config)
    assert set(checkpoints.raw(folder).tensors) == {
        row.name for row in models.architecture_of(sample("bert-pre-ln")).rows()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A real run: a tokenizer that is learned, six steps of ZeRO-2, an expansion."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("\n\n".join(documents(200)))
    content = {
        "name": "tiny",
        "folder": str(folder / "run"),
        "processes": 1,
        "seed": 1,
        "data": {
            "kind": "text",
            "dataset": str(folder / "text.txt"),
            "block": 32,
            "evaluation_blocks": 8,
            "tokenizer": {"kind": "sentencepiece", "vocab_size": 100},
        },
        "models": {
            "small": {"family": "bert-pre-ln", "layers": 2, "hidden": 24, "heads": 3},
            "large": {"family": "bert-pre-ln", "layers": 3, "hidden": 40, "heads": 5},
        },
        "stages": [
            {
                "kind": "train",
                "name": "small",
                "model": "small",
                "batch": 8,
                "zero_stage": 2,
                "save_every": "4 steps",
                "schedule": {"peak": 1e-3, "warmup": "2 steps", "horizon": "6 steps"},
                "evaluate_every": "3 steps",
            },
            {"kind": "expand", "name": "grown", "source": "small", "model": "large"},
        ],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    lemon_here("run", folder / "tiny.yaml")
    return folder / "run"


def rows(card: str) -> list[tuple[str, str, int]]:
    """Stage, kind and FLOPs of the card's table."""
    cells = [
        [cell.strip(" *") for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("|")
    ][2:]
    return [(stage, kind, int(flops.replace(",", ""))) for stage, kind, _, _, flops in cells]


def entries(run: Path, stage: str) -> dict[str, int]:
    spent: dict[str, int] = {}
    for line in (run / stage / "ledger.jsonl").read_text().splitlines():
        entry = json.loads(line)
        spent[entry["kind"]] = spent.get(entry["kind"], 0) + entry["flops"]
    return spent


def test_the_card_of_a_run_has_the_ledgers_numbers(run, tmp_path, capsys):
    code, _, err = lemon(capsys, "export", run / "grown", "--out", tmp_path / "hf")
    assert code == 0, err
    card = (tmp_path / "hf" / "README.md").read_text()
    wanted = [(stage, kind, flops) for stage in ("small", "grown") for kind, flops in entries(run, stage).items()]
    total = sum(flops for _, _, flops in wanted)
    assert sorted(rows(card)) == sorted([*wanted, ("everything", "", total)])
    assert manifest.read(tmp_path / "hf").provenance["flops"] == total
    assert "1. **small**: " in card and "trained from scratch for 6 steps of 8 samples, fp32; evaluation loss" in card
    assert (
        "2. **grown**: expanded by method `lemon` (embed 24 -> 40, mlp 96 -> 160, heads 3 -> 5" in card
        and "verified lossless" in card
    )
    assert "blocks of 32 tokens" in card


def test_an_earlier_step_costs_what_was_spent_until_then(run, tmp_path, capsys):
    tag = run / "small" / "checkpoints" / "step-0000004"
    code, _, err = lemon(capsys, "export", tag, "--out", tmp_path / "hf")
    assert code == 0, err
    listed = rows((tmp_path / "hf" / "README.md").read_text())
    assert (
        listed[-1] == ("everything", "", manifest.read(tag).provenance["flops"])
        and sum(flops for *_, flops in listed[:-1]) == listed[-1][2]
    )


def test_a_copy_outside_its_run_knows_the_sums(run, tmp_path, capsys):
    shutil.copytree(run / "grown" / "checkpoints" / "step-0000000", tmp_path / "copied")
    spent = manifest.read(tmp_path / "copied").provenance
    listed = rows((exported(capsys, tmp_path / "copied") / "README.md").read_text())
    small = [("small", kind, flops) for kind, flops in entries(run, "small").items()]
    assert sorted(listed) == sorted(
        [*small, ("copied", "expand", spent["own_flops"]), ("everything", "", spent["flops"])]
    )


def test_what_is_gone_is_said(run, tmp_path, capsys):
    """The source of an expansion is removed: its FLOPs are in the sum, and nobody knows their kinds."""
    whole = tmp_path / "whole"
    shutil.copytree(run, whole, ignore=shutil.ignore_patterns("small"))
    path = whole / "grown" / "checkpoints" / "step-0000000" / "manifest.json"
    held = json.loads(path.read_text())
    held["source"]["path"] = held["provenance"]["origin"] = str(tmp_path / "gone" / "step-0000006")
    reseal(path.parent, held)
    card = (exported(capsys, whole / "grown") / "README.md").read_text()
    assert "1. **step-0000006**: no longer where it was; how it was made, and what that cost, is unknown." in card
    assert f"| before | not itemised here |  |  | {sum(entries(run, 'small').values()):,} |" in card


def test_a_rewritten_checkpoint_keeps_its_history(run, tmp_path, capsys):
    assert (
        lemon(capsys, "reshard", run / "small", "--out", tmp_path / "three", "--zero-stage", 3, "--world-size", 2)[0]
        == 0
    )
    card = (exported(capsys, tmp_path / "three") / "README.md").read_text()
    assert "2. **three**: rewritten in the layout 'zero', no weight changed." in card
    spent = [("small", kind, flops) for kind, flops in entries(run, "small").items()]
    assert sorted(rows(card)) == sorted([*spent, ("everything", "", sum(flops for *_, flops in spent))])


def test_a_damaged_ledger_is_named(run, tmp_path, capsys):
    whole = shutil.copytree(run, tmp_path / "whole")
    (whole / "grown" / "ledger.jsonl").write_text("{\n")
    code, _, err = lemon(capsys, "export", whole / "grown", "--out", tmp_path / "hf")
    assert (
        code == 2 and "ledger.jsonl: not valid JSONL" in err and err.count("\n") == 1 and not (tmp_path / "hf").exists()
    )


def test_what_is_on_disk_is_held_against_its_source(tmp_path):
    """A number that changes between writing and publishing, as on a faulty disk."""
    folder = source(tmp_path, CheckpointLayout("huggingface"))
    state, _ = checkpoints.read(folder)
    loader.require_same(folder, state)
    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(
        UserError, match="does not read back as it was written; the disk is faulty, nothing was published"
    ):
        loader.require_same(tmp_path / "other", state)


def test_the_tokenizer_goes_along_and_gives_the_trainings_ids(run, tmp_path, capsys):
    code, out, err = lemon(capsys, "export", run / "small", "--out", tmp_path / "hf")
    assert code == 0 and "tokenizer.model" in out, err
    trained = tokenizers.load(run / "data" / "tokenizer")
    text = documents(3, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert [tokenizer(each)["input_ids"] for each in text] == trained.encode(text)
    assert {name: getattr(tokenizer, f"{name}_token_id") for name in tokenizers.SPECIAL} == trained_ids(run)
    made = snippet((tmp_path / "hf" / "README.md").read_text(), tmp_path / "hf")
    logits = made["model"](**made["tokenizer"](text[0][:60], return_tensors="pt")).logits
    assert (trained.size, logits.shape[-1]) == (100, 128)  # a table has a multiple of 64 rows


def trained_ids(run: Path) -> dict[str, int]:
    return json.loads((run / "data" / "data.json").read_text())["facts"]["special"]


def test_the_script_is_the_command():
    done = run_python("tools/export_hf.py", "--help")
    assert done.returncode == 0 and "HF_DIR" in done.stdout
