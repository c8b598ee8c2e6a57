"""What is written on the command line, as values: durations, sizes, offsets, variables, limits. Pure.

Each reader raises ValueError whose text says what was written and what would be right.
"""

from __future__ import annotations

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_STREAMS = ("stdout", "stderr", "terminal")

#: ^[ is Escape, which begins every function key.
_CONTROL_MARKS = "@ \\ ] ^ _"
_CONTROL_KEYS = "abcdefghijklmnopqrstuvwxyz" + _CONTROL_MARKS.replace(" ", "")

RLIMIT_EXAMPLE = "NAME=SOFT[:HARD], as nofile=1024:4096 or core=unlimited"


def _number(text: str) -> int | None:
    """A whole number from 0 on, written plainly; None for anything else. int() itself takes much more."""
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 20 else None


def seconds(text: str) -> float:
    """`2`, `0.5`, `30s`, `5m`, `1h`."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    whole, _, part = number.partition(".")
    unit = _SECONDS.get(text[len(number) :] or "s")
    if unit is None or _number(whole or "0") is None or _number(part or "0") is None or not whole + part:
        raise ValueError(f"{text!r} is no duration; write seconds (2, 0.5) or a unit (500ms, 30s, 5m, 1h)")
    return float(number) * unit


def size(text: str) -> int:
    """`65536`, `64K`, `1M`, `2GiB`."""
    lower = text.lower().removesuffix("ib") if text.lower().endswith(("kib", "mib", "gib")) else text.lower()
    number = lower.rstrip("bkmg")
    unit = lower[len(number) :]
    value = _number(number)
    if value is not None and unit in _SIZES:
        return value * _SIZES[unit]
    raise ValueError(f"{text!r} is no size; write bytes (65536) or a unit (64K, 1M, 2G)")


def variable(text: str) -> tuple[str, str]:
    """`NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if name and equals:
        return name, value
    raise ValueError(f"{text!r} is no variable; write NAME=VALUE (NAME= makes it empty)")


def name_or_number(text: str) -> str | int:
    """A user or a group."""
    if not text:
        raise ValueError("a user or group is a name or a number, not empty")
    number = _number(text)
    return text if number is None else number


def octal(text: str) -> int:
    """A umask, as chmod writes it."""
    if text and len(text) <= 4 and not text.strip("01234567") and int(text, 8) <= 0o777:
        return int(text, 8)
    raise ValueError(f"{text!r} is no umask; write it in octal, from 000 to 777, as 022")


def rlimit(text: str) -> tuple[str, int | str | list[int | str]]:
    """`nofile=1024`, `nofile=1024:4096`, `core=unlimited`."""
    name, equals, limits = text.partition("=")
    soft, colon, hard = limits.partition(":")
    if not name or not equals:
        raise ValueError(f"{text!r} is no limit; write {RLIMIT_EXAMPLE}")
    if colon:
        return name.lower(), [_limit(text, soft), _limit(text, hard)]
    return name.lower(), _limit(text, soft)


def _limit(text: str, limit: str) -> int | str:
    if limit == "unlimited":
        return limit
    try:
        return size(limit)
    except ValueError:
        raise ValueError(f"{text!r}: {limit!r} is no limit; write {RLIMIT_EXAMPLE}") from None


def count(text: str) -> int:
    """A number from 1 on."""
    number = _number(text)
    if number:
        return number
    raise ValueError(f"{text!r} is no number; write 1, 2, 3, …")


def control_key(text: str) -> str | None:
    """`ctrl-]`, `Ctrl+Q`, `^Q`: the key that is held together with Ctrl. None for `none`."""
    lower = text.lower()
    if lower == "none":
        return None
    for prefix in ("ctrl-", "ctrl+", "c-", "^"):
        letter = lower.removeprefix(prefix)
        if letter != lower and len(letter) == 1 and letter in _CONTROL_KEYS:
            return letter
    raise ValueError(
        f"{text!r} is no key; write ctrl-q or ^Q (a letter, or one of {_CONTROL_MARKS}), or none"
    )


def offsets(text: str) -> dict[str, int] | int | str:
    """`4096` (of whatever stream the job has first), `stdout=10,stderr=0`, `terminal=5`, `start`, `end`."""
    if text in {"start", "end"}:
        return text
    plain = _number(text)
    if plain is not None:
        return plain
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, digits = part.partition("=")
        number = _number(digits)
        if name not in _STREAMS or number is None or name in found:
            raise ValueError(
                f"{text!r} is no offset; write a number (of stdout, or of a terminal), stdout=N,stderr=N, `start` or"
                " `end`"
            )
        found[name] = number
    return found


def show_offsets(positions: dict[str, int]) -> str:
    """The same, to be typed again."""
    return ",".join(f"{name}={positions[name]}" for name in _STREAMS if name in positions) or "start"
