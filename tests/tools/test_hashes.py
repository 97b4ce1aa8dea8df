"""By which algorithm the files of a checkpoint are sealed: asked for, said, mixed from one checkpoint to the next."""

import json
from pathlib import Path

import pytest

import pipeline
from pipeline.checkpoints import CheckpointLayout, manifest
from pipeline.errors import UserError
from pipeline.expansion import fitted
from pipeline.records.file_hashes import record
from tests.helpers.checkpoints import FORMATS, foreign, published, source
from tests.helpers.cli import lemon, lemon_here
from tests.helpers.damage import flip
from tests.helpers.samples import sample


def algorithms(folder: Path) -> set[str]:
    """Those of a manifest, as its file has them."""
    content = json.loads((folder / "manifest.json").read_text())
    return {key for file in content["files"].values() for key in file if key != "size"}


@pytest.mark.parametrize("first, then", [("sha256", "blake3"), ("blake3", "sha256")])
def test_a_chain_of_both(tmp_path, capsys, first, then):
    """Every result checks, by its own; all of them are the same bytes and manifests of the other seal them too."""
    start = source(tmp_path / "made", FORMATS["universal"])
    links = {name: tmp_path / name for name in ("a", "b", "exported", "grown")}
    lemon_here("reshard", start, "--out", links["a"], "--zero-stage", "3", "--hash", first)
    lemon_here("reshard", links["a"], "--out", links["b"], "--zero-stage", "2", "--world-size", "3", "--hash", then)
    lemon_here("export", links["b"], "--out", links["exported"], "--hash", first)
    sample("bert-pre-ln", hidden=24, layers=3).save_pretrained(tmp_path / "target")
    lemon_here(
        *("expand", "--source", links["exported"], "--target", tmp_path / "target", "--out", links["grown"]),
        *("--hash", then),
    )
    found = {name: algorithms(folder) for name, folder in links.items()}
    assert found == {"a": {first}, "b": {then}, "exported": {first}, "grown": {then}}
    titles = {"sha256": "SHA-256", "blake3": "BLAKE3"}
    for name, folder in links.items():
        code, out, _ = lemon(capsys, "check", folder)
        assert code == 0 and f"all as written by {titles[next(iter(found[name]))]} (" in out


@pytest.mark.parametrize("algorithm, title", [("sha256", "SHA-256"), ("blake3", "BLAKE3")])
def test_a_source_is_held_to_its_own_manifest(tmp_path, capsys, algorithm, title):
    """Whatever the result is sealed by."""
    lemon_here("reshard", source(tmp_path, FORMATS["2 on 2, bf16"]), "--out", tmp_path / "a", "--hash", algorithm)
    damaged = next((tmp_path / "a").glob("*optim_states.pt"))
    flip(damaged)
    for asked in ("sha256", "blake3"):
        code, _, err = lemon(capsys, "reshard", tmp_path / "a", "--out", tmp_path / "b", "--hash", asked)
        assert code == 2 and f"{damaged}: its {title} is not the manifest's" in err
        assert not (tmp_path / "b").exists()


def test_a_source_without_a_manifest_is_recorded_by_what_is_asked_for(tmp_path):
    folder = foreign(tmp_path / "foreign")
    pipeline.reshard(folder, tmp_path / "out", CheckpointLayout("zero", 3, 2), file_hash="sha256")
    recorded = manifest.read(tmp_path / "out").source
    assert recorded["files"] == {
        name: record(folder / name, "sha256").model_dump() for name in manifest.listing(folder)
    }
    with pytest.raises(UserError, match="unknown hash 'md5'; known: blake3, sha256"):
        pipeline.reshard(folder, tmp_path / "other", file_hash="md5")


def test_what_a_fit_knows_by_another_algorithm_is_hashed_again(tmp_path, caplog):
    """Two digests of one file say nothing about each other; the file does."""
    folder = published(tmp_path)
    (folder / "manifest.json").unlink()
    known, now = (fitted.source_facts(folder, algorithm) for algorithm in ("sha256", "blake3"))
    checkpoint = tmp_path / "fit" / "checkpoints" / "step-0000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / fitted.FACTS).write_text(json.dumps({"source": known}))
    with caplog.at_level("INFO", logger="pipeline"):
        fitted.require_same_source(checkpoint, now)
    assert (
        f"{folder}: the fit knows {len(known['files'])} of its files by SHA-256; they are hashed again" in caplog.text
    )
    flip(folder / "model.safetensors")
    now = fitted.source_facts(folder, "blake3")
    with pytest.raises(UserError, match=r"now .* holds other numbers"):
        fitted.require_same_source(checkpoint, now)
