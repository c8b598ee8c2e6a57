"""guestctl against a running guestd: its statuses, its bytes, its signals, and its way back after a lost connection."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import tty
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

import guestd
from tests.support.server import serving

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from tests.support.server import Server

EVERY_BYTE = bytes(range(256))
#: Far above what anything here takes: a hang is to become a failure.
PATIENCE = 60


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("unix:{}/guestd.sock", environment={"GUESTD_COMMAND_GRACE": "20"}) as server:
        # What starts commands for other users starts with the first of them, and is no test's own.
        guestctl(server.address, "exec", "--nice", "1", "--", "true")
        yield server


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "PYTHONPATH": str(Path(guestd.__file__).parents[1]), "PYTHONWARNINGS": "error", **more}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "guestd.ctl", *arguments]


def guestctl(address: str, *arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run guestctl to its end."""
    return subprocess.run(
        command(*arguments), env=environment(GUESTD_TO=address), input=input, capture_output=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip


@contextmanager
def started(
    address: str, *arguments: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE
) -> Generator[subprocess.Popen[bytes]]:
    """A guestctl that runs; ended by force when the test has left it running."""
    with subprocess.Popen(
        command(*arguments),
        env=environment(GUESTD_TO=address),
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


# ------------------------------------------------------------------------------------------------------- statuses


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--", "true"], 0, b""),
        (["--", "sh", "-c", "exit 7"], 7, b""),
        (["exit 255"], 255, b""),
        (["kill -9 $$"], 137, b""),
        (["kill -TERM $$"], 143, b""),
        (["--timeout", "0.1", "--", "sleep", "1000"], 124, b"guestctl: timed out"),
        (["--", "no-such-program"], 127, b"(exec, ENOENT)"),
        (["--", "/etc/passwd"], 126, b"(exec, EACCES)"),
        (["--cwd", "/none", "--", "true"], 125, b"(cwd, ENOENT)"),
        (["--user", "nobody-here", "--", "true"], 125, b"could not start: there is no user 'nobody-here'"),
        (["--nice", "77", "--", "true"], 125, b"expected: a whole number from -20 to 19"),
        (["# nothing but a comment"], 0, b""),
        (["--", ""], 127, b"could not start"),
    ],
)
def test_exec_ends_as_the_command_ends(
    server: Server, arguments: list[str], status: int, said: bytes
) -> None:
    done = guestctl(server.address, "exec", *arguments)
    assert done.returncode == status, done
    assert done.stdout == b""
    assert said in done.stderr
    assert bool(done.stderr) == bool(said)
    assert done.stderr.count(b"\n") <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["exec", "several", "words"], b"guestctl exec [OPTIONS] -- several words"),
        (["exec"], b"no command"),
        (["exec", "--"], b"nothing stands behind --"),
        (["exec", "stray", "--", "true"], b"'stray' stands before --"),
        (["exec", "-i", "--detach", "--", "cat"], b"cannot have -i"),
        (["exec", "--tape", "much", "--", "true"], b"write bytes (65536) or a unit"),
        (["exec", "--env", "NAME", "--", "true"], b"write NAME=VALUE"),
        (["exec", "--rlimit", "nofile", "--", "true"], b"NAME=SOFT[:HARD]"),
        (["attach", "x", "--from", "stdin=3"], b"stdout=N,stderr=N"),
        (["kill", "x", "-s", "NOSUCH"], b"write TERM, SIGTERM or 15"),
        (["--to", "nowhere", "ps"], b"an address is unix:PATH"),
        (["--to", "unix:/none", "ps"], b"is `guestd serve` running there?"),
        (["--token-file", "/none", "ps"], b"cannot read the token file '/none'"),
        (["nonsense"], b"invalid choice: 'nonsense'"),
        (["attach", "no-such-job"], b"there is no job 'no-such-job'"),
        (["wait", "no-such-job"], b"guestctl ps"),
        (["kill", "no-such-job"], b"a start of that id is refused"),
    ],
)
def test_a_failure_of_its_own_is_125_and_says_what_to_do(
    server: Server, arguments: list[str], said: bytes
) -> None:
    done = guestctl(server.address, *arguments)
    assert (done.returncode, done.stdout) == (125, b"")
    assert said in done.stderr
    assert b"Traceback" not in done.stderr


