"""Rows of a model's table of pieces: a multiple of 64 from scratch, those of the checkpoint where there is one."""

import pytest
from torch import nn

from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.data.tokenizers import table_size
from pipeline.expansion import target as targets
from pipeline.models import starts


def sizes(family: str = "bert", **more) -> ModelSizes:
    patch = 4 if models.family(family).data == "images" else None
    return ModelSizes(family=family, layers=1, hidden=8, heads=2, patch=patch, **more)


def facts(family: str, pieces: int = 30522) -> dict:
    if models.family(family).data == "images":
        return {"kind": "images", "size": 8, "channels": 3, "class_names": ["a", "b"]}
    return {"kind": "text", "vocab_size": table_size(pieces), "pieces": pieces, "block": 16, "scored": 2}


@pytest.mark.parametrize("pieces, rows", [(1, 64), (64, 64), (65, 128), (2048, 2048), (30522, 30528), (50257, 50304)])
def test_a_fresh_table_has_a_multiple_of_64_rows(pieces, rows):
    assert table_size(pieces) == rows
    assert models.trained(sizes(), facts("bert", pieces)).vocab_size == rows


# pieces of the tokenizer, rows of the checkpoint's table, rows of what it is grown to
@pytest.mark.parametrize(
    "pieces, stored, rows",
    [
        (30522, 30522, 30522),  # BERT as it was published
        (30522, 30528, 30528),  # a run of this pipeline
        (151669, 151936, 151936),  # Qwen3
        (50295, 51200, 51200),  # Phi-2
        (200, 256, 256),
        (30522, 28996, 30528),  # fewer rows than pieces
    ],
)
def test_a_model_that_goes_on_keeps_its_table_if_it_can_be_the_datas(pieces, stored, rows):
    origin = models.trained(sizes(), facts("bert", stored) | {"vocab_size": stored})
    grown = targets.of_sizes(origin, sizes(), facts("bert", pieces))
    assert grown.vocab_size == rows and starts.unreadable(grown, facts("bert", pieces)) is None
    said = starts.unreadable(origin, facts("bert", pieces))
    assert said == (
        f"the model has vocab_size {stored}, the tokenizer of the data {pieces} pieces" if stored < pieces else None
    )


def test_another_tokenizers_table_is_not_taken_over():
    origin = models.trained(sizes(), facts("bert"))
    said = starts.unreadable(origin, facts("bert", 4096))
    assert said == "the model has vocab_size 30528, the tokenizer of the data 4096 pieces"


def test_data_of_an_older_release_have_a_row_for_each_piece():
    older = {key: value for key, value in facts("bert", 100).items() if key != "pieces"} | {"vocab_size": 100}
    assert models.trained(sizes(), older).vocab_size == 100
    assert models.reads_pieces(models.trained(sizes(), older), older)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_dropout_is_off_unless_it_is_asked_for(family):
    """Every kind of it: in the keys of the config, but those of a head that is not trained, and in the modules."""
    config = models.trained(sizes(family), facts(family))
    unread = "path", "summary", "qa", "seq_classif"
    stated = {
        key: value
        for key, value in config.to_dict().items()
        if "drop" in key and not any(part in key for part in unread)
    }
    assert stated and not any(stated.values()), stated
    assert not getattr(config, "drop_path_rate", 0.0) and not getattr(config, "layerdrop", 0.0)
    modules = [each for each in models.build(config).modules() if isinstance(each, nn.Dropout)]
    assert all(each.p == 0 for each in modules)
    declared = set(models.family(family).keys.dropout) & set(config.to_dict())
    assert declared <= {*stated, "drop_path_rate", "layerdrop"}
    wet = models.trained(sizes(family, dropout=0.1), facts(family))
    assert any(value == 0.1 for key, value in wet.to_dict().items() if "drop" in key)
