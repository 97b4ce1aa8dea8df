"""A checkpoint that several processes write: the parts are the whole, whoever dies, comes late or comes twice."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.checkpoints import CheckpointLayout, manifest, parts, publish
from pipeline.cli import main
from pipeline.records.locks import lock
from tests.helpers.checkpoints import FORMATS, foreign, published, source
from tests.helpers.cli import environment_kept, lemon
from tests.helpers.damage import flip
from tests.helpers.killed import run_killed
from tests.helpers.processes import Child
from tests.helpers.samples import sample

LAST = "is the last one; all"


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> Path:
    """A checkpoint in mid-training, of ZeRO 3 on 4 ranks, with a file beside it; and the config of a larger model."""
    folder = tmp_path_factory.mktemp("held")
    source(folder, FORMATS["3 on 4"])
    sample("bert-pre-ln", hidden=24, layers=3).save_pretrained(folder / "large")
    return folder


@pytest.fixture(params=["reshard", "universal", "expand"])
def command(request, held) -> list[object]:
    """Up to its --out."""
    return {
        "reshard": ["reshard", held / "small", "--zero-stage", 2, "--world-size", 5],
        "universal": ["reshard", held / "small", "--format", "universal"],
        "expand": [
            *("expand", "--source", held / "small", "--target", held / "large", "--optimizer-state", "grow"),
            *("--method-option", "depth=cancel", "--zero-stage", 2, "--world-size", 4),
        ],
    }[request.param]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sealed(out: Path) -> set[str]:
    """The files of a result in the making that are whole."""
    return {name.removesuffix(".json") for name in tree(out.with_name(f"{out.name}.parts") / "sealed")}


def whole(command: list[object], folder: Path, capsys) -> dict[str, bytes]:
    """What one process makes of it."""
    code, _, err = lemon(capsys, *command, "--out", folder / "whole")
    assert code == 0, err
    return tree(folder / "whole")


def test_one_of_three_is_killed(command, tmp_path, capsys):
    """In the middle of its second file. It is run again alone, keeps its first file, and is the last one."""
    expected, out = whole(command, tmp_path, capsys), tmp_path / "out"
    for number in (3, 1):
        code, said, err = lemon(capsys, *command, "--out", out, "--part", f"{number}/3")
        assert code == 0 and f"part {number} of 3 is whole; whoever ends last publishes" in said, err
        assert not out.exists()
    before, arguments = sealed(out), [*command, "--out", out, "--part", "2/3"]
    killed = run_killed("later", *arguments, "--workers", 1, said=tmp_path / "said")
    kept = sealed(out) - before
    assert killed.code == -9 and kept and not out.exists()
    made = {name: (tmp_path / "out.parts" / "files" / name).stat().st_mtime_ns for name in kept}
    code, said, err = lemon(capsys, *arguments)
    assert code == 0 and f"; {len(kept)} are whole already" in said, err
    assert f"part 2 of 3 {LAST}" in said and f"wrote {out}" in said
    assert tree(out) == expected and all((out / name).stat().st_mtime_ns == made[name] for name in kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "said", "whole"]
    code, said, _ = lemon(capsys, *arguments)
    assert code == 0 and f"{out} is published; nothing is left to do for part 2 of 3" in said
    assert tree(out) == expected


def test_all_at_once(command, tmp_path, capsys):
    """One of them publishes, and says so."""
    expected, out = whole(command, tmp_path, capsys), tmp_path / "out"

    def work(number: int) -> int:
        os.dup2(2, 1)
        with environment_kept():
            return main([*map(str, command), "--out", str(out), "--part", f"{number}/3", "--workers", "1"])

    children = [Child(lambda number=number: work(number), tmp_path / f"said-{number}") for number in (1, 2, 3)]
    ended = [child.end() for child in children]
    assert [each.code for each in ended] == [0, 0, 0], ended
    assert sum(LAST in each.said for each in ended) == 1
    assert tree(out) == expected and not (tmp_path / "out.parts").exists()


def test_who_publishes_dies_as_well(command, tmp_path, capsys):
    """With the manifest written and nothing renamed. Whichever part runs again completes it, from the files alone."""
    expected, out = whole(command, tmp_path, capsys), tmp_path / "out"
    assert lemon(capsys, *command, "--out", out, "--part", "1/2")[0] == 0
    killed = run_killed("manifest", *command, "--out", out, "--part", "2/2", said=tmp_path / "said")
    assert killed.code == -9 and not out.exists() and list((tmp_path / "out.parts").glob(f"result-*/{manifest.NAME}"))
    code, said, err = lemon(capsys, *command, "--out", out, "--part", "1/2")
    assert code == 0 and f"part 1 of 2 {LAST}" in said, err
    assert tree(out) == expected


def test_two_publish_at_once_where_no_lock_reaches_the_other(command, tmp_path, capsys, monkeypatch):
    """One that completes behind the other's rename finds its own work gone, and the result there."""
    expected, out = whole(command, tmp_path, capsys), tmp_path / "out"
    assert lemon(capsys, *command, "--out", out, "--part", "1/2")[0] == 0
    monkeypatch.setattr(parts, "lock", lambda *_, **__: True)
    seal, codes = publish.seal, []

    def meanwhile(staged: Path, *arguments: object) -> None:
        if not codes:
            codes.append(None)
            codes.append(lemon(capsys, *command, "--out", out, "--part", "1/2")[0])
        seal(staged, *arguments)

    monkeypatch.setattr(publish, "seal", meanwhile)
    code, said, err = lemon(capsys, *command, "--out", out, "--part", "2/2")
    assert (code, codes) == (0, [None, 0]), err
    assert "nothing is left to do for part 2 of 2" in said + err and tree(out) == expected


