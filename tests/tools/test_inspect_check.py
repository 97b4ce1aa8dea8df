"""What a checkpoint is, and whether it is whole: real checkpoints of every layout."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline import models
from pipeline.checkpoints import CheckpointLayout, integrity, manifest
from pipeline.checkpoints.state import Group
from pipeline.errors import UserError
from tests.helpers.checkpoints import FORMATS, HYPER, foreign, reseal, saved, source, state
from tests.helpers.cli import lemon, run_python
from tests.helpers.growing import randomised
from tests.helpers.rotation import rotated
from tests.helpers.samples import sample

SLOTS = {"exp_avg": 38, "exp_avg_sq": 38}


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> dict[str, Path]:
    """One state, with moments and 7 steps, in every layout."""
    folders = {name: tmp_path_factory.mktemp("held") for name in FORMATS}
    return {name: source(folder, FORMATS[name]) for name, folder in folders.items()}


def facts(capsys, folder: Path, *more: object) -> dict:
    code, out, err = lemon(capsys, "inspect", folder, "--json", *more)
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("name", FORMATS)
def test_inspect_says_what_was_written(held, capsys, name):
    found, layout, architecture = (
        facts(capsys, held[name]),
        FORMATS[name],
        models.architecture_of(sample("bert-pre-ln")),
    )
    assert {key: found[key] for key in layout.as_json() if key != "dtype"} == {
        k: v for k, v in layout.as_json().items() if k != "dtype"
    }
    assert found["parameters"] == found["model"]["parameters"] == architecture.parameters and found["tensors"] == 38
    assert (
        found["model"]["family"] == "bert-pre-ln"
        and found["model"]["architecture"] == "BertPreLNForMaskedLM"
        and found["model"]["sizes"]["hidden_size"] == 12
        and found["model"]["sizes"]["num_hidden_layers"] == 2
    )
    if "zero_stage" in layout.as_json():  # files of the others do not say which names are tied
        assert {(alias, owner) for alias, owner in found["tied"].items()} == set(architecture.aliases.items())
    assert found["largest"] == {"name": "bert.embeddings.word_embeddings.weight", "shape": [61, 12]} and found[
        "dtypes"
    ] == {"float32": 38}
    files = [path for path in held[name].rglob("*") if path.is_file()]
    assert (found["files"], found["bytes"]) == (len(files), sum(path.stat().st_size for path in files))
    assert found["manifest"]["step"] == 7 and found["provenance"]["flops"] == "unknown"
    if layout.name == "huggingface":
        assert found["step"] == 0 and found["slots"] == {} and found["steps"] == [] and found["groups"] == []
        return
    assert found["slots"] == SLOTS and (found["step"], found["steps"]) == (7, [7.0])
    expected = [{**HYPER, "betas": list(HYPER["betas"]), "weight_decay": decay} for decay in (0.1, 0.0)]
    assert [group["hyper"] for group in found["groups"]] == expected
    counts = [
        sum(architecture.numel(row) for row in architecture.rows() if row.decay is decayed) for decayed in (True, False)
    ]
    assert [group["parameters"] for group in found["groups"]] == counts


def test_inspect_lists_tensors(held, capsys):
    found = {row["name"]: row for row in facts(capsys, held["3 on 2"], "--tensors")["every_tensor"]}
    assert found["bert.embeddings.word_embeddings.weight"] == {
        "name": "bert.embeddings.word_embeddings.weight",
        "shape": [61, 12],
        "dtype": "float32",
        "group": 0,
    }
    assert found["cls.predictions.bias"]["group"] == 1 and len(found) == 38


@pytest.mark.parametrize("layout", [CheckpointLayout("zero", 2, 2), CheckpointLayout("zero", 3, 3)], ids=["2", "3"])
def test_inspect_of_a_model_that_nobody_knows(tmp_path, capsys, layout):
    folder = foreign(tmp_path / "theirs", layout=layout)
    found = facts(capsys, folder, "--tensors")
    assert found["model"] == {"family": None, "unknown": "no config.json in the folder", "parameters": 45}
    assert found["manifest"] is None
    assert (found["frozen"], found["tied"], found["buffers"]) == (["frozen"], {"tied": "a"}, ["mask"])
    assert {row["name"]: row["group"] for row in found["every_tensor"]} == {"a": 0, "b": 1, "c": 1, "frozen": "frozen"}
    (folder / "config.json").write_text('{"model_type": "mamba", "hidden_size": 7, "architectures": ["MambaModel"]}')
    assert facts(capsys, folder)["model"] == {
        "family": "mamba",
        "architecture": "MambaModel",
        "sizes": {"hidden_size": 7},
        "parameters": 45,
    }
    code, out, _ = lemon(capsys, "inspect", folder)
    assert (
        code == 0
        and "none: a foreign checkpoint" in out
        and "1 frozen ('frozen'); 1 tied ('tied'); 1 buffers ('mask')" in out
    )
    assert f"native ZeRO stage {layout.zero_stage}, {layout.world_size} ranks" in out and "unknown FLOPs" in out


@pytest.mark.parametrize("name, save", [("pytorch_model.bin", torch.save), ("model.safetensors", save_file)])
@pytest.mark.parametrize("command", ["inspect", "check"])
def test_a_file_without_a_tensor(tmp_path, capsys, name, save, command):
    save({}, tmp_path / name)
    code, _, err = lemon(capsys, command, tmp_path)
    assert code == 2 and err == f"lemon: {tmp_path}: its files hold no tensor; copy the checkpoint again\n"


def test_inspect_for_people(held, capsys):
    code, out, _ = lemon(capsys, "inspect", held["2 on 2, bf16"], "--tensors")
    assert (
        code == 0
        and "native ZeRO stage 2, 2 ranks, trained in bf16" in out
        and "bert-pre-ln (BertPreLNForMaskedLM): hidden_size 12" in out
    )
    assert "exp_avg of 38, exp_avg_sq of 38 tensors, step 7" in out and "weight_decay 0.1" in out and "61 x 12" in out
    assert lemon(capsys, "inspect", held["2 on 2, bf16"].parent / "none")[0] == 2


def test_names_that_look_like_markup(tmp_path, capsys):
    folder = tmp_path / "[bold]"
    folder.mkdir()
    save_file({"[/x]": torch.ones(2), "[red]y[/red]": torch.ones(1)}, folder / "model.safetensors")
    code, out, err = lemon(capsys, "inspect", folder, "--tensors")
    assert code == 0 and "[/x]" in out and "[red]y[/red]" in out and "[bold]" in out, err


def test_inspect_of_half_precision(tmp_path, capsys):
    found = facts(capsys, saved(tmp_path / "small", "llama", torch.bfloat16))
    assert set(found["dtypes"]) == {"bfloat16"} and found["layout"] == "huggingface" and found["manifest"] is None


@pytest.mark.parametrize("name", FORMATS)
def test_check_of_what_is_whole(held, capsys, name):
    for workers in (1, 3):
        code, out, _ = lemon(capsys, "check", held[name], "--workers", workers)
        assert (
            code == 0 and f"check: {len(manifest.read(held[name]).files)} files, " in out and ", all as written" in out
        )


@rotated(one_in=3, of="name")
@pytest.mark.parametrize("name", ["2 on 2, bf16", "3 on 2", "huggingface"])
def test_a_thousand_flipped_bits(held, tmp_path, name):
    """At random positions over all the files, the manifest's too: every one is detected."""
    folder = Path(shutil.copytree(held[name], tmp_path / "copy"))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    contents, draw = {path: path.read_bytes() for path in files}, random.Random(name)
    integrity.check(folder)
    for flip in range(1000):
        path = files[flip % len(files)]
        content, position = bytearray(contents[path]), draw.randrange(len(contents[path]))
        content[position] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        with pytest.raises(UserError, match=path.name):
            integrity.check(folder)
        path.write_bytes(contents[path])
    integrity.check(folder)


