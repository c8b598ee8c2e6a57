"""The image that the README's line builds, and its container: guestd as PID 1, and below another one."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import pytest
import trio

import guestd.client
from guestd.client import Output
from tests.support.container import running

if TYPE_CHECKING:
    from tests.support.engine import Engine


def test_guestd_is_its_first_process_and_runs_commands(docker: Engine, small: str) -> None:
    with running(docker, small) as container:
        assert container.output("cat", "/proc/1/cmdline").split("\0")[-3:] == [
            "/opt/guestd/bin/guestd",
            "init",
            "",
        ]
        done = container.guestctl(
            "exec", "-i", "--", "sh", "-c", "cat; echo err >&2; exit 7", input=b"in\0\xff"
        )
        assert (done.returncode, done.stdout, done.stderr) == (7, b"in\0\xff", b"err\n")
        assert (
            container.output("sh", "-c", "test -d /mnt/workspace && command -v guestctl")
            == "/usr/local/bin/guestctl\n"
        )
        assert container.stop() == 0


def test_it_has_shells(docker: Engine, small: str) -> None:
    async def work(address: str) -> tuple[bytes, int | None]:
        async with guestd.client.connect(address) as client:
            shell = await client.shell("work")
            await shell.send(b"test -t 0 && exit 3\r")
            seen = b""
            async for item in shell:
                if isinstance(item, Output):
                    seen += item.data
            return seen, (await shell.result()).status

    with running(docker, small) as container:
        seen, status = trio.run(work, f"unix:{container.socket}")
        assert status == 3, seen


def test_docker_exec_finds_guestctl_and_the_health_check_passes(docker: Engine, small: str) -> None:
    with running(docker, small) as container:
        assert docker("exec", container.name, "guestctl", "exec", "--", "echo", "hello") == "hello\n"
        (image,) = json.loads(docker("image", "inspect", small))
        kind, *words = image["Config"]["Healthcheck"]["Test"]
        assert kind == "CMD"
        assert docker.run("exec", container.name, *words).returncode == 0
        # Somebody who looks whether it is there does not keep it from being idle.
        before, after = (
            json.loads(container.guestctl("--json", "status").stdout)["activity"] for _ in range(2)
        )
        assert (after["last"], after["idle_for"] >= before["idle_for"]) == (before["last"], True)


def test_it_stops_with_a_receipt(docker: Engine, small: str) -> None:
    with running(docker, small) as container:
        receipt = json.loads(container.guestctl("--json", "stop").stdout)
        assert receipt["cause"] == "asked"
        assert container.wait() == 0


def test_docker_stop_ends_what_runs_in_order(docker: Engine, small: str) -> None:
    script = "trap 'echo told; exit 0' TERM; echo waits; while :; do sleep 0.1; done"
    with running(docker, small, "--", "sh", "-c", script) as container:
        assert container.guestctl("exec", "--id", "job", "--detach", "--", "sleep", "1000").returncode == 0
        assert container.stop() == 0
        assert any("guestd.stop: stopping (" in line for line in container.lines), container.lines


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 128 + signal.SIGKILL)])
def test_it_can_end_with_its_workloads_status(docker: Engine, small: str, script: str, status: int) -> None:
    options = ["--env", "GUESTD_WORKLOAD_RESTART=never", "--env", "GUESTD_WORKLOAD_EXIT_ENDS_SESSION=true"]
    with running(docker, small, "--", "sh", "-c", script, options=options, until="") as container:
        assert container.wait() == status, container.lines


def test_orphans_are_reaped(docker: Engine, small: str) -> None:
    with running(docker, small) as container:
        container.output("sh", "-c", "for i in $(seq 200); do (setsid true &) ; done")
        due = time.monotonic() + 30
        while "Z" in (
            states := container.output("sh", "-c", "cut -d' ' -f3 /proc/[0-9]*/stat 2>/dev/null; true")
        ):
            assert time.monotonic() < due, states
        assert container.stop() == 0


def test_below_the_engines_own_init_it_is_a_process_and_ends_as_well(docker: Engine, small: str) -> None:
    with running(docker, small, options=["--init"]) as container:
        assert "init" in container.output("cat", "/proc/1/comm")
        assert any("not PID 1" in line for line in container.lines), container.lines
        assert container.output("echo", "hello") == "hello\n"
        assert container.stop() == 0


def test_the_root_may_be_read_only(docker: Engine, small: str) -> None:
    with running(docker, small, options=["--read-only", "--tmpfs", "/tmp"]) as container:
        assert container.guestctl("exec", "--", "touch", "/file").returncode != 0
        assert container.output("sh", "-c", "touch /tmp/file && echo made") == "made\n"
        assert container.stop() == 0


def test_it_may_be_somebody_else_than_root(docker: Engine, small: str) -> None:
    with running(docker, small, options=["--user", "1000:1000"]) as container:
        assert docker("exec", container.name, "guestctl", "exec", "--", "id", "-u") == "1000\n"
        assert container.stop() == 0


def test_it_changes_nothing_of_its_own(docker: Engine, small: str) -> None:
    with running(docker, small) as container:
        container.output("true")
        assert docker("exec", container.name, "guestctl", "status")
        changed = docker("diff", container.name)
        assert "/opt" not in changed, changed


def test_a_command_inherits_nothing_that_guestd_needs(docker: Engine, small: str) -> None:
    with running(docker, small, options=["--env", "ONE=1"]) as container:
        names = {line.partition("=")[0] for line in container.output("env").splitlines()}
        (image,) = json.loads(docker("image", "inspect", "debian:12-slim"))
        names -= {word.partition("=")[0] for word in image["Config"]["Env"]} - {"PATH"}
        # Beside what tells a command whose job it is.
        names = {name for name in names if not name.startswith("GUESTD_JOB_")}
        assert names == {"ONE", "PATH", "HOSTNAME", "HOME", "USER", "LOGNAME", "SHELL"}


def test_a_locale_is_the_images_to_give(docker: Engine, small: str) -> None:
    """Python, in a C locale, gave itself one, and every job had it."""
    with running(docker, small, options=["--env", "LC_CTYPE=C.UTF-8"]) as container:
        assert "LC_CTYPE=C.UTF-8" in container.output("env").splitlines()


def test_variables_for_pythons_of_the_image_do_not_reach_it(docker: Engine, small: str) -> None:
    words = [
        "PYTHONHOME=/nowhere",
        "PYTHONPATH=/nowhere",
        "PYTHONUTF8=0",
        "PYTHONMALLOC=nonsense",
        "LC_ALL=xx_XX",
    ]
    options = [word for each in words for word in ("--env", each)]
    with running(
        docker, small, options=[*options, "--env", "LD_LIBRARY_PATH=/lib/x86_64-linux-gnu"]
    ) as container:
        # They are the image's, and its programs' to have.
        assert container.output("sh", "-c", "echo $PYTHONPATH") == "/nowhere\n"
        assert container.output("printf", "%s", "grüß") == "grüß"
        assert container.stop() == 0
