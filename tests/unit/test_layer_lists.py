"""Lists of layers: read as people write them, and refused where a model cannot be made of them."""

import pytest

from pipeline.config.limits import MOST_LAYERS
from pipeline.growth.layer_lists import in_order, mistake, parse


@pytest.mark.parametrize(
    "text, layers",
    [
        ("0-2,1-3", [0, 1, 2, 1, 2, 3]),
        ("0-1, 1-2, 2", [0, 1, 1, 2, 2]),
        ("4", [4]),
        ("2-2", [2]),
        (f"0-{MOST_LAYERS - 1}", list(range(MOST_LAYERS))),
    ],
)
def test_a_list_is_read(text, layers):
    assert parse(text) == layers


@pytest.mark.parametrize(
    "text", ["", "even", "3-1", "0-", "-1", "0,,1", "0..3", "0-2-4", f"0-{MOST_LAYERS}", "0-9999,0", "0-999999999"]
)
def test_what_is_no_list(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    "layers, orderly",
    [([0, 1, 2], True), ([0, 0, 1, 1], True), ([1, 2], False), ([0, 2], False), ([0, 1, 0], False), ([], False)],
)
def test_order(layers, orderly):
    assert in_order(layers) == orderly


@pytest.mark.parametrize(
    "text, before, after, repeats_behind, reason",
    [
        ("0-3,3", 4, 5, True, None),
        ("0-2,1-3", 4, 6, False, None),
        ("3,0-3", 4, 5, False, None),
        ("0-2,1-3", 4, 7, False, "lists 6 layers, and the target has 7; list as many"),
        ("0-4", 4, 5, False, "names layer 4, and the source has 4, from 0 on"),
        ("0-2,0-2", 4, 6, False, "leaves out layer 3 of the source; name each of its 4 layers"),
        ("0-2,1-3", 4, 6, True, "has a layer elsewhere than directly behind its origin; use depth 'copy'"),
        (
            "1,0,2",
            3,
            3,
            False,
            "has a layer elsewhere than directly behind its origin; list them in the source's order",
        ),
        ("0-2", 3, 3, True, None),
    ],
)
def test_what_a_list_must_be(text, before, after, repeats_behind, reason):
    found = mistake(text, parse(text), before, after, repeats_behind)
    assert found is None if reason is None else reason in found
