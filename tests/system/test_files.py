"""Files of a guest, one at a time: what is asked is done as the named user, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import guestd
from guestd.client import connect
from guestd.client.copying import Terms
from guestd.client.copying_files import LocalFile, download, upload
from guestd.errors import (
    BadOffset,
    BadRequest,
    Conflict,
    Corrupt,
    FileFailed,
    GuestdError,
    LimitReached,
    NotFound,
    TimedOut,
)
from guestd.wire.frames import Kind
from tests.support.commands import NOBODY, public_folder
from tests.support.files import NAMES, agents_of, asking, left_over, mounted_tmpfs, pattern
from tests.support.hanging import hanging_mount
from tests.support.peer import Peer
from tests.support.survivor import surviving

if TYPE_CHECKING:
    from guestd.client import Client


async def put(
    client: Client,
    path: str | bytes | Path,
    data: bytes,
    *,
    wrong: str | None = None,
    **options: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Write it whole. `wrong`: a digest that is not its own."""
    async with client.files.write(path if isinstance(path, bytes) else str(path), **options) as writer:
        await writer.send(data)
        return await writer.finish(
            digest=wrong or (hashlib.sha256(data).hexdigest() if "digest" in options else None)
        )


def _size_of_part(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in left_over(folder))


def _begin(peer: Peer, path: Path) -> None:
    """An upload that does not come to its end, until some of it is there."""
    before = _size_of_part(path.parent)
    call = peer.open("write", path=str(path), upload=path.name)
    call.accepted()
    call.data(0, b"half")
    while _size_of_part(path.parent) == before:
        pass


async def _cleared(folder: Path) -> None:
    """Until nothing is left there of what was given up. Nobody tells when that is."""
    with trio.fail_after(30):
        while left_over(folder):  # noqa: ASYNC110  see above
            await trio.sleep(0.01)


async def get(client: Client, path: str | bytes | Path, **options: Any) -> bytes:  # noqa: ANN401
    found = bytearray()
    async with client.files.read(path if isinstance(path, bytes) else str(path), **options) as reader:
        async for offset, data in reader:
            found += bytes(offset - len(found) - options.get("offset", 0)) + data
        found += bytes(reader.result["size"] - len(found) - options.get("offset", 0))
    return bytes(found)


async def test_every_name_there_can_be(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path)
    async with asking() as (_, client):
        for name in NAMES:
            path = top + b"/" + name
            await put(client, path, name, digest="sha256")
            assert Path(os.fsdecode(path)).read_bytes() == name
            assert await get(client, path) == name
            assert (await client.files.hash(path))["digest"] == hashlib.sha256(name).hexdigest()
            assert (await client.files.stat(path))["size"] == len(name)
        listed = [entry["name"].encode("utf-8", "surrogateescape") async for entry in client.files.list(top)]
        assert sorted(listed) == sorted(NAMES)
        for name in NAMES:
            await client.files.move(top + b"/" + name, top + b"/moved")
            await client.files.move(top + b"/moved", top + b"/" + name, replace=False)
            await client.files.remove(top + b"/" + name)
        assert os.listdir(top) == []


async def test_what_a_file_has_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "file"
    async with asking() as (_, client):
        told = await put(
            client, file, b"data", mode=0o640, owner=NOBODY, group="daemon", mtime=1_600_000_000_123_456_789,
            xattrs={"user.note": b"\x00\xff"},
        )  # fmt: skip
        status = file.stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, told["uid"], 1)
        assert status.st_mtime_ns == told["mtime"] == 1_600_000_000_123_456_789
        assert os.getxattr(file, "user.note") == b"\x00\xff"
        # What replaces it has what it had, as an editor would leave it.
        again = await put(client, file, b"other")
        assert (again["mode"], again["uid"], again["gid"]) == (0o640, told["uid"], 1)
        # A symlink stands for its file.
        (tmp_path / "link").symlink_to("file")
        await put(client, tmp_path / "link", b"through")
        assert file.read_bytes() == b"through"
        assert (await client.files.stat(str(tmp_path / "link"), follow=False))["target"] == "file"
        assert (await put(client, tmp_path / "new", b""))["mode"] == 0o644
        made = await client.files.make(str(tmp_path / "a/b/c"), parents=True, mode=0o700)
        assert (made["created"], made["mode"]) == (True, 0o700)
        assert not (await client.files.make(str(tmp_path / "a/b/c"), parents=True))["created"]
        await put(client, tmp_path / "a/x/y", b"1", parents=True)
        assert (await client.files.remove(str(tmp_path / "a"), recursive=True))["removed"] == 5
        assert await get(client, "/proc/sys/kernel/ostype") == b"Linux\n"


