"""One seed, many independent random streams.

Every random choice of a run (data order, masks, initialisation, dropout, noise) draws from a stream
named after what it is for: `derive(seed, "mask", epoch, index)`. Nothing has to be saved to resume,
and no result depends on how many workers draw.
"""

import hashlib


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream `names` of `seed`: a pure function, stable across machines and versions."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
