"""The Python API: the examples of docs/python.md run as they stand, print nothing, and agree with the commands."""

import re
from pathlib import Path

import pytest
import torch
import transformers

import pipeline
from pipeline.models import FAMILIES
from tests.helpers.checkpoints import saved
from tests.helpers.cli import run_python

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory) -> dict:
    """What the examples leave behind."""
    found: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        for block in BLOCKS[1:]:  # the first sets up logging for the whole process
            exec(compile(block, str(PAGE), "exec"), found)
    return found


def test_the_examples_show_every_function(namespace):
    used = set(re.findall(r"\b(\w+)\(", "\n".join(BLOCKS)))
    assert {"grow", "plan", "expand", "verify", "reshard", "describe"} <= used & set(pipeline.__all__)
    assert namespace["comparison"].lossless


def test_a_model_grown_in_memory_gives_the_same_logits(namespace):
    small, large = namespace["small"].eval(), namespace["large"].eval()
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        before, after = small(tokens).logits, large(tokens).logits
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()
    assert type(large) is type(small) and large.config.n_embd == 96 and large.config.n_layer == 3
    assert (large.dtype, large.training) == (torch.float32, small.training)


def test_results_have_a_representation_worth_reading(namespace):
    for name, words in {
        "preview": ("lossless", "96"),
        "result": ("grown", "lossless"),
        "comparison": ("lossless",),
        "description": ("ZeRO", "2 ranks"),
    }.items():
        text = repr(namespace[name])
        assert all(word in text for word in words) and "0x" not in text, text


def test_a_family_that_is_not_supported(tmp_path):
    """Objects of transformers are refused as files are: with the nearest family, and all that there are."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "embedding_size": 8, "num_attention_heads": 2, "vocab_size": 20}
    electra, known = transformers.ElectraConfig(**sizes), f"supported: {', '.join(sorted(FAMILIES))};"
    complaint = rf"^ElectraConfig: model_type 'electra' .* is not supported; nearest in architecture: bert .*; {known}"
    with pytest.raises(pipeline.UserError, match=complaint):
        pipeline.grow(transformers.ElectraModel(electra), electra)
    source = saved(tmp_path / "small", "bert")
    with pytest.raises(pipeline.UserError, match=complaint):
        pipeline.plan(source, electra)
    with pytest.raises(pipeline.UserError, match=rf"^GPTNeoConfig: .* nearest in architecture: none .*; {known}"):
        pipeline.expand(source, transformers.GPTNeoConfig(model_type="gpt"), tmp_path / "large")
    assert not (tmp_path / "large").exists()


def test_the_package_imports_nothing_heavy():
    heavy = "[name for name in ('torch', 'transformers', 'deepspeed', 'numpy') if name in sys.modules]"
    done = run_python(
        "-c", f"import sys; from pipeline import grow, expand, plan, verify, reshard, describe; print({heavy})"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_functions_are_quiet(namespace, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace["small"].save_pretrained("small")
    namespace["target"].save_pretrained("wanted")
    capsys.readouterr()
    pipeline.expand("small", "wanted", "grown")
    pipeline.reshard("grown", "again")
    pipeline.describe("again")
    assert capsys.readouterr() == ("", "")