async def test_every_mistake_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    os.mkfifo(tmp_path / "fifo")
    path = str(tmp_path)

    async with asking() as (_, client):
        files = client.files
        cases: list[tuple[Any, type[GuestdError], str]] = [
            (lambda: files.stat(path + "/no"), NotFound, "no such file or directory (ENOENT)"),
            (lambda: files.stat(path + "/file/x"), NotFound, "is no directory (ENOTDIR)"),
            (lambda: get(client, path + "/full"), FileFailed, "`pack` reads those (EISDIR)"),
            (lambda: get(client, path + "/fifo"), FileFailed, "no file with a content of its own"),
            (lambda: get(client, path + "/file", offset=2), BadOffset, "the file has 1 bytes"),
            (lambda: get(client, path + "/file", version="other"), Conflict, "has changed"),
            (lambda: put(client, path + "/full", b""), FileFailed, "is a directory, which is not replaced"),
            (lambda: put(client, path + "/fifo", b""), FileFailed, "is no file (a pipe"),
            (lambda: put(client, path + "/no/x", b""), NotFound, "/no/x': no such file"),
            (
                lambda: put(client, path + "/file", b"", exclusive=True),
                Conflict,
                "it exists already (EEXIST)",
            ),
            (lambda: files.make(path + "/full"), Conflict, "it exists already"),
            (lambda: files.remove(path + "/full"), FileFailed, "the directory is not empty"),
            (lambda: files.remove(path + "/full/.."), BadRequest, "ends in no name"),
            (lambda: files.move(path + "/file", path + "/full/x", replace=False), Conflict, "it exists"),
            (lambda: files.move(path + "/file", "/proc/x"), FileFailed, "copy it, then remove it (EXDEV)"),
            (
                lambda: files.stat("x", user="nonesuch"),
                BadRequest,
                "there is no user 'nonesuch' in /etc/passwd",
            ),
            (lambda: files.stat("x", root="rel"), BadRequest, "an absolute path"),
            (lambda: files.stat(""), BadRequest, "a path of 1 to 4095 bytes"),
            (lambda: files.stat("x" * 256), FileFailed, "ENAMETOOLONG"),
            (lambda: put(client, path + "/q", b"", owner="nonesuch"), BadRequest, "there is no owner"),
            (lambda: files.hash(path + "/file", "md5"), BadRequest, "one of sha256, blake2b, none"),  # type: ignore[arg-type]
        ]
        for ask, kind, text in cases:
            with pytest.raises(kind) as caught:
                await ask()
            assert text in caught.value.message
        assert sorted(os.listdir(path)) == ["fifo", "file", "full"]


async def test_it_is_the_named_user_who_reads_and_writes() -> None:
    with public_folder() as folder:
        (folder / "secret").write_bytes(b"root's")
        (folder / "secret").chmod(0o600)
        (folder / "box").mkdir(mode=0o777)
        (folder / "box").chmod(0o777)
        async with asking() as (server, client):
            for ask in (
                lambda: get(client, folder / "secret", user=NOBODY),
                lambda: put(client, folder / "new", b"", user=NOBODY),
                lambda: client.files.remove(str(folder / "secret"), user=NOBODY),
                lambda: client.files.hash(str(folder / "secret"), user=65534),
                lambda: put(client, folder / "box/x", b"", user=NOBODY, owner="root"),
            ):
                with pytest.raises(FileFailed) as caught:
                    await ask()
                assert caught.value.details["errno_name"] in {"EACCES", "EPERM"}
            await put(client, folder / "box/mine", b"x", user=NOBODY)
            assert (folder / "box/mine").stat().st_uid == 65534
            assert left_over(folder) == []
            ids = {_status(pid)["Uid"].split()[0] for pid in agents_of(server)}
            assert ids == {"65534"}
            for pid in agents_of(server):
                status = _status(pid)
                assert (status["CapEff"], status["CapPrm"]) == ("0" * 16, "0" * 16)
                # Not even its own user looks into it.
                assert os.stat(f"/proc/{pid}/mem").st_uid == 0
            await get(client, "/etc/passwd")
            assert len(agents_of(server)) == 2


