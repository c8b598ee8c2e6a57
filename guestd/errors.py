"""Every failure guestd can name: its wire code, its exit status and its HTTP status, in one place.

An error here is something a person can act on: the message says what was asked, what is wrong and what
would be right. `details` are the same facts for programs, and travel with the message over the wire.
Nothing in this room does I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class GuestdError(Exception):
    """The base. `code` is stable and is what other languages match on."""

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 125
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = {
            name: value for name, value in details.items() if value is not None
        }

    def to_map(self) -> dict[str, object]:
        """What REJECT, RESET and GOAWAY carry."""
        return {**self.details, "code": self.code, "message": self.message}


class InternalError(GuestdError):
    """A mistake of guestd's own. The log of the supervisor has the traceback."""


class BadRequest(GuestdError):
    """A field of a request is missing or is not what it should be."""

    code = "bad_request"
    http_status = 400

    def __init__(self, message: str, *, field: str | None = None, expected: str | None = None) -> None:
        super().__init__(message, field=field, expected=expected)


class Unsupported(GuestdError):
    """An operation or a feature this guestd does not have."""

    code = "unsupported"
    http_status = 400


class NotFound(GuestdError):
    """No job, file or mount of that name."""

    code = "not_found"
    http_status = 404


class Conflict(GuestdError):
    """The id is taken by something else."""

    code = "conflict"
    http_status = 409


class LimitReached(GuestdError):
    """A bound was reached; names the bound and the setting that moves it."""

    code = "limit"
    http_status = 429

    def __init__(self, message: str, *, limit: int | None = None, setting: str | None = None) -> None:
        super().__init__(message, limit=limit, setting=setting)


class Unauthorized(GuestdError):
    """A token is needed and was not given, or is wrong."""

    code = "unauthorized"
    http_status = 401


class Forbidden(GuestdError):
    """This peer may not connect here at all."""

    code = "forbidden"
    http_status = 403


class FlowControl(GuestdError):
    """The peer sent more than it had credit for."""

    code = "flow_control"
    http_status = 400


class BadOffset(GuestdError):
    """Input that leaves a hole: its offset is beyond what has arrived."""

    code = "bad_offset"
    http_status = 400


class FileFailed(GuestdError):
    """What was asked of a file cannot be done; `errno_name` is the kernel's word, `path` what it is about."""

    code = "file"
    http_status = 422


class Corrupt(GuestdError):
    """What arrived is not what was sent: their digests differ."""

    code = "digest"
    http_status = 422


class ProtocolViolation(GuestdError):
    """The peer does not speak the protocol. Ends its connection and touches nothing else."""

    code = "protocol"
    http_status = 400


class VersionMismatch(ProtocolViolation):
    """No protocol version both sides know."""

    code = "version"


class ShuttingDown(GuestdError):
    """The session is ending: nothing new is started."""

    code = "shutting_down"
    http_status = 503


class TimedOut(GuestdError):
    """What was waited for did not happen in time. The command's own timeout is a result, not an error."""

    code = "timeout"
    exit_status = 124
    http_status = 504


class PeerTooSlow(GuestdError):
    """The peer stopped reading, or never finished what it began to say."""

    code = "too_slow"
    http_status = 408


class Unavailable(GuestdError):
    """Nobody answers at the address (client side)."""

    code = "unavailable"
    http_status = 503


class ConnectionLost(GuestdError):
    """The connection ended before the answer (client side). What was started goes on in the guest."""

    code = "lost"
    http_status = 502


class MountFailed(GuestdError):
    """A file system could not be mounted or unmounted, or work needs one that is not there."""

    code = "mount_failed"
    http_status = 424


class Refused(GuestdError):
    """Nobody takes the connection that is to be passed on: no program listens there, or it does not answer."""

    code = "refused"
    http_status = 503


class BrokenOff(GuestdError):
    """The other end of a connection that was passed on broke it off: what came of it may not be all."""

    code = "broken_off"
    http_status = 502


class ConfigError(GuestdError):
    """The configuration cannot be used; the message says which key, where, and what would be right."""

    code = "config"


class StartFailed(GuestdError):
    """A process could not be started: an outcome of its own, different from started and failed.

    `stage` says how far it got; `errno` is the kernel's word.
    """

    code = "not_started"

    def __init__(self, message: str, *, stage: str, errno: int | None = None) -> None:
        super().__init__(message, stage=stage, errno=errno)
        self.stage = stage
        self.errno = errno


_BY_CODE: dict[str, type[GuestdError]] = {
    cls.code: cls
    for cls in (
        InternalError, BadRequest, Unsupported, NotFound, Conflict, LimitReached, Unauthorized, Forbidden,
        FlowControl, BadOffset, FileFailed, Corrupt, ProtocolViolation, VersionMismatch, ShuttingDown, TimedOut,
        PeerTooSlow, Unavailable, ConnectionLost, MountFailed, Refused, BrokenOff, ConfigError,
    )
}  # fmt: skip


def from_map(fields: Mapping[str, object]) -> GuestdError:
    """The error a peer sent. An unknown code keeps its message and becomes an InternalError."""
    cls = _BY_CODE.get(str(fields.get("code")), InternalError)
    error = cls.__new__(cls)
    GuestdError.__init__(error, str(fields.get("message", "no message was given")))
    error.details.update((name, value) for name, value in fields.items() if name not in {"code", "message"})
    return error


def leaves(group: BaseExceptionGroup[GuestdError]) -> Iterator[GuestdError]:
    """The errors in a group, however deep the nurseries were."""
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from leaves(each)
        else:
            yield each
