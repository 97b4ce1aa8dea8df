"""Numbers of bytes, in words."""

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def amount(size: int) -> str:
    """Bytes in the unit that suits them."""
    power = min(len(UNITS) - 1, max(0, size.bit_length() - 1) // 10)
    return f"{size} bytes" if not power else f"{size / 1024**power:.2f} {UNITS[power]}"
