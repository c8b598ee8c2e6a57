"""How programs that mount object storage are called. Pure.

They stay in the foreground, where guestd sees them end, and get their credentials by environment: arguments are for
everybody on the machine to see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestd.storage.plan import PROGRAMS

if TYPE_CHECKING:
    from guestd.storage.plan import Wanted


def command(one: Wanted, uid: int, gid: int) -> tuple[str, ...]:
    """The words of it. Files belong to that user, since most stores know of none. Options are the program's own:
    `endpoint-url=…` for mount-s3, `url=…` for s3fs.
    """
    program = one.program or PROGRAMS[0]
    if not isinstance(program, str):
        return tuple(word.replace("{path}", one.path).replace("{source}", one.source) for word in program)
    if program == "s3fs":
        options = [
            "allow_other",
            f"uid={uid}",
            f"gid={gid}",
            *(["ro"] if one.read_only else []),
            *one.options,
        ]
        return ("s3fs", one.source, one.path, "-f", "-o", ",".join(options))
    owner = (f"--uid={uid}", f"--gid={gid}")
    words = [f"--{each.lstrip('-')}" for each in one.options]
    if program == "rclone":
        return ("rclone", "mount", one.source, one.path, "--allow-other", *owner, *_read_only(one), *words)
    return (
        "mount-s3",
        "--foreground",
        "--allow-other",
        *owner,
        *_read_only(one),
        *words,
        one.source,
        one.path,
    )


def _read_only(one: Wanted) -> tuple[str, ...]:
    return ("--read-only",) if one.read_only else ()


def read_env_file(text: str) -> dict[str, str]:
    """NAME=VALUE lines; `export ` in front, quotes around a value and comments are as in a shell's file."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name or name.startswith("#"):
            continue
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name] = value
    return found
