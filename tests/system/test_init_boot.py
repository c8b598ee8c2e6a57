"""PID 1 makes what a kernel leaves out, each only where it is missing, and opens its sockets before anything slow."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.init import booted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tests.support.init import Guest

MADE = ["/proc", "/sys", "/dev/pts", "/dev/shm", "/run", "/tmp", "/sys/fs/cgroup"]
KINDS = {
    "/proc": "proc", "/sys": "sysfs", "/dev/pts": "devpts", "/dev/shm": "tmpfs", "/run": "tmpfs", "/tmp": "tmpfs",
    "/sys/fs/cgroup": "cgroup2",
}  # fmt: skip


def mounted(guest: Guest) -> list[tuple[str, str]]:
    """(target, kind) in the order of their making."""
    lines = guest.run("answer = open('/proc/self/mountinfo').read()").splitlines()
    return [(line.split(" ")[4], line.partition(" - ")[2].split(" ")[0]) for line in lines]


def read(guest: Guest, path: str) -> str:
    return guest.run(f"answer = open({path!r}).read()")


@pytest.mark.parametrize("kind", ["machine", "container"])
def test_a_bare_root_gets_all_of_them(kind: str) -> None:
    with booted(bare=True, kind=kind) as guest:
        found = mounted(guest)
        assert {target: dict(found)[target] for target in MADE} == KINDS
        assert len([target for target, _ in found if target in MADE]) == len(MADE)
        modes = guest.run("answer = [oct(os.stat(p).st_mode & 0o7777) for p in ('/run', '/tmp', '/dev/shm')]")
        assert modes == ["0o755", "0o1777", "0o1777"]
        assert guest.run("answer = os.readlink('/dev/fd'), os.readlink('/dev/stdout')") == (
            "/proc/self/fd",
            "/proc/self/fd/1",
        )
        # A terminal can be opened: /dev/ptmx leads to the new devpts.
        assert guest.run("answer = os.ttyname(os.openpty()[1])").startswith("/dev/pts/")


def test_the_devices_too() -> None:
    """devtmpfs, where /dev has nothing."""
    with booted(bare=True) as guest:
        assert "/dev" not in dict(mounted(guest))
    empty = "os.rename(root + '/dev', root + '/old'); os.mkdir(root + '/dev')"
    with booted(bare=True, prepare=empty) as guest:
        assert dict(mounted(guest))["/dev"] == "devtmpfs"
        assert "mounted /proc /sys /dev" in guest.console


@pytest.mark.parametrize("kind", ["machine", "container"])
@pytest.mark.parametrize("target", MADE)
def test_what_is_mounted_already_stays_and_is_all_there_is(target: str, kind: str) -> None:
    """Somebody's own mount, marked: it is not hidden by another."""
    first = "/sys" if target == "/sys/fs/cgroup" else target
    sort = {"/proc": "proc", "/sys": "sysfs", "/dev/pts": "devpts"}.get(first, "tmpfs")
    prepare = (
        f"os.makedirs(root + '{first}', exist_ok=True); mount('there', root + '{first}', '{sort}', 0)\n"
        + ("mount('there', root + '/sys/fs/cgroup', 'tmpfs', 0)" if target == "/sys/fs/cgroup" else "")
    )
    with booted(bare=True, kind=kind, prepare=prepare) as guest:
        kinds = [kind for where, kind in mounted(guest) if where == target]
        assert len(kinds) == 1
        sources = read(guest, "/proc/self/mounts")
        assert f"there {target} " in sources
        assert {where for where, _ in mounted(guest)} >= set(MADE)


def test_a_container_that_has_everything_is_left_alone() -> None:
    with booted() as guest:
        assert "mounted" not in guest.console
        assert "linked" not in guest.console
        guest.wait_for("this is a container")


def test_a_container_keeps_its_own_run_and_a_machine_begins_with_an_empty_one() -> None:
    prepare = "[os.makedirs(root + each) for each in ('/run/a', '/tmp/a')]"
    with booted(bare=True, prepare=prepare) as guest:
        assert guest.run("answer = os.listdir('/run'), os.listdir('/tmp')") == (["a"], ["a"])
    with booted(bare=True, kind="machine", prepare=prepare) as guest:
        assert guest.run("answer = os.listdir('/run'), os.listdir('/tmp')") == ([], ["a"])


