"""Training from a published checkpoint, and after growth: Hugging Face folders of every family, causal models grown."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from torch.nn import functional as F

from pipeline import config, models
from pipeline.config.model_sizes import ModelSizes
from pipeline.data import evaluation_batches, open_prepared
from pipeline.training.stage import facts_line, plan_training
from tests.helpers import cli
from tests.helpers.invented_text import some_documents, text_file
from tests.helpers.runs import records

TEXT = dict.fromkeys(("roberta", "xlm-roberta", "gpt2", "llama", "mistral", "qwen2", "qwen3"), "")
IMAGES = {"vit": "", "deit": "", "dinov2": "encoder"}
"""Families, and the head of the folder, where it is another than the one that is trained."""
SIZES = {"layers": 2, "hidden": 24, "heads": 3, "mlp": 48}
VOCABULARY, POSITIONS = 211, 40
"""More than the data have: a published vocabulary is larger than its tokenizer, its positions more than a block."""


def published(folder: Path, family: str, head: str = "", **changes: object) -> Path:
    """A tiny model with random weights, as `save_pretrained` leaves it."""
    known = models.family(family)
    facts = {
        "kind": "text",
        "vocab_size": VOCABULARY,
        "block": POSITIONS,
        "scored": 4,
        "special": {"pad": 1, "mask": 2},
    }
    if known.data == "images":
        facts = {"kind": "images", "size": 8, "channels": 1, "class_names": [str(number) for number in range(10)]}
    sizes = {**SIZES, "family": family, **({"patch": 4} if known.data == "images" else {}), "dropout": 0.1}
    made = models.trained(ModelSizes(**sizes), facts)
    chosen = next((each for each in known.heads if each.name == head), known.heads[0])
    made.update({"architectures": [chosen.class_name], **changes})
    model = models.build(made, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    model.save_pretrained(folder)
    return folder


def run_of(folder: Path, data: dict, families: dict[str, str], **stage: object) -> Path:
    """A run with a stage of two steps for each family, from a folder of its own; in ZeRO-3, which builds it cut over
    the ranks, where its head begins afresh."""
    train = {"kind": "train", "batch": 8, "evaluate_every": "2 steps", "zero_stage": 2}
    train |= {"schedule": {"peak": 1e-3, "warmup": "1 steps", "horizon": "2 steps"}, **stage}
    patch = {"patch": 4} if data["kind"] == "images" else {}
    content = {
        "name": "starts",
        "folder": str(folder / "run"),
        "processes": 1,
        "data": data,
        "models": {family: {"family": family, **SIZES, **patch} for family in families},
        "stages": [
            {
                **train,
                "name": f"on-{family}",
                "model": family,
                "start": str(published(folder / family, family, head)),
                **({"zero_stage": 3} if head else {}),
            }
            for family, head in families.items()
        ],
    }
    return written(folder, content)


def written(folder: Path, content: dict) -> Path:
    path = folder / "starts.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def grown_on(path: Path) -> Path:
    """The same run, in which a model that was trained and a folder's are grown and trained on."""
    content = yaml.safe_load(path.read_text())
    train = {key: value for key, value in content["stages"][0].items() if key not in ("name", "model", "start")}
    larger = {"layers": 3, "hidden": 40, "mlp": 72}
    content["models"] |= {
        "large-llama": {"family": "llama", **larger, "heads": 5},
        "large-qwen3": {"family": "qwen3", **larger, "heads": 4, "head_dim": 8},
    }
    for family, source, zero_stage in (("llama", "on-llama", 1), ("qwen3", str(path.parent / "qwen3"), 3)):
        model, grown = f"large-{family}", f"grown-{family}"
        content["stages"] += [
            {
                "kind": "expand",
                "name": grown,
                "source": source,
                "model": model,
                "method": {"name": "lemon", "depth": "cancel"},
            },
            {**train, "name": f"after-{family}", "model": model, "start": grown, "zero_stage": zero_stage},
        ]
    return written(path.parent, content)


