"""What is to be mounted, thought through before anything is done. Pure.

`Wanted` is one mount as somebody asked for it. `mistakes` says what is wrong with a list of them, `in_order` which
comes first. How one stands against what is mounted already is in standing.py.

`guestd init` has this imported when there are mounts in its settings, so nothing heavy is.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

BLOCK, VIRTIOFS, NINEP, NFS, OVERLAY, BIND, TMPFS, FUSE = (
    "block", "virtiofs", "9p", "nfs", "overlay", "bind", "tmpfs", "fuse",
)  # fmt: skip
TYPES = (BLOCK, VIRTIOFS, NINEP, NFS, OVERLAY, BIND, TMPFS, FUSE)
FORMATS = ("ext4", "xfs")
#: What guestd does with the mistakes that a check has found: mend what is safe, mend all, do not look.
FSCK = ("safe", "all", "none")
#: Programs that mount object storage, whose arguments are known here.
PROGRAMS = ("mount-s3", "s3fs", "rclone")
DEFAULT_TIMEOUT = 30.0
PARENT = "/mnt"
#: Mount points that nobody may cover: without them neither guestd nor anything else works.
_SACRED = ("/", "/proc", "/sys", "/dev", "/run", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/boot")
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_PATH_MAX = 1024
#: All that is said of one mount: it has to be kept for a guestd after this one.
_WHOLE_MAX = 16384


class Wanted:
    """One mount as it was asked for, its defaults filled in. Does not change."""

    __slots__ = (
        "cover", "env", "env_file", "format", "fsck", "grow", "mode", "name", "options", "owner", "path", "program",
        "read_only", "required", "source", "timeout", "type", "upper", "work",
    )  # fmt: skip

    def __init__(self, fields: Mapping[str, object]) -> None:
        """Of plain values; `name` or `path` may be empty, not both."""
        name, path = str(fields.get("name") or ""), str(fields.get("path") or "")
        self.path: str = normal(path or f"{PARENT}/{name}")
        self.name: str = name or _name_of(self.path)
        self.type: str = str(fields["type"])
        self.source: str = str(fields.get("source") or "")
        self.options: tuple[str, ...] = tuple(_texts(fields.get("options")))
        self.read_only: bool = bool(fields.get("read_only"))
        self.owner: str = str(fields.get("owner") or "")
        self.mode: str = str(fields.get("mode") or "")
        self.required: bool = bool(fields.get("required", True))
        timeout = fields.get("timeout")
        self.timeout: float = float(timeout) if isinstance(timeout, int | float) else DEFAULT_TIMEOUT
        self.format: str = str(fields.get("format") or "")
        self.fsck: str = str(fields.get("fsck") or FSCK[0])
        self.grow: bool = bool(fields.get("grow", True))
        self.cover: bool = bool(fields.get("cover"))
        self.upper: str = normal(str(fields.get("upper") or ""))
        self.work: str = normal(str(fields.get("work") or "")) or _work_of(self.upper)
        program = fields.get("program")
        self.program: str | tuple[str, ...] = (
            program if isinstance(program, str) else tuple(_texts(program)) or ""
        )
        self.env: dict[str, str] = _text_map(fields.get("env"))
        self.env_file: str = str(fields.get("env_file") or "")

    def to_map(self, *, secrets: bool = False) -> dict[str, object]:
        """All of it; the values of its environment only for whoever is to go on with it."""
        found: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        for name in ("options", "program"):
            value = found[name]
            found[name] = value if isinstance(value, str) else list(_texts(value))
        found["env"] = dict(self.env) if secrets else sorted(self.env)
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wanted) and self.to_map(secrets=True) == other.to_map(secrets=True)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  it holds maps, and nobody needs it as a key

    def __repr__(self) -> str:
        return f"Wanted({self.name!r}, {self.type} at {self.path!r})"

    @property
    def layers(self) -> tuple[str, ...]:
        """The directories that an overlay or a bind shows."""
        if self.type == OVERLAY:
            return tuple(normal(each) for each in self.source.split(":") if each)
        return (normal(self.source),) if self.type == BIND else ()

    @property
    def stands_on(self) -> tuple[str, ...]:
        """Every path that has to be there before it."""
        return tuple(each for each in (self.path, *self.layers, self.upper, self.work) if each)


class Mistake:
    """What is wrong with one: the field, what it says, and what would be right."""

    __slots__ = ("at", "field", "fix", "what")

    def __init__(self, at: int, field: str, what: str, fix: str) -> None:
        self.at = at
        self.field = field
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.field} {self.what}; {self.fix}"


def mistakes(wanted: Sequence[Wanted], limit: int) -> list[Mistake]:
    """Everything that is wrong with them, one by one and together."""
    found = [each for at, one in enumerate(wanted) for each in _mistakes(at, one)]
    if len(wanted) > limit:
        found.append(
            Mistake(
                limit, "path", f"is mount number {limit + 1}", f"expected at most {limit} (limits.mounts)"
            )
        )
    paths: dict[str, int] = {}
    names: dict[str, int] = {}
    for at, one in enumerate(wanted):
        if one.path in paths:
            fix = f"expected a path of its own: mount number {paths[one.path] + 1} is there"
            found.append(Mistake(at, "path", f"is {one.path} a second time", fix))
        elif one.name in names:
            fix = f"expected a name of its own: mount number {names[one.name] + 1} has it"
            found.append(Mistake(at, "name", f'is "{one.name}" a second time', fix))
        paths.setdefault(one.path, at)
        names.setdefault(one.name, at)
    if not found:
        circle = [each for each in wanted if each not in in_order(wanted)]
        if circle:
            around = " and ".join(each.path for each in circle)
            fix = f"expected an order in which they can be mounted: {around} need each other"
            found.append(Mistake(wanted.index(circle[0]), "source", f"is {circle[0].source}", fix))
    return found


def _mistakes(at: int, one: Wanted) -> Iterator[Mistake]:
    """What is wrong with one by itself."""

    def wrong(field: str, what: str, fix: str) -> Mistake:
        return Mistake(at, field, what, fix)

    if not one.path.startswith("/") or len(one.path) > _PATH_MAX:
        yield wrong("path", f'is "{one.path[:80]}"', "expected an absolute path")
    elif one.path in _SACRED or one.path.startswith(("/proc/", "/sys/", "/dev/")):
        yield wrong(
            "path", f"is {one.path}, which the machine itself needs", f"expected one such as {PARENT}/data"
        )
    elif not one.name or len(one.name) > 64 or not _NAME.issuperset(one.name) or not one.name[0].isalnum():
        fix = "expected a letter or digit, then up to 63 letters, digits, . _ or -"
        yield wrong("name", f'is "{one.name[:80]}"', fix)
    yield from (wrong(*each) for each in _CHECKS[one.type](one))
    for field, types in _ONLY_FOR.items():
        value = getattr(one, field)
        if value and one.type not in types:
            yield wrong(field, f"is for {' and '.join(types)} alone", f"leave it out for {one.type}")
    if len(repr(one.to_map(secrets=True))) > _WHOLE_MAX:
        yield wrong(
            "env",
            "and everything else is too long",
            f"expected at most {_WHOLE_MAX} characters; see env_file",
        )
    for each in one.options:
        if not each or "\0" in each or "," in each:
            yield wrong("options", f'has "{each[:80]}"', 'expected one option an item, such as "noatime"')


def _of_block(one: Wanted) -> Iterator[tuple[str, str, str]]:
    how, _, what = one.source.partition("=")
    if not one.source.startswith("/dev/") and (how.lower() not in {"serial", "label", "uuid"} or not what):
        yield "source", f'is "{one.source}"', "expected serial=…, label=…, uuid=… or /dev/…"
    if one.format and one.read_only:
        yield "format", f"is {one.format}, and it is read-only", "leave out one of them"


def _of_share(one: Wanted) -> Iterator[tuple[str, str, str]]:
    if not one.source or len(one.source) > 128:
        yield "source", f'is "{one.source[:80]}"', "expected the tag that the host has given to the share"


def _of_nfs(one: Wanted) -> Iterator[tuple[str, str, str]]:
    host, colon, path = split_nfs(one.source)
    if not host or not colon or not path.startswith("/"):
        yield "source", f'is "{one.source[:80]}"', "expected HOST:/PATH, or [IPV6]:/PATH"
    for each in one.options:
        name, _, value = each.partition("=")
        if name in {"vers", "nfsvers"} and value not in {"4.1", "4.2"}:
            yield "options", f'has "{each}"', "expected vers=4.1 or vers=4.2"


def _of_overlay(one: Wanted) -> Iterator[tuple[str, str, str]]:
    if not one.layers or not all(each.startswith("/") for each in one.layers):
        yield (
            "source",
            f'is "{one.source[:80]}"',
            "expected the directories below, topmost first: /image:/base",
        )
    for field, value in (("upper", one.upper), ("work", one.work)):
        if value and not value.startswith("/"):
            yield field, f'is "{value[:80]}"', "expected an absolute path"
    if one.upper and one.read_only:
        yield "upper", f"is {one.upper}, and it is read-only", "leave out one of them"
    if any(is_inside(one.path, each) for each in (one.upper, one.work) if each):
        yield "path", f"is {one.path}, inside its own upper directory", "expected a place outside of it"


def _of_bind(one: Wanted) -> Iterator[tuple[str, str, str]]:
    if not one.source.startswith("/"):
        yield "source", f'is "{one.source[:80]}"', "expected the absolute path of a directory"


def _of_tmpfs(one: Wanted) -> Iterator[tuple[str, str, str]]:
    if one.source not in {"", "tmpfs"}:
        yield (
            "source",
            f'is "{one.source[:80]}"',
            'leave it out: there is none; options = ["size=1G"] bounds it',
        )


def _of_fuse(one: Wanted) -> Iterator[tuple[str, str, str]]:
    program = one.program or PROGRAMS[0]
    if isinstance(program, str) and program not in PROGRAMS:
        fix = f"expected one of {', '.join(PROGRAMS)}, or a list of words that runs in the foreground"
        yield "program", f'is "{program[:80]}"', fix
    elif isinstance(program, str) and not one.source:
        yield "source", "is empty", "expected the bucket; for rclone REMOTE:BUCKET"
    elif not isinstance(program, str) and not any("{path}" in word for word in program):
        yield "program", "names no mount point", 'expected "{path}" among its words'
    for name in one.env:
        if not name or "=" in name or "\0" in name:
            yield "env", f'has "{name[:80]}"', "expected names of environment variables"
    if one.env_file and not one.env_file.startswith("/"):
        yield (
            "env_file",
            f'is "{one.env_file[:80]}"',
            "expected the absolute path of a file of NAME=VALUE lines",
        )


_CHECKS = {
    BLOCK: _of_block, VIRTIOFS: _of_share, NINEP: _of_share, NFS: _of_nfs, OVERLAY: _of_overlay, BIND: _of_bind,
    TMPFS: _of_tmpfs, FUSE: _of_fuse,
}  # fmt: skip
_ONLY_FOR = {
    "format": (BLOCK,),
    "upper": (OVERLAY,),
    "program": (FUSE,),
    "env": (FUSE,),
    "env_file": (FUSE,),
}

# ------------------------------------------------------------------------------------------------------------- order


def is_inside(path: str, directory: str) -> bool:
    """Is it that directory, or something in it? By the names alone."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def needs(one: Wanted, other: Wanted) -> bool:
    """Must `other` be mounted before `one`, because it lies in it, or shows something that does?"""
    return one is not other and any(is_inside(each, other.path) for each in one.stands_on)