def refused(capsys, *arguments: object) -> str:
    code, _, err = lemon(capsys, *arguments)
    assert code == 2 and err.count("\n") == 1, err
    return err


def test_other_arguments_are_refused_by_name(held, tmp_path, capsys):
    out, begun = tmp_path / "out", ["--zero-stage", 2, "--world-size", 3]
    resharding = ["reshard", held / "small", "--out", out]
    assert lemon(capsys, *resharding, *begun, "--part", "1/2")[0] == 0
    before = {name: content for name, content in tree(tmp_path).items() if not name.endswith(".lock")}
    place = f"{tmp_path / 'out.parts' / 'job.json'}: part"
    for changed, named in (
        (["--world-size", 2], "world_size 2, the part that began 3"),
        (["--hash", "sha256"], "hash sha256, the part that began blake3"),
        (["--zero-stage", 3], "zero_stage 3, the part that began 2"),
        (["--format", "universal"], "layout universal, the part that began zero"),
    ):
        options = changed if "--format" in changed else [*begun, *changed]
        err = refused(capsys, *resharding, *options, "--part", "2/2")
        assert f"{place} 2 of 2 has {named}; give all parts the same arguments" in err
    assert f"{place} 2 of 3 has parts 3, the part that began 2" in refused(capsys, *resharding, *begun, "--part", "2/3")
    assert {name: content for name, content in tree(tmp_path).items() if not name.endswith(".lock")} == before


def test_another_growth_is_refused(held, tmp_path, capsys):
    expanding = ["expand", "--source", held / "small", "--target", held / "large", "--out", tmp_path / "out"]
    assert lemon(capsys, *expanding, "--part", "1/2")[0] == 0
    assert "other growth than the part that began" in refused(capsys, *expanding, "--seed", 1, "--part", "2/2")
    sample("bert-pre-ln", hidden=36, layers=3).save_pretrained(tmp_path / "larger")
    other = [tmp_path / "larger" if word == held / "large" else word for word in expanding]
    assert "than the part that began" in refused(capsys, *other, "--part", "2/2")


def test_a_source_that_changes_is_refused(tmp_path, capsys):
    """Without a manifest nothing else would tell; one that is damaged says by which file."""
    plain = foreign(tmp_path / "plain")
    resharding = ["reshard", plain, "--out", tmp_path / "out", "--world-size", 3]
    assert lemon(capsys, *resharding, "--part", "1/2")[0] == 0
    flip(next(plain.glob("*model_states.pt")))
    assert "other content of the source than the part that began" in refused(capsys, *resharding, "--part", "2/2")
    damaged = source(tmp_path, FORMATS["3 on 2"])
    shards = sorted(damaged.glob("*optim_states.pt"))
    for shard in shards:
        flip(shard)
    resharding = ["reshard", damaged, "--out", tmp_path / "b", "--world-size", 3]
    for part in ("1/2", "2/2"):
        err = refused(capsys, *resharding, "--part", part)
        assert any(f"{shard}: its BLAKE3 is not the manifest's" in err for shard in shards)
    assert not (tmp_path / "b").exists()


