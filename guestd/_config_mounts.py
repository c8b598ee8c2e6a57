"""Settings of file systems: the list of mounts, and how they are looked after."""

from __future__ import annotations

from guestd._config_declare import choice, key, seconds
from guestd._config_declare import path as place
from guestd._config_kinds import (
    Boolean,
    Duration,
    Integer,
    Invalid,
    ListOf,
    TableOf,
    Text,
    Wrong,
    as_list,
    as_table,
)
from guestd._config_life import CommandLine
from guestd._config_section import Record, Section
from guestd._config_system import User, VariableName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from guestd._config_kinds import Value

_HIDDEN = "…"


class Mode(Text):
    """Permission bits as chmod(1) reads them."""

    def describe(self) -> str:
        return 'octal digits such as "0750", or "" to leave them'

    def accepts(self, text: str) -> bool:
        return len(text) <= 5 and not text.strip("01234567")

    def read(self, given: object) -> str:
        # A number in TOML is one already: 0o750.
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= 0o7777:
            return f"{given:04o}"
        return super().read(given)


class Mount(Section):
    """One `[[mount]]`."""

    name: str = key("Its name.", Text(), "")
    path: str = place("Where it is mounted.", "")
    type: str = choice(
        "What it is.", "block", "block", "virtiofs", "9p", "nfs", "overlay", "bind", "tmpfs", "fuse"
    )
    source: str = key("What is mounted.", Text(), "")
    options: tuple[str, ...] = key("Options, as mount(8) has them.", ListOf(Text()), ())
    read_only: bool = key("Nothing can be written.", Boolean(), default=False)
    owner: str = key("Whom its root belongs to.", User(), "")
    mode: str = key("The permissions of its root.", Mode(), "")
    required: bool = key("Work waits for it.", Boolean(), default=True)
    timeout: float = key("How long it may take.", Duration(0.1, 3600.0), 30.0)
    format: str = choice("Made on an empty disk.", "", "", "ext4", "xfs")
    fsck: str = choice("Which mistakes of a disk are mended.", "safe", "safe", "all", "none")
    grow: bool = key("It grows with its disk.", Boolean(), default=True)
    cover: bool = key("It may hide what is in the directory.", Boolean(), default=False)
    upper: str = place("The writable directory of an overlay.", "")
    work: str = place("The working directory of an overlay.", "")
    program: str | tuple[str, ...] = key("The program of a FUSE mount.", CommandLine(), "")
    env: Mapping[str, str] = key("Environment of that program alone.", TableOf(Text(), VariableName()), {})
    env_file: str = place("A file with more of it.", "")

    def __repr__(self) -> str:
        return f"Mount({self.type} at {self.path or self.name})"


class Mounts(ListOf):
    """The list of them. What their environments hold is never shown."""

    def __init__(self) -> None:
        super().__init__(Record(Mount))

    def describe(self) -> str:
        return "a list of [[mount]] tables, whose keys docs/storage.md lists"

    def read(self, given: object) -> tuple[Value, ...]:
        for at, each in enumerate(as_list(given) or ()):
            table = as_table(each)
            if table is not None and not (table.get("name") or table.get("path")):
                raise Invalid(Wrong("has neither name nor path", "expected a name, for /mnt/NAME", (at,)))
            if table is not None and "type" not in table:
                raise Invalid(Wrong("has no type", 'expected one, such as type = "block"', (at,)))
        return super().read(given)

    def show(self, value: Value) -> str:
        return f"[{', '.join(f'{each.type} at {each.path or each.name}' for each in value)}]"

    def public(self, value: Value) -> Value:
        """As plain values, without anything secret: of what was given, or of what was made of it."""
        found: list[Value] = []
        for each in as_list(value) or ():
            table = dict(_fields(each))
            if as_table(table.get("env")):
                table["env"] = dict.fromkeys(table["env"], _HIDDEN)
            found.append(table)
        return found


def _fields(one: Value) -> Mapping[str, Value]:
    table = as_table(one)
    if table is not None:
        return table
    mount: Mount = one
    return vars(mount)


class Storage(Section):
    """How file systems are looked after."""

    required: str = choice(
        "When a required mount cannot be made: refuse to start work, allow it, or stop the session.",
        "refuse", "refuse", "allow", "stop",
    )  # fmt: skip
    check: float = seconds("How often mounted file systems are looked at.", "1m", "1s", "1d")
    patience: float = seconds(
        "One that does not answer a look for so long is told as stalled.", "10s", "100ms", "1h"
    )
    space: int = key("Less of its space, or inodes, in percent is told.", Integer(0, 100), 5)


def mistakes(settings: Value) -> Iterator[tuple[int, str, str, str]]:
    """What is wrong with the mounts by themselves and together: (which, field, what, what would be right)."""
    if not settings.mount:
        return
    # Late: most sessions have none.
    from guestd.storage.plan import Wanted
    from guestd.storage.plan import mistakes as found_in

    mounts: tuple[Mount, ...] = settings.mount
    wanted = [Wanted(vars(each)) for each in mounts]
    for each in found_in(wanted, settings.limits.mounts):
        yield each.at, each.field, each.what, each.fix
