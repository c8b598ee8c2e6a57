"""One attempt to mount something, step by step, by whom it may hang. Raises MountTrouble.

What is mounted already is adopted. A disk is looked at, made where it is empty and that was asked for, checked,
mounted, and grown with its device; a FUSE program is started and waited for; everything else is one call to the kernel.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import trio

from guestd.errors import GuestdError
from guestd.lifecycle.own import own_request
from guestd.storage.ask import MountTrouble
from guestd.storage.fuse import command, read_env_file
from guestd.storage.options import tell
from guestd.storage.plan import BIND, BLOCK, FORMATS, FUSE, TMPFS
from guestd.storage.standing import ADOPT, judge
from guestd.storage.table import MountTable, read_table
from guestd.wire.result import EndedBy, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.lifecycle.own import Done
    from guestd.process.identity import Identity
    from guestd.session.job import Job
    from guestd.storage.ask import Outside
    from guestd.storage.entry import Entry

#: To check or make a file system takes as long as it takes, and must not be ended in its middle; nobody waits for it
#: longer than for the mount.
_PROGRAM_LIMIT = 3600.0
_LEAST = 0.1
_SLACK = 1 << 20
#: What e2fsck's exit status is made of: mended; a restart is asked for; not mended.
_MENDED, _LEFT = 3, 4
_LAST_WORDS = 500
_FUSE_GRACE = 3.0
FUSE_JOB = "fuse-"


class Attempt:
    """One attempt for one entry. `resolve` knows users by name; the empty name is the session's own user; `note` keeps
    for a guestd after this one whose the mount is.
    """

    def __init__(
        self,
        entry: Entry,
        outside: Outside,
        resolve: Callable[[str], Identity],
        say: Callable[..., None],
        note: Callable[[], None],
    ) -> None:
        self._entry = entry
        self._wanted = entry.wanted
        self._outside = outside
        self._resolve = resolve
        self._say = say
        self._note_ours = note
        self._due = trio.current_time() + entry.wanted.timeout

    @property
    def _left(self) -> float:
        return max(_LEAST, self._due - trio.current_time())

    async def run(self) -> None:
        """Until it is mounted."""
        entry, wanted = self._entry, self._wanted
        entry.notes = []
        entry.adopted = False
        if wanted.type == BLOCK:
            entry.device = await self._do(
                "looking at the disk", "probe", source=wanted.source, format=wanted.format
            )
        number = None if entry.device is None else entry.device["number"]
        table = read_table()
        verdict, why = judge(wanted, table, number)
        if not verdict:
            raise MountTrouble(why, stage="where")
        if wanted.type == FUSE:
            await self._fuse(there=verdict == ADOPT)
            return
        if verdict == ADOPT:
            entry.adopted = True
            return
        fresh = False
        if wanted.type == BLOCK:
            fresh = await self._prepare(in_use=any(each.device == number for each in table))
        await self._mount(fresh=fresh or wanted.type == TMPFS)
        if wanted.type == BLOCK and wanted.grow and not wanted.read_only:
            await self.grow()

    async def _do(self, step: str, what: str, **fields: object) -> dict[str, Any]:
        self._entry.step = step
        name = f"mount-{self._wanted.name}-{what}"
        return await self._outside.do(name, self._left, do=what, **fields)

    # ----------------------------------------------------------------------------------------------------- disks

    async def _prepare(self, *, in_use: bool) -> bool:
        """Have a file system on the disk that can be mounted. Was it made just now?"""
        entry, wanted, device = self._entry, self._wanted, self._entry.device
        assert device is not None
        found = device["found"]
        if found is None:
            await self._make(device)
            return True
        kind = str(found["kind"])
        if kind not in {*FORMATS, "ext2", "ext3"}:
            raise MountTrouble(
                f"{device['path']} has {kind} on it, and guestd mounts {' and '.join(FORMATS)}; give it another disk",
                stage="where",
            )
        entry.fs_type = kind if kind == "xfs" else "ext4"
        if entry.fs_type == "ext4" and not wanted.read_only and not in_use and wanted.fsck != "none":
            await self._check(device["path"])
        return False

    async def _make(self, device: dict[str, Any]) -> None:
        wanted = self._wanted
        path, format_ = device["path"], wanted.format
        if not format_:
            raise MountTrouble(
                f'{path} has no file system on it; format = "ext4" makes one, if the disk is empty',
                stage="where",
            )
        if device["not_blank"]:
            raise MountTrouble(
                f"{path} is not formatted: {device['not_blank']}; if nobody needs it, `wipefs -a {path}` and zeros at"
                " its beginning (dd if=/dev/zero) make it empty",
                stage="where",
            )
        # A second opinion, of those who know more kinds of disks; it ends with 2 when it has found nothing.
        try:
            opinion = await self._program("looking at the disk", "blkid", "-p", path)
        except MountTrouble as trouble:
            if trouble.stage != "program":
                raise
        else:
            if opinion.result is None or opinion.result.status != 2:
                raise MountTrouble(
                    f"{path} is not formatted: blkid says {opinion.text or opinion.why}", stage="where"
                )
        label = wanted.name[:12]
        done = await self._program("formatting", f"mkfs.{format_}", "-q", "-L", label, path)
        if not done.went_well:
            raise MountTrouble(f"{path} could not be formatted: {done.why}", stage="where")
        self._entry.fs_type = format_
        self._note("mount_formatted", f"formatted with {format_}, since the disk was empty", format=format_)

    async def _check(self, path: str) -> None:
        how = "-fy" if self._wanted.fsck == "all" else "-p"
        try:
            done = await self._program("checking the disk", "e2fsck", how, path)
        except MountTrouble as trouble:
            if trouble.stage != "program":
                raise
            self._entry.notes.append("not checked: e2fsck is not installed")
            return
        status = 8 if done.result is None else done.result.status
        if status & _LEFT:
            raise MountTrouble(
                f'{path} is damaged, and mending it may lose something: {_short(done.text)}; fsck = "all" mends it',
                stage="where", said=done.text.splitlines(),
            )  # fmt: skip
        if status & ~_MENDED:
            raise MountTrouble(f"{path} could not be checked: {done.why}", said=done.text.splitlines())
        if status or "recovering journal" in done.text:
            self._note("mount_repaired", f"mended: {_short(done.text)}", said=_short(done.text))

    async def _repair_xfs(self, path: str) -> None:
        done = await self._program("mending the disk", "xfs_repair", path)
        if not done.went_well:
            raise MountTrouble(f"{path} could not be mended: {_short(done.text)}", stage="where")
        self._note("mount_repaired", f"mended: {_short(done.text)}", said=_short(done.text))

    async def _program(self, step: str, *argv: str) -> Done:
        self._entry.step = f"{step} ({argv[0]})"
        name = f"mount-{self._wanted.name}-{argv[0]}"
        return await self._outside.program(name, argv, _PROGRAM_LIMIT)

    async def grow(self) -> None:
        """To the size of its device. Not to be able to is no reason not to use it."""
        entry, device = self._entry, self._entry.device
        assert device is not None
        size = 0 if device["found"] is None else device["found"]["size"]
        if size and device["size"] < size + _SLACK:
            return
        try:
            told = await self._do(
                "growing", "grow", device=device["path"], path=entry.path, type=entry.fs_type
            )
        except MountTrouble as trouble:
            entry.notes.append(trouble.why)
            return
        if told["after"] > told["before"]:
            text = f"grown from {_mib(told['before'])} to {_mib(told['after'])} MiB"
            self._note("mount_grown", text, before=told["before"], after=told["after"])

    # -------------------------------------------------------------------------------------------------- one call

    async def _mount(self, *, fresh: bool) -> None:
        entry, wanted = self._entry, self._wanted
        device = "" if entry.device is None else entry.device["path"]
        told = tell(wanted, fs_type=entry.fs_type, device=device)
        fields: dict[str, object] = {
            "path": wanted.path, "cover": wanted.cover, "told": [each._asdict() for each in told],
        }  # fmt: skip
        if wanted.owner or fresh:
            identity = self._resolve(wanted.owner)
            fields |= {"uid": identity.uid, "gid": identity.gid}
        if wanted.mode:
            fields["mode"] = int(wanted.mode, 8)
        if wanted.type == BIND:
            fields |= {
                "bind": True, "source": wanted.layers[0], "attributes": told[0].attributes,
                "recursive": "rbind" in wanted.options,
            }  # fmt: skip
        if wanted.upper:
            fields["make"] = [wanted.upper, wanted.work]
        self._is_ours()
        try:
            answer = await self._do("mounting", "mount", **fields)
        except MountTrouble as trouble:
            if not (entry.fs_type == "xfs" and trouble.errno == errno.EUCLEAN and wanted.fsck == "all"):
                raise
            await self._repair_xfs(device)
            answer = await self._do("mounting", "mount", **fields)
        entry.notes += answer["notes"]

    def _is_ours(self) -> None:
        """Known before it is there: a guestd that dies in between has mounted it all the same."""
        self._entry.ours = True
        self._note_ours()

    def _note(self, event: str, text: str, **details: object) -> None:
        self._entry.notes.append(text)
        self._say(event, path=self._wanted.path, **details)

    # ------------------------------------------------------------------------------------------------------ FUSE

    async def _fuse(self, *, there: bool) -> None:
        entry, outside = self._entry, self._outside
        identity = self._resolve(self._wanted.owner)
        words = command(self._wanted, identity.uid, identity.gid)
        name = FUSE_JOB + "".join(each if each.isalnum() or each in "-_" else "-" for each in entry.name)
        # Somebody's job may have such a name as well.
        running = [job for job in outside.running(name) if list(job.about["command"])[:3] == list(words)[:3]]
        if there and running:
            entry.job, entry.adopted, entry.ours = running[0], True, True
            outside.jobs.last.add(running[0].id)
            return
        if there:
            looked = await outside.look([entry.path], self._left)
            if looked.get(entry.path, {}).get("errno") != errno.ENOTCONN:
                raise MountTrouble(
                    f"{entry.path} has a FUSE mount already, of a program that guestd did not start; unmount that, or"
                    " choose another path",
                    stage="where",
                )
            await self._do("taking down what is dead", "unmount", path=entry.path, ways=["lazy"])
        for job in running:
            # Of a mount that is no more.
            await _end(job)
        await self._do("looking at the mount point", "target", path=entry.path, cover=self._wanted.cover)
        await self._start(outside.free_id(name), words)

    async def _start(self, job_id: str, words: tuple[str, ...]) -> None:
        entry, wanted, jobs = self._entry, self._wanted, self._outside.jobs
        settings = self._outside.settings
        env = {**wanted.env, **(await self._env_file() if wanted.env_file else {})}
        request = own_request(
            settings, words, user=os.geteuid(), cwd="/", env=env, grace=_FUSE_GRACE, retain=settings.command.retain,
        )  # fmt: skip
        entry.step = f"waiting for {words[0]}"
        table = MountTable()
        try:
            jobs.last.add(job_id)
            jobs.reserved.add(job_id)
            try:
                job = entry.job = jobs.start_own(job_id, request)
            except GuestdError as error:
                raise MountTrouble(error.message, stage="start") from None
            self._is_ours()
            try:
                with trio.move_on_at(self._due):
                    await self._until_there(job, table, words)
            except BaseException:
                await self._give_up(job)
                raise
            if not _has_fuse(entry.path):
                await self._give_up(job)
                raise MountTrouble(
                    f"{words[0]} has not mounted {entry.path} within {wanted.timeout:g} s", stage="time",
                    said=_words(job),
                )  # fmt: skip
        finally:
            table.close()

    async def _until_there(self, job: Job, table: MountTable, words: tuple[str, ...]) -> None:
        path = self._entry.path
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await job.ended.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            while not _has_fuse(path):
                await table.changed()
            nursery.cancel_scope.cancel()
        result = job.result
        if result is not None:
            name = words[0]
            what = f"{name} ended with {result.status}: {_short(' '.join(_words(job)))}"
            if result.outcome is Outcome.NOT_STARTED:
                what = f"{name} {result.message or 'could not start'}; is it installed in the image?"
            raise MountTrouble(what, stage="what", said=_words(job))

    async def _give_up(self, job: Job) -> None:
        """It is not to be mounted later, when nobody expects it."""
        with trio.move_on_after(_FUSE_GRACE, shield=True):
            await _end(job)
            if _has_fuse(self._entry.path):
                await self._outside.do(
                    f"mount-{self._wanted.name}-unmount",
                    _FUSE_GRACE,
                    do="unmount",
                    path=self._entry.path,
                    ways=["lazy"],
                )

    async def _env_file(self) -> dict[str, str]:
        path = self._wanted.env_file

        def read() -> str:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                return file.read(1 << 20)

        try:
            with trio.fail_after(self._left):
                return read_env_file(await trio.to_thread.run_sync(read, abandon_on_cancel=True))
        except trio.TooSlowError:
            raise MountTrouble(f"env_file {path} could not be read in time") from None
        except OSError as error:
            raise MountTrouble(f"env_file {path} cannot be read: {error.strerror}", stage="what") from None


def _has_fuse(path: str) -> bool:
    return any(each.target == path and each.type.startswith("fuse") for each in read_table())


async def _end(job: Job) -> None:
    job.end(EndedBy.KILL, grace=_FUSE_GRACE)
    with trio.move_on_after(2 * _FUSE_GRACE):
        await job.ended.wait()


def _words(job: Job) -> list[str]:
    """The end of what it has printed."""
    for recording in reversed(job.recordings):
        recording.drain()
        data = bytes(recording.read(max(recording.start, recording.end - _LAST_WORDS), _LAST_WORDS).data)
        if data.strip():
            return data.decode("utf-8", "replace").strip().splitlines()
    return []


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LAST_WORDS else f"…{words[-_LAST_WORDS:]}"


def _mib(size: int) -> int:
    return size >> 20
