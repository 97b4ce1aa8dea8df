"""What one of many ranks does: as much as one of few."""

import random
from pathlib import Path

import pytest

from pipeline.checkpoints import manifest
from pipeline.checkpoints.layouts.zero_format import FlatPartition
from pipeline.errors import UserError
from pipeline.records.file_hashes import hashes


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("seed", range(40))
def test_the_slices_of_a_rank_are_those_of_all(stage, seed):
    draw = random.Random(seed)
    sizes = tuple(
        draw.choice([0, 1, 2, draw.randint(0, 50), draw.randint(0, 3000)]) for _ in range(draw.randint(0, 12))
    )
    partition = FlatPartition(stage, draw.choice([1, 2, 3, 7, 64]), sizes)
    for rank in range(partition.world):
        expected = [(n, cut) for n, cuts in enumerate(partition.slices()) for cut in cuts if cut.rank == rank]
        assert list(partition.of_rank(rank)) == expected


def written(folder: Path, ranks: int) -> Path:
    """A checkpoint of two small files for each rank."""
    folder.mkdir()
    for rank in range(ranks):
        for kind in ("model", "optim"):
            (folder / f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt").write_text(f"{kind} {rank}")
    files = hashes(folder, manifest.listing(folder), "blake3")
    (folder / manifest.NAME).write_text(manifest.Manifest(provenance={}, files=files).text())
    return folder


@pytest.fixture
def looked_at(monkeypatch):
    """The files whose size was asked for."""
    names, stat = set(), Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **options: names.add(self.name) or stat(self, **options))
    return names


@pytest.mark.parametrize("ranks", [4, 64])
def test_a_rank_looks_at_its_own_share_of_a_checkpoint(tmp_path, looked_at, ranks):
    folder = written(tmp_path / "step-0000010", ranks)
    seen = []
    for rank in range(ranks):
        looked_at.clear()
        manifest.verify_share(folder, rank, ranks)
        seen += [name for name in looked_at if name.endswith(".pt")]
    assert sorted(seen) == manifest.listing(folder)


def test_a_missing_file_is_named_by_the_rank_whose_share_it_is(tmp_path):
    folder = written(tmp_path / "step-0000010", 4)
    gone = sorted(manifest.listing(folder))[5]
    (folder / gone).unlink()
    for rank in (0, 2, 3):
        manifest.verify_share(folder, rank, 4)
    with pytest.raises(UserError, match=f"{gone}: missing, the manifest says"):
        manifest.verify_share(folder, 1, 4)
