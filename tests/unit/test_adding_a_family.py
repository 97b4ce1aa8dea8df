"""docs/adding-a-family.md: what it names exists, its code runs, and what it says of Qwen2 is so."""

import re
import subprocess
from dataclasses import fields

import pytest

from pipeline import models
from pipeline.models.config_keys import ConfigKeys
from tests.helpers.cli import ROOT
from tests.helpers.docs_code import python_of, section_of

PAGE = ROOT / "docs" / "adding-a-family.md"
TEXT = PAGE.read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
NAMED = sorted(set(re.findall(r"`([^`\n]+)`", PROSE)))
PATHS = sorted({text for text in NAMED if re.fullmatch(r"[\w/-]+\.(py|md)", text)})
FAMILY = models.FAMILIES["qwen2"]
CODE = "\n".join(
    path.read_text(encoding="utf-8") for room in ("pipeline", "tests") for path in (ROOT / room).rglob("*.py")
)
TRANSFORMERS = ("named_parameters", "from_pretrained", "save_pretrained", "modeling_NAME.py")
"""Names of other libraries."""
QWEN2_ROWS = re.compile(r"^\| (`[a-z_]+\.[a-z_.]+`.*?) \| (.*?) \| (.*?) \|", re.MULTILINE)


@pytest.mark.parametrize("path", [path for path in PATHS if path not in TRANSFORMERS])
def test_every_path_exists(path):
    assert (ROOT / path).exists() or (ROOT / "pipeline" / "models" / "families" / path).exists()


def identifiers() -> list[str]:
    """What looks like a name of the code: with an underscore, or a capital."""
    words = {word for text in NAMED if text not in PATHS for word in re.findall(r"[A-Za-z_][A-Za-z_0-9]*", text)}
    return sorted(word for word in words if "_" in word.strip("_") or re.match(r"[A-Z]", word))


@pytest.mark.parametrize("name", [name for name in identifiers() if name not in TRANSFORMERS])
def test_every_name_is_one_of_the_code(name):
    assert re.search(rf"\b{name}\b", CODE)


def test_the_lists_of_keys_are_all_there():
    asked = re.findall(r"^\| [^|]+\? \| `(\w+)`", section_of(PAGE, "Every key of the config"), re.MULTILINE)
    assert sorted(asked) == sorted(field.name for field in fields(ConfigKeys))


def test_what_is_said_of_qwen2s_keys():
    rows = re.findall(
        r"^\| [^|]+\? \| `(\w+)`[^|]*\| ([^|]*)\|", section_of(PAGE, "Every key of the config"), re.MULTILINE
    )
    said = {name: set(re.findall(r"`(\w+)`", keys)) for name, keys in rows}
    assert said["function"] and said["undeclared"] == {"head_dim"}
    for name, keys in said.items():
        held = set(getattr(FAMILY.keys, name))
        assert keys <= held and bool(held) >= bool(keys), name
    assert not FAMILY.keys.derived and not FAMILY.keys.width


def test_what_is_said_of_qwen2s_attention():
    """Each row of the page against the architecture."""
    rows = re.findall(r"^\| `([a-z_.]+)\.weight`(, `\.bias`)? \| (.*?) \| (.*?) \|", TEXT, re.MULTILINE)
    params = {param.name: param for param in models.architecture_of(FAMILY.config_class()).params}
    assert len(rows) == 5
    for name, bias, written, read in rows:
        weight = params[f"model.layers.{{i}}.{name}.weight"]
        assert weight.axes[0].spaces == (re.findall(r"`(\w+)`", written)[0],)
        assert [axis.spaces for axis in weight.axes[1:]] == [(space,) for space in re.findall(r"`(\w+)`", read)]
        assert (weight.axes[0].role == "gain") == ("gain" in written)
        assert (f"model.layers.{{i}}.{name}.bias" in params) == bool(bias)


def test_the_code_finds_the_published_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(python_of(PAGE, "Published names"), names)
    assert names["renamed"] == set() and names["published"] == names["inside"]
    architecture = models.architecture_of(names["model"].config)
    assert names["published"] == {row.name: list(architecture.shape(row)) for row in architecture.rows()}


def test_every_name_of_a_layer_of_vit_is_another_inside():
    architecture = models.architecture_of(models.FAMILIES["vit"].config_class())
    layered = [param for param in architecture.params if param.layered]
    assert layered and all(param.module_name != param.name for param in layered)


def test_the_history_of_qwen2_is_found():
    command = next(line.strip() for line in TEXT.splitlines() if line.startswith("    git log"))
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        pytest.skip("no git checkout with its history")
    assert re.search(r'^\+ +Traits\("qwen2", qkv_bias=True\),$', done.stdout, re.MULTILINE)