def _status(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


async def test_nothing_leads_out_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/secret").write_bytes(b"secret")
    (root / "in/file").write_bytes(b"inside")
    (root / "up").symlink_to("../out")
    (root / "absolute").symlink_to(tmp_path / "out")
    (root / "fine").symlink_to("in")
    (root / "to-file").symlink_to("../out/secret")
    where: Any = {"root": str(root)}
    async with asking() as (_, client):
        files = client.files
        assert await get(client, "fine/file", **where) == b"inside"
        assert await get(client, "/in/../in/file", **where) == b"inside"
        await put(client, "fine/new", b"n", **where)
        for ask in (
            lambda: get(client, "../out/secret", **where),
            lambda: get(client, "up/secret", **where),
            lambda: get(client, "absolute/secret", **where),
            lambda: get(client, "to-file", **where),
            lambda: put(client, "up/secret", b"changed", **where),
            lambda: put(client, "to-file", b"changed", **where),
            lambda: put(client, "up/new", b"", parents=True, **where),
            lambda: files.make("up/new/er", parents=True, **where),
            lambda: files.remove("up/secret", **where),
            lambda: files.move("in/file", "up/file", **where),
            lambda: files.stat("up", **where),
        ):
            with pytest.raises(FileFailed, match="leads out of the root"):
                await ask()
        # The links themselves are in it.
        assert (await files.stat("up", follow=False, **where))["type"] == "symlink"
        assert (await files.remove("up", **where))["removed"] == 1
    assert os.listdir(tmp_path / "out") == ["secret"]
    assert (tmp_path / "out/secret").read_bytes() == b"secret"


async def test_a_folder_that_becomes_a_symlink_while_it_is_written_to(tmp_path: Path) -> None:
    """Renamed back and forth with a symlink that leads out: nothing is ever made there."""
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (root / "b").symlink_to("../out")
    stop = False

    def swap() -> None:
        while not stop:
            os.rename(root / "a", root / "c")
            os.rename(root / "b", root / "a")
            os.rename(root / "a", root / "b")
            os.rename(root / "c", root / "a")

    async with asking() as (_, client), trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, swap)
        done = 0
        for number in range(150):
            with contextlib.suppress(FileFailed, NotFound):
                await put(client, f"a/{number}", b"x", root=str(root))
                done += 1
        stop = True
    assert done
    assert os.listdir(tmp_path / "out") == []


