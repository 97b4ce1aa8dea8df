"""Bytes in words: the unit in which a number of bytes has one to four digits in front of the point."""

import pytest

from pipeline.checkpoints.serialization.amounts import amount


@pytest.mark.parametrize(
    "size, words",
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.00 KiB"),
        (1024**2 - 1, "1024.00 KiB"),
        (3 * 2**29, "1.50 GiB"),
        (5 * 2**40, "5.00 TiB"),
        (2**51, "2048.00 TiB"),
    ],
)
def test_the_unit_suits_the_size(size, words):
    assert amount(size) == words
