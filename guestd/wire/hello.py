"""The first words of both sides: version, features, limits, and who is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guestd.errors import VersionMismatch
from guestd.wire.frames import FRAME_LIMIT, VERSION
from guestd.wire.messages import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What a side that does not say may be sent on a channel before it must send CREDIT.
DEFAULT_WINDOW = 256 * 1024
_LEAST_FRAME = 16 * 1024


@dataclass(frozen=True, slots=True)
class Hello:
    """`frame`: the longest frame its sender takes. `window`: the credit its sender gives on each channel."""

    agent: str
    version: int = VERSION
    features: tuple[str, ...] = ()
    frame: int = FRAME_LIMIT
    window: int = DEFAULT_WINDOW
    channels: int = 0
    token: str | None = field(default=None, repr=False)
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_map(self) -> dict[str, object]:
        fields: dict[str, object] = {
            **self.identity,
            "version": self.version,
            "agent": self.agent,
            "features": list(self.features),
            "limits": {"frame": self.frame, "window": self.window, "channels": self.channels},
        }
        if self.token is not None:
            fields["token"] = self.token
        return fields

    @classmethod
    def from_map(cls, fields: Mapping[str, Any]) -> Hello:
        read = Fields(fields)
        version = read.integer("version", least=0)
        if version < VERSION:
            raise VersionMismatch(
                f"the peer speaks protocol version {version}; this one needs {VERSION} or later"
            )
        limits = Fields(read.mapping("limits"))
        known = {"version", "agent", "features", "limits", "token"}
        return cls(
            agent=read.text("agent", "unknown", most=256),
            version=min(version, VERSION),
            features=tuple(read.texts("features", [])),
            frame=limits.integer("frame", FRAME_LIMIT, least=_LEAST_FRAME, most=2**31),
            window=limits.integer("window", DEFAULT_WINDOW, most=2**40),
            channels=limits.integer("channels", 0),
            token=read.text("token", None, most=4096),
            identity={name: value for name, value in fields.items() if name not in known},
        )
