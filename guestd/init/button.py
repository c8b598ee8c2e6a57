"""The machine's power button: a hypervisor's way to ask for an end in order (ACPI). The kernel tells of it as a key.

Where a driver for such keys is loaded (evdev), a device with a power key is watched. Where nobody watches, the kernel
does nothing at all, and the host waits in vain.
"""

from __future__ import annotations

import os
import struct

_INPUT = "/sys/class/input"
#: struct input_event: a time of two longs, type, code, value.
_EVENT = struct.Struct("llHHi")
_KEY, _POWER, _PRESSED = 1, 116, 1
_WORD_BITS = 64
_AT_ONCE = 64


def find() -> list[int]:
    """Descriptors of all devices that have one, open for reading."""
    found: list[int] = []
    try:
        names = sorted(os.listdir(_INPUT))
    except OSError:
        return found
    for name in names:
        if name.startswith("event") and _has_power(f"{_INPUT}/{name}/device/capabilities/key"):
            try:
                found.append(os.open(f"/dev/input/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError:
                continue
    return found


def _has_power(path: str) -> bool:
    """The kernel writes a set of bits as hexadecimal words, the highest first."""
    try:
        with open(path, encoding="ascii") as file:
            words = file.read().split()
    except OSError:
        return False
    at = len(words) - 1 - _POWER // _WORD_BITS
    return at >= 0 and bool(int(words[at], 16) >> _POWER % _WORD_BITS & 1)


def pressed(fd: int) -> bool:
    """Has it been pressed since? OSError when the device is gone."""
    found = False
    while True:
        try:
            data = os.read(fd, _EVENT.size * _AT_ONCE)
        except BlockingIOError:
            return found
        if not data:
            return found
        for at in range(0, len(data) - _EVENT.size + 1, _EVENT.size):
            _, _, kind, code, value = _EVENT.unpack_from(data, at)
            found = found or (kind, code, value) == (_KEY, _POWER, _PRESSED)
