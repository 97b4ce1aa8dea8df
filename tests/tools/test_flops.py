"""lemon flops: known values, torch's own counter, the dry run's numbers, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline import data, models
from pipeline.accounting.estimate import Estimate, Memory
from pipeline.accounting.flops import CONVENTION
from pipeline.config import load
from pipeline.runs.flops_of_model import Asked, of_model
from pipeline.training.subject import checkpoint_layers
from tests.helpers.cli import lemon, run_python
from tests.helpers.mutations import SHIPPED
from tests.helpers.published import QWEN3, qwen3
from tests.helpers.runs import BATCH, STEPS, tiny_run
from tests.helpers.samples import IMAGE, POSITIONS, VARIANTS, VOCAB, facts, sample

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart" / "bert.yaml"
BERT = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
"""Sizes of google-bert/bert-base-uncased."""
VIT = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "hidden_size": 768,
    "id2label": {str(number): f"LABEL_{number}" for number in range(1000)},
    "image_size": 224,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
}
"""Sizes of google/vit-base-patch16-224."""


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    return path


def estimated(capsys, *arguments: object) -> dict[str, Any]:
    code, out, err = lemon(capsys, "flops", *arguments, "--json")
    assert code == 0, err
    assert json.loads(Estimate.model_validate_json(out).model_dump_json()) == json.loads(out)
    return json.loads(out)


def shown(capsys, *arguments: object) -> list[str]:
    code, out, err = lemon(capsys, "flops", *arguments)
    assert code == 0, err
    return out.splitlines()


def giga(sample: dict[str, Any]) -> tuple[str, str]:
    """Forward, and forward and backward."""
    return f"{sample['forward'] / 1e9:.3f}", f"{sample['model'] / 1e9:.3f}"


@pytest.mark.parametrize("tokens, known", [(128, ("28.499", "85.497")), (512, ("121.244", "363.733"))])
def test_bert_base_with_a_dense_head_is_as_counted_elsewhere(tmp_path, capsys, tokens, known):
    path = written(tmp_path, BERT)
    found = estimated(capsys, path, "--sequence-length", tokens, "--head-positions", "1.0")["model"]
    assert giga(found["sample"]) == known and found["parameters"] == 109_514_298
    per_layer = 2 * (4 * 768 * 768 + 2 * 768 * 3072) + 4 * tokens * 768
    assert found["sample"]["forward"] == tokens * (12 * per_layer + 2 * 768 * 768 + 2 * 768 * 30522)


def test_vit_base_is_as_counted_elsewhere(tmp_path, capsys):
    written(tmp_path, VIT)
    found = estimated(capsys, tmp_path)["model"]
    assert giga(found["sample"]) == ("35.128", "105.152") and found["parameters"] == 86_567_656
    patches = 2 * 196 * 3 * 16 * 16 * 768
    assert found["sample"]["model"] == 3 * found["sample"]["forward"] - patches, "pixels need no gradient"
    assert found["sample"]["tokens"] == 197 and found["sample"]["head_positions"] is None


def test_the_head_runs_where_training_runs_it_unless_told(tmp_path, capsys):
    """By default at data.mask's share, of the positions between [CLS] and [SEP]."""
    path = written(tmp_path, BERT)
    plain, same, dense = (
        estimated(capsys, path, "--sequence-length", 128, *more)["model"]["sample"]
        for more in ([], ["--head-positions", "0.15"], ["--head-positions", "1"])
    )
    assert plain == same and (plain["head_positions"], dense["head_positions"]) == (round(0.15 * 126), 128)
    assert dense["forward"] - plain["forward"] == (128 - 19) * 2 * (768 * 768 + 768 * 30522)


def inputs(variant: str, head_positions: int | None) -> dict[str, torch.Tensor]:
    if facts(variant)["kind"] == "images":
        return {"pixel_values": torch.randn(1, 3, IMAGE, IMAGE)}
    text = {"input_ids": torch.randint(VOCAB, (1, POSITIONS))}
    if head_positions not in (None, POSITIONS):
        text["masked_positions"] = torch.arange(head_positions)[None]
    return text