def test_a_source_without_a_manifest(tmp_path, capsys):
    """Its files are hashed by the parts between them, and recorded as one process does."""
    command = ["reshard", foreign(tmp_path / "plain"), "--zero-stage", 3, "--world-size", 2]
    expected = whole(command, tmp_path, capsys)
    for number in (2, 3, 1):
        assert lemon(capsys, *command, "--out", tmp_path / "out", "--part", f"{number}/3")[0] == 0
    assert tree(tmp_path / "out") == expected


def test_a_file_that_is_damaged_once_it_was_sealed(held, tmp_path, capsys):
    """A wrong size is told, by the part to run again; which sees a wrong bit too, and writes that file alone anew."""
    command = ["reshard", held / "small", "--zero-stage", 2, "--world-size", 6]
    expected, out, files = whole(command, tmp_path, capsys), tmp_path / "out", tmp_path / "out.parts" / "files"
    assert lemon(capsys, *command, "--out", out, "--part", "1/2")[0] == 0
    first, second, *_ = sorted(path for path in files.iterdir())
    flip(second)
    with first.open("ab") as file:
        file.write(b"more")
    err = refused(capsys, *command, "--out", out, "--part", "2/2")
    assert f"{first}: " in err and "; run part 1 again" in err
    code, said, _ = lemon(capsys, *command, "--out", out, "--part", "1/2")
    assert code == 0 and "part 1 of 2 writes 2 files" in said and tree(out) == expected


def test_a_part_that_is_being_written(held, tmp_path, capsys):
    (tmp_path / "out.parts").mkdir()
    with (tmp_path / "out.parts" / "part-1.lock").open("w") as file:
        assert lock(file)
        err = refused(capsys, "reshard", held / "small", "--out", tmp_path / "out", "--part", "1/2")
    assert "another process is writing part 1 of 2; wait for it or stop it" in err


def test_something_else_in_its_place(held, tmp_path, capsys):
    resharding = ["reshard", held / "small", "--out", tmp_path / "small", "--zero-stage", 2]
    shutil.copytree(held / "small", tmp_path / "small")
    err = refused(capsys, *resharding, "--part", "1/2")
    assert "exists already and is another checkpoint than this command makes (kind, zero_stage" in err
    assert not (tmp_path / "small.parts").exists()


def test_another_growth_in_its_place(held, tmp_path, capsys):
    """Its manifest would say the same but for the seed."""
    command, out = ("expand", "--source", held / "small", "--target", held / "large"), tmp_path / "large"
    assert lemon(capsys, *command, "--out", out, "--part", "1/1")[0] == 0
    assert "nothing is left to do" in "".join(lemon(capsys, *command, "--out", out, "--part", "1/1")[1:])
    code, _, err = lemon(capsys, *command, "--seed", 7, "--out", out, "--part", "1/1")
    assert code == 2 and "exists already and is another checkpoint than this command makes (growth)" in err


def test_files_of_transformers(tmp_path):
    """By the Python API: cut into shards, read back by whoever ends last."""
    small, layout = published(tmp_path, "vit", FORMATS["3 on 2"]), CheckpointLayout("huggingface", max_shard_size=3000)
    pipeline.reshard(small, tmp_path / "whole", layout)
    results = [pipeline.reshard_part(f"{number}/3", small, tmp_path / "out", layout) for number in (1, 2, 3)]
    assert results[:2] == [None, None] and results[2].files == len(tree(tmp_path / "whole")) - 1
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "a/b", "1/0", "1/2/3", "-1/2"])
def test_parts_that_there_are_not(held, tmp_path, capsys, text):
    err = refused(capsys, "reshard", held / "small", "--out", tmp_path / "out", f"--part={text}")
    assert "such as 2/8" in err or "n is still that of the whole array" in err


def test_a_fit_is_one_processs(held, tmp_path, capsys):
    expanding = ["expand", "--source", held / "small", "--target", held / "large", "--out", tmp_path / "out"]
    assert "then name its result with --operator" in refused(capsys, *expanding, "--method", "ligo", "--part", "1/2")
    assert "then name its result" in refused(
        capsys, *expanding, "--method", "ligo", "--fit", "steps=0", "--part", "1/2"
    )


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 10**12), max_size=60), st.integers(1, 9))
def test_shares_are_about_equal(sizes, number):
    """Every item has one owner, and no part has more than the mean and one item beside."""
    owners = parts.shares(sizes, number)
    assert len(owners) == len(sizes) and set(owners) <= set(range(number))
    loads = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == part) for part in range(number)]
    assert max(loads) <= sum(sizes) / number + max(sizes, default=0)
    assert owners == parts.shares(sizes, number)