def test_every_bit_of_numbers_in_a_manifest(held, tmp_path):
    """JSON spells one number in several ways (1e-05, 1E-05; digits beyond a float's): another spelling is damage."""
    folder = Path(shutil.copytree(held["huggingface"], tmp_path / "copy"))
    path = folder / manifest.NAME
    kept = json.loads(path.read_text())
    content = {key: value for key, value in kept.items() if key != "sha256"} | {
        "small": 1e-05,
        "long": 0.1 + 0.2,
        "text": "\u00e9",
    }
    reseal(folder, content)
    integrity.check(folder)
    text = path.read_bytes()
    for position in range(8 * text.index(b'"small"'), 8 * len(text)):
        flipped = bytearray(text)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"manifest\.json"):
            manifest.read(folder)


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, the manifest says"),
        (lambda path: path.unlink(), "missing, the manifest says"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"), "its BLAKE3 is not the manifest's"),
    ],
    ids=["truncated", "missing", "changed"],
)
@pytest.mark.parametrize(
    "name, file",
    [
        ("2 on 2, bf16", "mp_rank_00_model_states.pt"),
        ("3 on 2", "zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        ("universal", "zero/bert.LayerNorm.bias/exp_avg.pt"),
        ("huggingface", "model.safetensors"),
    ],
)
def test_the_damaged_file_is_named(held, tmp_path, capsys, name, file, damage, complaint):
    folder = Path(shutil.copytree(held[name], tmp_path / "copy"))
    damage(folder / file)
    code, _, err = lemon(capsys, "check", folder)
    assert code == 2 and file in err and complaint in err and err.count("\n") == 1, err


def test_an_extra_file_is_named(held, tmp_path, capsys):
    folder = Path(shutil.copytree(held["universal"], tmp_path / "copy"))
    for extra in ("zero/bert.LayerNorm.bias/extra.pt", ".hidden", "zero/manifest.json"):
        (folder / extra).write_bytes(b"")
        code, _, err = lemon(capsys, "check", folder)
        assert code == 2 and f"{extra}: lies in the checkpoint and not in its manifest" in err, err
        (folder / extra).unlink()
    (folder / "dead").symlink_to(tmp_path / "nowhere")
    assert lemon(capsys, "check", folder)[0] == 2


@pytest.mark.parametrize(
    "layout",
    [
        CheckpointLayout("zero", 1, 1),
        CheckpointLayout("zero", 2, 3),
        CheckpointLayout("zero", 3, 2),
        CheckpointLayout("universal"),
    ],
    ids=lambda f: f"{f.name}-{f.zero_stage}",
)
def test_without_a_manifest_the_structure_is_checked(tmp_path, capsys, layout):
    code, out, err = lemon(capsys, "check", foreign(tmp_path / "theirs", layout=layout))
    assert code == 0 and "no manifest: structure only" in out, err


def rank_of_another_run(folder: Path) -> None:
    other = foreign(
        folder.parent / "other", replace(state(), steps=dict.fromkeys("abc", 5.0)), CheckpointLayout("zero", 3, 2)
    )
    shutil.copy(other / "zero_pp_rank_1_mp_rank_00_optim_states.pt", folder)


def model_file_of_another_run(folder: Path) -> None:
    held = (
        foreign(folder.parent / "other", layout=CheckpointLayout("zero", 3, 2))
        / "zero_pp_rank_1_mp_rank_00_model_states.pt"
    )
    content = torch.load(held, weights_only=True)
    torch.save({**content, "global_steps": 9}, folder / held.name)


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (
            lambda folder: (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"PK"),
            "zero_pp_rank_0_mp_rank_00_optim_states.pt: cannot be loaded safely",
        ),
        (
            lambda folder: (folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink(),
            "written by 2 ranks, 1 optimizer files found",
        ),
        (
            lambda folder: (folder / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink(),
            "zero_pp_rank_1_mp_rank_00_model_states.pt: missing",
        ),
        (rank_of_another_run, "the ranks' optimizer files stand at different steps"),
        (
            model_file_of_another_run,
            "zero_pp_rank_1_mp_rank_00_model_states.pt: its global_steps is not that of rank 0",
        ),
    ],
    ids=["damaged", "missing rank", "missing shapes", "mixed steps", "mixed counters"],
)
def test_files_without_a_manifest_that_contradict_each_other(tmp_path, capsys, damage, complaint):
    folder = foreign(tmp_path / "theirs", layout=CheckpointLayout("zero", 3, 2))
    damage(folder)
    code, _, err = lemon(capsys, "check", folder)
    assert code == 2 and complaint in err and err.count("\n") == 1, err


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (
            lambda folder: (folder / "zero" / "b" / "fp32.pt").unlink(),
            "'b' has no fp32.pt; the checkpoint is not complete",
        ),
        (lambda folder: (folder / "zero" / "b" / "exp_avg_sq.pt").unlink(), "exp_avg_sq.pt: missing"),
        (
            lambda folder: torch.save({"param": torch.zeros(4)}, folder / "zero" / "b" / "exp_avg.pt"),
            "exp_avg of 'b' has shape (4,), its weights (3,)",
        ),
    ],
    ids=["weights", "moment", "shape"],
)
def test_a_universal_folder_that_contradicts_itself(tmp_path, capsys, damage, complaint):
    folder = foreign(
        tmp_path / "theirs",
        replace(state(), frozen=(), tensors={n: e for n, e in state().tensors.items() if n != "frozen"}),
        CheckpointLayout("universal"),
    )
    damage(folder)
    code, _, err = lemon(capsys, "check", folder)
    assert code == 2 and complaint in err, err