@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_counts_the_same(tmp_path, variant, every):
    config = sample(variant, layers=3, heads=4, kv_heads=2, hidden=16, head_dim=6)
    (tmp_path / "config.json").write_text(models.config_text(config))
    text = facts(variant)["kind"] == "text"
    for share in (None, 1.0) if models.of_config(config).head(config).name == "masked-lm" else (None,):
        found = of_model(tmp_path, Asked(POSITIONS if text else None, share, every)).model
        model = models.build(config, attention="eager").train()
        if every:
            checkpoint_layers(model, every)
        with FlopCounterMode(display=False) as counter:
            outputs = model(**inputs(variant, found.sample.head_positions))
        assert counter.get_total_flops() == found.sample.forward
        with FlopCounterMode(display=False) as counter:
            sum(outputs[name].float().square().sum() for name in models.architecture_of(config).outputs).backward()
        assert counter.get_total_flops() == found.sample.hardware - found.sample.forward
        assert (found.sample.hardware > found.sample.model) == bool(every)
        assert found.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The folder that one of the configs starts from lies where the command is run."""
    monkeypatch.chdir(tmp_path)
    qwen3(tmp_path / "Qwen3-0.6B-Base")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_numbers_are_those_of_the_dry_run(tmp_path, capsys, published, path):
    more = [f"folder={tmp_path}/run", "processes=4"]
    code, out, err = lemon(capsys, "run", path, *more, "--dry-run", "--json")
    assert code == 0, err
    planned, run = json.loads(out), estimated(capsys, path, *more)["run"]
    assert [stage["name"] for stage in run["stages"]] == [stage["name"] for stage in planned["stages"]]
    for found, expected in zip(run["stages"], planned["stages"], strict=True):
        require_same(found, expected)
    assert run["disk"] == planned["disk"]["needed"] and run["data"] == planned["data"]["lines"]
    total = None if run["hardware"] is None else run["hardware"] + run["evaluation"]
    assert total == planned["flops"]


def require_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """found: a stage of lemon flops; expected: of the dry run."""
    assert all(found[key] == expected[key] for key in ("kind", "model", "parameters", "disk"))
    if expected["kind"] == "expand":
        assert found["sample"] is found["training"] is found["memory"] is None
        return
    memory = {key: value for key, value in found["memory"].items() if key in expected["memory"]}
    assert memory == expected["memory"] and found["memory"]["zero_stage"] == expected["zero_stage"]
    training, flops = found["training"], expected["flops"]
    assert found["batch"] == expected["batch"]["samples"] and (training is None) == (flops is None)
    if training:
        steps = expected["schedule"]["steps"]
        assert (training["steps"], training["samples"]) == (steps, steps * found["batch"])
        assert (training["hardware"], training["evaluation"]) == (flops["train"], flops["evaluation"])
        assert training["model"] == training["samples"] * found["sample"]["model"] <= training["hardware"]


def test_model_and_hardware_are_apart_in_a_run(tmp_path, capsys):
    """Checkpointing, a fit's weights and Muon's products are hardware's alone."""
    plain, again, muon = (
        estimated(capsys, QUICKSTART, f"folder={tmp_path}/run", *more)["run"]
        for more in (
            [],
            ["stages.small.activation_checkpointing=1"],
            ["stages.small.optimizer={kind: muon}", "stages.small.zero_stage=0"],
        )
    )
    small = plain["stages"][0]
    assert small["training"]["hardware"] == small["training"]["model"]
    for other in (again, muon):
        assert other["model"] == plain["model"]
        extra = other["stages"][0]["training"]["hardware"] - small["training"]["hardware"]
        assert extra == other["hardware"] - plain["hardware"] > 0
    recomputed = again["stages"][0]["sample"]["hardware"] - small["sample"]["hardware"]
    assert again["hardware"] - plain["hardware"] == small["training"]["samples"] * recomputed
    assert muon["stages"][0]["sample"] == small["sample"], "an update is no part of a sample"


