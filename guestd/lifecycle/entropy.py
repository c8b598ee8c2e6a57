"""The kernel's random generator after a machine was copied: two copies must not draw the same numbers.

Entropy that the host gives is added and credited, and the generator is told to seed itself anew at once; it would else
do so within minutes. Then whatever this process has drawn for later is drawn again.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
from typing import Any

_DEVICE = "/dev/urandom"
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_HEAD = struct.Struct("ii")
#: One request of the kernel's takes no more.
ENTROPY_MAX = 4096


def reseed(entropy: bytes) -> dict[str, Any]:
    """Add it, and seed anew. Tells what was done: without the right to, it is mixed in and not counted."""
    done: dict[str, Any] = {"bytes": len(entropy), "credited": False, "reseeded": False, "why": None}
    try:
        fd = os.open(_DEVICE, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        return {**done, "why": f"{_DEVICE}: {error.strerror}"}
    try:
        if entropy:
            try:
                # As bytes it could have no more than 1024.
                request = bytearray(_HEAD.pack(8 * len(entropy), len(entropy)) + entropy)
                fcntl.ioctl(fd, _RNDADDENTROPY, request)
                done["credited"] = True
            except OSError as error:
                done["why"] = f"it could not be credited: {error.strerror}"
                os.write(fd, entropy)
        try:
            fcntl.ioctl(fd, _RNDRESEEDCRNG)
            done["reseeded"] = True
        except OSError as error:
            done["why"] = f"the generator could not be seeded anew: {error.strerror}"
    finally:
        os.close(fd)
    # What libraries draw numbers from that are to be different, and not secret.
    random.seed()
    return done
