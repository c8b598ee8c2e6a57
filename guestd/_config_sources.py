"""What each source says, before its values are read: file, kernel command line, environment, flags.

Each takes text or a mapping that somebody else has read, and returns what is given, with the problems of form
and of names. A name nobody knows is a problem everywhere: a limit that is not in force because of a typing
error is worse than a supervisor that says so and does not start.
"""

from __future__ import annotations

from guestd._config_section import DEFAULT, Given, Origin, Section, find_key, keys_of, spell, unknown, walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: From the weakest to the strongest.
SOURCES = ("default", "file", "kernel command line", "environment", "flag")
KERNEL_PREFIX = "guestd."
ENVIRONMENT_PREFIX = "GUESTD_"
#: Names in environments that are no settings: guestctl's own, and what a job, a test or the bench is told.
NOT_SETTINGS = frozenset({"GUESTD_TO", "GUESTD_VENV", "GUESTD_BOOT_TIMES", "GUESTD_FELL_BACK"})
NOT_SETTINGS_PREFIXES = ("GUESTD_JOB_", "GUESTD_TEST_", "GUESTD_BENCH_")

#: As the kernel's isspace() has it, with the no-break space of Latin-1 left to UTF-8.
_KERNEL_SPACE = " \t\n\v\f\r"


class Problem:
    """Something that must be changed before the settings can be used, and how."""

    __slots__ = ("fix", "key", "message", "origin")

    def __init__(self, origin: Origin, key: str, message: str, fix: str) -> None:
        self.origin = origin
        self.key = key
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        where = "" if self.origin is DEFAULT else f"{self.origin}: "
        return f"{where}{self.message}; {self.fix}"

    def __repr__(self) -> str:
        return f"Problem({self})"


class Source:
    """All that one source says."""

    __slots__ = ("given", "problems")

    def __init__(self) -> None:
        self.given: list[Given] = []
        self.problems: list[Problem] = []


def from_file(section: type[Section], name: str, data: bytes) -> Source:
    # Late: without a file nobody pays for tomllib.
    from guestd._config_file import NotToml, read_file

    source = Source()
    origin = Origin("file", name)
    try:
        table, lines = read_file(data)
    except NotToml as error:
        source.problems.append(
            Problem(
                origin.at_line(error.line),
                "",
                f"this is not TOML: {error.message}",
                "nothing of the file is in force",
            ),
        )
        return source
    values, wrong = walk(section, table)
    source.given = [
        Given(key, entry, value, Origin("file", name, raw=value), lines=lines) for key, entry, value in values
    ]
    for each in wrong:
        key = spell(each.place)
        source.problems.append(Problem(origin.at(lines, each.place), key, f"{key} {each.what}", each.fix))
    return source


def from_cmdline(section: type[Section], text: str) -> Source:
    """`guestd.KEY=VALUE` words. Later ones win, and what follows a lone -- is for init, not for us."""
    source = Source()
    if KERNEL_PREFIX not in text:
        return source
    keys = keys_of(section)
    origin = Origin("kernel command line")
    for word, value in kernel_words(text):
        if word == "--" and value is None:
            break
        if not word.startswith(KERNEL_PREFIX):
            continue
        name = word[len(KERNEL_PREFIX) :]
        # The kernel does not tell - from _ in the names of parameters; names inside a table are the user's.
        found = find_key(keys, name.replace("-", "_"))
        if found is None:
            what, fix = unknown(name, keys)
            source.problems.append(Problem(origin, name, f"{name} {what}", fix))
            continue
        key, entry = found
        if entry is not None:
            entry = name[len(key) + 1 :]
        # A word without a value switches on, as it does for the kernel's own parameters.
        raw = word if value is None else f"{word}={value}"
        given = Given(
            key, entry, "true" if value is None else value, Origin(origin.source, raw=raw), text=True
        )
        source.given.append(given)
    return source


def from_environment(section: type[Section], environ: Mapping[str, str]) -> Source:
    """`GUESTD_SECTION_KEY`; an entry of a table has the entry's own name behind that."""
    source = Source()
    ours = [
        name
        for name in environ
        if name.startswith(ENVIRONMENT_PREFIX)
        and name not in NOT_SETTINGS
        and not name.startswith(NOT_SETTINGS_PREFIXES)
    ]
    if not ours:
        return source
    keys = keys_of(section)
    dotted = {environment_name(key): key for key in keys}
    by_name = {name: keys[key] for name, key in dotted.items()}
    for name in sorted(ours):
        origin = Origin("environment", name, raw=environ[name])
        found = find_key(by_name, name, "_")
        if found is None:
            what, fix = unknown(name, dotted)
            source.problems.append(Problem(origin, name, f"{name} {what}", fix))
        else:
            source.given.append(Given(dotted[found[0]], found[1], environ[name], origin, text=True))
    return source


def from_flags(flags: Mapping[str, object]) -> Source:
    """Values by their dotted names, from a caller that knows them."""
    source = Source()
    for key, value in flags.items():
        source.given.append(Given(key, None, value, Origin("flag", f"--{key}", raw=value)))
    return source


def environment_name(key: str) -> str:
    return ENVIRONMENT_PREFIX + key.upper().replace(".", "_")


def kernel_words(text: str) -> Iterator[tuple[str, str | None]]:
    """Take a command line apart as next_arg() of the kernel's lib/cmdline.c does: (name, value or None).

    A double quote hides white space until the next one, wherever they stand. They are taken away only where
    they enclose the whole word or the whole value, and nothing escapes them.
    """
    at, end = 0, len(text)
    while True:
        while at < end and text[at] in _KERNEL_SPACE:
            at += 1
        if at >= end:
            return
        begin, quoted = at, False
        while at < end and (quoted or text[at] not in _KERNEL_SPACE):
            quoted ^= text[at] == '"'
            at += 1
        word = text[begin:at]
        whole = word.startswith('"')
        if whole:
            word = word[1:].removesuffix('"')
        name, equals, value = word.partition("=")
        if value.startswith('"'):
            value = value[1:] if whole else value[1:].removesuffix('"')
        yield name, value if equals else None
