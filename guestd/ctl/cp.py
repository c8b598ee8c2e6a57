"""cp: files and folders into the guest and out of it."""

from __future__ import annotations

import json as json_text
import os
import signal
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

import trio

from guestd.client.copying import Copied, Terms
from guestd.client.copying_files import LocalFile, download, upload
from guestd.client.copying_trees import download_tree, upload_tree
from guestd.client.tasks import background
from guestd.ctl import cp_plan
from guestd.ctl.cp_plan import GUEST, PIPE, Path, Wrong
from guestd.ctl.dialing import dialer
from guestd.ctl.failures import say
from guestd.ctl.progress import Progress
from guestd.ctl.progress import size as shown_size
from guestd.errors import FileFailed, GuestdError, NotFound

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from guestd.client import Client, Notice
    from guestd.client.files import Where

#: Some entries failed, and the rest is there.
_PARTLY = 1
_STEP = 256 * 1024


def cp(options: argparse.Namespace) -> int:
    """0 when all of it is there; 1 when some entries failed."""
    try:
        sources, target = cp_plan.sort(options.paths)
    except Wrong as error:
        options.parser.error(str(error))
        raise AssertionError from None
    return trio.run(_Copy(options, sources, target).run)


class _Copy:
    def __init__(self, options: argparse.Namespace, sources: list[Path], target: Path) -> None:
        self._options = options
        self._sources = sources
        self._target = target
        self._where: Where = {} if options.user is None else {"user": options.user}
        self._progress = Progress(wanted=not options.json and not options.quiet)
        self._dial = dialer(options)
        self._terms = Terms(
            self._dial, self._where, options.digest, archive=options.archive, give_up=options.give_up,
            notice=self._notice, moved=self._progress.moved,
        )  # fmt: skip
        self._copied = Copied()
        self._signal = 0

    async def run(self) -> int:
        begun = time.monotonic()
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            done = trio.CancelScope()
            async with background() as tasks:
                tasks.start_soon(self._end_at, signals, done)
                with done:
                    try:
                        await self._all()
                    finally:
                        self._progress.clear()
        if self._signal:
            return 128 + self._signal
        self._report(time.monotonic() - begun)
        return _PARTLY if self._copied.failed else 0

    async def _end_at(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for number in signals:
            self._signal = number
            scope.cancel()
            return

    def _notice(self, notice: Notice) -> None:
        self._progress.clear()
        if self._options.json:
            return
        if notice.what == "again":
            say("connected again; the copy goes on")
        elif notice.error is not None:
            say(f"{notice.error.message}; next try in {notice.delay:.0f} s")

    async def _all(self) -> None:
        try:
            if self._target.side == PIPE:
                await self._to_pipe(self._sources[0])
            elif self._sources[0].side == PIPE:
                await self._from_pipe()
            elif self._target.side == GUEST:
                await self._into_guest()
            else:
                await self._out_of_guest()
        except Wrong as error:
            raise FileFailed(str(error)) from None

    # --------------------------------------------------------------------------------------------- into the guest

    async def _into_guest(self) -> None:
        sources = [(each, _kind_here(each, follow=self._options.follow_link)) for each in self._sources]
        there = await self._kind_there(self._target)
        for source, kind in sources:
            step = cp_plan.place(source, kind, self._target, there, several=len(sources) > 1)
            path = os.fsencode(source.text)
            if step.tree:
                self._progress.begin(source.text, None)
                self._add(
                    await upload_tree(
                        self._terms,
                        path,
                        os.fsencode(step.name),
                        step.into,
                        follow=self._options.follow_link,
                        parents=self._options.parents,
                    )
                )
                continue
            fd = _open_here(path)
            try:
                self._progress.begin(source.text, os.fstat(fd).st_size)
                self._add(await upload(self._terms, fd, step.into, parents=self._options.parents))
            finally:
                os.close(fd)

    # ------------------------------------------------------------------------------------------- out of the guest

    async def _out_of_guest(self) -> None:
        target = self._target
        sources = [(each, await self._about(each)) for each in self._sources]
        there = _kind_of_target(target)
        for source, about in sources:
            step = cp_plan.place(source, about["type"], target, there, several=len(sources) > 1)
            into = os.fsencode(step.into)
            if step.tree:
                if step.makes:
                    _make_here(into)
                self._progress.begin(source.text, None)
                self._add(
                    await download_tree(
                        self._terms,
                        source.text,
                        into,
                        os.fsencode(step.name),
                        fresh=step.makes,
                        follow=self._options.follow_link or source.text.endswith("/"),
                    )
                )
                continue
            if os.path.isdir(into):
                raise Wrong(f"{step.into!r} is a folder, and {source.text!r} is a file")
            self._progress.begin(source.text, about["size"])
            file = _new_here(into, archive=self._options.archive)
            try:
                self._add(await _writing_here(step.into, download(self._terms, source.text, file)))
            finally:
                file.close()

    # --------------------------------------------------------------------------------------------------- pipes

    async def _to_pipe(self, source: Path) -> None:
        about = await self._about(source)
        if about["type"] == "file":
            self._progress.begin(source.text, about["size"])
            self._add(await download(self._terms, source.text, _Pipe(), can_begin_anew=False))
            return
        self._progress.begin(source.text, None)
        pipe = _Pipe()
        name = "." if source.contents or source.name in {"", "..", "."} else source.name
        async with (
            self._dial() as client,
            client.files.pack(
                source.text, name=name, follow=self._options.follow_link, **self._where
            ) as reader,
        ):
            async for offset, data in reader:
                await trio.to_thread.run_sync(pipe.put, offset, data)
                self._progress.moved(len(data))
            copied = Copied(entries=reader.result["entries"], bytes=reader.result["bytes"])
            copied.add(reader.result)
            self._add(copied)

    async def _from_pipe(self) -> None:
        """Into a folder that is there an archive; anything else into a file."""
        target = self._target
        tree = await self._kind_there(target) == "dir"
        if not tree and target.is_folder:
            raise Wrong(
                f"there is no folder {target.text!r} in the guest; make it first, or leave out the slash"
            )
        self._progress.begin(target.text, None)
        async with self._dial() as client:
            given: dict[str, Any] = dict(self._where)
            opened = (
                client.files.unpack(target.text, make=False, owners=self._options.archive, **given)
                if tree
                else client.files.write(target.text, parents=self._options.parents, **given)
            )
            async with opened as writer:
                while data := await trio.to_thread.run_sync(os.read, 0, _STEP, abandon_on_cancel=True):
                    await writer.send(data)
                    self._progress.moved(len(data))
                result = await writer.finish()
        copied = Copied(entries=result.get("entries", 1), bytes=result.get("bytes", result.get("size", 0)))
        copied.add(result)
        self._add(copied)

    # ------------------------------------------------------------------------------------------------- what is there

    async def _about(self, source: Path) -> dict[str, Any]:
        follow = self._options.follow_link or source.is_folder
        async with self._dial() as client:
            return await client.files.stat(source.text, follow=follow, **self._where)

    async def _kind_there(self, target: Path) -> str:
        async with self._dial() as client:
            return await _kind(client, target.text, self._where)

    # ------------------------------------------------------------------------------------------------------ the end

    def _add(self, copied: Copied) -> None:
        mine = self._copied
        mine.entries += copied.entries
        mine.bytes += copied.bytes
        mine.skipped += copied.skipped
        mine.failed += copied.failed
        mine.named += copied.named
        mine.changed |= copied.changed
        mine.digest = copied.digest

    def _report(self, took: float) -> None:
        copied = self._copied
        if self._options.json and self._target.side != PIPE:
            found: dict[str, Any] = {
                "event": "copied", "entries": copied.entries, "bytes": copied.bytes, "seconds": took,
                "skipped": copied.skipped, "failed": copied.failed, "named": copied.named, "changed": copied.changed,
            }  # fmt: skip
            if len(self._sources) == 1 and copied.digest is not None:
                found["digest"] = f"{self._options.digest}:{copied.digest}"
            print(json_text.dumps(found))
            return
        for each in copied.named:
            say(f"{each['path']}: {each['why']}")
        unnamed = copied.failed + copied.skipped - len(copied.named)
        if unnamed > 0:
            say(f"and {unnamed} more")
        if copied.changed:
            say("it changed while it was read: what is here may be neither the old nor the new")
        if not self._options.quiet and sys.stderr.isatty():
            say(
                f"{copied.entries} {'entry' if copied.entries == 1 else 'entries'}, {shown_size(copied.bytes)} in"
                f" {took:.1f} s"
            )


async def _kind(client: Client, path: str, where: Where) -> str:
    try:
        found = await client.files.stat(path, **where)
    except NotFound:
        return "absent"
    return str(found["type"])


def _kind_here(path: Path, *, follow: bool) -> str:
    try:
        status = os.stat(path.text) if follow or path.is_folder else os.lstat(path.text)
    except OSError as error:
        raise _failed(path.text, error) from None
    if stat.S_ISDIR(status.st_mode):
        return "dir"
    return "file" if stat.S_ISREG(status.st_mode) else "other"


def _kind_of_target(path: Path) -> str:
    try:
        status = os.stat(path.text)
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        raise _failed(path.text, error) from None
    return "dir" if stat.S_ISDIR(status.st_mode) else "file"


def _open_here(path: bytes) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(os.fsdecode(path), error) from None


def _new_here(path: bytes, *, archive: bool) -> LocalFile:
    try:
        return LocalFile(path, archive=archive)
    except OSError as error:
        raise _failed(os.fsdecode(path), error) from None


def _make_here(path: bytes) -> None:
    try:
        os.mkdir(path)
    except OSError as error:
        raise _failed(os.fsdecode(path), error) from None


async def _writing_here(path: str, copy: Any) -> Copied:  # noqa: ANN401  a coroutine that gives Copied
    try:
        found: Copied = await copy
    except OSError as error:
        raise _failed(path, error) from None
    return found


def _failed(path: str, error: OSError) -> GuestdError:
    return FileFailed(f"{path!r} here: {error.strerror or error}", path=path)


class _Pipe:
    """Our stdout. What is a hole in the file is zeros there."""

    def __init__(self) -> None:
        self._at = 0

    def begin(self) -> None: ...

    def put(self, offset: int, data: bytes) -> None:
        self._fill(offset)
        self._write(memoryview(data))

    def end(self, size: int, about: dict[str, Any]) -> None:
        del about
        self._fill(size)

    def _fill(self, offset: int) -> None:
        while self._at < offset:
            self._write(memoryview(bytes(min(_STEP, offset - self._at))))

    def _write(self, view: memoryview) -> None:
        while view:
            size = os.write(1, view)
            self._at += size
            view = view[size:]