def test_a_root_that_is_read_only_gets_places_to_write_to() -> None:
    prepare = (
        "[os.mkdir(root + each) for each in ('/run', '/tmp', '/proc', '/sys')]\n"
        "mount('none', root, None, 32 | 1)"  # remount, read-only
    )
    with booted(bare=True, prepare=prepare) as guest:
        assert {"/run", "/tmp"} <= set(dict(mounted(guest)))
        guest.wait_for("no /dev/pts")  # and goes on without: there is no directory for it


def test_an_ordinary_process_mounts_nothing_and_names_nothing() -> None:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        before = file.read()
    name = socket.gethostname()
    with booted(
        first=False, environment={"GUESTD_INIT_HOSTNAME": "mine", "GUESTD_INIT_KIND": "machine"}
    ) as guest:
        guest.wait_for("this is a process (not PID 1)")
        assert guest.run("answer = open('/proc/self/mountinfo').read()") == before
        assert socket.gethostname() == name
        assert guest.stop() == 0


def test_nothing_slow_is_imported_before_it_listens() -> None:
    with booted(
        first=False, environment={"PYTHONPROFILEIMPORTTIME": "1", "PYTHONDONTWRITEBYTECODE": ""}
    ) as guest:
        guest.wait_for("guestd init:", "listening on")
        lines = guest.console.splitlines()
    at = next(number for number, line in enumerate(lines) if "listening on" in line)
    imported = {line.rpartition("|")[2].strip() for line in lines[:at] if line.startswith("import time:")}
    assert "guestd.init.main" in imported
    # fake_serve.py itself imports socket, signal and contextlib, with what they bring.
    slow = {
        "typing",
        "re",
        "ctypes",
        "dataclasses",
        "argparse",
        "tomllib",
        "subprocess",
        "guestd.init.keeper",
    }
    assert not imported & slow


# ------------------------------------------------------------------------------------- a machine's own things


def machine(
    *arguments: str, prepare: str = "", config: str | None = None, **environment: str
) -> AbstractContextManager[Guest]:
    """PID 1 of what it takes for a machine."""
    return booted(
        *arguments, bare=True, kind="machine", prepare=prepare, config=config, environment=environment
    )


def test_the_machine_gets_its_name_its_kernel_settings_and_its_loopback() -> None:
    config = """
    [init]
    hostname = "box"
    [init.sysctl]
    "net.ipv4.ip_forward" = 1
    "net/ipv4/conf/lo/forwarding" = "0"
    "net.no.such" = 1
    """
    with machine(config=config) as guest:
        assert guest.run("answer = os.uname().nodename") == "box"
        assert read(guest, "/proc/sys/net/ipv4/ip_forward") == "1\n"
        assert read(guest, "/proc/sys/net/ipv4/conf/lo/forwarding") == "0\n"
        guest.wait_for("sysctl net.no.such = 1: No such file")
        server = "s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname())"
        assert guest.run(f"{server}; answer = c.getpeername()[0]") == "127.0.0.1"


CMDLINE = """
os.mkdir(root + '/proc'); mount('p', root + '/proc', 'proc', 0)
mount(root + '/t/cmdline', root + '/proc/cmdline', None, 4096)
"""
VETH = """
import subprocess
subprocess.run("ip link add eth7 type veth peer name far".split(), check=True)
"""


def with_cmdline(text: str) -> str:
    return f"open(root + '/t/cmdline', 'w').write({text!r})\n{CMDLINE}"


def test_the_kernel_command_line_gives_all_of_it() -> None:
    words = (
        "console=ttyS0 guestd.init.hostname=cmd guestd.init.sysctl.net.ipv4.ip_forward=1"
        " ip=10.7.0.2::10.7.0.1:255.255.255.0:::off:10.7.0.53"
    )
    with machine(prepare=VETH + with_cmdline(words), GUESTD_INIT_INTERFACE="eth7") as guest:
        assert guest.run("answer = os.uname().nodename") == "cmd"
        assert read(guest, "/proc/sys/net/ipv4/ip_forward") == "1\n"
        guest.wait_for("eth7 10.7.0.2/24 through 10.7.0.1")
        assert "10.7.0.2" in read(guest, "/proc/net/fib_trie")
        # Destination 0, gateway 10.7.0.1, as the kernel writes it.
        assert "eth7\t00000000\t0100070A" in read(guest, "/proc/net/route")
        assert read(guest, "/etc/resolv.conf") == "nameserver 10.7.0.53\n"


