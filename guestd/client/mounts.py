"""What a client can ask about file systems: mount them, take them down, see how they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack

MountType = Literal["block", "virtiofs", "9p", "nfs", "overlay", "bind", "tmpfs", "fuse"]


class MountOptions(TypedDict, total=False):
    """What `mount` can be asked for, as docs/protocol.md has it. What is left out the guest decides."""

    path: str
    name: str
    type: MountType
    source: str
    options: Sequence[str]
    read_only: bool
    owner: str | int
    mode: int
    timeout: float
    format: Literal["ext4", "xfs"]
    fsck: Literal["safe", "all", "none"]
    grow: bool
    cover: bool
    upper: str
    work: str
    program: str | Sequence[str]
    env: Mapping[str, str]
    env_file: str


class MountOperations:
    """The part of a `Client` that is about file systems."""

    async def _ask(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    async def mount(self, **options: Unpack[MountOptions]) -> dict[str, Any]:
        """Mount a file system, or with a path alone one that is known, again. Returns how it is when it is there."""
        return await self._ask({"op": "mount", **options})

    async def unmount(self, path: str, *, force: bool = False) -> dict[str, Any]:
        """Take one down, by its path or its name, when all of it is written. `force`: also when it is in use."""
        return await self._ask({"op": "unmount", "path": path, "force": force})

    async def mounts(self) -> dict[str, Any]:
        """The file systems of this session, in the order in which they are mounted, and the workspace."""
        return await self._ask({"op": "mounts"})
