"""Sizes and times as people write them, and back."""

from __future__ import annotations

# As dd and truncate read them: a lone letter and KiB count in 1024, KB in 1000.
_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    unit: 1 << shift
    for shift, units in ((10, ("k", "kib")), (20, ("m", "mib")), (30, ("g", "gib")), (40, ("t", "tib")))
    for unit in units
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SHOWN_SIZES = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_SHOWN_SECONDS = (("d", 86400), ("h", 3600), ("m", 60))
# Longer than any number that fits a range; what is longer is not handed to int(), whose time is quadratic.
DIGITS_MAX = 20


def parse_size(text: str) -> int | None:
    """Bytes, or None: "4096", "4M", "1.5 GiB"."""
    text = text.strip()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    scale = _SIZES.get(text[len(number) :].lower())
    whole, dot, part = number.strip().partition(".")
    if scale is None or not is_whole(whole) or (dot and not is_whole(part)):
        return None
    if not dot:
        return int(whole) * scale
    size, rest = divmod(int(whole + part) * scale, 10 ** len(part))
    return None if rest else size


def parse_duration(text: str) -> float | None:
    """Seconds, or None: "10", "250 ms", "1h30m". A number without a unit stands alone."""
    rest = text.strip()
    total = 0.0
    if not rest:
        return None
    alone = True
    while rest:
        unit_at = len(rest) - len(rest.lstrip("0123456789."))
        number, rest = rest[:unit_at], rest[unit_at:].lstrip()
        unit_end = len(rest) - len(rest.lstrip("adhimns"))
        unit, rest = rest[:unit_end], rest[unit_end:].lstrip()
        whole, dot, part = number.partition(".")
        if not is_whole(whole) or (dot and not is_whole(part)):
            return None
        if not unit and alone and not rest:
            return float(number)
        if unit not in _SECONDS:
            return None
        # Dividing by 1000 rounds once, where multiplying by 0.001 rounds twice.
        total += float(number) / 1000 if unit == "ms" else float(number) * _SECONDS[unit]
        alone = False
    return total


def show_size(size: int) -> str:
    """With the largest unit that leaves a whole number; parse_size reads it back."""
    for unit, scale in _SHOWN_SIZES:
        if size and size % scale == 0:
            return f"{size // scale} {unit}"
    return f"{size} B"


def show_duration(seconds: float) -> str:
    """With the largest unit that leaves a whole number; parse_duration reads it back."""
    for unit, scale in _SHOWN_SECONDS:
        if seconds and seconds % scale == 0:
            return f"{seconds // scale:.0f} {unit}"
    if 0 < seconds < 1:
        return f"{seconds * 1000:.6g} ms"
    return f"{seconds:.12g} s"


def is_whole(digits: str) -> bool:
    return digits.isascii() and digits.isdecimal() and len(digits) <= DIGITS_MAX
