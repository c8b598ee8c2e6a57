"""The table: every row by name, with its budget and what measures it."""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import (
    boot_rows,
    client_rows,
    exec_rows,
    files_rows,
    pass_rows,
    serve_rows,
    shell_rows,
    telemetry_rows,
    term_rows,
)
from bench.measure import SubjectFailed
from bench.report import Budget, Line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.lab import Lab
    from bench.report import Measured


@dataclass(frozen=True)
class Row:
    """One line of the table, before it is measured."""

    name: str
    what: str
    unit: str
    budget: Budget | None
    measure: Callable[[Lab], Measured]

    def line(self, lab: Lab) -> Line:
        """Measure it. What fails here fails this row alone."""
        try:
            return Line(self.name, self.unit, self.budget, self.measure(lab))
        except (SubjectFailed, OSError) as error:
            return Line(self.name, self.unit, self.budget, None, unmeasured=f"not measured: {error}")


ROWS = (
    Row(
        "exec.rtt",
        "a command that does nothing, over a warm connection; p50",
        "ms",
        Budget("ratio at most", 1.6, beat_peers=True),
        exec_rows.rtt,
    ),
    Row("exec.rtt_client", "the same with the Python library; p50", "ms", None, client_rows.rtt_client),
    Row(
        "exec.rtt_user",
        "the same as another user, elsewhere, with a umask; p50",
        "ms",
        None,
        exec_rows.rtt_user,
    ),
    Row("exec.rtt_loaded", "the same beside a channel at full speed; p99", "ms", None, exec_rows.rtt_loaded),
    Row("exec.bulk", "stdout of a command", "MB/s", Budget("ratio at least", 0.5), exec_rows.bulk),
    Row("files.read", "the content of a file", "MB/s", Budget("ratio at least", 0.5), files_rows.read),
    Row("files.write", "the same the other way, without a sync", "MB/s", None, files_rows.write),
    Row(
        "term.echo",
        "a key until its echo, typed as people type; p50",
        "ms",
        Budget("ratio at most", 2, not_above=("dtach",)),
        term_rows.echo,
    ),
    Row(
        "term.echo_unpaced",
        "the same, each key as soon as the last is back",
        "ms",
        None,
        term_rows.echo_unpaced,
    ),
    Row(
        "term.echo_loaded",
        "the same beside a channel at full speed; p99",
        "ms",
        Budget("value at most", 5),
        term_rows.echo_loaded,
    ),
    Row(
        "term.isolation",
        "the same while another shell floods a watcher who does not read; p99",
        "ms",
        None,
        term_rows.isolation,
    ),
    Row("term.bulk", "output of a terminal", "MB/s", Budget("ratio at least", 0.85), term_rows.bulk),
    Row(
        "shell.attach",
        "attach and replay of 1 MiB; p50",
        "ms",
        Budget("value at most", 10),
        shell_rows.attach,
    ),
    Row(
        "shell.restore",
        "attach with a picture of a screen full of colours; p50",
        "ms",
        None,
        shell_rows.restore_screen,
    ),
    Row(
        "shell.restore_plain",
        "attach with a picture behind 256 KiB of plain output; p50",
        "ms",
        None,
        shell_rows.restore_plain,
    ),
    Row("relay.bulk", "bytes of a relay", "MB/s", Budget("ratio at least", 0.5), pass_rows.relay_bulk),
    Row(
        "forward.bulk",
        "bytes of a connection forwarded into the guest",
        "MB/s",
        Budget("ratio at least", 0.4),
        pass_rows.forward_bulk,
    ),
    Row(
        "telemetry.exec",
        "exec.rtt with telemetry, to the same without; p50",
        "ms",
        None,
        telemetry_rows.command,
    ),
    Row(
        "telemetry.exec_hanging",
        "the same with a collector that never answers",
        "ms",
        None,
        telemetry_rows.command_hanging,
    ),
    Row(
        "audit.exec",
        "exec.rtt with the audit log, to the same without; p50",
        "ms",
        None,
        telemetry_rows.audit,
    ),
    Row(
        "telemetry.lag",
        "a ping while commands run, with telemetry, to the same without; p99",
        "ms",
        None,
        telemetry_rows.lag,
    ),
    Row(
        "boot.listening",
        "from exec of `guestd init` until anybody can connect",
        "ms",
        Budget("ratio at most", 3),
        boot_rows.listening,
    ),
    Row(
        "boot.ready",
        "from exec of `guestd init` until serve is READY",
        "ms",
        Budget("ratio at most", 1.5),
        boot_rows.ready,
    ),
    Row(
        "boot.serve",
        "from exec of `guestd serve` to READY",
        "ms",
        Budget("ratio at most", 1.5),
        boot_rows.serve,
    ),
    Row(
        "mem.idle",
        "resident memory of `guestd serve`, idle",
        "MB",
        Budget("value at most", 34),
        serve_rows.idle_memory,
    ),
    Row(
        "mem.telemetry",
        "resident memory of `guestd serve` with telemetry",
        "MB",
        Budget("value at most", 48),
        telemetry_rows.memory,
    ),
    Row(
        "mem.shell",
        "resident memory of a shell that has said nothing",
        "kB",
        Budget("value at most", 64),
        shell_rows.memory,
    ),
    Row(
        "soak",
        "growth of memory over 10,000 commands and 1,000 shells; anything countable must not grow at all",
        "kB",
        Budget("value at most", serve_rows.GROWTH_LIMIT_KB),
        serve_rows.soak,
    ),
)


class UnknownRow(Exception):
    """A name that no row has."""


def chosen(names: Sequence[str]) -> list[Row]:
    """The rows by name, pattern (`exec.*`) or family (`exec`), in the table's order; all when none is
    named.
    """
    if not names:
        return list(ROWS)
    picked: set[str] = set()
    for name in names:
        found = [
            row.name for row in ROWS if any(fnmatch.fnmatchcase(row.name, p) for p in (name, f"{name}.*"))
        ]
        if not found:
            known = [row.name for row in ROWS]
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UnknownRow(f"no row is called {name!r}; {hint}")
        picked.update(found)
    return [row for row in ROWS if row.name in picked]
