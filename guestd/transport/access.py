"""Who may connect. Nothing that runs in the guest can drive the supervisor, unless the configuration says so.

- vsock: the host, CID 2. A process of the guest that comes over the loopback transport has another CID.
- unix: root, the supervisor's own user, and `access.unix_uids`; the socket's mode keeps others out before
  that.
- tcp: this machine's loopback, or anybody with the token; without a token guestd does not listen beyond
  loopback.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from guestd.errors import ConfigError, Forbidden, Unauthorized

if TYPE_CHECKING:
    from guestd.config import Settings
    from guestd.wire.hello import Hello

_UCRED = struct.Struct("3i")
_TOKEN_LEAST = 16
_OTHERS = 0o077


class Access:
    """The rules of one supervisor."""

    def __init__(self, settings: Settings) -> None:
        self._uids = {0, os.geteuid(), *settings.access.unix_uids}
        self._cids = set(settings.access.vsock_cids)
        self._token = read_token(settings.token_file) if settings.token_file else None
        surface = settings.agentcore.token_file
        self._surface_token = read_token(surface) if surface else None

    @property
    def has_token(self) -> bool:
        return self._token is not None

    def describe(self, sock: socket.socket) -> str:
        """Who is there, in words."""
        if sock.family == socket.AF_UNIX:
            pid, uid, _ = credentials(sock)
            return f"unix uid {uid} pid {pid}"
        where = sock.getpeername()
        return f"{'vsock cid' if sock.family == socket.AF_VSOCK else 'tcp'} {where[0]} port {where[1]}"

    def check_peer(self, sock: socket.socket) -> None:
        """Forbidden if this peer may not be here at all."""
        if sock.family == socket.AF_UNIX:
            _, uid, _ = credentials(sock)
            if uid not in self._uids:
                raise Forbidden(f"uid {uid} may not connect here; access.unix_uids lists who else may")
        elif sock.family == socket.AF_VSOCK:
            cid, _ = sock.getpeername()
            if cid not in self._cids:
                raise Forbidden(f"CID {cid} may not connect here; the host is 2 (access.vsock_cids)")

    def token_for(self, family: int) -> bytes | None:
        """What is asked for over sockets of that family."""
        return self._token if family in {socket.AF_INET, socket.AF_INET6} else None

    def http_token_for(self, family: int) -> bytes | None:
        """What requests over HTTP have to bring over those."""
        return self._surface_token or self.token_for(family)

    def check_hello(self, family: int, hello: Hello) -> None:
        """The token, where one is asked for: over TCP. The comparison takes as long whatever is given."""
        token = self.token_for(family)
        if token is None:
            return
        import hmac

        given = (hello.token or "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, token):
            raise Unauthorized(
                "this listener wants a token: the one in the guest's token_file, in HELLO `token`"
            )


def credentials(sock: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of whoever connected, by the kernel's word."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def read_token(path: str) -> bytes:
    """The token in a file; refuses what is as good as none."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read().strip()
    except OSError as error:
        raise ConfigError(f"token_file {path!r}: {error.strerror}") from None
    if mode & _OTHERS:
        raise ConfigError(
            f"token_file {path!r}: others than its owner can access it; chmod 600 it, or use another one"
        )
    if len(token) < _TOKEN_LEAST:
        raise ConfigError(
            f"token_file {path!r}: a token has at least {_TOKEN_LEAST} characters; this has {len(token)}"
        )
    return token
