"""One seed, many independent generators.

Every random choice of a run (data order, masks, initialisation, dropout, noise) draws from a generator whose seed is
derived from what it is for: `derive(seed, "mask", epoch, index)`. Nothing has to be saved to resume, and no result
depends on the number of workers.
"""

import hashlib


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for the purpose that `names` spell: a pure function, stable across machines and versions."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