def in_order(wanted: Iterable[Wanted]) -> list[Wanted]:
    """Each behind all that it needs, by path among those that are free to go. What needs itself is left out."""
    waiting = sorted(wanted, key=lambda each: each.path.split("/"))
    found: list[Wanted] = []
    while True:
        free = next((each for each in waiting if not any(needs(each, other) for other in waiting)), None)
        if free is None:
            return found
        found.append(free)
        waiting.remove(free)


def in_reverse(wanted: Iterable[Wanted]) -> list[Wanted]:
    """The order to take them down."""
    return in_order(wanted)[::-1]


# ------------------------------------------------------------------------------------------------------------- pieces


def split_nfs(source: str) -> tuple[str, str, str]:
    """Host, colon, path: `fs:/export`, `[fd00::1]:/export`."""
    if source.startswith("["):
        host, bracket, rest = source[1:].partition("]")
        return (host, ":", rest[1:]) if bracket and rest.startswith(":") else ("", "", "")
    return source.partition(":")


def normal(path: str) -> str:
    """Without doubled and trailing slashes, `.` and `..`, as the path is in the table of mounts."""
    if not path.startswith("/"):
        return path
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part and part != ".":
            parts.append(part)
    return "/" + "/".join(parts)


def _name_of(path: str) -> str:
    """A name for what has none: /mnt/data is `data`, /var/lib/x is `var-lib-x`."""
    inside = path.removeprefix(f"{PARENT}/").strip("/")
    return "".join(each if each in _NAME else "-" for each in inside.replace("/", "-"))[:64]


def _work_of(upper: str) -> str:
    """Beside the upper directory, since it has to be of the same file system."""
    if not upper:
        return ""
    parent, _, last = upper.rpartition("/")
    return f"{parent}/.{last}.work"


def _texts(given: object) -> Iterator[str]:
    if isinstance(given, list | tuple):
        for each in given:  # pyright: ignore[reportUnknownVariableType]  whatever it holds is made text
            yield str(each)  # pyright: ignore[reportUnknownArgumentType]


def _text_map(given: object) -> dict[str, str]:
    items = getattr(given, "items", None)
    return {} if items is None else {str(name): str(value) for name, value in items()}