def test_what_is_asked_for_reaches_the_command(server: Server) -> None:
    done = guestctl(
        server.address, "exec", "--env", "A=1 2", "--env", "B=", "--cwd", "/tmp", "--umask", "027",
        "--rlimit", "nofile=64:128", "--rlimit", "core=0", "--nice", "3", "--user", "0", "--group", "0", "--",
        "sh", "-c", 'echo "$A|$B|$PWD|$(umask)|$(ulimit -Sn)|$(ulimit -Hn)|$(ulimit -c)|$(nice)|$(id -u)"',
    )  # fmt: skip
    assert done.stdout == b"1 2||/tmp|0027|64|128|0|3|0\n", done


def test_words_arrive_as_they_are_typed(server: Server) -> None:
    words = [b"a b", b"$HOME", b"", b"--", b"-x", b"\xff\xfe", "é".encode()]
    done = subprocess.run(
        [*map(os.fsencode, command("exec", "--", "printf", "<%s>")), *words],
        env=environment(GUESTD_TO=server.address), stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    assert done.stdout == b"".join(b"<" + word + b">" for word in words), done


def test_the_trace_of_the_shell_goes_on_in_the_command(server: Server) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    done = subprocess.run(
        command("exec", "echo $TRACEPARENT"), env=environment(GUESTD_TO=server.address, TRACEPARENT=trace),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    # A child of the same trace, at the least the very same.
    assert trace[:35] in done.stdout


# ---------------------------------------------------------------------------------------------------------- bytes


def test_both_streams_come_out_byte_for_byte(server: Server) -> None:
    text = random.Random(1).randbytes(300_000) + EVERY_BYTE * 1000
    done = guestctl(server.address, "exec", "-i", "--", "sh", "-c", "tee /dev/stderr", input=text)
    assert done.returncode == 0
    assert done.stdout == text
    assert done.stderr == text


def test_without_i_the_command_has_no_input(server: Server) -> None:
    done = guestctl(server.address, "exec", "--", "cat", input=b"not for it")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_input_ends_where_ours_ends_while_output_goes_on(server: Server) -> None:
    with started(server.address, "exec", "-i", "cat; echo done", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"first\n")
        process.stdin.flush()
        assert line(process) == b"first\n"
        assert finish(process)[:2] == (0, b"done\n")


@pytest.mark.parametrize("kind", ["file", "null", "closed", "socket", "terminal"])
def test_input_of_every_kind(server: Server, tmp_path: Path, kind: str) -> None:
    with ExitStack() as undo:
        expected = b"a line\n"
        argv = command("exec", "-i", "--", "cat")
        stdin: int
        if kind == "file":
            (tmp_path / "in").write_bytes(EVERY_BYTE * 5000)
            stdin = undo.enter_context((tmp_path / "in").open("rb")).fileno()
            os.lseek(stdin, 100, os.SEEK_SET)  # from where the shell had got to, not from the start
            expected = (EVERY_BYTE * 5000)[100:]
        elif kind == "socket":
            near, far = (undo.enter_context(each) for each in socket.socketpair())
            near.sendall(expected)
            near.shutdown(socket.SHUT_WR)
            stdin = far.fileno()
        elif kind == "terminal":
            master, stdin = os.openpty()
            undo.callback(os.close, master)
            undo.callback(os.close, stdin)
            os.write(master, expected + b"\x04")
        else:
            stdin, expected = subprocess.DEVNULL, b""
        if kind == "closed":
            argv = ["sh", "-c", 'exec "$@" <&-', "sh", *argv]
        done = subprocess.run(
            argv, env=environment(GUESTD_TO=server.address), stdin=stdin, capture_output=True, timeout=PATIENCE,
            check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, expected), done
        assert (b"cannot read standard input" in done.stderr) == (kind == "closed")


@pytest.mark.parametrize("kind", ["file", "pipe", "socket", "terminal"])
def test_output_of_every_kind_and_its_flags_stay_as_they_are(
    server: Server, tmp_path: Path, kind: str
) -> None:
    """Whoever sets O_NONBLOCK on a shared stdout breaks the shell that started it."""
    text = EVERY_BYTE * 2000
    (tmp_path / "text").write_bytes(text)
    with ExitStack() as undo:
        if kind == "file":
            path = tmp_path / "out"
            path.write_bytes(b"before ")
            out = undo.enter_context(path.open("ab"))
            reader, writer = os.open(path, os.O_RDONLY), os.dup(out.fileno())
            undo.callback(os.close, reader)
            text = b"before " + text
        elif kind == "pipe":
            reader, writer = os.pipe()
            undo.callback(os.close, reader)
        elif kind == "socket":
            near, far = socket.socketpair()
            reader, writer = near.detach(), far.detach()
            undo.callback(os.close, reader)
        else:
            reader, writer = os.openpty()
            undo.callback(os.close, reader)
            tty.setraw(writer)
        flags = fcntl.fcntl(writer, fcntl.F_GETFL)
        with started(server.address, "exec", "--", "cat", str(tmp_path / "text"), stdout=writer) as process:
            got = b""
            if kind == "file":
                process.wait(PATIENCE)
            while len(got) < len(text):
                assert select.select([reader], [], [], PATIENCE)[0]
                piece = os.read(reader, 65536)
                assert piece, "the output ended early"
                got += piece
                assert fcntl.fcntl(writer, fcntl.F_GETFL) == flags
            assert process.wait(PATIENCE) == 0
        os.close(writer)
        assert got == text


def test_output_that_nobody_reads_stops_the_command_and_not_guestctl(server: Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "caught")
    caught = os.open(tmp_path / "caught", os.O_RDONLY | os.O_NONBLOCK)
    script = f"trap 'echo caught >{tmp_path}/caught; exit 9' TERM; head -c 20000000 /dev/zero; echo end"
    with started(server.address, "exec", script) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"\0"
        # The pipe is full now or soon, and stays so: a signal must get through all the same.
        process.send_signal(signal.SIGTERM)
        assert select.select([caught], [], [], PATIENCE)[0]
        os.close(caught)
        resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        assert resident < 80 * 1024 * 1024
        status, out, _ = finish(process)
    assert status == 9
    assert len(out) < 20_000_000
    assert out.strip(b"\0") == b""


def test_a_full_disk_is_said_and_how_to_go_on(server: Server) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("exec", "--id", "full", "--", "echo", "too much"), env=environment(GUESTD_TO=server.address),
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert done.returncode == 125
    assert b"cannot write to stdout: No space left on device" in done.stderr
    assert b"guestctl attach full --from stdout=0,stderr=0" in done.stderr


# -------------------------------------------------------------------------------------------------- closed output


@pytest.mark.parametrize("kill", [False, True])
def test_a_reader_that_goes_ends_guestctl_quietly(server: Server, kill: bool) -> None:
    id = f"yes-{kill}"
    options = ["--kill-on-disconnect"] if kill else []
    with started(server.address, "exec", "--id", id, *options, "--", "yes") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert line(process) == b"y\n"
        process.stdout.close()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""
    if kill:
        result = json.loads(guestctl(server.address, "--json", "wait", id).stdout)
        assert result["ended_by"] == "disconnect"
    else:
        jobs = json.loads(guestctl(server.address, "--json", "ps").stdout)["jobs"]
        assert [job["state"] for job in jobs if job["id"] == id] == ["running"]
        assert guestctl(server.address, "kill", id).returncode == 0


# -------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_signals_go_to_the_command(server: Server, name: str) -> None:
    script = f"trap 'echo caught; exit 42' {name}; echo ready; while :; do sleep 0.05; done"
    with started(server.address, "exec", script) as process:
        assert line(process) == b"ready\n"
        process.send_signal(getattr(signal, f"SIG{name}"))
        status, out, err = finish(process)
    assert (status, out) == (42, b"caught\n")
    # The shell may say what became of its sleep, which got the signal too.
    assert b"guestctl" not in err


def test_a_second_interrupt_ends_the_whole_tree(server: Server) -> None:
    script = "trap 'echo not yet' INT; echo ready; while :; do sleep 0.05; done"
    with started(server.address, "exec", script) as process:
        assert line(process) == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert line(process) == b"not yet\n"
        process.send_signal(signal.SIGINT)
        status, _, err = finish(process)
    assert status == 143
    assert b"ended by kill" in err


def test_hanging_up_leaves_the_command(server: Server) -> None:
    with started(server.address, "exec", "--id", "left", "echo ready; exec sleep 1000") as process:
        assert line(process) == b"ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE) == -signal.SIGHUP
    assert guestctl(server.address, "kill", "left", "-s", "0x").returncode == 125
    assert guestctl(server.address, "kill", "left", "-s", "USR1").returncode == 0
    assert guestctl(server.address, "wait", "left").returncode == 128 + signal.SIGUSR1


def test_a_watcher_leaves_alone_what_it_watches(server: Server) -> None:
    guestctl(server.address, "exec", "--id", "watched", "--detach", "echo ready; exec sleep 1000")
    with started(server.address, "attach", "watched", "--read-only") as process:
        assert line(process) == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert finish(process) == (130, b"", b"")
    jobs = json.loads(guestctl(server.address, "ps", "--json").stdout)["jobs"]
    assert [job["state"] for job in jobs if job["id"] == "watched"] == ["running"]
    assert guestctl(server.address, "kill", "watched").returncode == 0


# ------------------------------------------------------------------------------------------ ids, attach, the rest


def test_the_same_line_again_is_the_same_job(server: Server) -> None:
    run = ("exec", "--id", "once", "--", "sh", "-c", "echo $$; exit 3")
    first, second = guestctl(server.address, *run), guestctl(server.address, *run)
    assert first.stdout == second.stdout
    assert (first.returncode, second.returncode) == (3, 3)
    other = guestctl(server.address, "exec", "--id", "once", "--", "true")
    assert other.returncode == 125
    assert b"asked for differently" in other.stderr


def test_detached_then_attached_from_anywhere(server: Server) -> None:
    done = guestctl(
        server.address, "exec", "--id", "apart", "--detach", "printf 0123456789; printf err >&2; exit 5"
    )
    assert (done.returncode, done.stdout) == (0, b"apart\n")
    assert guestctl(server.address, "wait", "apart").returncode == 5
    for start, out, err in (
        ("start", b"0123456789", b"err"),
        ("4", b"456789", b"err"),
        ("stdout=9,stderr=2", b"9", b"r"),
        ("end", b"", b""),
    ):
        done = guestctl(server.address, "attach", "apart", "--from", start)
        assert (done.returncode, done.stdout, done.stderr) == (5, out, err)
    beyond = guestctl(server.address, "attach", "apart", "--from", "11")
    assert beyond.returncode == 125
    assert b"no offset 11" in beyond.stderr


def test_detaching_from_what_cannot_start_says_so(server: Server) -> None:
    done = guestctl(server.address, "exec", "--detach", "--", "no-such-program")
    assert (done.returncode, done.stdout) == (127, b"")
    assert b"(exec, ENOENT)" in done.stderr


def test_lost_output_is_said_with_its_size(server: Server) -> None:
    script = "head -c 1000000 /dev/zero; echo end"
    guestctl(server.address, "exec", "--id", "ring", "--tape", "64K", "--detach", script)
    guestctl(server.address, "wait", "ring")
    done = guestctl(server.address, "attach", "ring", "--from", "1000")
    kept = len(done.stdout)
    assert done.stdout.endswith(b"\0end\n")
    lost = 1_000_004 - kept - 1000
    assert lost > 0
    assert f"guestctl: {lost} bytes of stdout are lost (offset 1000 to {1000 + lost})".encode() in done.stderr
    events = _json_lines(guestctl(server.address, "--json", "attach", "ring", "--from", "1000").stdout)
    assert {"event": "gap", "stream": "stdout", "from": 1000, "to": 1000 + lost} in events


def _json_lines(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(each) for each in text.splitlines()]


def test_json_carries_every_byte_with_its_offset(server: Server) -> None:
    text = EVERY_BYTE * 500
    done = guestctl(
        server.address, "--json", "exec", "--id", "json", "-i", "--", "sh", "-c", "cat; exit 9", input=text
    )
    assert (done.returncode, done.stderr) == (9, b"")
    events = _json_lines(done.stdout)
    assert events[0]["event"] == "started"
    assert (events[0]["id"], events[0]["created"]) == ("json", True)
    got = b""
    for event in events[1:-1]:
        assert (event["event"], event["stream"], event["offset"]) == ("output", "stdout", len(got))
        got += event["text"].encode() if "text" in event else base64.b64decode(event["data"])
    assert got == text
    assert events[-1]["event"] == "end"
    assert (events[-1]["outcome"], events[-1]["code"], events[-1]["status"]) == ("exited", 9, 9)


def test_json_of_a_failure_is_json_too(server: Server) -> None:
    done = guestctl(server.address, "--json", "attach", "no-such-job")
    (event,) = _json_lines(done.stdout)
    assert (event["event"], event["code"], done.returncode) == ("error", "not_found", 125)


def test_ps_is_a_table_that_shows_each_job(server: Server) -> None:
    guestctl(server.address, "exec", "--id", "tabled", "--", "sh", "-c", "printf 'a\tb' ; exit 4", "\x1b[31m")
    done = guestctl(server.address, "ps")
    header, *rows = done.stdout.decode().splitlines()
    assert header.split()[:5] == ["ID", "KIND", "STATE", "PID", "USER"]
    (row,) = (row for row in rows if row.startswith("tabled "))
    assert "exited 4" in row
    assert "\x1b" not in done.stdout.decode(), "a job's words drive the terminal of who looks at them"


def test_status_says_what_the_guest_is(server: Server) -> None:
    done = guestctl(server.address, "status")
    assert done.returncode == 0
    assert f"pid {server.pid}" in done.stdout.decode()
    assert server.address in done.stdout.decode()
    found = json.loads(guestctl(server.address, "status", "--json").stdout)
    assert (found["pid"], found["version"]) == (server.pid, guestd.__version__)


def test_waiting_no_longer_than_asked(server: Server) -> None:
    guestctl(server.address, "exec", "--id", "long", "--detach", "--", "sleep", "1000")
    done = guestctl(server.address, "wait", "long", "--timeout", "0.05")
    assert done.returncode == 124
    assert b"it goes on" in done.stderr
    assert guestctl(server.address, "kill", "long").returncode == 0
    assert guestctl(server.address, "wait", "long").returncode == 143


def test_version_needs_neither_a_guest_nor_trio() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "guestd.ctl", "version"],
        env=environment(GUESTD_TO="unix:/none"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"guestctl {guestd.__version__}\n"
    assert " trio" not in done.stderr
    assert " msgpack" not in done.stderr


@pytest.mark.parametrize("form", ["tcp:127.0.0.1:{}", "ws://127.0.0.1:{}/"])
def test_a_token_is_read_from_its_file(tmp_path: Path, form: str) -> None:
    (tmp_path / "right").write_text("open sesame, please\n")
    (tmp_path / "right").chmod(0o600)
    (tmp_path / "wrong").write_text("open barley, please\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with serving(f"tcp:127.0.0.1:{port}", config=f'token_file = "{tmp_path}/right"\n'):
        address = form.format(port)
        done = guestctl(address, "--token-file", str(tmp_path / "right"), "exec", "echo in")
        assert (done.returncode, done.stdout) == (0, b"in\n"), done
        for options in ([], ["--token-file", str(tmp_path / "wrong")]):
            done = guestctl(address, *options, "exec", "echo in")
            assert (done.returncode, done.stdout) == (125, b"")
            assert b"--token-file" in done.stderr


# --------------------------------------------------------------------------------------------------- reconnection


class CuttingProxy:
    """Passes one connection at a time on to guestd, and cuts each after so many bytes to the client.

    After the last cut connections are passed on for good, or with `refuse` nobody answers any more.
    """

    def __init__(self, path: Path, target: str, cuts: Sequence[int], *, refuse: bool = False) -> None:
        self.address = f"unix:{path}"
        self.connections = 0
        self._path = path
        self._target = target
        self._cuts = list(cuts)
        self._refuse = refuse
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.close()
        self._thread.join()
        self._stop.close()
        self._listener.close()

    def _serve(self) -> None:
        while self._stop not in (ready := select.select([self._listener, self._stop], [], [])[0]):
            assert ready
            client, _ = self._listener.accept()
            self.connections += 1
            with client, socket.socket(socket.AF_UNIX) as guest:
                guest.connect(self._target)
                self._pass_on(client, guest, self._cuts.pop(0) if self._cuts else None)
            if self._refuse and not self._cuts:
                self._listener.close()
                self._path.unlink()
                return

    def _pass_on(self, client: socket.socket, guest: socket.socket, left: int | None) -> None:
        while self._stop not in (ready := select.select([client, guest, self._stop], [], [])[0]):
            for source, sink in ((client, guest), (guest, client)):
                if source not in ready:
                    continue
                data = source.recv(65536 if left is None or source is client else min(65536, left))
                if not data:
                    return
                try:
                    sink.sendall(data)
                except OSError:
                    return
                if source is guest and left is not None:
                    left -= len(data)
                    if left == 0:
                        return


@pytest.mark.parametrize("seed", [1, 2])
def test_a_line_that_breaks_anywhere_loses_nothing_and_repeats_nothing(
    server: Server, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    cuts = [chance.randrange(600, 60_000) for _ in range(3)]
    text = b"".join(b"line %d of what goes in and comes out\n" % number for number in range(20_000))
    with CuttingProxy(tmp_path / "proxy", server.path, cuts) as proxy:
        done = guestctl(
            proxy.address, "exec", "-i", "--", "sh", "-c", "cat; echo over >&2; exit 6", input=text
        )
    assert done.returncode == 6, done.stderr
    assert done.stdout == text
    assert proxy.connections == 4
    said = done.stderr.decode().splitlines()
    assert len([each for each in said if "connecting again" in each]) == 3
    assert said[-1] == "over"


def test_giving_up_says_how_to_go_on_and_that_goes_on(server: Server, tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done; exit 8"
    expected = b"".join(b"line %d\n" % number for number in range(9000))
    with CuttingProxy(tmp_path / "proxy", server.path, [30_000], refuse=True) as proxy:
        first = guestctl(proxy.address, "--to", proxy.address, "exec", "--reconnect", "0.2", script)
    assert first.returncode == 125
    found = re.search(r"go on with: guestctl (?:--to \S+ )?(attach \S+ --from \S+)\n", first.stderr.decode())
    assert found, first.stderr
    second = guestctl(server.address, *found[1].split())
    assert second.returncode == 8, second.stderr
    assert first.stdout + second.stdout == expected
    assert 0 < len(first.stdout) < len(expected)


def test_without_reconnecting_a_lost_line_ends_it_at_once(server: Server, tmp_path: Path) -> None:
    with CuttingProxy(tmp_path / "proxy", server.path, [2000]) as proxy:
        done = guestctl(proxy.address, "exec", "--reconnect", "0", "head -c 100000 /dev/zero")
        assert proxy.connections == 1
    assert done.returncode == 125
    assert b"connecting again" not in done.stderr
    assert b"go on with" in done.stderr


def test_a_guest_that_dies_is_said_and_no_end_is_invented(tmp_path: Path) -> None:
    with (
        serving() as server,
        started(server.address, "exec", "--reconnect", "0.2", "echo $$; exec sleep 1000") as process,
    ):
        pid = int(line(process))
        server.kill()
        status, _, err = finish(process)
        os.kill(pid, signal.SIGKILL)
        assert status == 125
        assert b"connection" in err
        assert b"connecting again" in err
