"""A checkpoint is there whole or not at all, and damage is named."""

import pytest

from pipeline import checkpoints
from pipeline.checkpoints import manifest
from pipeline.errors import UserError


def publish(folder, name: str = "step-0000001"):
    final = folder / name
    staged = manifest.staging(final)
    (staged / "deep").mkdir()
    (staged / "weights").write_bytes(bytes(range(256)) * 40)
    (staged / "deep" / "more").write_bytes(b"more")
    manifest.publish(staged, final, {"step": 1})
    return final


def test_what_is_published_is_complete(tmp_path):
    final = publish(tmp_path)
    assert set(manifest.verify(final)["files"]) == {"weights", "deep/more"}
    assert manifest.newest(tmp_path) == final
    assert not list(tmp_path.glob(".staging*"))


def test_a_manifest_inside_is_a_file_like_any_other(tmp_path):
    final, staged = tmp_path / "step", manifest.staging(tmp_path / "step")
    (staged / "deep").mkdir()
    (staged / "deep" / manifest.NAME).write_text("{}")
    manifest.publish(staged, final, {"step": 1})
    assert set(manifest.verify(final)["files"]) == {f"deep/{manifest.NAME}"}


@pytest.mark.parametrize("position", range(0, 10240, 1031))
def test_a_flipped_bit_is_found(tmp_path, position):
    path = publish(tmp_path) / "weights"
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << position % 8
    path.write_bytes(content)
    with pytest.raises(UserError, match="weights: its SHA-256 is not the manifest's"):
        manifest.verify(path.parent)


def test_truncation_loss_and_a_changed_manifest_are_found_without_hashing(tmp_path):
    final = publish(tmp_path)
    (final / "weights").write_bytes(b"short")
    with pytest.raises(UserError, match="weights: 5 bytes, the manifest says 10240 bytes"):
        manifest.read(final)
    (final / "weights").unlink()
    with pytest.raises(UserError, match="weights: missing, the manifest says 10240 bytes"):
        manifest.read(final)
    path = final / manifest.NAME
    path.write_text(path.read_text().replace('"step": 1', '"step": 2'))
    with pytest.raises(UserError, match="does not match its own hash"):
        manifest.read(final)


def test_what_has_no_manifest_does_not_count_and_is_cleared(tmp_path):
    names = [publish(tmp_path, f"step-000000{i}").name for i in range(4)]
    (tmp_path / "step-0000009").mkdir()
    manifest.staging(tmp_path / "step-0000008")
    assert manifest.newest(tmp_path).name == names[-1]
    manifest.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == names[2:]


def test_locate_says_what_it_found(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        checkpoints.locate(tmp_path / "none")
    with pytest.raises(UserError, match="it holds no complete checkpoint"):
        checkpoints.locate(tmp_path)
    for stage in ("large", "small"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "stage.json").write_text("{}")
    with pytest.raises(UserError, match="name one of its stages: large, small"):
        checkpoints.locate(tmp_path)