def test_groups_that_contradict_the_weights(tmp_path):
    held = state()
    for groups, complaint in [
        ((held.groups[0], Group(("b", "c", "a"), {})), "'a' is in two optimizer groups"),
        ((held.groups[0], Group(("b",), {})), "'c' is in no optimizer group and not frozen"),
    ]:
        with pytest.raises(UserError, match=complaint):
            integrity.require_agreement(tmp_path, replace(held, groups=groups))
    with pytest.raises(UserError, match="exp_avg of 'b' is missing"):
        integrity.require_agreement(tmp_path, replace(held, slots={"exp_avg": {"a": held.slots["exp_avg"]["a"]}}))


def test_hugging_face_folders_without_a_manifest(tmp_path, capsys):
    models.fill(models.build(sample("vit")), lambda name: randomised(sample("vit"))[name].float()).save_pretrained(
        tmp_path / "sharded", max_shard_size="4KB"
    )
    assert lemon(capsys, "check", tmp_path / "sharded")[1].startswith("check: ")
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    gone = content["weight_map"].pop("classifier.bias")
    index.write_text(json.dumps(content))
    code, _, err = lemon(capsys, "check", tmp_path / "sharded")
    assert code == 2 and "'classifier.bias' is in a file and not in the index" in err
    content["weight_map"] |= {"classifier.bias": gone, "more": gone}
    index.write_text(json.dumps(content))
    assert "'more' is in none of the files" in lemon(capsys, "check", tmp_path / "sharded")[2]
    small = saved(tmp_path / "small", "vit")
    (small / "config.json").write_text(sample("vit", layers=3).to_json_string())
    assert "are missing, such as" in lemon(capsys, "check", small)[2]