def grown_and_trained(path: Path, families: tuple[str, ...]) -> Path:
    """The same run, in which what each of these has become is grown and trained on. The width doubles, as norms behind
    the sum (RoBERTa's) need it; layers are added where they stand before."""
    content = yaml.safe_load(path.read_text())
    of_family = {stage["name"]: stage for stage in content["stages"]}
    for family in families:
        layers = 2 if "roberta" in family else 3
        larger = {**content["models"][family], "layers": layers, "hidden": 48, "heads": 6, "mlp": 96}
        content["models"][f"large-{family}"] = larger
        grow = {"kind": "expand", "name": f"grown-{family}", "source": f"on-{family}", "model": f"large-{family}"}
        after = {**of_family[f"on-{family}"], "name": f"after-{family}", "model": grow["model"], "start": grow["name"]}
        content["stages"] += [{**grow, "method": {"name": "lemon", "depth": "cancel"}}, after]
    return written(path.parent, content)


def evaluated(folder: Path, path: Path) -> float:
    """The loss of what `from_pretrained` makes of a folder on the run's evaluation set."""
    loaded = config.load(path)
    stored = models.read_config(folder / "config.json")[1]
    family, head = models.of_config(stored), models.of_config(stored).head(stored)
    prepared = replace(open_prepared(loaded.path / "data"), causal=family.objective == "causal-lm")
    model = getattr(transformers, head.class_name).from_pretrained(folder).eval()
    total = count = 0.0
    for batch in evaluation_batches(prepared, loaded.data, loaded.seed, micro_batch=8, rank=0, world=1):
        inputs = dict(batch.inputs)
        positions = inputs.pop("masked_positions", None)
        with torch.no_grad():
            logits = model(**inputs).logits
        if positions is not None:
            logits = logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))
        elif family.objective == "causal-lm":
            logits = logits[:, :-2]
        losses = F.cross_entropy(logits.flatten(0, -2), batch.labels.flatten(), reduction="none")
        total += losses.view(len(batch.labels), -1).mean(1)[: batch.valid].sum().item()
        count += batch.valid
    return total / count