def test_a_fit_is_a_training_whose_weights_are_made(tmp_path, capsys):
    run = estimated(capsys, ROOT / "configs" / "growth" / "fits.yaml", f"folder={tmp_path}/run")["run"]
    fits = [stage["training"] for stage in run["stages"] if stage["kind"] == "fit"]
    assert fits and all(fit["hardware"] > fit["model"] > 0 for fit in fits)


def test_a_run_may_be_counted_with_a_dense_head(tmp_path, capsys):
    """Only FLOPs are: what the run does and needs stays."""
    plain, dense = (
        estimated(capsys, QUICKSTART, f"folder={tmp_path}/run", *more)["run"]["stages"][0]
        for more in ([], ["--head-positions", "1.0"])
    )
    sizes = load(QUICKSTART).models["small"]
    vocabulary = 2048
    counted = dense["sample"]["head_positions"] - plain["sample"]["head_positions"]
    assert dense["sample"]["head_positions"] == 64
    assert dense["sample"]["forward"] - plain["sample"]["forward"] == counted * 2 * sizes.hidden * vocabulary
    assert dense["training"]["evaluation"] > plain["training"]["evaluation"]
    assert all(dense[key] == plain[key] for key in ("memory", "disk", "batch", "parameters"))
    assert dense["training"]["steps"] == plain["training"]["steps"]


def test_a_run_and_its_model_agree(tmp_path, capsys):
    """The config of a stage's model, counted by itself with the same head."""
    run = estimated(capsys, QUICKSTART, f"folder={tmp_path}/run", "stages.large.activation_checkpointing=2")["run"]
    config, large = load(QUICKSTART), run["stages"][2]
    read = {"kind": "text", "vocab_size": 2048, "block": 64, "scored": config.data.scored}
    model = models.trained(config.models["large"], read)
    (tmp_path / "config.json").write_text(models.config_text(model))
    more = ["--sequence-length", 64, "--head-positions", config.data.mask, "--activation-checkpointing", 2]
    found = estimated(capsys, tmp_path, *more, "--train-for", f"{large['training']['samples']} samples")["model"]
    assert found["sample"] == large["sample"] and found["parameters"] == large["parameters"]
    assert all(found["training"][key] == large["training"][key] for key in ("samples", "model", "hardware"))