@rotated(one_in=3, of="script")
@pytest.mark.parametrize(
    "script, command",
    [
        ("inspect_checkpoint.py", ["inspect", "HELD", "--json"]),
        ("check_checkpoint.py", ["check", "HELD"]),
        ("diff_checkpoints.py", ["diff", "HELD", "HELD"]),
    ],
)
def test_the_scripts_are_the_commands(held, capsys, script, command):
    command = [str(held["3 on 2"]) if word == "HELD" else word for word in command]
    done = run_python(f"tools/{script}", *command[1:])
    assert done.returncode == 0, done.stderr
    assert lemon(capsys, *command)[:2] == (0, done.stdout)


def test_neither_transformers_nor_deepspeed_is_imported(held):
    """They take seconds; what the commands print needs none of them. One process for all: one import fails it."""
    folders = [str(folder) for folder in held.values()]
    program = (
        "import sys\n"
        "from pipeline.cli import main\n"
        f"codes = [main([command, folder]) for command in ('inspect', 'check') for folder in {folders!r}]\n"
        "print('codes:', set(codes), 'imported:', sorted({'transformers', 'deepspeed'} & set(sys.modules)))\n"
    )
    done = run_python("-c", program)
    assert done.stdout.endswith("codes: {0} imported: []\n"), done.stdout + done.stderr
