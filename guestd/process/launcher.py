"""The launcher: a small process that starts programs as somebody else.

It is single-threaded, imports next to nothing (9 MB), stays root, and serves one supervisor over one socket.
For each request it clones itself with CLONE_PARENT, so that the new process is the *supervisor's* child, and
the clone makes itself what was asked (cgroup, limits, user, directory…) before it executes the program.
Nothing has to be mended after the start, and each failure is told with its stage over a close-on-exec pipe
that the supervisor reads.

Why not a thread of the supervisor that takes the user's id: any process of that user may then kill(2) that
thread's id, and the signal ends the supervisor. Why not fork in the supervisor: it has page tables to copy.
docs/decisions.md has the measurements.

A request is one SOCK_SEQPACKET message: a head that says what comes along, then a marshalled map, or a map that says it
lies in a memfd because it is too long for one message. Descriptors ride along: the error pipe, the witness's file if
any, the cgroup if any, that memfd if any, then the child's own. The answer is the pid, or a negative errno. The clone
itself gives the first: were it this process, its death in between would leave a program running that the supervisor
takes for one that was never started. And it writes the pid to the witness, for the next supervisor, should this one be
gone by the time the answer comes. What could not be born into its cgroup is born outside of it, and says so.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import gc
import marshal  # the supervisor's own words: nobody else holds the other end of the socket
import os
import resource
import sys

from guestd.process.program import enter_directory, find_program

# Not from typing, whose import brings forty modules: each page of them that a clone touches is copied.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

CONTROL_FD = 3
#: Before the map: whether a cgroup comes along, and where in the witness's file the pid is to be written.
HEAD_SIZE = 9
NO_WITNESS = 2**64 - 1
#: What the witness is told when the program was not run after all.
NEVER = 2**64 - 1
#: Before the pid in an answer: the cgroup that came along could not be used.
OUTSIDE = b"!"
REQUEST_MAX = 96 * 1024
FDS_MAX = 16
_CLONE_PARENT = 0x00008000
_CLONE_INTO_CGROUP = 0x200000000
#: The same number on every architecture; clone, the older call, for kernels and seccomp filters that refuse
#: this one.
_CLONE3 = 435
_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
_ARGS_WORDS, _ARGS_CGROUP = 11, 10
_NO_ROOM = {errno.EAGAIN, errno.ENOMEM}
#: `signal` would cost twice what all the rest of the imports do.
_SIGINT, _SIGPIPE, _SIGXFSZ = 2, 13, 25
_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _CLEAR_ALL = 38, 24, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
#: The same on every architecture that has microVMs. Python's fcntl would be one import more.
_TIOCSCTTY = 0x540E

_libc = ctypes.CDLL(None, use_errno=True)


def head(*, in_group: bool, witness: int) -> bytes:
    """The head of a request; the supervisor's side makes it with this."""
    return bytes([in_group]) + witness.to_bytes(8, "little")