def test_both_families_and_a_gateway_outside_of_the_network() -> None:
    config = """
    [init]
    interface = "eth7"
    address = ["10.7.0.2/32", "fd00::2/64"]
    gateway = ["10.9.0.1", "fd00::1"]
    dns = ["fd00::53"]
    """
    with machine(config=config, prepare=VETH) as guest:
        assert "eth7\t00000000\t0100090A" in read(guest, "/proc/net/route")
        assert "fd000000000000000000000000000002" in read(guest, "/proc/net/if_inet6")
        assert "fd000000000000000000000000000001" in read(guest, "/proc/net/ipv6_route")
        assert read(guest, "/etc/resolv.conf") == "nameserver fd00::53\n"


def test_an_interface_that_is_not_there_is_said_and_the_boot_goes_on() -> None:
    with machine(GUESTD_INIT_ADDRESS="10.0.0.2/24", GUESTD_INIT_INTERFACE="eth9") as guest:
        guest.wait_for("eth9 could not be brought up")
        guest.wait_for("serve is ready")


MODPROBE = """
os.unlink(root + '/sbin'); os.mkdir(root + '/sbin')
with open(root + '/sbin/modprobe', 'w') as file:
    file.write('#!/bin/sh\\n' + {script!r})
os.chmod(root + '/sbin/modprobe', 0o755)
"""


def test_modules_are_loaded_in_one_run_and_sockets_that_need_them_opened_after() -> None:
    script = 'echo "$@" >/t/modprobe; /bin/mkdir /late\n'
    with machine(
        "--listen",
        "unix:/late/x.sock",
        prepare=MODPROBE.format(script=script),
        GUESTD_INIT_MODULES="vsock_late,other-one",
    ) as guest:
        assert (guest.directory / "modprobe").read_text() == "-a vsock_late other-one\n"
        lines = [line.partition("] ")[2] for line in guest.console.splitlines()]
        early = lines.index("cannot listen on unix:/late/x.sock yet: No such file or directory")
        assert lines.index("listening on unix:/t/guestd.sock") == early + 1
        assert lines.index("listening on unix:/late/x.sock") > early + 1
        assert guest.run("answer = len(descriptors('listen'))") == 2


def test_a_modprobe_that_fails_or_is_missing_is_said() -> None:
    wanted = "nothing_of_that_name"
    with machine(prepare=MODPROBE.format(script="exit 3\n"), GUESTD_INIT_MODULES=wanted) as guest:
        guest.wait_for("modprobe -a nothing_of_that_name: status 3")
    with machine(
        prepare="os.unlink(root + '/sbin'); os.mkdir(root + '/sbin')", GUESTD_INIT_MODULES=wanted
    ) as guest:
        assert "no modprobe" in guest.console or "modprobe -a" in guest.console


def test_a_machine_without_a_console_has_standard_descriptors() -> None:
    with machine(prepare="[os.close(fd) for fd in (0, 1, 2)]") as guest:
        where = guest.run("answer = [os.readlink(f'/proc/1/fd/{fd}') for fd in (0, 1, 2)]")
        assert where == ["/dev/null", "/dev/console", "/dev/console"]


# ----------------------------------------------------------------------------------------------- command lines


def test_a_container_refuses_a_command_line_that_it_does_not_understand() -> None:
    with booted("--nonsense", ready=False) as guest:
        assert guest.wait() == 2
        assert "guestd init does not take --nonsense" in guest.console


def test_the_workload_and_the_flags_reach_serve() -> None:
    with booted("--", "sleep", "5", config="# nothing\n") as guest:
        argv = guest.run("answer = sys.argv[1:]")
        assert argv == [
            "serve",
            "--listen",
            f"unix:{guest.inside}/guestd.sock",
            "--config",
            f"{guest.inside}/guestd.toml",
            "--",
            "sleep",
            "5",
        ]


def test_sockets_that_it_is_given_are_passed_on_and_no_others_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, open(os.devnull) as other:
        environment = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "guestd.socket:tape"}
        with booted(
            environment=environment, pass_fds=(listener.fileno(), other.fileno()), ready=False, listen=False
        ) as guest:
            guest.wait_for("serve is ready")
            assert "listening on" not in guest.console
            with socket.create_connection(listener.getsockname()) as sock:
                sock.sendall(b"answer = NAMES, os.environ['LISTEN_PID'] == str(os.getpid())")
                sock.shutdown(socket.SHUT_WR)
                assert eval(sock.recv(4096)) == (["listen", "tape", "init"], True)


def test_python_is_the_same_for_serve() -> None:
    with booted() as guest:
        assert guest.run("answer = sys.executable") == sys.executable
