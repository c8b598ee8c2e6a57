"""What `guestctl forward` is asked for: LOCAL:GUEST, as addresses. Pure.

ssh's order, since that is in everybody's fingers: [HOST:]PORT:[HOST:]PORT. A Unix socket on either side is unix:PATH.
"""

from __future__ import annotations

from typing import NamedTuple

from guestd.wire.address import UNIX_PATH_MAX, Address

FORMS = "PORT, PORT:PORT, HOST:PORT:PORT, PORT:HOST:PORT, or with unix:PATH on either side"
_LOOPBACK = "127.0.0.1"
_LOCALHOST = "localhost"
_UNIX = "unix:"


class Spec(NamedTuple):
    """Where to listen here, and where that leads in the guest."""

    local: Address
    guest: Address


def parse_spec(text: str) -> Spec:
    """`8080:3000`, `unix:/tmp/a.sock:3000`, `0:unix:/run/app.sock` and so on. ValueError says what is wrong."""
    local, guest = _halves(text)
    where = _place(text, local, _LOOPBACK)
    there = _place(text, guest, _LOCALHOST)
    if there.scheme == "tcp" and not there.port:
        raise _bad(text, "port 0 of the guest is none; 0 stands for any port on this side alone")
    return Spec(where, there)


def _halves(text: str) -> tuple[str, str]:
    if text.startswith(_UNIX):
        return _after_a_path(text)
    before, unix, path = text.partition(":" + _UNIX)
    if unix:
        return before, _UNIX + path
    parts = _parts(text)
    match parts:
        case [port]:
            return port, port
        case [one, other]:
            # HOST:PORT alone: the same port of the guest, heard there.
            return (one, other) if one.isdecimal() else (text, other)
        case [first, second, third]:
            return (first, f"{second}:{third}") if first.isdecimal() else (f"{first}:{second}", third)
        case [first, second, third, fourth]:
            return f"{first}:{second}", f"{third}:{fourth}"
        case _:
            raise _bad(text, "that has too many parts; an IPv6 address goes in brackets")


def _after_a_path(text: str) -> tuple[str, str]:
    path, unix, other = text[len(_UNIX) :].partition(":" + _UNIX)
    if unix:
        return _UNIX + path, _UNIX + other
    rest, colon, port = path.rpartition(":")
    if not colon:
        raise _bad(text, "what it leads to in the guest is missing")
    before, colon, host = rest.rpartition(":")
    # A name of a machine has no slash in it, and a path to a socket mostly has.
    if colon and "/" not in host:
        return _UNIX + before, f"{host}:{port}"
    return _UNIX + rest, port


def _parts(text: str) -> list[str]:
    """Taken apart at colons, but not within brackets."""
    parts = [""]
    inside = False
    for each in text:
        inside = each == "[" or (inside and each != "]")
        if each == ":" and not inside:
            parts.append("")
        else:
            parts[-1] += each
    return parts


def _place(text: str, half: str, usual: str) -> Address:
    if half.startswith(_UNIX):
        path = half[len(_UNIX) :]
        if not path:
            raise _bad(text, "the path is missing")
        if len(path.encode("utf-8", "surrogateescape")) > UNIX_PATH_MAX:
            raise _bad(text, f"the path is longer than the {UNIX_PATH_MAX} bytes that a socket's can have")
        return Address("unix", path=path)
    host, colon, port = half.rpartition(":")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 65536):
        raise _bad(text, f"{port!r} is no port")
    if colon and not host:
        raise _bad(text, "the host is missing")
    return Address("tcp", host=host.removeprefix("[").removesuffix("]") or usual, port=int(port))


def _bad(text: str, what: str) -> ValueError:
    return ValueError(f"{text!r}: {what}; write {FORMS}")