def main() -> None:
    """Serve until the supervisor closes the socket or dies."""
    control = _socket.socket(fileno=CONTROL_FD)
    _hold_standard_fds()
    # Python handles the first and ignores the others; ignored signals would survive the exec.
    for number in (_SIGINT, _SIGPIPE, _SIGXFSZ):
        _libc.signal(number, None)
    ancillary_space = _socket.CMSG_SPACE(4 * FDS_MAX)
    # Fewer pages become the child's own when no collection touches them.
    gc.collect()
    gc.disable()
    gc.freeze()
    while True:
        try:
            message, ancillary, _, _ = control.recvmsg(REQUEST_MAX, ancillary_space, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            # The supervisor has died with answers unread. What it had asked for by then is still to be answered, to its
            # witness.
            continue
        if not message:
            return
        fds = [
            int.from_bytes(data[at : at + 4], sys.byteorder)
            for _, _, data in ancillary
            for at in range(0, len(data), 4)
        ]
        in_group, place = message[0] == 1, int.from_bytes(message[1:HEAD_SIZE], "little")
        witness = None if place == NO_WITNESS else (fds.pop(1), place)
        pid = _clone(fds[1] if in_group else None)
        failure = ctypes.get_errno()
        outside = in_group and pid < 0 and failure not in _NO_ROOM
        if outside:
            # The group is gone, or a filter refuses the call: a job without a group is better than none.
            pid = _clone(None)
            failure = ctypes.get_errno()
        if pid == 0:
            _become(control, message[HEAD_SIZE:], fds, witness, in_group=in_group, outside=outside)
        for fd in fds:
            os.close(fd)
        if witness is not None:
            os.close(witness[0])
        if pid < 0:
            control.send(str(-failure).encode())


def _hold_standard_fds() -> None:
    """Have something at 0, 1 and 2: a descriptor that came in there would be overwritten by the child's own."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < CONTROL_FD:
        os.set_inheritable(fd, True)
    os.close(fd)


def _clone(cgroup: int | None) -> int:
    """A copy of this process, as a child of the supervisor, in the given cgroup; -1 and errno when there can
    be none.
    """
    if cgroup is None:
        return _libc.syscall(_CLONE[os.uname().machine], _CLONE_PARENT, 0, 0, 0, 0)
    args = (ctypes.c_uint64 * _ARGS_WORDS)()
    args[0], args[_ARGS_CGROUP] = _CLONE_PARENT | _CLONE_INTO_CGROUP, cgroup
    return _libc.syscall(_CLONE3, args, ctypes.sizeof(args))


def _become(
    control: _socket.socket, message: bytes, fds: list[int], witness: tuple[int, int] | None, *, in_group: bool,
    outside: bool,
) -> None:  # fmt: skip
    """In the clone: turn into what was asked, or say where it failed. Does not return."""
    report = fds[0]
    stage = "fork"
    try:
        control.send((OUTSIDE if outside else b"") + str(os.getpid()).encode())
        # From here on somebody knows of it, whoever else dies.
        _tell(witness, os.getpid())
        for stage in _stages(message, fds[2:] if in_group else fds[1:]):  # noqa: B007  what it was when it failed
            pass
    except OSError as error:
        _tell(witness, NEVER)
        os.write(report, marshal.dumps((stage, error.errno or errno.EIO, error.strerror or str(error))))
    except BaseException as error:  # noqa: BLE001  whatever it is, the supervisor must hear of it: this process has no log
        _tell(witness, NEVER)
        os.write(report, marshal.dumps((stage, errno.EIO, repr(error))))
    finally:
        os._exit(127)


def _tell(witness: tuple[int, int] | None, what: int) -> None:
    if witness is not None:
        os.pwrite(witness[0], what.to_bytes(8, "little"), witness[1])


def _stages(message: bytes, fds: list[int]) -> Iterator[str]:
    """Yields the name of each stage before it is tried; the last one executes the program."""
    yield "fork"
    os.close(CONTROL_FD)
    os.setsid()
    plan: dict[str, Any] = marshal.loads(message)
    own = iter(fds)
    if "long" in plan:
        with open(next(own), "rb") as file:
            plan = marshal.loads(file.read())
    yield "limits"
    _adjust_oom_score(plan["oom_score_adj"])
    for number, limits in plan["rlimits"]:
        _limit(number, limits)
    if plan["nice"]:
        os.setpriority(os.PRIO_PROCESS, 0, plan["nice"])
    yield "stdin"
    _place(plan["fds"], own)
    if plan["terminal"]:
        yield "terminal"
        # A new session has none yet, and nobody else has this one: it becomes this session's, with this process in its
        # foreground.
        if _libc.ioctl(0, _TIOCSCTTY, 0):
            raise OSError(ctypes.get_errno(), "the terminal could not be taken")
    yield "user"
    _drop_bounding(plan["drop_capabilities"])
    uid, gid, groups = plan["identity"]
    if plan["change_identity"]:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    _drop_own(plan["drop_capabilities"])
    if plan["no_new_privs"] and _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs could not be set")
    os.umask(plan["umask"])
    yield "cwd"
    enter_directory(plan["cwd"])
    yield "exec"
    env: dict[bytes, bytes] = plan["env"]
    path = env.get(b"PATH")
    program = find_program(plan["program"], None if path is None else os.fsdecode(path))
    os.execve(program, plan["argv"], env)


def _limit(number: int, limits: tuple[int, int]) -> None:
    try:
        resource.setrlimit(number, limits)
    except ValueError as error:
        # What Python makes of EPERM; EINVAL, the other one, is a soft limit above the hard one, and was refused before.
        raise OSError(errno.EPERM, str(error)) from None


def _adjust_oom_score(wanted: int) -> None:
    """Lowering it needs a privilege, and asking for what is there already does too."""
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
    try:
        if int(os.read(fd, 16)) != wanted:
            os.pwrite(fd, str(wanted).encode(), 0)
    finally:
        os.close(fd)


def _place(targets: list[tuple[int, bool]], own: Iterator[int]) -> None:
    """Put the descriptors where the child wants them. They all came in above the standard ones."""
    for target, given in targets:
        if given:
            os.dup2(next(own), target)
        else:
            os.close(target)


def _drop_bounding(capabilities: list[int]) -> None:
    for number in capabilities:
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) and ctypes.get_errno() != errno.EINVAL:
            raise OSError(ctypes.get_errno(), f"capability {number} could not be dropped")


def _drop_own(capabilities: list[int]) -> None:
    """Take the capabilities out of the sets of this very process too; an exec as root gives only what is
    bounded.
    """
    if not capabilities:
        return
    _libc.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if _libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "the capabilities could not be read")
    for number in capabilities:
        word, bit = divmod(number, 32)
        for each in range(3):
            sets[3 * word + each] &= ~(1 << bit)
    if _libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "the capabilities could not be set")


if __name__ == "__main__":
    main()
