"""The bench measures what it says, and says what it could not measure. Its figures are nobody's business here."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from bench.measure import Subject, SubjectFailed, interleave, patience
from bench.report import Budget, Line, Measured, table
from bench.terminals import Terminal, Typist

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {"name", "value", "unit", "floor", "ratio", "budget", "ok", "peers"}
ROWS = [
    "exec.rtt",
    "exec.rtt_client",
    "exec.rtt_user",
    "exec.rtt_loaded",
    "exec.bulk",
    "files.read",
    "files.write",
    "term.echo",
    "term.echo_unpaced",
    "term.echo_loaded",
    "term.isolation",
    "term.bulk",
    "shell.attach",
    "shell.restore",
    "shell.restore_plain",
    "relay.bulk",
    "forward.bulk",
    "telemetry.exec",
    "telemetry.exec_hanging",
    "audit.exec",
    "telemetry.lag",
    "boot.listening",
    "boot.ready",
    "boot.serve",
    "mem.idle",
    "mem.telemetry",
    "mem.shell",
    "soak",
]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_row_is_measured_and_printed_as_one_json_object_a_line() -> None:
    done = bench("--quick", "--json", "--no-peers")
    lines = [cast("dict[str, Any]", json.loads(line)) for line in done.stdout.splitlines()]
    assert [line["name"] for line in lines] == ROWS, done.stderr
    for line in lines:
        assert line.keys() >= FIELDS
        assert isinstance(line["value"], (int, float)), line
        assert isinstance(line["peers"], dict)
        assert line["ratio"] is None or line["floor"] > 0
    assert done.returncode == (0 if all(line["ok"] for line in lines) else 1)


def test_rows_are_chosen_by_name_and_a_wrong_name_gets_the_nearest_right_one() -> None:
    done = bench("--quick", "--no-peers", "mem")
    assert [line.split()[0] for line in done.stdout.split("\n\n")[0].splitlines()] == [
        "name",
        "mem.idle",
        "mem.telemetry",
        "mem.shell",
    ]
    wrong = bench("--quick", "exec.rt")
    assert wrong.returncode == 2
    assert "did you mean exec.rtt?" in wrong.stderr


def test_a_multiplexer_has_a_figure_in_every_row_that_asks_it_or_a_reason_why_not() -> None:
    done = bench("--quick", "--json", "term.echo", "term.echo_unpaced", "term.bulk")
    for line in done.stdout.splitlines():
        row = cast("dict[str, Any]", json.loads(line))
        assert {*row["peers"], *row["absent"]} == {"dtach", "screen", "tmux"}, row
        for name in ("dtach", "screen", "tmux"):
            if shutil.which(name):
                assert row["peers"].get(name, 0) > 0, row


def test_a_bare_terminal_shows_what_its_program_prints_to_the_last_byte_and_how_it_ended() -> None:
    with Terminal(["/bin/sh", "-c", "stty raw; head -c 300000 /dev/zero; exit 7"]) as terminal:
        assert terminal.read_all() == 300_000
        assert terminal.wait() == 7


def test_a_program_on_a_terminal_that_ends_or_never_answers_is_a_failure_and_no_hang() -> None:
    with Terminal(["/bin/sh", "-c", "stty raw -echo; echo ready; exec sleep infinity"]) as terminal:
        terminal.read_until(b"ready")
        with pytest.raises(SubjectFailed, match="nothing came"), patience(0.05):
            terminal.echo(b"x")
    # Without its own echo: the kernel's may still answer when the program has gone.
    with Terminal(["/bin/sh", "-c", "stty -echo"]) as terminal:
        assert terminal.wait() == 0
        with pytest.raises(SubjectFailed, match="has ended"), patience():
            terminal.echo(b"x")


def test_a_terminal_that_is_left_takes_its_program_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.terminals._STOP_LIMIT", 0.05)
    with Terminal(["/bin/sh", "-c", "trap '' HUP; echo ready; exec sleep infinity"]) as terminal:
        terminal.read_until(b"ready")
        pid = terminal.pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_no_key_is_typed_twice_in_a_row_and_the_pauses_are_those_of_a_person() -> None:
    typist = Typist()
    keys = [typist.key for _ in range(10)]
    assert all(key != after for key, after in itertools.pairwise(keys))
    assert all(0.005 <= typist.pause <= 0.015 for _ in range(100))


def test_a_guestd_that_does_not_come_up_is_a_row_not_kept(tmp_path: Path) -> None:
    (tmp_path / "guestd").mkdir()
    (tmp_path / "guestd" / "__init__.py").write_text("")
    (tmp_path / "guestd" / "__main__.py").write_text("raise SystemExit('no guest today')")
    code = (
        "import sys, bench.__main__, bench.lab\n"
        "enter = bench.lab.Lab.__enter__\n"
        "def with_another_guestd(lab):\n"
        f"    lab.environment['PYTHONPATH'] = {str(tmp_path)!r}\n"
        "    return enter(lab)\n"
        "bench.lab.Lab.__enter__ = with_another_guestd\n"
        "sys.argv[1:] = ['--quick', '--json', '--no-peers', 'soak']\n"
        "sys.exit(bench.__main__.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    line = json.loads(done.stdout)
    assert done.returncode == 1
    assert line["ok"] is False
    assert line["value"] is None
    assert "no guest today" in line["problems"][0]


def test_subjects_take_turns_and_each_round_begins_with_the_next() -> None:
    order: list[str] = []

    def sampled(name: str) -> float:
        order.append(name)
        return float(len(order))

    subjects = [Subject(name, lambda name=name: sampled(name)) for name in "ab"]
    taken = interleave(subjects, rounds=2, block=2)
    # One round is thrown away; what remains is as many figures as asked for.
    assert "".join(order) == "bbaa" + "aabb" + "bbaa"
    assert {name: len(samples) for name, samples in taken.samples.items()} == {"a": 4, "b": 4}


def test_a_peer_that_fails_falls_out_with_its_reason_and_guestd_does_not() -> None:
    def broken() -> float:
        raise SubjectFailed("it hung up")

    taken = interleave(
        [Subject("floor", lambda: 1.0), Subject("peer", broken, optional=True)], rounds=3, block=1
    )
    assert len(taken["floor"]) == 3
    assert "it hung up" in taken.failed["peer"]
    assert "peer" not in taken.samples
    with pytest.raises(SubjectFailed):
        interleave([Subject("guestd", broken)], rounds=1, block=1)


@pytest.mark.parametrize(
    ("budget", "measured", "kept"),
    [
        (Budget("ratio at most", 1.6), Measured(1.5, floor=1.0), True),
        (Budget("ratio at most", 1.6), Measured(1.7, floor=1.0), False),
        (Budget("ratio at most", 1.6), Measured(1.0), False),
        (Budget("ratio at least", 0.5), Measured(600, floor=1000), True),
        (Budget("ratio at least", 0.5), Measured(400, floor=1000), False),
        (Budget("value at most", 34), Measured(33.9, floor=26), True),
        (Budget("value at most", 34), Measured(34.1, floor=26), False),
        (Budget("ratio at most", 1.6, beat_peers=True), Measured(1.0, floor=1.0, peers={"p": 1.1}), True),
        (Budget("ratio at most", 1.6, beat_peers=True), Measured(1.2, floor=1.0, peers={"p": 1.1}), False),
        (Budget("ratio at most", 2, not_above=("p",)), Measured(1, floor=1, peers={"p": 1, "q": 0.5}), True),
        (Budget("ratio at most", 2, not_above=("p",)), Measured(1.1, floor=1, peers={"p": 1}), False),
        (Budget("ratio at most", 2, not_above=("p",)), Measured(1, floor=1, absent={"p": "not here"}), True),
        (Budget("value at most", 10), Measured(1, faults=["2 more open files"]), False),
        (None, Measured(1e9), True),
    ],
)
def test_a_verdict_follows_from_the_figures(budget: Budget | None, measured: Measured, *, kept: bool) -> None:
    line = Line("row", "ms", budget, measured)
    assert line.ok is kept
    assert bool(line.problems) is not kept


def test_the_table_is_aligned_and_names_who_is_absent() -> None:
    lines = [
        Line("a.long_name", "ms", Budget("ratio at most", 2), Measured(1, floor=1, absent={"p": "not here"})),
        Line("b", "MB", None, None, unmeasured="not measured: because"),
    ]
    heading, first, second, _, *notes = table(lines).splitlines()
    column = heading.index("unit")
    assert first[column : column + 2] == "ms"
    assert second[column : column + 2] == "MB"
    assert notes == ["a.long_name: without p: not here", "b: not measured: because"]
