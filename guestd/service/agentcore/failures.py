"""guestd's errors as AWS names them: one table, so that boto3 raises the class that its user expects. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from guestd import errors
from guestd.service.agentcore.eventstream import as_json

if TYPE_CHECKING:
    from guestd.errors import GuestdError


class Failure(NamedTuple):
    """A class of the service's model, and its status."""

    name: str
    status: int


INTERNAL = Failure("InternalServerException", 500)
WORKLOAD = Failure("RuntimeClientError", 424)
_INVALID = Failure("ValidationException", 400)
_TABLE: dict[type[GuestdError], Failure] = {
    errors.BadRequest: _INVALID,
    errors.Unsupported: _INVALID,
    errors.BadOffset: _INVALID,
    errors.FlowControl: _INVALID,
    errors.ProtocolViolation: _INVALID,
    errors.Unauthorized: Failure("UnauthorizedException", 401),
    errors.Forbidden: Failure("AccessDeniedException", 403),
    errors.NotFound: Failure("ResourceNotFoundException", 404),
    errors.Conflict: Failure("ConflictException", 409),
    # "Come back later", which boto3 does by itself: the control plane has another session by then.
    errors.ShuttingDown: Failure("RetryableConflictException", 409),
    errors.LimitReached: Failure("ThrottlingException", 429),
    errors.StartFailed: WORKLOAD,
    errors.MountFailed: WORKLOAD,
    errors.Unavailable: WORKLOAD,
    errors.ConnectionLost: WORKLOAD,
    errors.TimedOut: WORKLOAD,
    errors.PeerTooSlow: Failure("RequestTimeoutException", 408),
    errors.ConfigError: INTERNAL,
    errors.InternalError: INTERNAL,
}
#: By the status that the settings ask for.
TOO_MANY_SHELLS = {"424": WORKLOAD, "429": Failure("ThrottlingException", 429)}


class AwsError(Exception):
    """An answer that is already as AWS names it."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message


def failure_of(error: GuestdError) -> Failure:
    """The nearest entry: of its own class, else of the class that it is one of."""
    for each in type(error).__mro__:
        found = _TABLE.get(each)
        if found is not None:
            return found
    return INTERNAL


def body_of(error: GuestdError | AwsError) -> tuple[Failure, bytes]:
    """What an answer says."""
    if isinstance(error, AwsError):
        return error.failure, as_json({"message": error.message})
    failure = failure_of(error)
    said: dict[str, object] = {"message": error.message}
    if failure is _INVALID:
        field = error.details.get("field")
        said["reason"] = "FieldValidationFailed" if field else "CannotParse"
        if field:
            said["fieldList"] = [{"name": str(field), "message": error.message}]
    return failure, as_json(said)
