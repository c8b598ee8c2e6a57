"""guestctl cp and watch, as people and scripts use them; and trees, with all that is in them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import pytest
import trio

from guestd.client import Backoff, Notice, connect
from guestd.client.copying import Terms
from guestd.client.copying_files import LocalFile, download, upload
from guestd.client.copying_trees import download_tree, upload_tree
from guestd.ctl.main import main
from guestd.errors import FileFailed
from guestd.tree.pack import Packer
from tests.support.commands import NOBODY, public_folder
from tests.support.files import (
    NAMES,
    asking,
    environment,
    guestctl,
    left_over,
    mounted_tmpfs,
    pattern,
    tree_of,
)
from tests.support.peer import PATIENCE
from tests.support.relay import Relay
from tests.support.server import serving

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.server import Server


@pytest.fixture
def server() -> Generator[Server]:
    with serving() as found:
        yield found
        found.stop()
        assert "Traceback" not in found.log, found.log


def ran(server: Server, *arguments: str, **options: Any) -> bytes:  # noqa: ANN401
    done = run(server, *arguments, **options)
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout


def failed(server: Server, *arguments: str, **options: Any) -> str:  # noqa: ANN401
    done = run(server, *arguments, **options)
    assert done.returncode in {1, 125}, done
    return done.stderr.decode()


def run(
    server: Server, *arguments: str, input: bytes | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Guestctl cp. Where it reads no pipe it is run right here: a process for each costs more than all that it does."""
    if "-" in arguments:
        return guestctl(server.address, "cp", *arguments, input=input, cwd=cwd)
    before = os.getcwd()
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        try:
            os.chdir(cwd or before)
            status = main(["--to", server.address, "cp", *arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            os.chdir(before)
    return subprocess.CompletedProcess(
        arguments, status, said.getvalue().encode(), complained.getvalue().encode("utf-8", "backslashreplace")
    )


def make_tree(top: Path) -> None:
    """Everything that a tree can hold."""
    (top / "deep/er").mkdir(parents=True)
    (top / "empty").mkdir()
    for number, name in enumerate(NAMES):
        path = os.fsencode(top) + b"/deep/" + name
        Path(os.fsdecode(path)).write_bytes(pattern(number * 100_000 // 3, number))
        os.utime(path, ns=(1, 1_500_000_000_000_000_001 + number))
    (top / "run").write_bytes(b"#!/bin/sh\n")
    (top / "run").chmod(0o751)
    os.link(top / "run", top / "deep/er/run-too")
    (top / "link").symlink_to("deep/plain")
    (top / "dangling").symlink_to("/nowhere/at all")
    os.symlink(b"x" * 300, os.fsencode(top) + b"/long")
    os.mkfifo(top / "pipe", 0o620)
    with (top / "holes").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"in the middle")
        file.truncate(9 << 20)
    os.setxattr(top / "run", "user.note", b"kept")
    long = top
    for _ in range(12):
        long /= "l" * 100
    long.mkdir(parents=True)
    (long / "bottom").write_bytes(b"deep")
    (top / "closed").mkdir()
    (top / "closed/file").write_bytes(b"")
    (top / "closed").chmod(0o555)
    os.utime(top / "empty", ns=(5, 77))


def test_a_tree_comes_back_as_it_went(server: Server, tmp_path: Path) -> None:
    make_tree(tmp_path / "src")
    before = tree_of(tmp_path / "src")
    ran(server, str(tmp_path / "src"), f":{tmp_path}/there")
    assert tree_of(tmp_path / "there") == before
    ran(server, f":{tmp_path}/there", str(tmp_path / "back"))
    assert tree_of(tmp_path / "back") == before
    assert os.getxattr(tmp_path / "back/run", "user.note") == b"kept"
    assert (tmp_path / "back/holes").stat().st_blocks * 512 < 1 << 20
    # Once more, over what is there.
    ran(server, f"{tmp_path}/src/.", f":{tmp_path}/there")
    assert tree_of(tmp_path / "there") == before
    assert left_over(tmp_path) == []


def test_files_go_where_docker_cp_would_put_them(server: Server, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "dir/sub").mkdir(parents=True)
    (here / "dir/sub/x").write_bytes(b"x")
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")
    (here / "l").symlink_to("a")
    there.mkdir()
    ran(server, "a", f":{there}", cwd=here)
    ran(server, "a", f":{there}/new", cwd=here)
    ran(server, "a", "b", "dir", f":{there}/", cwd=here)
    ran(server, "dir", f":{there}/made", cwd=here)
    ran(server, "dir/.", f":{there}", cwd=here)
    ran(server, "l", f":{there}/l", cwd=here)
    ran(server, "-L", "l", f":{there}/followed", cwd=here)
    ran(server, "--parents", "a", f":{there}/p/q/a", cwd=here)
    assert sorted(tree_of(there)) == sorted(
        each
        for name in (b"a", b"new", b"b", b"dir", b"dir/sub", b"dir/sub/x", b"made", b"made/sub", b"made/sub/x", b"sub",
                     b"sub/x", b"l", b"followed", b"p", b"p/q", b"p/q/a")
        for each in ([name, name + b" is"] if (there / os.fsdecode(name)).is_file() and name != b"l" else [name])
    )  # fmt: skip
    assert os.readlink(there / "l") == "a"
    assert (there / "followed").read_bytes() == b"a"
    out = tmp_path / "out"
    out.mkdir()
    ran(server, f":{there}/dir", f":{there}/a", ".", cwd=out)
    ran(server, f":{there}/dir/.", "made", cwd=out)
    ran(server, f":{there}/l", "linked", cwd=out)
    assert sorted(os.listdir(out)) == ["a", "dir", "linked", "made"]
    assert os.listdir(out / "made") == ["sub"]
    assert os.readlink(out / "linked") == "a"
    for arguments, why in (
        (("a", f":{there}/no/x"), "no such file or directory"),
        (("a", f":{there}/no/"), "there is no folder"),
        (("dir", f":{there}/a"), "is there and is none"),
        (("a", "b", f":{there}/a"), "several sources need one"),
        (("nope", f":{there}"), "'nope' here: No such file"),
        ((f":{there}/nope", "."), "no such file or directory (ENOENT)"),
        ((f":{there}/a", "no/x"), "here: No such file"),
        (("a", "b"), "neither end is in the guest"),
        ((":a", ":b"), "guestctl exec -- cp -a"),
        (("a", f":{there}/dir/../made"), ""),
    ):
        if why:
            assert why in failed(server, *arguments, cwd=here), arguments
    assert left_over(tmp_path) == []


def test_pipes_carry_bytes_for_files_and_archives_for_folders(server: Server, tmp_path: Path) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    data = pattern(700_000)
    assert ran(server, "-", f":{tmp_path}/file", input=data) == b""
    assert (tmp_path / "file").read_bytes() == data
    assert ran(server, f":{tmp_path}/file", "-") == data
    (tmp_path / "d/sub/x").write_bytes(b"x")
    archive = ran(server, f":{tmp_path}/d", "-")
    with subprocess.Popen(["tar", "t"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tar:
        assert sorted(tar.communicate(archive)[0].split()) == [b"d/", b"d/sub/", b"d/sub/x"]
    (tmp_path / "in").mkdir()
    made = subprocess.run(["tar", "c", "-C", str(tmp_path), "d"], capture_output=True, check=True).stdout
    ran(server, "-", f":{tmp_path}/in", input=made)
    assert (tmp_path / "in/d/sub/x").read_bytes() == b"x"
    assert "no tar stream" in failed(server, "-", f":{tmp_path}/in", input=b"this is no archive" * 100)
    assert "cut short" in failed(server, "-", f":{tmp_path}/in", input=made[:600])
    assert left_over(tmp_path) == []


def test_json_and_digests_are_for_programs(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    done = guestctl(server.address, "--json", "cp", str(tmp_path / "a"), f":{tmp_path}/b")
    found = json.loads(done.stdout)
    assert found["event"] == "copied"
    assert (found["entries"], found["bytes"], found["failed"]) == (1, 3, 0)
    assert found["digest"] == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert done.stderr == b""
    done = guestctl(server.address, "--json", "cp", f":{tmp_path}/nope", str(tmp_path))
    assert json.loads(done.stdout)["code"] == "not_found"


def test_what_a_hostile_archive_says_is_not_done(server: Server, tmp_path: Path) -> None:
    """Names that lead out, links to go through, devices, set-uid bits: refused or defused, and told."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "in").mkdir()
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as archive:

        def add(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> None:  # noqa: ANN401
            info = tarfile.TarInfo(name)
            info.type = kind
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info)

        add("../outside/up")
        add("a/../../outside/up")
        add(str(outside / "absolute"))
        add("door", tarfile.SYMTYPE, linkname=str(outside))
        add("door/through")
        add("hard", tarfile.LNKTYPE, linkname="../outside/x")
        add("hard2", tarfile.LNKTYPE, linkname="door/x")
        add("disk", tarfile.BLKTYPE, devmajor=8)
        add("su", mode=0o6755)
        add("fine")
    done = guestctl(server.address, "--json", "cp", "-", f":{tmp_path}/in", input=path.read_bytes())
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["failed"], found["skipped"]) == (5, 1)
    assert os.listdir(outside) == []
    assert (tmp_path / "in/su").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "in/fine").exists()
    assert (tmp_path / f"in{outside}/absolute").exists(), "below the folder, as tar has it"


def test_what_one_user_may_not_is_told_and_the_rest_comes(server: Server) -> None:
    with public_folder() as folder:
        (folder / "src").mkdir()
        (folder / "src/open").write_bytes(b"1")
        (folder / "src/shut").write_bytes(b"2")
        (folder / "src/shut").chmod(0o600)
        (folder / "src/cellar").mkdir(mode=0o700)
        done = run(server, "--user", NOBODY, f":{folder}/src", str(folder / "back"))
        assert done.returncode == 1
        assert b"shut: Permission denied" in done.stderr
        assert b"cellar: Permission denied" in done.stderr
        assert os.listdir(folder / "back") == ["open"]
        text = failed(server, "--user", NOBODY, str(folder / "src"), f":{folder}/no")
        assert "this user may not (EACCES)" in text
        ran(server, "-a", str(folder / "src"), f":{folder}/whole")
        os.chown(folder / "src/open", 65534, 1)
        ran(server, "-a", str(folder / "src/open"), f":{folder}/whole/open")
        status = (folder / "whole/open").stat()
        assert (status.st_uid, status.st_gid) == (65534, 1)


def test_a_full_disk_ends_a_tree_with_that_reason(server: Server, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for number in range(8):
        (tmp_path / f"src/{number}").write_bytes(bytes(300_000))
    with mounted_tmpfs(tmp_path / "small", "size=1m"):
        text = failed(server, str(tmp_path / "src"), f":{tmp_path}/small")
        assert "no space is left on its file system" in text
        assert left_over(tmp_path / "small") == []
        for name in os.listdir(tmp_path / "small/src"):
            assert (tmp_path / "small/src" / name).stat().st_size == 300_000
        text = failed(server, f":{tmp_path}/src", str(tmp_path / "small/other"))
        assert "No space left on device" in text
        assert left_over(tmp_path / "small") == []


@pytest.mark.parametrize("way", ["in", "out"])
def test_ctrl_c_leaves_no_half_file(server: Server, tmp_path: Path, way: str) -> None:
    with (tmp_path / "big").open("wb") as file:
        for at in range(24):
            file.write(pattern(1 << 20, at))
    arguments = (
        [str(tmp_path / "big"), f":{tmp_path}/new"]
        if way == "in"
        else [f":{tmp_path}/big", str(tmp_path / "new")]
    )
    command = [sys.executable, "-m", "guestd.ctl", "--to", server.address, "cp", *arguments]
    # Read as slowly as it takes to see it at work.
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process:
        while process.poll() is None and not left_over(tmp_path):
            pass
        process.send_signal(signal.SIGINT)
        process.wait()
        if process.returncode == 0:
            pytest.skip("it was quicker than Ctrl+C")
        assert process.returncode == 130
    deadline = time.monotonic() + 30
    while left_over(tmp_path) and time.monotonic() < deadline:
        pass
    assert left_over(tmp_path) == []
    assert not (tmp_path / "new").exists()


def test_a_terminal_gets_a_bar_and_a_pipe_does_not(server: Server, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        for at in range(64):
            file.write(pattern(1 << 20, at))
    master, slave = pty.openpty()
    try:
        command = [
            sys.executable,
            "-m",
            "guestd.ctl",
            "--to",
            server.address,
            "cp",
            f":{tmp_path}/big",
            str(tmp_path / "b"),
        ]
        with subprocess.Popen(command, env=environment(), stdout=slave, stderr=slave, stdin=slave) as process:
            os.close(slave)
            said = b""
            with contextlib.suppress(OSError):
                while piece := os.read(master, 4096):
                    said += piece
            assert process.wait() == 0
    finally:
        os.close(master)
    assert b" of 67.1 MB" in said
    assert b"MB/s" in said
    assert b"1 entry, 67.1 MB in" in said
    assert ran(server, f":{tmp_path}/big", str(tmp_path / "b")) == b""


@contextlib.contextmanager
def _watching(address: str, folder: Path) -> Generator[tuple[IO[bytes], IO[bytes]]]:
    """`guestctl watch`, when it watches: what it prints, and what it says. Ctrl+C ends it."""
    command = [sys.executable, "-m", "guestd.ctl", "--to", address, "watch", f":{folder}"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        try:
            assert b"watching 1 folders" in process.stderr.readline()
            yield process.stdout, process.stderr
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def test_watch_prints_a_line_for_each(server: Server, tmp_path: Path) -> None:
    with _watching(server.address, tmp_path) as (printed, _):
        (tmp_path / "a").mkdir()
        assert printed.readline() == b"created     a/\n"
        (tmp_path / "a").rename(tmp_path / "b")
        assert printed.readline() == b"moved       a/ -> b\n"


def test_watch_outlasts_its_connection_and_says_what_there_is_then(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w/old").touch()
    with (
        Relay(tmp_path / "relay", server.path) as relay,
        _watching(relay.address, tmp_path / "w") as (printed, said),
    ):
        relay.cut()
        assert b"; next try in 1 s" in said.readline()
        (tmp_path / "w/old").rename(tmp_path / "w/new")
        relay.mend()
        assert printed.readline() == b"entry       new\n"
        (tmp_path / "w/new").unlink()
        assert printed.readline() == b"removed     new\n"
        assert b"connected again" in said.readline()
        assert b"watching 1 folders" in said.readline()
        assert said.readline() == b"guestctl: this is all there is now:\n"


# -------------------------------------------------------------------------------------------------- lost connections


class Cutter:
    """A relay that cuts each connection after so many bytes, one of its list after another, and none after the last."""

    def __init__(self, target: str, path: Path, cuts: list[int]) -> None:
        self.address = f"unix:{path}"
        self._target = target.removeprefix("unix:")
        self._cuts = cuts
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self.cut = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop_write)
        self._thread.join()
        self._listener.close()
        os.close(self._stop_read)

    def _run(self) -> None:
        while True:
            readable, _, _ = select.select([self._listener, self._stop_read], [], [])
            if self._stop_read in readable:
                return
            client, _ = self._listener.accept()
            with client, socket.socket(socket.AF_UNIX) as guest:
                guest.connect(self._target)
                left = self._cuts.pop(0) if self._cuts else 1 << 62
                if not self._carry(client, guest, left):
                    return

    def _carry(self, client: socket.socket, guest: socket.socket, left: int) -> bool:
        other = {client: guest, guest: client}
        while True:
            readable, _, _ = select.select([client, guest, self._stop_read], [], [])
            if self._stop_read in readable:
                return False
            for each in (client, guest):
                if each not in readable:
                    continue
                data = each.recv(min(65536, left))
                if not data:
                    return True
                left -= len(data)
                with contextlib.suppress(OSError):
                    other[each].sendall(data)
                if left <= 0:
                    self.cut += 1
                    return True


def quickly(address: str) -> Terms:
    return Terms(lambda: connect(address), backoff=Backoff(delays=(0.0,), last=0.0), give_up=20)


CUTS = [700, 5_000, 70_123, 300_000, 999_999, 1_500_000, 400, 2_000_000]


async def test_a_file_survives_any_number_of_cuts(tmp_path: Path) -> None:
    data = pattern(6 << 20)
    (tmp_path / "src").write_bytes(data)
    async with asking() as (server, _):
        with Cutter(server.address, tmp_path / "s", list(CUTS)) as cutter:
            fd = os.open(tmp_path / "src", os.O_RDONLY)
            try:
                copied = await upload(quickly(cutter.address), fd, str(tmp_path / "there"))
            finally:
                os.close(fd)
        assert cutter.cut >= 5
        assert (tmp_path / "there").read_bytes() == data
        with Cutter(server.address, tmp_path / "t", list(CUTS)) as cutter:
            target = LocalFile(os.fsencode(tmp_path / "back"), archive=False)
            try:
                again = await download(quickly(cutter.address), str(tmp_path / "there"), target)
            finally:
                target.close()
        assert cutter.cut >= 5
        assert (tmp_path / "back").read_bytes() == data
        assert again.digest == copied.digest
    assert left_over(tmp_path) == []


async def test_a_tree_survives_any_number_of_cuts(tmp_path: Path) -> None:
    make_tree(tmp_path / "src")
    before = tree_of(tmp_path / "src")
    async with asking() as (server, _):
        with Cutter(server.address, tmp_path / "s", list(CUTS)) as cutter:
            source = os.fsencode(tmp_path / "src")
            await upload_tree(quickly(cutter.address), source, b".", str(tmp_path / "there"))
            assert cutter.cut >= 3
        assert tree_of(tmp_path / "there") == before
        (tmp_path / "back").mkdir()
        with Cutter(server.address, tmp_path / "t", list(CUTS)) as cutter:
            folder = os.fsencode(tmp_path / "back")
            await download_tree(quickly(cutter.address), str(tmp_path / "there"), folder, b".", fresh=True)
            assert cutter.cut >= 3
        assert tree_of(tmp_path / "back") == before
    assert left_over(tmp_path) == []


async def test_a_file_that_changes_between_two_connections_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(pattern(3 << 20, 1))
    changed = pattern(2 << 20, 2)
    async with asking() as (server, _):
        with Cutter(server.address, tmp_path / "s", [1 << 20]) as cutter:
            terms = quickly(cutter.address)

            def change(notice: Notice) -> None:
                if notice.what == "lost":
                    (tmp_path / "src").write_bytes(changed)

            terms.notice = change
            target = LocalFile(os.fsencode(tmp_path / "back"), archive=False)
            try:
                await download(terms, str(tmp_path / "src"), target)
            finally:
                target.close()
        assert (tmp_path / "back").read_bytes() == changed


async def test_a_refusal_is_not_asked_again(tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(b"x")
    async with asking() as (server, _):
        fd = os.open(tmp_path / "src", os.O_RDONLY)
        try:
            with pytest.raises(FileFailed, match="is a directory"):
                await upload(quickly(server.address), fd, str(tmp_path))
        finally:
            os.close(fd)


@pytest.mark.timeout(400)
def test_a_hundred_thousand_files_both_ways(server: Server, tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "memory", "size=2g,nr_inodes=1m"):
        top = tmp_path / "memory/src"
        top.mkdir()
        for number in range(1000):
            folder = os.open(top, os.O_RDONLY)
            os.mkdir(f"d{number:03}", dir_fd=folder)
            below = os.open(f"d{number:03}", os.O_RDONLY, dir_fd=folder)
            for file in range(100):
                fd = os.open(f"file-{file}", os.O_CREAT | os.O_WRONLY, dir_fd=below)
                os.write(fd, b"%d %d" % (number, file))
                os.close(fd)
            os.close(below)
            os.close(folder)
        ran(server, "--digest", "none", str(top), f":{tmp_path}/memory/there")
        ran(server, "--digest", "none", f":{tmp_path}/memory/there", str(tmp_path / "memory/back"))
        count = 0
        for number in range(0, 1000, 7):
            names = os.listdir(tmp_path / f"memory/back/d{number:03}")
            count += len(names)
            for name in names[::10]:
                path = f"d{number:03}/{name}"
                assert (top / path).read_bytes() == (tmp_path / "memory/back" / path).read_bytes()
        assert count == 143 * 100
        assert len(os.listdir(tmp_path / "memory/back")) == 1000


async def test_a_tree_read_while_a_folder_of_it_becomes_a_symlink(tmp_path: Path) -> None:
    """Swapped with a symlink to a secret all the while: no secret ever comes along."""
    top = tmp_path / "src"
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_bytes(b"secret")
    for number in range(30):
        (top / f"d{number}").mkdir(parents=True)
        (top / f"d{number}/f").write_bytes(b"x")
    (tmp_path / "trap").symlink_to(tmp_path / "secret")
    stop = False

    def swap() -> None:
        while not stop:
            for number in range(30):
                os.rename(top / f"d{number}", tmp_path / "aside")
                os.rename(tmp_path / "trap", top / f"d{number}")
                os.rename(top / f"d{number}", tmp_path / "trap")
                os.rename(tmp_path / "aside", top / f"d{number}")

    async with asking() as (server, _), trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, swap)
        for number in range(15):
            folder = tmp_path / f"out{number}"
            folder.mkdir()
            await download_tree(quickly(server.address), str(top), os.fsencode(folder), b".")
            found = {os.path.join(where, name) for where, _, files in os.walk(folder) for name in files}
            assert not any(name.endswith("key") for name in found)
        stop = True


@pytest.mark.parametrize("way", ["in", "out"])
async def test_a_supervisor_that_is_killed_costs_only_the_time_until_the_next_one(
    tmp_path: Path, way: str
) -> None:
    data = pattern(8 << 20)
    (tmp_path / "src").write_bytes(data)
    address = f"unix:{tmp_path}/s"
    killed = trio.Event()
    moved = 0
    terms = Terms(lambda: connect(address), backoff=Backoff(delays=(0.05,), last=0.05), give_up=30)

    async def copy() -> None:
        if way == "in":
            fd = os.open(tmp_path / "src", os.O_RDONLY)
            try:
                await upload(terms, fd, str(tmp_path / "there"))
            finally:
                os.close(fd)
            return
        target = LocalFile(os.fsencode(tmp_path / "there"), archive=False)
        try:
            await download(terms, str(tmp_path / "src"), target)
        finally:
            target.close()

    with contextlib.ExitStack() as servers:
        first = servers.enter_context(serving(address, expected_status=None))

        def kill(size: int) -> None:
            nonlocal moved
            moved += size
            if moved >= 3 << 20 and not killed.is_set():
                first.kill()
                killed.set()

        terms.moved = kill
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy)
            await killed.wait()
            os.unlink(tmp_path / "s")
            await trio.to_thread.run_sync(servers.enter_context, serving(address))
    assert (tmp_path / "there").read_bytes() == data
    assert moved < 2 * len(data)
    assert left_over(tmp_path) == []


def test_devices_and_sockets_are_left_out_unopened_and_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    os.mknod(tmp_path / "src/disk", 0o600 | stat.S_IFBLK, os.makedev(240, 7))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "src/socket"))
        (tmp_path / "src/file").write_bytes(b"x")
        done = run(server, f":{tmp_path}/src", str(tmp_path / "back"))
    assert done.returncode == 0
    assert b"disk: it is a device, and those are not copied" in done.stderr
    assert b"socket: it is a socket" in done.stderr
    assert os.listdir(tmp_path / "back") == ["file"]


def test_what_becomes_a_symlink_behind_its_listing_is_not_followed(tmp_path: Path) -> None:
    """The same in the moment that a race has to hit: the names are read, and then two of them are something else."""
    top = tmp_path / "src"
    for name in ("a", "b"):
        (top / name).mkdir(parents=True)
    (top / "a/large").write_bytes(bytes(400_000))
    (top / "c").write_bytes(b"mine")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_bytes(b"the secret")
    packer = Packer()
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        chunks = packer.chunks(folder, b"src", b"src")
        stream = next(chunks)
        (top / "b").rmdir()
        (top / "b").symlink_to(tmp_path / "secret")
        (top / "c").unlink()
        (top / "c").symlink_to(tmp_path / "secret/key")
        stream += b"".join(chunks)
    finally:
        os.close(folder)
    assert b"the secret" not in stream
    assert b"key" not in stream
    assert packer.told.failed == 2
