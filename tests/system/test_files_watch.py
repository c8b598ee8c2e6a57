"""Watching a guest's files: everything that is there in the end was told, however quickly it came to be."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from guestd.client import Backoff, connect
from guestd.client.copying import Terms
from guestd.client.watching import watch
from guestd.errors import LimitReached, NotFound
from guestd.storage.file_coalescing import QUIET
from tests.support.commands import NOBODY, public_folder
from tests.support.files import NAMES, agents_of, asking, mounted_tmpfs
from tests.support.survivor import SECONDS, surviving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from guestd.client import Client

Event = dict[str, Any]


class Told:
    """The events of a watch, and what there is by their account."""

    def __init__(self, events: AsyncGenerator[Event]) -> None:
        self._events = events
        self.all: list[Event] = []
        self.paths: set[str] = set()

    async def next(self) -> Event:
        event = await anext(self._events)
        self.all.append(event)
        path = event.get("path", "")
        match event["event"]:
            case "created" | "entry" | "changed":
                self.paths.add(path)
            case "rescan":
                self.paths.clear()
            case "removed":
                self.paths = {each for each in self.paths if each != path and not each.startswith(path + "/")}
            case "moved":
                moved = {each for each in self.paths if each == path or each.startswith(path + "/")}
                self.paths -= moved
                self.paths |= {event["to"], *(event["to"] + each[len(path) :] for each in moved)}
            case _:
                pass
        return event

    async def until(self, name: str, path: str, *, or_else: str = "") -> Event:
        """Up to that event."""
        with trio.fail_after(30):
            while (event := await self.next())["event"] not in {name, or_else} or event.get("path") != path:
                pass
        return event

    def kinds(self, path: str) -> list[str]:
        return [event["event"] for event in self.all if event.get("path") == path]


@contextlib.asynccontextmanager
async def watching(client: Client, path: Path | str, **options: Any) -> AsyncGenerator[Told]:  # noqa: ANN401
    async with contextlib.aclosing(client.files.watch(str(path), **options)) as events:
        told = Told(events)
        assert (await told.next())["event"] == "watching"
        yield told


async def settled(told: Told, folder: Path) -> None:
    """Everything that was done before this has been told: what is done now comes behind it."""
    mark = f"mark-{len(told.all)}"
    (folder / mark).touch()
    # Where the kernel's queue is full at this moment, it is found by the listing that follows.
    await told.until("created", mark, or_else="entry")
    (folder / mark).unlink()
    await told.until("removed", mark)


def there(folder: Path) -> set[str]:
    top = os.fsencode(folder)
    found: set[str] = set()
    for where, folders, files in os.walk(top):
        for name in [*folders, *files]:
            inside = os.path.relpath(os.path.join(where, name), top)
            found.add(inside.decode("utf-8", "surrogateescape"))
    return found


async def test_what_happens_is_told(tmp_path: Path) -> None:
    (tmp_path / "before").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    async with asking() as (_, client), watching(client, tmp_path) as told:
        (tmp_path / "before").write_bytes(b"x")
        assert (await told.next())["path"] == "before"
        (tmp_path / "sub/new").write_bytes(b"x")
        await told.until("created", "sub/new")
        (tmp_path / "before").chmod(0o600)
        await told.until("attributes", "before")
        (tmp_path / "before").rename(tmp_path / "sub/after")
        assert (await told.until("moved", "before"))["to"] == "sub/after"
        (tmp_path / "sub").rename(tmp_path / "other")
        assert (await told.until("moved", "sub"))["dir"] is True
        (tmp_path / "other/after").write_bytes(b"y")
        await told.until("changed", "other/after")
        shutil.rmtree(tmp_path / "other")
        await told.until("removed", "other")
        for name in NAMES:
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
        await settled(told, tmp_path)
        assert told.paths == there(tmp_path)
        assert len(told.paths) == len(NAMES)


async def test_deep_folders_made_at_once_lose_nothing(tmp_path: Path) -> None:
    """`mkdir -p a/b/c` with files in it at once, a hundred times over: each of them is told."""
    script = """
    for i in $(seq 100); do mkdir -p d$i/a/b/c; : > d$i/a/b/c/f; : > d$i/a/g; : > d$i/h; done
    mv d1 e1; mv d2/a d3/z; rm -r d4; mkdir -p d4/again; : > d4/again/f
    """
    async with asking() as (_, client), watching(client, tmp_path) as told:
        await trio.run_process(["sh", "-c", script], cwd=tmp_path)
        await settled(told, tmp_path)
        assert told.paths == there(tmp_path)
        assert "rescan" not in {event["event"] for event in told.all}
        (tmp_path / "d3/z/b/c/later").touch()
        (tmp_path / "e1/a/b/later").touch()
        await settled(told, tmp_path)
        assert {"d3/z/b/c/later", "e1/a/b/later"} <= told.paths


async def test_moves_across_the_edge_are_comings_and_goings(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out/tree/deep").mkdir(parents=True)
    (tmp_path / "out/tree/deep/file").touch()
    async with asking() as (_, client), watching(client, tmp_path / "in") as told:
        (tmp_path / "out/tree").rename(tmp_path / "in/tree")
        await told.until("created", "tree/deep/file")
        (tmp_path / "in/tree").rename(tmp_path / "out/back")
        await told.until("removed", "tree")
        (tmp_path / "out/back/deep/unseen").touch()
        (tmp_path / "in/.git").mkdir()
        (tmp_path / "in/x").touch()
        (tmp_path / "in/x").rename(tmp_path / "in/.git/x")
        (tmp_path / "in/.git/x").rename(tmp_path / "in/y")
        await settled(told, tmp_path / "in")
        assert told.paths == {"y"}
        assert not any("unseen" in str(event) for event in told.all)


async def test_a_file_written_ten_thousand_times_is_a_handful_of_events(tmp_path: Path) -> None:
    async with asking() as (_, client), watching(client, tmp_path) as told:
        begun = time.monotonic()
        with (tmp_path / "log").open("wb", buffering=0) as file:
            for _ in range(10_000):
                file.write(b"x")
        await settled(told, tmp_path)
        assert told.kinds("log")[0] == "created"
        # One for each time that it was quiet for so long, as it is where a machine is slow.
        assert len(told.kinds("log")) < 40 + (time.monotonic() - begun) / QUIET


async def test_what_is_ignored_is_not_watched(tmp_path: Path) -> None:
    for name in (".git/objects", "node_modules/x", "src/node_modules", "src/build/x", "other/build"):
        (tmp_path / name).mkdir(parents=True)
    async with asking() as (_, client):
        async with watching(client, tmp_path) as told:
            assert told.all[0]["watches"] == 6
            (tmp_path / ".git/HEAD").touch()
            (tmp_path / "src/node_modules/y").touch()
            (tmp_path / "src/seen").touch()
            await settled(told, tmp_path)
            seen = {event["path"] for event in told.all if "path" in event}
            assert {path for path in seen if not path.startswith("mark")} == {"src/seen"}
        async with watching(client, tmp_path, ignore=["*.tmp", "src/build"]) as told:
            (tmp_path / "a.tmp").touch()
            (tmp_path / "src/build/x/y").touch()
            (tmp_path / ".git/HEAD").write_bytes(b"x")
            (tmp_path / "other/build/z").touch()
            await settled(told, tmp_path)
            assert {event.get("path") for event in told.all} >= {".git/HEAD", "other/build/z"}
            assert not any("a.tmp" in str(event) or "src/build" in str(event) for event in told.all)
        async with watching(client, tmp_path, recursive=False) as told:
            assert told.all[0]["watches"] == 1
            (tmp_path / "src/deep").touch()
            (tmp_path / "new").mkdir()
            (tmp_path / "new/deep").touch()
            await settled(told, tmp_path)
            assert not any("deep" in str(event) for event in told.all)


async def test_one_file_is_followed_through_its_replacements(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    async with asking() as (_, client), watching(client, tmp_path / "file") as told:
        (tmp_path / "other").write_bytes(b"2")
        (tmp_path / "other").rename(tmp_path / "file")
        await told.until("created", "file")
        (tmp_path / "file").write_bytes(b"3")
        await told.until("changed", "file")
        (tmp_path / "file").unlink()
        await told.until("removed", "file")


async def test_more_than_can_be_told_is_a_rescan(tmp_path: Path) -> None:
    """The kernel's queue is made small, and the client does not read: what is there is listed afresh."""
    limit = Path("/proc/sys/fs/inotify/max_queued_events")
    usual = limit.read_text()
    (tmp_path / "old").mkdir()
    try:
        limit.write_text("64")
        async with asking() as (server, client), watching(client, tmp_path) as told:
            limit.write_text(usual)
            (pid,) = agents_of(server)
            os.kill(pid, 19)  # it does not read for a while
            (tmp_path / "old").rename(tmp_path / "new")
            for number in range(300):
                (tmp_path / f"d{number}").mkdir()
                (tmp_path / f"d{number}/f").touch()
            os.kill(pid, 18)
            with trio.fail_after(30):
                while (await told.next())["event"] != "listed":
                    pass
            await settled(told, tmp_path)
            assert {event["event"] for event in told.all} >= {"rescan", "entry", "listed"}
            assert told.paths == there(tmp_path)
            # All of it is watched from now on.
            (tmp_path / "new/x").touch()
            (tmp_path / "d299/x").touch()
            await settled(told, tmp_path)
            assert {"new/x", "d299/x"} <= told.paths
    finally:
        limit.write_text(usual)


