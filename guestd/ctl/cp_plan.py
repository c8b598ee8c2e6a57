"""What `cp` means, decided from names and from what is there, as docker cp does. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Wrong(ValueError):
    """What was asked cannot be meant; the text says why, and what could."""


class Path(NamedTuple):
    """One argument: where it is, and its text there."""

    side: str
    text: str

    @property
    def is_folder(self) -> bool:
        """Does the text itself say so?"""
        return self.text.endswith(("/", "/.", "/..")) or self.text in {".", ".."}

    @property
    def contents(self) -> bool:
        """Is it what is in the folder that is meant, and not the folder?"""
        return self.text.endswith("/.") or self.text == "."

    @property
    def name(self) -> str:
        """The last name of it."""
        return self.text.rstrip("/").rpartition("/")[2]


HERE, GUEST, PIPE = "here", "guest", "pipe"


def read(argument: str) -> Path:
    """`:PATH` is the guest's, `-` a pipe, all else is here."""
    if argument == "-":
        return Path(PIPE, "-")
    if argument.startswith(":"):
        return Path(GUEST, argument[1:] or ".")
    return Path(HERE, argument)


def sort(arguments: list[str]) -> tuple[list[Path], Path]:
    """Sources and destination. Raises Wrong."""
    if len(arguments) < 2:
        raise Wrong("cp needs a source and a destination: `guestctl cp SRC… DST`; `:PATH` is in the guest")
    *sources, target = map(read, arguments)
    if any(not argument for argument in arguments):
        raise Wrong("a path is empty")
    sides = {source.side for source in sources}
    if GUEST in sides and target.side == GUEST:
        raise Wrong("both ends are in the guest: copy there, with `guestctl exec -- cp -a SRC DST`")
    if GUEST not in sides and target.side != GUEST:
        raise Wrong(
            "neither end is in the guest: write the path there with a colon, as in `guestctl cp file :`"
        )
    if PIPE in sides and len(sources) > 1:
        raise Wrong("`-` as a source stands alone")
    if len(sides) > 1:
        raise Wrong("some sources are in the guest and some are not: copy them in two steps")
    if target.side == PIPE and len(sources) > 1:
        raise Wrong("`-` as a destination takes one source")
    return sources, target


class Step(NamedTuple):
    """One source's part. `tree`: as an archive into the folder `into`, under `name`; else to the file `into`."""

    tree: bool
    into: str
    name: str
    #: The folder `into` is to be made.
    makes: bool = False


def place(source: Path, kind: str, target: Path, there: str, *, several: bool) -> Step:
    """Where one source goes. `kind` is what it is (`file`, `dir`, or anything else that travels in an archive), `there`
    what the destination is: `absent`, `dir`, or anything else. Raises Wrong.
    """
    name = source.name
    is_folder = kind == "dir"
    if several and there != "dir":
        raise Wrong(f"{target.text!r} is no folder that is there, and several sources need one")
    if there == "dir":
        if is_folder and (source.contents or name in {"", ".", ".."}):
            return Step(tree=True, into=target.text, name=".")
        if kind == "file":
            return Step(tree=False, into=join(target.text, name), name=name)
        return Step(tree=True, into=target.text, name=name)
    if there == "absent":
        if is_folder:
            return Step(tree=True, into=target.text, name=".", makes=True)
        if target.is_folder:
            raise Wrong(
                f"there is no folder {target.text!r}; make it first, or leave out the slash at its end"
            )
    elif is_folder:
        raise Wrong(f"{source.text!r} is a folder, and {target.text!r} is there and is none")
    elif target.is_folder:
        raise Wrong(f"{target.text!r} is no folder")
    if kind == "file":
        return Step(tree=False, into=target.text, name=target.name)
    above = target.text.rstrip("/").rpartition("/")
    return Step(tree=True, into=above[0] or (above[1] or "."), name=target.name)


def join(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder.rstrip('/')}/{name}"
