"""The bearer token of a request: in Authorization, in a header of guestd's own, or as browsers must bring it. Pure."""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    Headers = Sequence[tuple[bytes, bytes]]

#: For clients whose Authorization is a signature.
OWN_HEADER = b"x-guestd-token"
_AUTHORIZATION = b"authorization"
_SUBPROTOCOL = b"sec-websocket-protocol"
_IN_SUBPROTOCOL = b"base64urlbearerauthorization."


def admits(headers: Headers, token: bytes) -> bool:
    """Is it there? The comparison takes as long whatever is given."""
    return any(hmac.compare_digest(given, token) for given in _given(headers))


def without(headers: Headers, token: bytes | None) -> list[tuple[bytes, bytes]]:
    """The headers as they may go into the guest: not with what opens guestd, nor with a signature for somebody else."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        lower = name.lower()
        if lower in {OWN_HEADER, b"x-amz-security-token"} or (
            lower == _AUTHORIZATION and value[:5].upper() == b"AWS4-"
        ):
            continue
        if token is not None and any(hmac.compare_digest(given, token) for given in _given([(lower, value)])):
            if lower != _SUBPROTOCOL:
                continue
            words = [word for word in _words(value) if not word.lower().startswith(_IN_SUBPROTOCOL)]
            if not words:
                continue
            kept.append((name, b", ".join(words)))
            continue
        kept.append((name, value))
    return kept


def _given(headers: Headers) -> list[bytes]:
    found: list[bytes] = []
    for name, value in headers:
        lower = name.lower()
        if lower == OWN_HEADER:
            found.append(value.strip())
        elif lower == _AUTHORIZATION and value[:7].lower() == b"bearer ":
            found.append(value[7:].strip())
        elif lower == _SUBPROTOCOL:
            found += [
                _decoded(word[len(_IN_SUBPROTOCOL) :])
                for word in _words(value)
                if word.lower().startswith(_IN_SUBPROTOCOL)
            ]
    return found


def _words(value: bytes) -> list[bytes]:
    return [word.strip() for word in value.split(b",")]


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        return b""