def first_loss(run: Path, stage: str) -> float:
    return next(record["eval_loss"] for record in records(run, stage) if "eval_loss" in record)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    words = text_file(folder / "words.txt", some_documents())
    data = {
        "kind": "text",
        "dataset": str(words),
        "tokenizer": {"vocab_size": 200},
        "block": 32,
        "evaluation_blocks": 9,
    }
    path = grown_on(run_of(folder, data, TEXT))
    cli.lemon_here("run", path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    data = {"kind": "images", "dataset": "embedded", "size": 8, "channels": 1, "evaluation_images": 30}
    path = run_of(folder, data, IMAGES)
    cli.lemon_here("run", path)
    return path


@pytest.mark.parametrize("family", [*TEXT, "vit", "deit"])
def test_it_begins_with_the_loss_that_transformers_has(request, family):
    path = request.getfixturevalue("images" if family in IMAGES else "text")
    expected = evaluated(path.parent / family, path)
    assert first_loss(path.parent / "run", f"on-{family}") == pytest.approx(expected, rel=1e-5)
    stored = json.loads(next((path.parent / "run" / f"on-{family}").rglob("step-*/config.json")).read_text())
    assert stored.get("vocab_size", VOCABULARY) == VOCABULARY
    dropout = [value for key, value in stored.items() if key in models.family(family).keys.dropout]
    assert dropout and not any(dropout), "as the run's model says"


def test_a_head_that_is_not_there_begins_afresh_and_is_named(images, tmp_path):
    shutil.copytree(images.parent / "run" / "data", tmp_path / "data")
    loaded = config.load(images, [f"folder={tmp_path}", "stages.on-dinov2.zero_stage=2"])
    folder = images.parent / "dinov2"
    plan = plan_training(loaded, loaded.training_stage("on-dinov2"))
    assert f"from {folder} with a fresh head (classifier.weight, classifier.bias), " in facts_line(plan, ranks=1)
    begun = dict(plan.subject.begun(plan.model, plan.start).module.named_parameters())
    for name, expected in transformers.Dinov2Model.from_pretrained(folder).named_parameters():
        assert torch.equal(begun[f"dinov2.{name}"], expected), name
    assert begun["classifier.weight"].shape == (10, 48) and not begun["classifier.bias"].any()


@pytest.mark.parametrize(
    "head, changes, left",
    [
        ("text-classifier", {"num_labels": 3}, "classifier.dense.weight, classifier.dense.bias, classifier.out_proj.w"),
        ("question-answering", {}, "qa_outputs.weight, qa_outputs.bias"),
        ("encoder", {}, "pooler.dense.weight, pooler.dense.bias"),
        ("encoder", {"has_pooler": False}, ""),
    ],
)
def test_a_head_of_texts_that_is_not_trained_gives_way_and_is_named(text, tmp_path, head, changes, left):
    """The encoder goes on under the head that its family is trained with, which begins afresh."""
    shutil.copytree(text.parent / "run" / "data", tmp_path / "data")
    folder = published(tmp_path / "roberta", "roberta", head, **changes)
    loaded = config.load(text, [f"folder={tmp_path}", f"stages.on-roberta.start={folder}"])
    plan = plan_training(loaded, loaded.training_stage("on-roberta"))
    line = facts_line(plan, ranks=1)
    assert " with a fresh head (lm_head.dense.weight, lm_head.dense.bias, lm_head.layer_norm.weight, " in line
    assert f" without {left}" in line if left else " without " not in line
    begun = dict(plan.subject.begun(plan.model, plan.start).module.named_parameters())
    bare = transformers.RobertaModel.from_pretrained(folder, add_pooling_layer=False)
    for name, expected in bare.named_parameters():
        assert torch.equal(begun[f"roberta.{name}"], expected), name


def test_a_causal_model_goes_on_after_growth_where_it_was(text):
    """Up to 1e-5: float32 sums of other lengths. Its perplexity is that of its loss, over every token of a row."""
    run = text.parent / "run"
    before = [record["eval_loss"] for record in records(run, "on-llama") if "eval_loss" in record][-1]
    after = [record for record in records(run, "after-llama") if "eval_loss" in record]
    assert after[0]["eval_loss"] == pytest.approx(before, rel=1e-5) and after[-1]["eval_loss"] < before
    assert after[0]["perplexity"] == pytest.approx(math.exp(after[0]["eval_loss"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "data, families", [("text", ("roberta", "xlm-roberta", "gpt2", "mistral", "qwen2")), ("images", ("deit", "dinov2"))]
)
def test_so_does_every_other_family(request, data, families):
    path = request.getfixturevalue(data)
    cli.lemon_here("run", grown_and_trained(path, families))
    for family in families:
        *_, before = (row["eval_loss"] for row in records(path.parent / "run", f"on-{family}") if "eval_loss" in row)
        assert first_loss(path.parent / "run", f"after-{family}") == pytest.approx(before, rel=1e-5), family


def test_a_folder_that_is_grown_and_trained_on_keeps_its_vocabulary(text):
    """And its function, from a published width of heads to ZeRO-3 shards."""
    run, folder = text.parent / "run", text.parent / "qwen3"
    assert first_loss(run, "after-qwen3") == pytest.approx(evaluated(folder, text), rel=1e-5)
    grown = models.read_config(next((run / "grown-qwen3").rglob("step-*/config.json")))[1]
    assert (grown.vocab_size, grown.max_position_embeddings, grown.head_dim) == (VOCABULARY, POSITIONS, 8)


def test_every_flop_of_a_causal_model_is_counted(text):
    """The head at all positions, attention between all of them, as the docs have it."""
    facts = json.loads((text.parent / "run" / "on-llama" / "stage.json").read_text())
    width, mlp, block = SIZES["hidden"], SIZES["mlp"], 32
    matrices = SIZES["layers"] * (4 * width * width + 3 * width * mlp) + width * VOCABULARY
    forward = block * (2 * matrices + SIZES["layers"] * 4 * block * width)
    assert facts["flops_per_step"]["train"] == 8 * 3 * forward