async def test_who_does_not_read_costs_no_memory_and_gets_a_rescan(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    async with asking() as (server, _), connect(server.address, window=16 * 1024) as client:
        with mounted_tmpfs(folder, "size=64m"):
            async with watching(client, folder) as told:
                (pid,) = agents_of(server)
                for number in range(100):
                    (folder / f"d{number}").mkdir()
                # Each is watched by now: what becomes of them is told, and not found when they are looked into.
                await settled(told, folder)
                before = _memory(pid)
                for number in range(100):
                    for file in range(300):
                        # Long: altogether more than lies on the way to the client, also where a machine is so slow that
                        # each has set out when the next one comes.
                        os.close(os.open(folder / f"d{number}/{file:0200}", os.O_CREAT))
                assert _memory(pid) - before < 30 << 20
                await settled(told, folder)
                assert "rescan" in {event["event"] for event in told.all}
                assert told.paths == there(folder)
            while agents_of(server):  # noqa: ASYNC110  it has the folder open until it has ended
                await trio.sleep(0.01)


def _memory(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


async def test_limits_are_told(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"d{number}").mkdir()
    async with asking('files.watches = 8\nfiles.watchers = 1\nfiles.wait = "2s"') as (_, client):
        with pytest.raises(LimitReached, match=r"--ignore some, watch less, or raise files\.watches"):
            async with watching(client, tmp_path):
                pass
        shutil.rmtree(tmp_path / "d9")
        for number in range(5):
            shutil.rmtree(tmp_path / f"d{number}")
        async with watching(client, tmp_path) as told:
            with pytest.raises(LimitReached, match=r"raise files\.watchers"):
                async with watching(client, tmp_path):
                    pass
            for number in range(5):
                (tmp_path / f"e{number}").mkdir()
            event = await told.until("limit", "e3")
            assert "files.watches is 8" in event["message"]
        with pytest.raises(NotFound):
            async with watching(client, tmp_path / "nowhere"):
                pass


async def test_it_ends_when_what_is_watched_is_gone(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    async with asking() as (_, client), watching(client, tmp_path / "w") as told:
        (tmp_path / "w/x").touch()
        shutil.rmtree(tmp_path / "w")
        with trio.fail_after(30):
            while (await told.next())["event"] != "gone":
                pass
        assert "x" not in told.paths


async def test_it_goes_on_under_the_next_supervisor_with_what_there_is_then(tmp_path: Path) -> None:
    """A guestd that dies sees nothing for a while: whoever watches knows that, and what came of it."""
    watched = tmp_path / "w"
    watched.mkdir()
    (watched / "old").touch()
    send, receive = trio.open_memory_channel[Event](100)
    told: list[str] = []
    # What is killed for a test is not what patience is for.
    with surviving("[init]\nrestart_delay = '10ms'\nrestart_delay_max = '10ms'\n") as survivor:
        terms = Terms(
            survivor.connected,
            backoff=Backoff(delays=(0.02,), last=0.1),
            notice=lambda it: told.append(it.what),
        )
        async with trio.open_nursery() as tasks:
            tasks.start_soon(watch, terms, str(watched), send.send_nowait)
            with trio.fail_after(SECONDS):
                assert (await receive.receive())["event"] == "watching"
                generation = await survivor.kill_serve()
                (watched / "old").rename(watched / "new")
                await survivor.next_after(generation)
                while (await receive.receive())["event"] != "watching":
                    pass  # what the one that died has still told
                assert await receive.receive() == {"event": "rescan", "reason": "asked"}
                assert await receive.receive() == {"event": "entry", "path": "new", "dir": False}
                assert (await receive.receive())["event"] == "listed"
                (watched / "new").unlink()
                assert await receive.receive() == {"event": "removed", "path": "new", "dir": False}
                await survivor.kill_serve()
                watched.rmdir()
                while (await receive.receive())["event"] != "gone":
                    pass
    assert told[:2] == ["lost", "again"]


async def test_it_sees_what_its_user_sees() -> None:
    with public_folder() as folder:
        (folder / "open").mkdir()
        (folder / "closed").mkdir(mode=0o700)
        async with asking() as (_, client), watching(client, folder, user=NOBODY) as told:
            (folder / "closed/x").touch()
            (folder / "open/x").touch()
            await told.until("created", "open/x")
            assert any(event["event"] == "unreadable" and event["path"] == "closed" for event in told.all)
            assert not any("closed/x" in str(event) for event in told.all)


def test_nothing_is_run_to_find_libc() -> None:
    """Pyinotify looks for libc by running ldconfig and a compiler; the file process never executes anything."""
    code = (
        "import os, sys\n"
        "from guestd.storage.file_inotify import Inotify\n"
        "os.environ['PATH'] = '/nowhere'\n"
        "sys.addaudithook(lambda event, _: event == 'subprocess.Popen' and os._exit(3))\n"
        "Inotify().close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0
