"""libc's posix_spawn, called so that nobody else waits for it.

`os.posix_spawn` keeps the interpreter's lock while the kernel opens the program. On a file system that hangs,
that is the whole supervisor hanging. Called through ctypes the lock is free: only the calling thread waits.
Like every vfork it copies no page tables: 0.1 ms whatever the size of this process.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_libc = ctypes.CDLL(None)

# The sizes of posix_spawnattr_t (336 in glibc and musl), posix_spawn_file_actions_t (80) and sigset_t (128),
# with room.
_ATTR_SIZE, _ACTIONS_SIZE, _SIGSET_SIZE = 512, 256, 128
_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80


def _attributes() -> ctypes.Array[ctypes.c_char]:
    """A session of its own, no signal blocked, and none ignored.

    All signals, not only the SIGPIPE and SIGXFSZ that Python ignores: whoever started the supervisor
    may have ignored others (nohup, a shell's `&`), and ignored signals survive an exec.
    """
    attributes = ctypes.create_string_buffer(_ATTR_SIZE)
    every = ctypes.create_string_buffer(_SIGSET_SIZE)
    none = ctypes.create_string_buffer(_SIGSET_SIZE)
    _libc.posix_spawnattr_init(attributes)
    # Not sigfillset, which leaves out the two signals that libc keeps for itself: those posix_spawn would have ignored.
    ctypes.memset(every, 0xFF, _SIGSET_SIZE)
    _libc.sigemptyset(none)
    _libc.posix_spawnattr_setsigdefault(attributes, every)
    _libc.posix_spawnattr_setsigmask(attributes, none)
    _libc.posix_spawnattr_setflags(attributes, ctypes.c_short(_SETSIGDEF | _SETSIGMASK | _SETSID))
    return attributes


_ATTRIBUTES = _attributes()


def posix_spawn(
    program: str,
    argv: Sequence[bytes],
    env: Mapping[bytes, bytes],
    fds: Mapping[int, int | None],
) -> int:
    """Start `program` in a session of its own; returns its pid. Raises OSError with the kernel's errno.

    `fds`: for each descriptor of the child the one here that it is, or None for closed. All others must be
    close-on-exec, as Python makes them.
    """
    actions = ctypes.create_string_buffer(_ACTIONS_SIZE)
    _libc.posix_spawn_file_actions_init(actions)
    try:
        for target, source in fds.items():
            if source is None:
                _libc.posix_spawn_file_actions_addclose(actions, target)
            else:
                _libc.posix_spawn_file_actions_adddup2(actions, source, target)
        arguments = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
        words = [name + b"=" + value for name, value in env.items()]
        environment = (ctypes.c_char_p * (len(words) + 1))(*words, None)
        pid = ctypes.c_int()
        error = _libc.posix_spawn(
            ctypes.byref(pid),
            os.fsencode(program),
            actions,
            _ATTRIBUTES,
            arguments,
            environment,
        )
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)
    if error:
        raise OSError(error, os.strerror(error), program)
    return pid.value
