"""The settings: every key in one table, and what is in force when all the sources have spoken.

    defaults < file < kernel command line < environment < flags

The keys are in `_config_table.py`. `resolve` is given what others have read and does no I/O; it returns settings that
do not change, where each value comes from, and all that is wrong. Start-up waits for this, so nothing heavy is
imported: TOML only when there is a file, difflib only for a mistake.
"""

from __future__ import annotations

from guestd._config_mounts import mistakes as mount_mistakes
from guestd._config_section import DEFAULT, Key, Origin, Section, keys_of, merge, spell
from guestd._config_sources import (
    SOURCES,
    Problem,
    Source,
    environment_name,
    from_cmdline,
    from_environment,
    from_file,
    from_flags,
)
from guestd._config_system import CAPABILITIES, UNLIMITED
from guestd._config_table import Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import TypeVar

    SectionT = TypeVar("SectionT", bound=Section)

__all__ = [
    "DEFAULT",
    "DEFAULT_FILE",
    "UNLIMITED",
    "Configuration",
    "Key",
    "Origin",
    "Problem",
    "Settings",
    "capability_numbers",
    "environment_name",
    "is_loopback",
    "keys_of",
    "resolve",
]

DEFAULT_FILE = "/etc/guestd/guestd.toml"


class Configuration:
    """What `resolve` found: settings, their origins by key (and by entry, `env.PATH`), and what is wrong."""

    __slots__ = ("origins", "problems", "settings")

    def __init__(
        self, settings: Settings, origins: Mapping[str, Origin], problems: tuple[Problem, ...]
    ) -> None:
        #: Whole even when there are problems: whatever could not be read is as if it had not been given.
        self.settings = settings
        self.origins = origins
        self.problems = problems

    def checked(self) -> Settings:
        """The settings, when nothing is wrong with them; ConfigError tells everything that is."""
        if not self.problems:
            return self.settings
        from guestd.errors import ConfigError

        lines = [str(problem) for problem in self.problems]
        message = lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} problems:", *lines])
        raise ConfigError(message, problems=lines)


def resolve(
    *,
    file: bytes | None = None,
    file_name: str = DEFAULT_FILE,
    cmdline: str = "",
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Configuration:
    """Settings out of what the sources say. `flags` has values by dotted names: {"listen": ["unix:/x"]}."""
    settings, origins, problems = resolve_section(
        Settings,
        [
            *([] if file is None else [from_file(Settings, file_name, file)]),
            from_cmdline(Settings, cmdline),
            from_environment(Settings, environ or {}),
            from_flags(flags or {}),
        ],
    )
    problems += [
        Problem(origins[key], key, f"{key} {what}", fix) for key, what, fix in _together(settings, origins)
    ]
    for at, field, what, fix in mount_mistakes(settings):
        key = f"mount[{at}]"
        problems.append(Problem(origins[key], f"{key}.{field}", f"{key}.{field} {what}", fix))
    return Configuration(settings, origins, tuple(problems))


def resolve_section(
    section: type[SectionT],
    sources: list[Source],
) -> tuple[SectionT, dict[str, Origin], list[Problem]]:
    """The same for any table of keys; problems stand in the order of the sources and of their lines."""
    merged = merge(section, [given for source in sources for given in source.given])
    problems = [problem for source in sources for problem in source.problems]
    for given, wrong in merged.wrong:
        place = (*given.place, *wrong.place)
        problems.append(
            Problem(given.origin(wrong.place), spell(place), f"{spell(place)} {wrong.what}", wrong.fix)
        )
    problems.sort(key=lambda problem: (SOURCES.index(problem.origin.source), problem.origin.line or 0))
    return merged.section, merged.origins, problems


def capability_numbers(names: Iterable[str]) -> tuple[int, ...]:
    """Capabilities as the kernel counts them. All are 64: a newer kernel has some without a name here."""
    wanted = set(names)
    return tuple(range(64)) if "all" in wanted else tuple(CAPABILITIES.index(name) for name in sorted(wanted))


def _together(settings: Settings, origins: Mapping[str, Origin]) -> Iterator[tuple[str, str, str]]:
    """What is wrong only in combination: (the key to blame, what is wrong, what would be right)."""
    tape, tapes = settings.command.tape, settings.limits.tapes
    if 2 * tape > tapes:
        # Whichever somebody has set is the one to point at.
        if origins["command.tape"] is not DEFAULT:
            yield (
                "command.tape",
                f"is {tape} bytes, twice for a command",
                f"expected at most half of limits.tapes, {tapes}",
            )
        else:
            yield "limits.tapes", f"is {tapes} bytes", f"expected at least twice command.tape, {2 * tape}"
    if settings.relay:
        from guestd._config_relay import relays_together

        for name, what, fix in relays_together(settings.relay):
            yield f"relay.{name}", what, fix
    if not settings.token_file:
        for address in settings.listen:
            if address.scheme == "tcp" and not is_loopback(address.host):
                yield (
                    "listen",
                    f"has {address}, which others than this machine can reach",
                    "set token_file too",
                )


def is_loopback(host: str) -> bool:
    """Whether only this machine can mean that. A name that merely begins with 127. may be anybody's."""
    return host in {"localhost", "::1"} or (host.startswith("127.") and host.replace(".", "").isdecimal())
