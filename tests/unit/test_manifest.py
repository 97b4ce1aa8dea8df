"""A checkpoint is there whole or not at all, and damage is named."""

import errno
import hashlib
import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from blake3 import blake3

from pipeline import checkpoints
from pipeline.checkpoints import integrity, manifest, publish, retention
from pipeline.config.schema import Retention
from pipeline.errors import UserError
from pipeline.records import file_hashes
from pipeline.records.file_hashes import Algorithm


def published(folder, name: str = "step-0000001", algorithm: Algorithm = "blake3"):
    final = folder / name
    staged = publish.staging(final)
    (staged / "deep").mkdir()
    (staged / "weights").write_bytes(bytes(range(256)) * 40)
    (staged / "deep" / "more").write_bytes(b"more")
    publish.publish(staged, final, {"step": 1}, algorithm=algorithm)
    return final


def test_what_is_published_is_complete(tmp_path):
    final = published(tmp_path)
    assert set(manifest.verify(final).files) == {"weights", "deep/more"}
    assert publish.newest(tmp_path) == final
    assert not list(tmp_path.glob(".staging*"))


def test_a_manifest_inside_is_a_file_like_any_other(tmp_path):
    final, staged = tmp_path / "step", publish.staging(tmp_path / "step")
    (staged / "deep").mkdir()
    (staged / "deep" / manifest.NAME).write_text("{}")
    publish.publish(staged, final, {"step": 1})
    assert set(manifest.verify(final).files) == {f"deep/{manifest.NAME}"}


@pytest.mark.parametrize("algorithm, title", [("blake3", "BLAKE3"), ("sha256", "SHA-256")])
@pytest.mark.parametrize("position", range(0, 10240, 1031))
def test_a_flipped_bit_is_found(tmp_path, position, algorithm, title):
    path = published(tmp_path, algorithm=algorithm) / "weights"
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << position % 8
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"weights: its {title} is not the manifest's"):
        manifest.verify(path.parent)


def test_truncation_loss_and_a_changed_manifest_are_found_without_hashing(tmp_path):
    final = published(tmp_path)
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


def test_what_the_disk_does_not_read_any_more_is_damaged(tmp_path, monkeypatch, caplog):
    """As behind a bad sector: the older checkpoint is taken."""
    older, newer = published(tmp_path, "step-0000001"), published(tmp_path, "step-0000002")
    real = manifest.hashed_again

    def hashed_again(folder, *arguments):
        if folder == newer:
            raise OSError(errno.EIO, "Input/output error")
        return real(folder, *arguments)

    monkeypatch.setattr(manifest, "hashed_again", hashed_again)
    for look in (manifest.verify, lambda folder: manifest.verify_share(folder, 0, 2)):
        with pytest.raises(UserError, match=r"step-0000002: cannot be read \(Input/output error\); use an older"):
            look(newer)
    monkeypatch.setattr(manifest, "hashed_again", Mock(side_effect=OSError(errno.ESTALE, "Stale file handle")))
    with pytest.raises(OSError, match="Stale file handle"):
        publish.newest_complete(tmp_path, manifest.verify)
    assert publish.newest(tmp_path) == newer, "a server that does not answer damages nothing"
    monkeypatch.setattr(manifest, "hashed_again", hashed_again)
    assert publish.newest_complete(tmp_path, manifest.verify) == older
    assert "(kept as " in caplog.text and (tmp_path / ".damaged-step-0000002").is_dir()


