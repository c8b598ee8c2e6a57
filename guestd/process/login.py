"""How a person's shell is started: its words, and what its environment has besides.

Promises. It reads the files that it would read by itself, and no others of the user's; the user's files are not
touched, and nothing of guestd's is in the environment that they see. A login shell keeps the container's PATH: what
/etc/profile drops of it is put back before the user's own files have their word. With `integration`, bash and zsh mark
what is typed (see guestd/terminal/marks.py).

All that the scripts in guestd/shells do, in the shell itself. Each shell has one way to be given a script before the
user's files:

- bash reads ENV, and nothing else, in posix mode, which the script leaves at once;
- zsh reads its first file where ZDOTDIR says;
- a plain sh reads ENV, but as a login shell only after all else. So it is not started as one, but reads in the
  script what one would read. That it has no dash before its name is all that can be told of it.

Where a script would not be read, the shell is started as anybody would. fish marks by itself, and other shells are
only started.

Standard library only, and no process is started.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_SCRIPTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "shells")
_PLAIN = frozenset({"sh", "dash", "ash"})
#: What a shell would expand in the value of ENV.
_EXPANDED = frozenset("$`\\\"'")


def starting(
    shell: str,
    env: Mapping[bytes, bytes],
    *,
    login: bool,
    integration: bool,
    uid: int | None = None,
    scripts: str = _SCRIPTS,
) -> tuple[list[str], dict[bytes, bytes]]:
    """The words that start `shell` on a terminal, and what to set in its environment, which is `env` otherwise.
    `uid` is whose shell it is; None means that it may be anybody's.
    """
    name = os.path.basename(shell)
    plainly = (["-" + name, "-l"] if name == "fish" else ["-" + name]) if login else [name]
    if not (login or integration):
        return plainly, {}
    words = plainly
    if name == "bash":
        # In an environment that asks for posix mode bash is to stay in it, and there it reads no profile.
        if b"POSIXLY_CORRECT" in env:
            return plainly, {}
        script, variable, changes = "bash-start.sh", b"ENV", {b"POSIXLY_CORRECT": b"1"}
    elif name == "zsh":
        script, variable, changes = os.path.join("zsh", ".zshenv"), b"ZDOTDIR", dict[bytes, bytes]()
    elif name in _PLAIN and login:
        script, variable, changes = "sh-start.sh", b"ENV", dict[bytes, bytes]()
        words = [name]
    else:
        return plainly, {}
    path = os.path.join(scripts, script)
    if not _EXPANDED.isdisjoint(path) or not _may_read(path, uid):
        return plainly, {}
    changes[variable] = os.fsencode(path if variable == b"ENV" else os.path.dirname(path))
    if variable in env:
        changes[b"GUESTD_SHELL_" + variable] = env[variable]
    if integration and name not in _PLAIN:
        changes[b"GUESTD_SHELL_MARKS"] = b"1"
    return words, changes


def _may_read(path: str, uid: int | None) -> bool:
    """May this user, or anybody, read the file, through all its folders? Groups do not count: a package is
    everybody's or its owner's.
    """
    if uid == 0:
        return os.path.exists(path)
    need = stat.S_IRUSR
    while True:
        try:
            status = os.stat(path)
        except OSError:
            return False
        if not status.st_mode & (need if status.st_uid == uid else need >> 6):
            return False
        parent = os.path.dirname(path)
        if parent == path:
            return True
        path, need = parent, stat.S_IXUSR
