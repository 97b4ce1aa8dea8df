"""300 mutated configs: an invalid one ends with its key in one line, before anything is written; a valid one passes."""

import time

import pytest
import yaml

from pipeline.runs import preflight
from tests.helpers.cli import lemon
from tests.helpers.mutations import Mutation, mutations
from tests.helpers.published import qwen3
from tests.helpers.rotation import rotated

COUNT = 300


@pytest.fixture
def quick(monkeypatch):
    """What DeepSpeed says of this machine's precisions, without a child process for every config."""
    monkeypatch.setattr(preflight, "precisions_of_workers", lambda: {"fp32", "bf16"})


def fault(mutation: Mutation, code: int, out: str, err: str) -> str | None:
    """What is wrong with how a dry run ended."""
    if code == 0:
        return "an invalid config passes" if mutation.valid is False else None
    if mutation.valid:
        return "a valid config is refused"
    if code != 2 or out or "Traceback" in err:
        return f"exit code {code}"
    if not err.startswith("lemon: ") or not all(line.startswith(("lemon: ", "  ")) for line in err.splitlines()):
        return "not in one line"
    key = mutation.key if mutation.key.isprintable() else mutation.key.encode("unicode_escape").decode()
    return None if mutation.valid is None or key in err else f"the key '{key}' is not named"


@pytest.fixture(autouse=True)
def published(tmp_path_factory, monkeypatch):
    """The folder that one of the configs starts from lies where the command is run."""
    place = tmp_path_factory.mktemp("published")
    qwen3(place / "Qwen3-0.6B-Base")
    monkeypatch.chdir(place)


@rotated(one_in=3, of="third")
@pytest.mark.parametrize("third", range(3))
def test_every_invalid_one_is_refused_and_every_valid_one_passes(tmp_path, capsys, quick, third):
    faults, ends, begun = [], {0: 0, 2: 0}, time.monotonic()
    path = tmp_path / "config.yaml"
    share = list(enumerate(mutations(COUNT, tmp_path / "runs")))[third * COUNT // 3 : (third + 1) * COUNT // 3]
    for number, mutation in share:
        path.write_text(yaml.safe_dump(mutation.tree, allow_unicode=True))
        try:
            code, out, err = lemon(capsys, "run", path, "--dry-run")
        except BaseException as error:  # whatever it is, it is a fault
            code, out, err = -1, "", f"{type(error).__name__}: {error}"
        ends[code] = ends.get(code, 0) + 1
        said = fault(mutation, code, out if code else "", err)
        if said or {*tmp_path.iterdir()} != {path}:
            where = f"{number} {mutation.source.stem}: {mutation.key} = {mutation.value!r}"
            faults.append(f"{where}: {said or 'something is written'}\n    {err[:400]}")
    print(ends, f"{time.monotonic() - begun:.0f} s")
    assert not faults, f"{len(faults)} of {len(share)}\n" + "\n".join(faults)
    assert min(ends.values()) > len(share) // 6
