"""/opt/guestd in images that have nothing that it could use, or another C library than it was made with."""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.support import base_image
from tests.support.container import running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.container import Container
    from tests.support.engine import Engine

BASES = {
    "no C library at all": ("bookworm", ("busybox-static",)),
    "musl": ("bookworm", ("busybox-static", "musl")),
    "an older glibc": ("bullseye", ("busybox", "libc6", "libcrypt1", "libgcc-s1")),
    "a newer glibc": ("trixie", ("busybox", "libc6", "libgcc-s1")),
}


def _image(docker: Engine, opt: str, place: Path, base: str) -> str:
    """The two lines of the README on top of `base`."""
    name = f"guestd-on-{base.rpartition('/')[2].partition(':')[0]}"
    (place / "Dockerfile").write_text(
        f"FROM {base}\n"
        f"COPY --from={opt} /opt/guestd /opt/guestd\n"
        'ENTRYPOINT ["/opt/guestd/bin/guestd", "init"]\n'
    )
    docker("build", "--tag", name, str(place))
    return name


@pytest.mark.parametrize(("suite", "packages"), BASES.values(), ids=BASES.keys())
def test_two_lines_are_enough(
    docker: Engine, opt: str, tmp_path: Path, suite: str, packages: tuple[str, ...]
) -> None:
    image = _image(docker, opt, tmp_path, base_image.unpacked(docker, suite, packages))
    with running(docker, image) as container:
        # The image's own programs, with its own C library.
        assert container.output("sh", "-c", "echo $((6 * 7))") == "42\n"
        done = container.guestctl("exec", "--user", "12345", "--", "id", "-u")
        assert (done.returncode, done.stdout) == (0, b"12345\n")
        assert container.guestctl("exec", "-t", "--", "sh", "-c", "test -t 0 && exit 5").returncode == 5
        # Its own guestctl, its launcher and what a stop runs for the disks, all from there.
        assert (
            docker("exec", container.name, "/opt/guestd/bin/guestctl", "exec", "--", "echo", "hello")
            == "hello\n"
        )
        mapped = _mapped(container)
        own = {name for name, files in mapped.items() if "/opt/guestd/bin/python" in files}
        # PID 1, serve, and the launcher.
        assert len(own) == 3, mapped
        foreign = {name for each in own for name in mapped[each] if not name.startswith("/opt/guestd/")}
        assert not foreign
        receipt = json.loads(container.guestctl("--json", "stop").stdout)
        assert receipt["cause"] == "asked"
        assert container.wait() == 0


def _mapped(container: Container) -> dict[str, set[str]]:
    """The files that each process has code of, by the process's directory in /proc."""
    found: dict[str, set[str]] = {}
    program = ""
    script = "for maps in /proc/[0-9]*/maps; do echo $maps; cat $maps; done"
    for line in container.output("sh", "-c", script).splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 1:
            program = line
        elif len(words) == 6 and "x" in words[1] and words[5].startswith("/"):
            found.setdefault(program, set()).add(words[5])
    return found


def test_an_upgrade_keeps_what_runs(docker: Engine, opt: str, tmp_path: Path) -> None:
    """The next one is started by the same interpreter, in an image that has no other."""
    image = _image(docker, opt, tmp_path, base_image.unpacked(docker, "bookworm", ("busybox-static",)))
    with running(docker, image) as container:
        assert container.guestctl("exec", "--id", "kept", "--detach", "--", "sleep", "1000").returncode == 0
        done = container.guestctl("upgrade")
        assert done.returncode == 0, done.stderr
        jobs = json.loads(container.guestctl("--json", "ps", "kept").stdout)
        assert jobs["state"] == "running", jobs
        assert container.stop() == 0


def test_the_image_for_copies_has_opt_guestd_and_nothing_else(
    docker: Engine, opt: str, tmp_path: Path
) -> None:
    name = docker("create", opt).strip()
    try:
        archive = tmp_path / "image.tar"
        docker("export", "--output", str(archive), name)
    finally:
        docker("rm", name)
    with tarfile.open(archive) as members:
        names = {member.name for member in members if member.isfile() or member.issym()}
    # What the engine puts into every container that it makes.
    names -= {".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"}
    assert {name for name in names if not name.startswith("opt/guestd/")} == set()
    assert not {name for name in names if "/tests/" in name or name.endswith(("/pip", ".a", ".h"))}
