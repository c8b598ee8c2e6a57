"""Kinds of settings of the session's life: commands, and how a workload is asked for its health."""

from __future__ import annotations

from guestd._config_kinds import Kind, Text, as_list, shown, toml_value
from guestd._config_units import is_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guestd._config_kinds import Value


class CommandLine(Kind):
    """A program and its arguments as a list, or one line for the shell as text."""

    def describe(self) -> str:
        return 'a list of words such as ["app", "--serve"], or text: one line for the shell'

    def read(self, given: object) -> Value:
        words = as_list(given)
        if words is None and isinstance(given, str) and "\0" not in given:
            return given
        if words and all(isinstance(word, str) and "\0" not in word for word in words):
            return tuple(words)
        raise self.invalid(given)

    def parse(self, text: str) -> Value:
        return self.read(toml_value(text, self) if text.lstrip().startswith("[") else text)

    def show(self, value: Value) -> str:
        return shown(value) if isinstance(value, str) else f"[{', '.join(shown(word) for word in value)}]"


class HealthCheck(Text):
    """Where a workload says how it is."""

    def describe(self) -> str:
        return 'http://ADDRESS:PORT/PATH, tcp:PORT or command:LINE, or "" for none'

    def accepts(self, text: str) -> bool:
        scheme, colon, rest = text.partition(":")
        if scheme == "tcp":
            return _is_port(rest)
        if scheme == "command":
            return bool(rest.strip())
        if scheme == "http" and rest.startswith("//"):
            return self._is_place(rest[2:].partition("/")[0]) and text.isascii() and " " not in text
        return not text and not colon

    @staticmethod
    def _is_place(place: str) -> bool:
        """An address, not a name: nothing is resolved for it. `127.0.0.1:8080`, `[::1]:8080`."""
        host, _, port = place.rpartition("]") if place.startswith("[") else place.partition(":")
        if place.startswith("["):
            port = port.removeprefix(":")
            digits = host.removeprefix("[")
            return (
                ":" in digits
                and not digits.strip("0123456789abcdefABCDEF:.")
                and (not port or _is_port(port))
            )
        parts = host.split(".")
        return (
            len(parts) == 4
            and all(is_whole(part) and int(part) < 256 for part in parts)
            and (not port or _is_port(port))
        )


def _is_port(text: str) -> bool:
    return is_whole(text) and 0 < int(text) < 65536