def test_what_has_no_manifest_does_not_count_and_is_cleared(tmp_path):
    names = [published(tmp_path, f"step-000000{i}").name for i in range(4)]
    (tmp_path / "step-0000009").mkdir()
    publish.staging(tmp_path / "step-0000008")
    assert publish.newest(tmp_path).name == names[-1]
    retention.prune(tmp_path, Retention(last=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == names[2:]


def test_the_newest_has_the_largest_step(tmp_path):
    """However its name is padded: seven digits end after ten million steps, other tools write fewer."""
    for name in ("step-900", "step-1000", "step-0000950", "step-9999999", "step-10000000", "weights", "best"):
        published(tmp_path, name)
    expected = ["step-900", "step-0000950", "step-1000", "step-9999999", "step-10000000"]
    assert [path.name for path in publish.complete(tmp_path)] == ["best", "weights", *expected]
    assert publish.newest(tmp_path).name == "step-10000000"
    retention.prune(tmp_path, Retention(last=2))
    kept = ["best", "step-10000000", "step-9999999", "weights"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


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


def rewritten(folder, **changes):
    """The manifest of a checkpoint with other facts and a hash that fits, as another release would have written it."""
    path = folder / manifest.NAME
    content = json.loads(path.read_text())
    del content["sha256"]
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    path.write_text(json.dumps({**content, "sha256": manifest.own_hash(content)}, indent=2) + "\n")


def test_format_3_is_written_and_further_facts_are_kept(tmp_path):
    final, staged = tmp_path / "step", publish.staging(tmp_path / "step")
    publish.publish(staged, final, {"kind": "train", "weather": {"rain": [1, 2]}})
    content = manifest.read(final)
    assert (content.format, content.kind, content.provenance) == (3, "train", {"flops": "unknown"})
    assert content.facts()["weather"] == {"rain": [1, 2]}


def test_a_manifest_of_format_1_is_upgraded_while_it_is_read(tmp_path):
    final = published(tmp_path, algorithm="sha256")
    rewritten(final, format=1, provenance=None)
    before = (final / manifest.NAME).read_bytes()
    content = manifest.verify(final)
    assert (content.format, content.step, content.provenance) == (3, 1, {"flops": "unknown"})
    assert (final / manifest.NAME).read_bytes() == before
    rewritten(final, format=1, step=4)
    text = (final / manifest.NAME).read_text()
    (final / manifest.NAME).write_text(text.replace('"step": 4', '"step": 5'))
    with pytest.raises(UserError, match="does not match its own hash"):
        manifest.read(final)


def test_a_checkpoint_of_format_1_verifies():
    """Made by the release whose manifests have format 1."""
    folder = Path(__file__).parent / "checkpoint-format-1"
    content = manifest.verify(folder)
    assert (content.layout, content.step, content.world_size) == ("zero", 4, 2)
    state = checkpoints.raw(folder)
    assert (state.step, set(state.steps.values())) == (4, {4.0}) and set(state.slots) == {"exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize(
    "versions, release", [({"lemon": "9.1.0"}, "lemon 9.1.0 or newer"), (None, "a newer release of lemon")]
)
def test_a_newer_format_is_refused_with_what_to_install(tmp_path, versions, release):
    final = published(tmp_path)
    rewritten(final, format=4, versions=versions)
    with pytest.raises(UserError, match=rf"manifest format 4, this release reads up to 3; install {release}$"):
        manifest.read(final)


def test_a_manifest_of_other_types_is_refused_by_the_key(tmp_path):
    final = published(tmp_path)
    rewritten(final, step="soon")
    with pytest.raises(UserError, match=r"manifest\.json: step: Input should be a valid integer"):
        manifest.read(final)


def test_each_file_says_by_what_it_was_hashed(tmp_path):
    """By the libraries themselves, and in the words of the format: a digest stands under its algorithm's name."""
    content = bytes(range(256)) * 40
    for algorithm, digest in (("blake3", blake3(content)), ("sha256", hashlib.sha256(content))):
        final = published(tmp_path, algorithm, algorithm)
        files = json.loads((final / manifest.NAME).read_text())["files"]
        assert files["weights"] == {"size": len(content), algorithm: digest.hexdigest()}
        assert manifest.read(final).files["weights"] == file_hashes.record(final / "weights", algorithm)
        assert f"all as written by {file_hashes.TITLES[algorithm]} (" in integrity.check(final)


def test_digests_of_two_algorithms_are_not_compared(tmp_path):
    final = published(tmp_path)
    before = manifest.read(final).files
    sealed = {name: file_hashes.record(final / name, "sha256") for name in before}
    assert all(sealed[name] != before[name] and sealed[name].size == before[name].size for name in before)
    mixed = {name: (sealed if name == "weights" else before)[name].model_dump() for name in before}
    rewritten(final, files=mixed)
    manifest.verify(final)
    assert "by BLAKE3 and SHA-256" in integrity.check(final)


@pytest.mark.parametrize("file", [{"size": 4}, {"size": 4, "blake3": "", "sha256": ""}, {"size": 4, "md5": ""}])
def test_a_file_has_one_digest(tmp_path, file):
    final = published(tmp_path)
    rewritten(final, files={"deep/more": file})
    with pytest.raises(UserError, match=r"files\.deep/more: .*one digest is expected \(blake3 or sha256\), and [02]"):
        manifest.read(final)
