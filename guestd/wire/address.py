"""Addresses: `unix:PATH`, `vsock:CID:PORT`, `hybrid:PATH:PORT`, `tcp:HOST:PORT`, `ws://…`, `wss://…`, `ws+unix:PATH`.

One notation for what is listened on and what is connected to. The port may be left out: 1024.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from guestd.errors import BadRequest

DEFAULT_PORT = 1024
#: VMADDR_CID_ANY: every address of this machine.
VSOCK_ANY = 0xFFFFFFFF
_PORT_MAX = {"vsock": 0xFFFFFFFF, "hybrid": 0xFFFFFFFF}
#: sun_path has 108 bytes, the last of them NUL.
UNIX_PATH_MAX = 107

Scheme = Literal["unix", "vsock", "hybrid", "tcp", "ws", "wss", "ws+unix"]

FORMS = "unix:PATH, vsock:CID:PORT, hybrid:PATH:PORT, tcp:HOST:PORT, ws://HOST:PORT/, wss://HOST:PORT/ or ws+unix:PATH"


class Address(NamedTuple):
    """A parsed address; what a scheme does not have is empty."""

    scheme: Scheme
    path: str = ""
    host: str = ""
    port: int = 0
    cid: int = 0

    def __str__(self) -> str:
        match self.scheme:
            case "unix" | "ws+unix":
                return f"{self.scheme}:{self.path}"
            case "vsock":
                return f"vsock:{'any' if self.cid == VSOCK_ANY else self.cid}:{self.port}"
            case "hybrid":
                return f"hybrid:{self.path}:{self.port}"
            case "tcp":
                return f"tcp:{_bracketed(self.host)}:{self.port}"
            case "ws" | "wss":
                return f"{self.scheme}://{_bracketed(self.host)}:{self.port}{self.path}"


def parse_address(text: str) -> Address:
    """Parse one address, or say what is wrong with it and what would be right."""
    if "\0" in text:
        raise _bad(text, "it has a NUL in it")
    scheme, colon, rest = text.partition(":")
    if not colon:
        raise _bad(text, "there is no scheme in it")
    match scheme:
        case "unix" | "ws+unix":
            return Address(scheme, path=_path(text, rest))
        case "vsock":
            cid, _, port = rest.partition(":")
            return Address("vsock", cid=_cid(text, cid), port=_port(text, port, scheme))
        case "hybrid":
            path, colon, port = rest.rpartition(":")
            if not colon or not port.isdecimal():
                path, port = rest, ""
            return Address("hybrid", path=_path(text, path), port=_port(text, port, scheme))
        case "tcp":
            host, port = _host_port(text, rest)
            return Address("tcp", host=host, port=_port(text, port, scheme))
        case "ws" | "wss":
            if not rest.startswith("//"):
                raise _bad(text, f"after {scheme}: comes //")
            authority, slash, path = rest[2:].partition("/")
            host, port = _host_port(text, authority)
            return Address(scheme, host=host, port=_port(text, port, scheme), path=slash + path or "/")
        case _:
            raise _bad(text, f"{scheme!r} is no scheme of an address")


def _path(text: str, path: str) -> str:
    if not path:
        raise _bad(text, "the path is missing")
    size = len(path.encode("utf-8", "surrogateescape"))
    if size > UNIX_PATH_MAX:
        raise _bad(text, f"the path has {size} bytes; a socket's path can have {UNIX_PATH_MAX}")
    return path


def _cid(text: str, cid: str) -> int:
    if cid in {"any", "-1"}:
        return VSOCK_ANY
    if not _is_number(cid) or int(cid) > VSOCK_ANY:
        raise _bad(text, f"the CID {cid!r} is neither a number nor `any`")
    return int(cid)


def _port(text: str, port: str, scheme: str) -> int:
    if not port:
        return DEFAULT_PORT
    most = _PORT_MAX.get(scheme, 65535)
    if not _is_number(port) or int(port) > most:
        raise _bad(text, f"the port {port!r} is not a number from 0 to {most}")
    return int(port)


def _is_number(text: str) -> bool:
    # Ten digits hold every CID and port; `int` refuses thousands of them with an error of its own.
    return text.isascii() and text.isdecimal() and len(text) <= 10


def _host_port(text: str, rest: str) -> tuple[str, str]:
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise _bad(text, "the bracket around the IPv6 address is not closed")
        port = port[1:]
    else:
        host, _, port = rest.partition(":")
        if ":" in port:
            raise _bad(text, "an IPv6 address goes in brackets")
    if not host:
        raise _bad(text, "the host is missing")
    return host, port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bad(text: str, what: str) -> BadRequest:
    return BadRequest(f"address {text!r}: {what}; an address is {FORMS}", field="address", expected=FORMS)