async def test_a_sparse_gigabyte_takes_constant_memory(tmp_path: Path) -> None:
    """Both ways, with its holes: neither the supervisor nor the process grows with the size."""
    size = 5 << 28
    source = tmp_path / "source"
    with source.open("wb") as file:
        for at in range(0, size, size // 8):
            file.seek(at)
            file.write(pattern(300_000, at))
        file.truncate(size)
    async with asking() as (server, _):
        sent = await trio.to_thread.run_sync(source.stat)
        terms = Terms(lambda: connect(server.address), digest="none")
        fd = os.open(source, os.O_RDONLY)
        try:
            await upload(terms, fd, str(tmp_path / "there"))
        finally:
            os.close(fd)
        there = (tmp_path / "there").stat()
        assert (there.st_size, there.st_mtime_ns) == (size, sent.st_mtime_ns)
        assert there.st_blocks * 512 < 4 << 20
        target = LocalFile(os.fsencode(tmp_path / "back"), archive=False)
        try:
            await download(terms, str(tmp_path / "there"), target)
        finally:
            target.close()
        assert (tmp_path / "back").stat().st_blocks * 512 < 4 << 20
        with (tmp_path / "back").open("rb") as file:
            for at in range(0, size, size // 8):
                file.seek(at)
                assert file.read(300_100) == pattern(300_000, at) + bytes(100)
        for pid in agents_of(server):
            assert _peak(pid) < 40 << 20
        assert _peak(server.pid) < 80 << 20


def _peak(pid: int) -> int:
    return int(_status(pid)["VmHWM"].split()[0]) * 1024


async def test_a_full_disk_in_the_middle(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "small", "size=1m"):
        async with asking() as (_, client):
            await put(client, tmp_path / "small/file", b"before")
            with pytest.raises(FileFailed, match="no space is left") as caught:
                await put(client, tmp_path / "small/file", bytes(3 << 20), upload="u")
            assert caught.value.details["errno_name"] == "ENOSPC"
            assert (tmp_path / "small/file").read_bytes() == b"before"
            assert left_over(tmp_path) == []


async def test_the_process_is_killed_in_the_middle(tmp_path: Path) -> None:
    data = pattern(1 << 20)
    async with asking() as (server, client):
        with pytest.raises(FileFailed, match="has ended in the middle of it"):  # noqa: PT012  both sides of one moment
            async with client.files.write(str(tmp_path / "file"), upload="u") as writer:
                await writer.send(data)
                while _size_of_part(tmp_path) < 1 << 20:  # noqa: ASYNC110  nobody tells
                    await trio.sleep(0.01)
                (pid,) = agents_of(server)
                os.kill(pid, signal.SIGKILL)
                for _ in range(100):
                    await writer.send(data)
        assert not (tmp_path / "file").exists()
        # What it had is there for who comes back.
        async with client.files.write(str(tmp_path / "file"), upload="u") as writer:
            assert writer.offset >= 1 << 20
            await writer.finish(writer.offset)
        assert (tmp_path / "file").read_bytes()[: 1 << 20] == data
        assert left_over(tmp_path) == []


async def test_given_up_nothing_is_left(tmp_path: Path) -> None:
    async with asking() as (_, client):
        async with client.files.write(str(tmp_path / "file"), upload="u") as writer:
            await writer.send(b"half")
        await _cleared(tmp_path)
        with pytest.raises(Corrupt, match="send it again"):
            await put(client, tmp_path / "file", b"data", digest="sha256", wrong="0" * 64)
        assert os.listdir(tmp_path) == []


async def test_a_connection_that_is_lost_goes_on_at_its_offset(tmp_path: Path) -> None:
    data = pattern(2 << 20)
    file = str(tmp_path / "file")
    async with asking() as (server, client):
        with Peer(server.address) as peer:
            call = peer.open("write", path=file, upload="one")
            assert call.accepted()["offset"] == 0
            call.data(0, data[:100_000])
            while _size_of_part(tmp_path) < 100_000:
                pass
            call.data(100_000, data[100_000:200_000], most=5000)  # and is cut in the middle of a frame
        while agents_of(server):  # noqa: ASYNC110  by then it is known that the connection was lost
            await trio.sleep(0.01)
        async with client.files.write(file, upload="one", digest="sha256") as writer:
            assert writer.offset == 100_000
            await writer.send(data[writer.offset :])
            told = await writer.finish(digest=hashlib.sha256(data).hexdigest())
        assert told["size"] == len(data)
        assert (tmp_path / "file").read_bytes() == data
        assert left_over(tmp_path) == []
        # And the other way: from an offset, with the digest of the whole.
        async with client.files.read(file, digest="sha256") as reader:
            version = reader.about["version"]
        found = b""
        async with client.files.read(file, offset=1 << 20, version=version, digest="sha256") as reader:
            async for _, piece in reader:
                found += piece
            assert reader.result["digest"] == hashlib.sha256(data).hexdigest()
        assert found == data[1 << 20 :]


async def test_who_does_not_wait_for_accept_is_given_credit_all_the_same(tmp_path: Path) -> None:
    """What came before ACCEPT used to be forgotten in the account, and whoever had used its window waited for ever."""
    data = pattern(1 << 20)
    async with asking() as (server, _):
        with Peer(server.address) as peer:
            call = peer.open("write", path=str(tmp_path / "file"))
            sent, credit = 0, 256 * 1024
            while sent < len(data):
                size = min(credit, 100_000, len(data) - sent)
                if size:
                    call.data(sent, data[sent : sent + size])
                    sent, credit = sent + size, credit - size
                else:
                    got = call.step()
                    credit += got.fields["bytes"] if got.kind is Kind.CREDIT else 0
            call.event(event="eof", offset=sent)
            call.end()
        assert (tmp_path / "file").read_bytes() == data


async def test_what_nobody_comes_back_for_is_taken_away(tmp_path: Path) -> None:
    async with asking('files.keep_partial = "100ms"') as (server, _):
        with Peer(server.address) as peer:
            _begin(peer, tmp_path / "file")
        await _cleared(tmp_path)


async def test_what_nobody_comes_back_for_is_taken_away_by_the_next_guestd_too(tmp_path: Path) -> None:
    """One that was killed had forgotten when their time is over, and they lay there for ever."""
    config = "[files]\nkeep_partial = '100ms'\n[init]\nrestart_delay = '10ms'\nrestart_delay_max = '10ms'\n"
    with surviving(config) as survivor:
        await survivor.ask()  # it is there
        with Peer(survivor.address) as peer:
            for name in ("a", "b"):
                _begin(peer, tmp_path / name)
            await survivor.next_after(await survivor.kill_serve())
        await _cleared(tmp_path)


async def test_a_part_whose_process_was_killed_is_taken_away_too(tmp_path: Path) -> None:
    async with asking('files.keep_partial = "100ms"') as (server, _):
        with Peer(server.address) as peer:
            _begin(peer, tmp_path / "file")
            (pid,) = agents_of(server)
            os.kill(pid, signal.SIGKILL)
            await _cleared(tmp_path)


def test_a_process_that_nobody_asks_anything_ends_without_a_word() -> None:
    """A guestd that was killed in that moment left a traceback on the console."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine.close()
    code = (
        f"import os, sys; os.dup2({theirs.fileno()}, 3); sys.path.insert(0, sys.argv[1]);"
        " from guestd.storage.agent import main; main()"
    )
    with theirs:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, str(Path(guestd.__file__).parents[1])],
            capture_output=True, check=False, pass_fds=[theirs.fileno()], timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


async def test_a_file_system_that_hangs_holds_up_that_request_alone(tmp_path: Path) -> None:
    with hanging_mount(tmp_path) as hanging:
        async with (
            asking('files.timeout = "2s"\nstop.grace = "1s"') as (_, client),
            trio.open_nursery() as nursery,
        ):
            refused = trio.Event()

            async def hang() -> None:
                with pytest.raises(TimedOut, match=r"has not answered stat for 2 s \(files.timeout\)"):
                    await client.files.stat(hanging.path + "/x")
                refused.set()

            nursery.start_soon(hang)
            while not refused.is_set():
                assert (await client.files.stat("/etc"))["type"] == "dir"
                await trio.sleep(0.02)
            assert (await client.status())["jobs"]["running"] == 0


async def test_one_that_cannot_be_killed_is_left_behind_and_told(tmp_path: Path) -> None:
    with hanging_mount(tmp_path) as hanging:
        hanging.answer()  # the mount itself; before that, those who wait can be killed
        async with (
            asking('files.timeout = "2s"\nstop.grace = "1s"') as (server, client),
            trio.open_nursery() as nursery,
        ):

            async def ask() -> None:
                with pytest.raises(TimedOut):
                    await client.files.stat(hanging.path + "/x")

            nursery.start_soon(ask)
            await trio.to_thread.run_sync(hanging.take)
            event: dict[str, Any] = {"event": None}
            async with contextlib.aclosing(client.events(follow=True)) as events:
                while event["event"] != "file_system_hangs":
                    event = await anext(events)
            assert hanging.path in event["path"]
            assert (await client.files.stat("/etc"))["type"] == "dir"
            assert event["pid"] in agents_of(server)


async def test_requests_wait_for_their_turn_and_not_for_ever(tmp_path: Path) -> None:
    config = "files.processes = 2\nfiles.per_connection = 2\n"
    async with asking(config) as (_, client), trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(client.files.stat, "/etc")
    async with (
        asking(config + 'files.wait = "300ms"') as (_, client),
        client.files.write(str(tmp_path / "a")) as first,
        client.files.write(str(tmp_path / "b")),
    ):
        with pytest.raises(LimitReached, match=r"raise files\.per_connection") as caught:
            await client.files.stat("/etc")
        assert caught.value.details["setting"] == "files.per_connection"
        await first.finish()
        assert await client.files.stat("/etc")


@pytest.mark.parametrize("key", [None, "one"])
async def test_a_stop_ends_transfers_and_leaves_nothing_half_made(tmp_path: Path, key: str | None) -> None:
    async with asking() as (server, client):
        if key is not None:
            with Peer(server.address) as peer:
                _begin(peer, tmp_path / "file")
            while agents_of(server):  # noqa: ASYNC110  by then it is known that the connection was lost
                await trio.sleep(0.01)
        with pytest.raises(GuestdError) as caught:  # noqa: PT012  both sides of one moment
            async with client.files.write(str(tmp_path / "file"), upload=key) as writer:
                await writer.send(b"half")
                await trio.to_thread.run_sync(server.stop)
                await writer.finish()
        assert caught.value.code in {"shutting_down", "lost"}
        assert os.listdir(tmp_path) == []


async def test_a_transfer_is_use_of_the_session_and_a_look_is_not(tmp_path: Path) -> None:
    async with asking() as (_, client):
        await client.files.stat("/etc")
        before = (await client.status())["activity"]["last"]
        assert "stat" not in str(before)
        await put(client, tmp_path / "x", bytes(100))
        assert (await client.status())["activity"]["last"] in {
            f"transfer write '{tmp_path}/x'",
            "request write",
        }