def test_hours_follow_from_the_peak(tmp_path, capsys):
    path = written(tmp_path, BERT)
    shared = [path, "--sequence-length", 512, "--train-for", "1e9 tokens", "--mfu", "0.4"]
    given = estimated(capsys, *shared, "--device-tflops", 312)["model"]["training"]
    sheet = estimated(capsys, *shared, "--device", "NVIDIA A100-SXM4-80GB")["model"]["training"]
    assert given["samples"] == -(-(10**9) // 512)
    assert given["device_hours"]["hours"] == sheet["device_hours"]["hours"]
    assert given["device_hours"]["hours"] == pytest.approx(given["model"] / 0.4 / 312e12 / 3600, rel=1e-12)
    assert (given["device_hours"]["peak_of"], sheet["device_hours"]["peak"]) == ("as given", 312e12)
    assert "data sheet of NVIDIA A100-SXM4-80GB, dense products in bf16" in sheet["device_hours"]["peak_of"]


def test_every_stage_has_the_peak_of_its_number_format(tmp_path, capsys):
    formats = ["stages.large.precision=bf16", "stages.scratch.matmul_precision=high"]
    run = estimated(capsys, tiny_run(tmp_path), *formats, "--mfu", "0.5", "--device", "A100")["run"]
    trained = [stage["training"] for stage in run["stages"] if stage["training"]]
    assert [training["device_hours"]["peak"] for training in trained] == [19.5e12, 312e12, 156e12]
    hours = [training["model"] / (0.5 * training["device_hours"]["peak"] * 3600) for training in trained]
    assert run["device_hours"] == pytest.approx(sum(hours), rel=1e-12)


def test_data_that_are_prepared_count_exactly(tmp_path, capsys):
    """Before that their number is told as the dry run tells it; nothing is written by either."""
    path = tiny_run(tmp_path)
    before = estimated(capsys, path)["run"]
    assert list(tmp_path.iterdir()) == [path] and before["data"]["data"] == "not prepared yet"
    config = load(path)
    data.prepare(config.data, config.seed, config.path / "data")
    after = estimated(capsys, path)["run"]
    assert after["data"]["data"].startswith("prepared in ") and after["ranks"] == 2
    assert [stage["training"] for stage in after["stages"]] == [stage["training"] for stage in before["stages"]]
    small = after["stages"][0]["training"]
    assert (small["steps"], small["samples"]) == (STEPS, STEPS * BATCH)
    shutil.rmtree(config.path / "data")
    (config.path / "data").mkdir()
    (config.path / "data" / "mine.txt").touch()
    code, _, err = lemon(capsys, "flops", path)
    assert code == 2 and "not empty and not prepared data" in err


def test_what_is_not_known_is_no_number(tmp_path, capsys):
    path = ROOT / "configs" / "vit" / "base-from-6x384.yaml"
    run = estimated(capsys, path, f"folder={tmp_path}/run", "processes=8", "--mfu", "0.4", "--device", "H100")["run"]
    assert run["model"] is run["hardware"] is run["evaluation"] is run["device_hours"] is None
    assert run["stages"][2]["training"] is None and giga(run["stages"][2]["sample"]) == ("35.128", "105.152")
    rows = [line.split() for line in shown(capsys, path, f"folder={tmp_path}/run", "processes=8")]
    assert sum(row[:6] == ["small", "1,024", "?", "?", "?", "?"] for row in rows) == 1


def test_a_stage_with_a_target_costs_at_most_what_its_schedule_does(tmp_path, capsys):
    path, stop = tiny_run(tmp_path), "stages.large.stop={eval_loss: small}"
    plain, stopped = estimated(capsys, path)["run"], estimated(capsys, path, stop)["run"]
    trained = [stage["training"] for stage in stopped["stages"] if stage["training"]]
    assert [training["at_most"] for training in trained] == [False, True, False]
    assert all(stopped[key] == plain[key] for key in ("model", "hardware", "evaluation"))
    assert any(line.split()[:5] == ["large", "16", "up", "to", "12"] for line in shown(capsys, path, stop))


def test_nodes_share_the_memory(tmp_path, capsys):
    path = ROOT / "configs" / "bert" / "base-from-6x384.yaml"
    one, four = (
        estimated(capsys, path, "processes=8", f"folder={tmp_path}/run", *more)["run"] for more in ([], ["--nodes", 4])
    )
    assert (one["ranks"], four["ranks"]) == (8, 32)
    code, _, err = lemon(capsys, "flops", path, "processes=8", f"folder={tmp_path}/run", "--nodes", 3)
    assert code == 2 and "x 24 ranks; choose a batch that is" in err
    held = [Memory(**run["stages"][0]["memory"]).zero_stages[3].held for run in (one, four)]
    assert held[0] > held[1] and one["model"] == four["model"]


def test_figures_stand_beside_the_convention(tmp_path, capsys):
    path = written(tmp_path, BERT)
    lines = shown(capsys, path, "--sequence-length", 128, "--head-positions", 1, "--activation-checkpointing", 1)
    at = next(number for number, line in enumerate(lines) if CONVENTION in line)
    assert lines[at].startswith("FLOPs of a model: ") and lines[at + 1].split() == [
        "of",
        "forward",
        "model",
        "hardware",
    ]
    assert lines[at + 2].split() == ["one", "sequence", "2.8499e+10", "8.5497e+10", f"{85497348096 + 22347251712:.5g}"]
    lines = shown(capsys, QUICKSTART, f"folder={tmp_path}/run", "--mfu", 0.4, "--device-tflops", 312)
    assert sum(CONVENTION in line for line in lines) == 2
    assert any("(MFU 0.4 x 3.12e+14 FLOP/s x 3600 s), peak as given" in line for line in lines)
    assert [line.split()[0] for line in lines if line.startswith(("small ", "grown ", "all "))].count("small") == 3


def refused(capsys, complaint: str, *arguments: object) -> None:
    code, out, err = lemon(capsys, "flops", *arguments)
    assert (code, out) == (2, "") and err.startswith("lemon: ") and complaint in err and err.count("\n") == 1, err


LENGTH = ("--sequence-length", 128)
GPT2 = {"model_type": "gpt2", "n_positions": 64}
BAD_MODELS = [
    (BERT, [], "a 'bert' reads sequences; say how many tokens one has: --sequence-length 512"),
    (BERT, ["--sequence-length", 513], "--sequence-length 513: its table of positions has rows for 512 tokens"),
    (GPT2, ["--sequence-length", 65], "--sequence-length 65: its table of positions has rows for 64 tokens"),
    ({"model_type": "opt"}, ["--sequence-length", 2049], "its table of positions has rows for 2048 tokens"),
    ({"model_type": "roberta", "max_position_embeddings": 514}, ["--sequence-length", 513], "rows for 512 tokens"),
    (QWEN3, ["--sequence-length", 10**8], "--sequence-length 100000000: taken are at most 10000000 tokens"),
    (VIT, LENGTH, "--sequence-length 128: a 'vit' reads images of the size that its config says; leave it out"),
    (VIT, ["--head-positions", 1], "--head-positions 1: this 'vit' (classifier) has no language-model head"),
    (VIT | {"image_size": 8}, [], "images of 8 pixels a side hold no patch of 16"),
    (QWEN3, [*LENGTH, "--head-positions", 0.5], "--head-positions 0.5: a 'qwen3' predicts at every position"),
    (BERT | {"architectures": ["BertModel"]}, [*LENGTH, "--head-positions", 1], "this 'bert' (encoder) has no"),
    (
        BERT | {"architectures": ["BertForMultipleChoice"]},
        LENGTH,
        "architecture 'BertForMultipleChoice' of family 'bert'",
    ),
    (BERT | {"hidden_size": 770}, LENGTH, "impossible sizes: hidden_size 770"),
    (BERT | {"vocab_size": "many"}, LENGTH, "not a config of 'bert'"),
    (
        {"model_type": "t5"},
        LENGTH,
        "model_type 't5' (architectures: none) is not supported; nearest in architecture: none",
    ),
    ({}, LENGTH, "it names no model_type: add it; known: bert, "),
    (BERT, [*LENGTH, "seed=3"], "seed=3: goes with a run's YAML config"),
    (BERT, [*LENGTH, "--nodes", 2], "--nodes 2: goes with a run's YAML config"),
    (BERT, [*LENGTH, "--mfu", 0.4, "--device", "A100"], "device-hours are those of a training; say how long it is"),
    (BERT, [*LENGTH, "--mfu", 0.4], "--mfu 0.4 is a share of one peak; give --device-tflops 312, or a device"),
    (BERT, [*LENGTH, "--mfu", 0.4, "--device", "A100", "--device-tflops", 1], "is a share of one peak"),
    (BERT, [*LENGTH, "--device", "A100"], "a device's peak tells its time at an MFU alone; say which: --mfu 0.4"),
    (BERT, [*LENGTH, "--mfu", 0.4, "--device", "A1000"], "--device A1000: no data sheet here has its peak; did you"),
    (
        BERT,
        [*LENGTH, "--mfu", 0.4, "--device", "V100", "--train-for", "1 sample"],
        "--device V100: its data sheet has no peak in bf16; give --device-tflops",
    ),
    (BERT, [*LENGTH, "--train-for", "3 epochs"], "a model alone tells the FLOPs of samples or tokens; give those"),
    (VIT, ["--train-for", "1e9 tokens"], "a model alone tells the FLOPs of samples; give those"),
]


@pytest.mark.parametrize("content, more, complaint", BAD_MODELS, ids=range(len(BAD_MODELS)))
def test_what_a_model_cannot_be_asked(tmp_path, capsys, content, more, complaint):
    refused(capsys, complaint, written(tmp_path, content), *more)


def test_files_that_are_no_config(tmp_path, capsys):
    refused(capsys, "config.json: cannot read it (No such file or directory)", tmp_path, *LENGTH)
    refused(capsys, "none.json: cannot read it (No such file or directory)", tmp_path / "none.json", *LENGTH)
    (tmp_path / "config.json").write_text("{")
    refused(capsys, "not valid JSON", tmp_path, *LENGTH)
    (tmp_path / "config.json").write_text("[]")
    refused(capsys, "holds a JSON list, not an object", tmp_path, *LENGTH)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.yaml").touch()
    refused(capsys, "is a run's folder; name its", tmp_path)
    refused(capsys, "none.yaml: ", tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "more, complaint",
    [
        (LENGTH, "--sequence-length is of a config.json; a run's config says it by its key: data.block=N"),
        (["--train-for", "1e9 tokens"], "--train-for is of a config.json"),
        (["--activation-checkpointing", 1], "by its key: stages.NAME.activation_checkpointing=N"),
        (["--head-positions", 1], "--head-positions 1: this 'vit' (classifier) has no language-model head"),
        (["--mfu", 0.4], "--mfu 0.4 is a share of one peak"),
        (["--mfu", 0.4, "--device", "T4", "stages.large.precision=bf16"], "its data sheet has no peak in bf16"),
        (["models.small.family=brt"], "models.small: unknown model family 'brt'"),
        (["stages.small.batch=15"], "stages.small: batch 15 is not a multiple of"),
        (["data.dataset=/no/images"], "/no/images: no such file or folder; check data.dataset"),
        (["stages.small.schedule.warmup=24 steps"], "stages.small.schedule: the warm-up of 24 steps does not end"),
    ],
)
def test_what_a_run_cannot_be_asked(tmp_path, capsys, more, complaint):
    path = tiny_run(tmp_path)
    refused(capsys, complaint, path, *more)
    assert list(tmp_path.iterdir()) == [path], "something is written"


@pytest.mark.parametrize(
    "more, complaint",
    [
        (["--head-positions", "0"], "'0' is no number above 0 and at most 1"),
        (["--head-positions", "1.01"], "'1.01' is no number above 0 and at most 1"),
        (["--head-positions", "nan"], "'nan' is no number above 0 and at most 1"),
        (["--head-positions", "all"], "'all' is no number above 0 and at most 1"),
        (["--mfu", "40"], "'40' is no number above 0 and at most 1"),
        (["--mfu", "1e-400"], "'1e-400' is no number above 0"),
        (["--device-tflops", "inf"], "'inf' is no number above 0"),
        (["--device-tflops", "-312"], "'-312' is no number above 0"),
        (["--sequence-length", "0"], "'0' is no whole number of at least 1"),
        (["--activation-checkpointing", "0"], "'0' is no whole number of at least 1"),
        (["--nodes", "1.5"], "'1.5' is no whole number of at least 1"),
        (["--train-for", "1e9"], "a duration needs a number and a unit"),
        (["--train-for", "0 tokens"], "'0 tokens' is no training; choose more than 0"),
        (["--train-for", "1e400 tokens"], "is it a typing error?"),
    ],
)
def test_values_that_no_option_takes(capsys, more, complaint):
    with pytest.raises(SystemExit) as stopped:
        lemon(capsys, "flops", "config.json", *more)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and complaint in err and err.count("\n") == 1, err


def test_a_config_json_needs_no_trainer(tmp_path):
    """Neither DeepSpeed nor what trains is imported, and no model is built: a size that fits no memory is counted."""
    path = written(tmp_path, QWEN3 | {"hidden_size": 65536, "num_hidden_layers": 2000})
    script = (
        "import sys\n"
        "from pipeline.cli import main\n"
        f"code = main(['flops', {str(path)!r}, '--sequence-length', '32768'])\n"
        "heavy = {'deepspeed', 'pipeline.training.engine', 'pipeline.training.loop', 'pipeline.runs.run'}\n"
        "print('code:', code, 'imported:', sorted(heavy & set(sys.modules)))\n"
    )
    done = run_python("-c", script)
    assert "code: 0 imported: []" in done.stdout, done.stderr
