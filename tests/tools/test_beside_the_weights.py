"""Files beside the weights: all go along, but what would say something else than the result, which is named."""

import json
from pathlib import Path

import pytest

from pipeline.checkpoints import manifest
from tests.helpers.checkpoints import saved, target_config_file
from tests.helpers.cli import lemon

CARRIED = (
    *("tokenizer.json", "chat_template.jinja", "chat_template.json", "modules.json", "sentence_bert_config.json"),
    *("processor_config.json", "sentencepiece.bpe.model", "LICENSE", "modeling_x.py", "additional/tool.jinja"),
)
STALE = (
    *("pytorch_model.bin", "tf_model.h5", "training_args.bin", "optimizer.pt", "trainer_state.json", "rng_state.pth"),
    *("model.safetensors.index.json", "onnx/model.onnx", "onnx/config.json"),
)
LEFT = sorted({name.replace("onnx/model.onnx", "onnx/").replace("onnx/config.json", "onnx/") for name in STALE})


def put(folder: Path, *names: str, text: str = "{}") -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def small(tmp_path) -> Path:
    folder = saved(tmp_path / "small", "gpt2")
    put(folder, *CARRIED, *STALE)
    put(folder, "README.md", text="---\nlicense: llama3\nbase_model: a/b\ntags: [x]\n---\nThe source's own words.\n")
    return folder


@pytest.mark.parametrize("command", ["expand", "export", "reshard"])
def test_everything_goes_along_or_is_named(tmp_path, capsys, small, command):
    target = target_config_file(tmp_path / "target.json", "gpt2", hidden=24, heads=6, mlp=40)
    arguments = {
        "expand": ["--source", small, "--target", target],
        "export": [small],
        "reshard": [small, "--format", "huggingface"],
    }
    code, out, err = lemon(capsys, command, *arguments[command], "--out", tmp_path / "out")
    assert code == 0, err
    assert all((tmp_path / "out" / name).is_file() for name in CARRIED)
    assert not [name for name in STALE if (tmp_path / "out" / name).exists()]
    facts = manifest.verify(tmp_path / "out").model_dump()
    assert facts["left_behind"] == LEFT
    said = [line for line in out.splitlines() if "left behind beside the weights" in line]
    assert len(said) == 1 and all(name in said[0] for name in LEFT), out
    readme = "README.md" if command == "reshard" else "README.source.md"
    assert "The source's own words." in (tmp_path / "out" / readme).read_text()
    if command == "export":
        card = (tmp_path / "out" / "README.md").read_text()
        assert card.startswith("---\nlicense: llama3\nbase_model: a/b\nlibrary_name: transformers\n"), card
        assert "[README.source.md](README.source.md)" in card


def test_a_link_is_followed_inside_the_cache_of_the_hub_only(tmp_path, capsys):
    saved(tmp_path / "plain", "gpt2")
    put(tmp_path / "plain", "tokenizer.json", text='"in the cache"')
    put(tmp_path, "secret", text="of somebody else")
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1f"
    blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((tmp_path / "plain").iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    (snapshot / "notes.txt").symlink_to(tmp_path / "secret")
    (snapshot / "gone.txt").symlink_to(tmp_path / "nowhere")
    code, out, err = lemon(capsys, "export", snapshot, "--out", tmp_path / "out")
    assert code == 0, err
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '"in the cache"'
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    assert "left behind beside the weights that were read: gone.txt, notes.txt" in out
    code, _, err = lemon(capsys, "export", tmp_path / "models--a--b", "--out", tmp_path / "again")
    assert code == 2 and f"name one of its snapshots: {snapshot}" in err, err


def test_a_preprocessor_that_cannot_be_read_is_named(tmp_path, capsys):
    """It may say the old size."""
    small = saved(tmp_path / "small", "vit")
    put(small, "preprocessor_config.json", text="{not JSON")
    target = target_config_file(tmp_path / "target.json", "vit", image=16)
    code, out, err = lemon(capsys, "expand", "--source", small, "--target", target, "--out", tmp_path / "large")
    assert code == 0 and "goes along as it is, and may name the size 8, now 16" in out, err


@pytest.mark.parametrize(
    "before, after",
    [
        ({"size": 8}, {"size": 16}),
        ({"size": {"height": 8, "width": 8}}, {"size": {"height": 16, "width": 16}}),
        (
            {"crop_size": {"height": 8, "width": 8}, "size": {"shortest_edge": 9}, "do_resize": True},
            {"crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 18}, "do_resize": True},
        ),
    ],
)
def test_a_preprocessor_gets_the_new_image_size(tmp_path, capsys, before, after):
    small = saved(tmp_path / "small", "vit")
    put(small, "preprocessor_config.json", text=json.dumps(before))
    target = target_config_file(tmp_path / "target.json", "vit", image=16)
    code, out, err = lemon(capsys, "expand", "--source", small, "--target", target, "--out", tmp_path / "large")
    assert code == 0, err
    assert json.loads((tmp_path / "large" / "preprocessor_config.json").read_text()) == after
    assert out.count("preprocessor_config.json: ") == 1 and " -> " in out
    manifest.verify(tmp_path / "large")


def test_what_pools_a_grown_width_gets_the_new_one(tmp_path, capsys):
    small = saved(tmp_path / "small", "bert encoder")
    put(small, "1_Pooling/config.json", text='{"word_embedding_dimension": 12, "pooling_mode_mean_tokens": true}')
    target = target_config_file(tmp_path / "target.json", "bert encoder", hidden=24, heads=6)
    code, out, err = lemon(capsys, "expand", "--source", small, "--target", target, "--out", tmp_path / "large")
    assert code == 0, err
    content = json.loads((tmp_path / "large" / "1_Pooling" / "config.json").read_text())
    assert content == {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    assert "1_Pooling/config.json: word_embedding_dimension 12 -> 24" in out
