"""What a grown causal model writes is what the small one writes."""

import pytest
import torch
from torch import Tensor

from tests.helpers.checkpoints import saved, target_config_file
from tests.helpers.cli import lemon
from tests.helpers.growing import ARCHITECTURES, times
from tests.helpers.pretrained import loaded, tokens
from tests.helpers.rotation import rotated
from tests.helpers.samples import VARIANTS, sample

NEW, PROMPT = 8, 5
CAUSAL = [
    variant for variant in VARIANTS if "ForCausalLM" in (name := sample(variant).architectures[0]) or "LMHead" in name
]


def written(folder, prompt: dict[str, Tensor]) -> Tensor:
    """The most likely tokens one after the other, none of which ends a text."""
    model = loaded(folder)
    mask = torch.ones_like(prompt["input_ids"])
    settings = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW, "pad_token_id": 0}
    return model.generate(**prompt, attention_mask=mask, **settings)[:, PROMPT:]


@rotated(one_in=3, of="variant")
@pytest.mark.parametrize("variant", CAUSAL)
def test_greedy_text_is_the_small_models(tmp_path, capsys, variant):
    """With the cache of `generate`, in float64."""
    small = saved(tmp_path / "small", variant)
    grouped = {"kv_heads": 3} if ARCHITECTURES[variant].attentions[0].rope else {}
    target = target_config_file(tmp_path / "target.json", variant, **times(2, layers=3, vocab=61, **grouped))
    code, _, err = lemon(capsys, "expand", "--source", small, "--target", target, "--out", tmp_path / "large")
    assert code == 0, err
    prompt = tokens(small, PROMPT)
    before, after = written(small, prompt), written(tmp_path / "large", prompt)
    assert before.shape == (2, NEW) and torch.equal(before, after)
    assert len(before.unique()) > 2
