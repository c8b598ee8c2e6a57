"""`image/run`: a machine that is started, reached and stopped as a command, and whose workspace stays."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from image.vm import manifest
from image.vm.failure import Failure, find
from image.vm.machine import BOOT_SECONDS, runtime_folder
from image.vm.qemu import Hardware
from image.vm.run import workspace_of
from tests.support import vm
from tests.support.peer import Peer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

ROOT = Path(__file__).resolve().parents[2]
#: Writes when it is told to end.
PATIENT = "trap 'echo kept >/mnt/workspace/kept; exit 7' TERM; echo on; while :; do sleep 1; done"
#: It is well when somebody says so.
WORKLOAD = (
    "guestd.workload.command='exec sleep 1000000' guestd.workload.health='command:test -e /run/well' "
    "guestd.workload.health_interval=500ms"
).replace("'", '"')


def _command(*words: str | Path) -> list[str]:
    return [str(ROOT / "image/run"), *map(str, words)]


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable, **more}


class Runner:
    """One that runs. What it prints is one JSON object a line: where the machine is, then what that tells."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._data = b""
        self.where = self._next()
        self.told: dict[str, str] = self.where["told"]

    def _next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        stdout = self.process.stdout.fileno()
        while b"\n" not in self._data:
            assert select.select([stdout], [], [], BOOT_SECONDS)[0], "it says nothing"
            piece = os.read(stdout, 65536)
            assert piece, f"it ended with {self.process.wait()}: {self.why()}"
            self._data += piece
        line, _, self._data = self._data.partition(b"\n")
        return json.loads(line)

    def hear(self, word: str) -> str:
        """Until the machine has told that."""
        while word not in self.told:
            self.told |= self._next()["told"]
        return self.told[word]

    def why(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()


@pytest.fixture
def place() -> Iterator[Path]:
    """For what a machine has while it runs. A short path, and nobody else's: it is empty again at the end."""
    with tempfile.TemporaryDirectory(prefix="vm-") as place:
        yield Path(place)
        assert os.listdir(place) == []


@contextlib.contextmanager
def _started(place: Path, *words: str | Path) -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(
        _command(vm.built().folder, *words), env=_environment(TMPDIR=str(place)),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def _in_order(console: str) -> None:
    """It was the button, serve has ended before the disks, and those before the power."""
    said = ("the power button", ") ended: status 0", "/ is read-only now")
    assert all(words in console for words in said), console
    assert [console.index(words) for words in said] == sorted(console.index(words) for words in said), console
    assert "Kernel panic" not in console


def _in_it(runner: Runner, shell: str) -> str:
    with Peer(runner.where["address"]) as peer:
        peer.sock.settimeout(vm.PATIENCE)
        call = peer.open("exec", shell=shell, user="root")
        end = call.end()
    assert (end["outcome"], end["code"]) == ("exited", 0), (end, call.stderr)
    return call.stdout.decode()


def _lose_its_device(runner: Runner) -> None:
    """Its process is killed in mid-stream. The guest goes on, the machine gets another device, and whoever comes back,
    however early he tries, has what he missed.
    """
    count = 8_000_000
    with Peer(runner.where["address"]) as peer:
        peer.sock.settimeout(vm.PATIENCE)
        pid = peer.ask("status")["pid"]
        call = peer.open("exec", shell=f"yes 0123456 | head -c {count}", id="cut", tape=1 << 20, user="root")
        call.read_until("stdout", 500_000)
        os.kill(_device_of(runner.process.pid), signal.SIGKILL)
        with pytest.raises((EOFError, ConnectionResetError)):
            call.end()
    had = len(call.stdout)
    due = time.monotonic() + vm.PATIENCE
    while True:
        try:
            peer = Peer(runner.where["address"])
            break
        except (OSError, EOFError):
            assert time.monotonic() < due
            time.sleep(0.05)
    with peer:
        peer.sock.settimeout(vm.PATIENCE)
        assert peer.ask("status")["pid"] == pid
        call = peer.open("attach", id="cut", from_={"stdout": had}, hold=True)
        assert call.end()["code"] == 0
    # What is no longer kept is told as a gap; nothing comes twice.
    assert had + len(call.stdout) + sum(end - start for _, start, end in call.gaps) == count


def _device_of(runner: int) -> int:
    for each in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            lines = (line.partition(":\t") for line in each.read_text().splitlines())
            fields = {name: value for name, _, value in lines}
            if fields["Name"].startswith("vhost-device") and int(fields["PPid"]) == runner:
                return int(fields["Pid"])
    raise AssertionError("there is none")


def test_it_is_reached_and_stopped_and_its_disk_stays(place: Path, tmp_path: Path) -> None:
    disk = tmp_path / "work.img"
    words = ("--workspace", f"{disk}:64M", "--memory", "512", "--json", "--console", "--append", WORKLOAD)
    with _started(place, *words) as process:
        runner = Runner(process)
        _is_reached(runner)
        _is_well_when_it_says_so(runner)
        _lose_its_device(runner)
        # What was written a moment ago is on the disk too: nobody calls sync.
        with Peer(runner.where["address"]) as peer:
            peer.sock.settimeout(vm.PATIENCE)
            peer.open("exec", shell=PATIENT, user="root", id="job").lines(1)
        process.terminate()
        assert (runner.hear("STOPPING"), runner.hear("X_GUESTD_END")) == ("1", "power-off")
        console = runner.why()
        assert process.wait(vm.PATIENCE) == 0, console
    assert runner.told["EXIT_STATUS"] == "0"
    _in_order(console)
    vm.check_disk(disk)
    kept = subprocess.run([find("debugfs"), "-R", "cat kept", str(disk)], capture_output=True, check=True)
    assert kept.stdout == b"kept\n"

    # And again, by somebody who hears nothing of it and changes his mind while it starts: it ends in order, as soon as
    # it can.
    with _started(place, "--workspace", disk, "--memory", "512", "--json", "--console") as process:
        assert process.stdout is not None
        process.stdout.close()
        while not any(each.stat().st_size for each in place.glob("*/console")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        console = process.stderr.read()
        assert process.wait(vm.PATIENCE) == 0, console
    _in_order(console)
    vm.check_disk(disk)


def _is_reached(runner: Runner) -> None:
    assert runner.where["ready"] > 0
    assert Path(f"/proc/{runner.where['pid']}/comm").read_text().startswith("qemu-system")
    assert runner.told["READY"] == "1"
    assert _in_it(runner, "cat /proc/1/comm; stat -f -c %T /mnt/workspace") == "guestd\next2/ext3\n"


def _is_well_when_it_says_so(runner: Runner) -> None:
    started = int(runner.hear("X_GUESTD_WORKLOAD_USEC"))
    # It is told when it is well, and no sooner.
    assert "X_GUESTD_HEALTHY_USEC" not in runner.told
    before = float(_in_it(runner, "cut -d' ' -f1 /proc/uptime; touch /run/well"))
    well = int(runner.hear("X_GUESTD_HEALTHY_USEC"))
    assert 0 < started / 1e6 < before < well / 1e6 + 0.01
    status = subprocess.run(
        [sys.executable, "-m", "guestd.ctl", "--to", runner.where["address"], "status"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (line,) = (each for each in status.splitlines() if each.startswith("started "))
    names = [part.split(" +")[0] for part in line.removeprefix("started").strip().split(", ")]
    assert names == ["init", "listening", "serve started", "ready", "workload", "healthy"]
    assert line.endswith(f"; {well / 1e6:.3f} s after the kernel began"), (line, well)


# ------------------------------------------------------------------------------------------------- what cannot be done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What image/build has made, as far as somebody looks before a machine is started."""
    place = tmp_path_factory.mktemp("built")
    (place / "root").write_text("root")
    fields: dict[str, Any] = {part: manifest.describe(place, place / "root") for part in ("kernel", "root")}
    manifest.write(
        place, {**fields, "vmlinux": None, "initramfs": None, "cmdline": "", "ports": {"guestd": 1024}}
    )
    return place


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ([], 2, "the following arguments are required: DIR"),
        (["/nowhere"], 125, "/nowhere: No such file or directory; image/build makes one"),
        (["BUILT", "--memory", "much"], 125, "--memory: 'much' is no size; write 512M or 10G"),
        (["BUILT", "--memory", "1M"], 125, "2 processors and 1 MB are no machine"),
        (["BUILT", "--cpus", "0"], 125, "0 processors and 1024 MB are no machine"),
        (["BUILT", "--network", "tap0"], 125, "QEMU is given no TAP here (tap0): --network user, or --write"),
        (["BUILT", "--credential", "one"], 125, "--credential one: NAME=VALUE is wanted"),
        (["BUILT", "--credential", "vmm.notify_socket=x"], 125, "that one is image/run's own"),
        (["BUILT", "--workspace", ""], 125, "--workspace: a folder is wanted, or a file that is a disk"),
        (["BUILT", "--workspace", "BUILT/no/disk"], 125, "/no; make it, or name another"),
        (["BUILT", "--workspace", "BUILT/disk:big"], 125, "disk:big: 'big' is no size; write 512M or 10G"),
        (["BUILT", "--workspace", "BUILT/disk:9"], 125, "a disk of 9 bytes holds nothing"),
        (["BUILT", "--workspace", "/dev/null"], 125, "--workspace /dev/null: neither a folder nor a disk"),
        (["BUILT", "--write", "firecracker"], 125, "install lz4 and zstd, and build again"),
        (["BUILT", "--write", "xen"], 2, "invalid choice: 'xen'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    built: Path, words: list[str], status: int, told: str
) -> None:
    before = sorted(os.listdir(built))
    done = subprocess.run(
        _command(*(word.replace("BUILT", str(built)) for word in words)),
        env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, told in done.stderr) == (status, "", True), done.stderr
    assert sorted(os.listdir(built)) == before


def test_a_disk_of_the_hosts_is_taken_as_it_is_and_so_is_a_name_with_a_colon(tmp_path: Path) -> None:
    """An image was made in the place of a block device."""
    node = tmp_path / "disk"
    os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(7, 250))
    named = tmp_path / "a:b"
    named.mkdir()
    assert (workspace_of(str(node)), workspace_of(str(named))) == (node, named)
    assert node.is_block_device()
    assert sorted(os.listdir(tmp_path)) == ["a:b", "disk"]


def test_a_file_that_is_not_the_one_that_was_made_is_not_started(built: Path) -> None:
    (built / "root").write_text("RooT")
    done = subprocess.run(_command(built), env=_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, "is not the file that was made (its digest differs)" in done.stderr) == (
        125,
        True,
    )
    (built / "root").unlink()
    done = subprocess.run(_command(built), env=_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, "root is missing; build it again: image/build" in done.stderr) == (125, True)


def test_two_that_start_at_once_leave_each_others_folders_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One was made, and before it was locked it was taken for what a machine had left that was killed."""
    make, made = tempfile.mkdtemp, list[str]()

    def disturbed(**words: str) -> str:
        made.append(make(**words))
        if len(made) == 1:
            with contextlib.ExitStack() as undo:
                runtime_folder(undo)
        return made[-1]

    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr(tempfile, "mkdtemp", disturbed)
    with contextlib.ExitStack() as undo:
        mine = runtime_folder(undo)
        assert mine.is_dir()
        assert str(mine) not in made[:2]
        # One that is in use is left alone; one that is not, and has something in it, is not.
        (left := place / "guestd-machine-left").mkdir()
        (left / "vsock").touch()
        other = runtime_folder(undo)
        assert sorted(os.listdir(place)) == sorted((mine.name, other.name))


def test_a_folder_whose_name_is_too_long_for_sockets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / ("x" * 90)
    base.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    with contextlib.ExitStack() as undo, pytest.raises(Failure, match="TMPDIR=/tmp"):
        runtime_folder(undo)
    assert os.listdir(base) == []


def test_a_port_of_this_machines_takes_its_network_and_a_token() -> None:
    token = "0123456789abcdef"
    with pytest.raises(
        Failure, match=r"over QEMU's user network, and its network is 'none': give network=.user."
    ):
        Hardware(port=5000, token=token)
    with pytest.raises(Failure, match="asks for a token, of at least 16 characters; this has 15"):
        Hardware(port=5000, network="user", token=token[1:])
    assert Hardware(port=5000, network="user", token=token).port == 5000
