"""How a job ended, as it travels: exact, or `unknown` with the reason; never invented."""

from __future__ import annotations

import errno as errno_names
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Outcome(StrEnum):
    """The ways a job can end."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMED_OUT = "timed_out"
    NOT_STARTED = "not_started"
    OOM_KILLED = "oom_killed"
    UNKNOWN = "unknown"


class EndedBy(StrEnum):
    """Who ended it, when it did not end by itself."""

    KILL = "kill"
    TIMEOUT = "timeout"
    DISCONNECT = "disconnect"
    STOP = "stop"
    #: A shell that nobody used for its `idle_timeout`, or that has had its `lifetime`.
    IDLE = "idle"
    LIFETIME = "lifetime"


#: Exit statuses of `guestctl exec` that are not the command's own.
TIMED_OUT_STATUS = 124
FAILED_STATUS = 125
NOT_EXECUTABLE_STATUS = 126
NOT_FOUND_STATUS = 127
_SIGNAL_BASE = 128


def _processes() -> dict[str, Any]:
    return {"count": 0, "processes": []}


@dataclass(slots=True)
class Result:
    """Everything that is known about the end of a job. Field by field what END carries."""

    id: str
    outcome: Outcome
    kind: str = "command"
    code: int | None = None
    signal: int | None = None
    ended_by: EndedBy | None = None
    stage: str | None = None
    errno: int | None = None
    message: str | None = None
    pid: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    started_mono: float | None = None
    ended_mono: float | None = None
    cpu_user: float | None = None
    cpu_system: float | None = None
    peak_memory: int | None = None
    streams: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    input: dict[str, int] = field(default_factory=dict[str, int])
    #: Left running on purpose; had to be killed; could not be reached. Each counted, with the first few by name.
    left: dict[str, Any] = field(default_factory=_processes)
    killed: dict[str, Any] = field(default_factory=_processes)
    unreached: dict[str, Any] = field(default_factory=_processes)
    #: Streams that something still holds open.
    held: list[str] = field(default_factory=list[str])

    @property
    def status(self) -> int:
        """The exit status by the shells' convention, as `guestctl exec` ends with it."""
        match self.outcome:
            case Outcome.EXITED:
                return self.code if self.code is not None else FAILED_STATUS
            case Outcome.TIMED_OUT:
                return TIMED_OUT_STATUS
            case Outcome.SIGNALED | Outcome.OOM_KILLED:
                return _SIGNAL_BASE + (self.signal or 0)
            case Outcome.NOT_STARTED if self.stage == "exec":
                if self.errno == errno_names.ENOENT:
                    return NOT_FOUND_STATUS
                return NOT_EXECUTABLE_STATUS
            case _:
                return FAILED_STATUS

    @property
    def duration(self) -> float | None:
        if self.started_mono is None or self.ended_mono is None:
            return None
        return self.ended_mono - self.started_mono

    def to_map(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in _FIELDS}
        found["outcome"] = self.outcome.value
        found["ended_by"] = self.ended_by.value if self.ended_by else None
        found["status"] = self.status
        found["duration"] = self.duration
        if self.errno is not None:
            found["errno_name"] = errno_names.errorcode.get(self.errno, str(self.errno))
        if self.signal is not None:
            found["signal_name"] = signal_name(self.signal)
        return found

    @classmethod
    def from_map(cls, found: Mapping[str, Any]) -> Result:
        """Read one that a peer sent; what a newer peer adds is ignored."""
        known = {each.name for each in fields(cls)}
        kept = {name: value for name, value in found.items() if name in known}
        try:
            kept["outcome"] = Outcome(kept.get("outcome"))
        except ValueError:
            kept["message"] = (
                f"the guest reported the outcome {kept.get('outcome')!r}, which this client does not know"
            )
            kept["outcome"] = Outcome.UNKNOWN
        ended_by = kept.get("ended_by")
        kept["ended_by"] = next((each for each in EndedBy if each.value == ended_by), None)
        kept.setdefault("id", "")
        return cls(**kept)


_FIELDS = tuple(each.name for each in fields(Result))


def signal_name(number: int) -> str:
    """SIGTERM for 15; SIGRTMIN+3 for what has no name of its own. Without importing `signal`, which costs start-up."""
    return _SIGNALS.get(number) or f"SIG{number}"


def signal_number(text: str) -> int | None:
    """15 for `15`, `TERM`, `SIGTERM` or `sigterm`; None for what is no signal."""
    if text.isascii() and text.isdecimal():
        # `int` refuses thousands of digits with an error of its own.
        number = int(text) if len(text) <= 3 else 0
        return number if 0 < number <= _SIGNAL_MAX else None
    name = text.upper()
    if not name.startswith("SIG"):
        name = "SIG" + name
    return _NUMBERS.get(name)


# Linux, the generic numbering (x86, arm, riscv). The two architectures that differ, mips and sparc, have no microVMs.
_NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU "
    "URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)
_SIGNALS = {number: "SIG" + name for number, name in enumerate(_NAMES.split(), start=1)}
_SIGNALS.update({34 + more: f"SIGRTMIN+{more}" if more else "SIGRTMIN" for more in range(31)})
_NUMBERS = {name: number for number, name in _SIGNALS.items()}
_SIGNAL_MAX = 64
