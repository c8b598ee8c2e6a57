"""The kernel's table of mounts, /proc/PID/mountinfo, read into values. Pure.

A line has eleven fields or more: the optional ones in the middle (propagation) end with a lone hyphen, and names have
their blanks written in octal. Of mounts at the same place the last one is what a path sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

#: As the kernel marks the name of something that was deleted since.
_DELETED = "//deleted"


class Mounted(NamedTuple):
    """One mount. `root` is the part of its file system that it shows; `parent` is the mount that it stands on."""

    id: int
    parent: int
    #: `major:minor`, the file system's own number.
    device: str
    root: str
    target: str
    #: Of this mount: ro, nosuid, noatime…
    options: tuple[str, ...]
    #: shared, master, propagate_from, with their numbers; unbindable.
    propagation: tuple[str, ...]
    type: str
    source: str
    #: Of the file system, whoever shows it: ro, errors=remount-ro…
    super_options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """Nothing can be written through it, be it this mount or the file system as a whole."""
        return "ro" in self.options or self.failed_read_only

    @property
    def failed_read_only(self) -> bool:
        """The file system as a whole takes no writes: mounted so, or made so by an error."""
        return not {"ro", "emergency_ro", "shutdown"}.isdisjoint(self.super_options)

    def option(self, name: str) -> str | None:
        """The value of an option of the file system."""
        for each in self.super_options:
            key, equals, value = each.partition("=")
            if key == name:
                return unescaped(value) if equals else ""
        return None


def parse_line(line: str) -> Mounted | None:
    """One line; None for what is none."""
    before, hyphen, after = line.rstrip("\n").partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if not hyphen or len(fields) < 6 or len(rest) < 3:
        return None
    if not (fields[0].isdecimal() and fields[1].isdecimal()):
        return None
    return Mounted(
        id=int(fields[0]),
        parent=int(fields[1]),
        device=fields[2],
        root=unescaped(fields[3]).removesuffix(_DELETED),
        target=unescaped(fields[4]),
        options=tuple(fields[5].split(",")),
        propagation=tuple(each for each in fields[6:] if each),
        type=unescaped(rest[0]),
        # A source may be empty, and may be blank where somebody has set it so.
        source=unescaped(rest[1]),
        super_options=tuple(rest[2].split(",")),
    )


def parse(lines: Iterable[str]) -> list[Mounted]:
    """All of them, in the kernel's order: a later one lies above an earlier one of the same place."""
    return [found for line in lines if (found := parse_line(line)) is not None]


def visible(table: Iterable[Mounted], path: str) -> Mounted | None:
    """What is mounted at exactly that path and is not mounted over."""
    found = None
    for each in table:
        if each.target == path:
            found = each
    return found


def below(table: Iterable[Mounted], path: str) -> list[Mounted]:
    """What is mounted inside a path, not at it; the newest first, which is the order to take them down."""
    inside = path.rstrip("/") + "/"
    return [each for each in table if each.target.startswith(inside)][::-1]


def unescaped(text: str) -> str:
    """Octal numbers behind a backslash are characters; any other backslash is one."""
    if "\\" not in text:
        return text
    first, *rest = text.split("\\")
    found = [first]
    for each in rest:
        digits = each[:3]
        if len(digits) == 3 and not digits.strip("01234567") and int(digits, 8) < 256:
            # Bytes above 127 are not escaped by the kernel; if one is, it is a byte and not a character.
            found += [_byte(int(digits, 8)), each[3:]]
        else:
            found += ["\\", each]
    return "".join(found)


def _byte(number: int) -> str:
    return bytes([number]).decode("utf-8", "surrogateescape")
