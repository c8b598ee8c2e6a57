"""Stands in for `guestd serve` in the tests of PID 1: `python fake_serve.py init …` is guestd's own PID 1, which starts
`python fake_serve.py serve …`, and that does what the test says.

It says READY, then serves one connection after the other: it runs the Python that it is sent and answers with the value
of `answer`. FAKE_SERVE in the environment is run before READY. Names it knows: those below.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress

NAMES = os.environ.get("LISTEN_FDNAMES", "").split(":")


def descriptors(name: str) -> list[int]:
    """Those that were handed over under a name."""
    return [3 + at for at, each in enumerate(NAMES) if each == name]


def notify(state: str, *fds: int) -> None:
    """Tell the service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        path = os.environ["NOTIFY_SOCKET"]
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        socket.send_fds(sock, [state.encode()], fds)


def barrier() -> None:
    """Returns when everything that was told before has been heeded."""
    read, write = os.pipe()
    notify("BARRIER=1", write)
    os.close(write)
    os.read(read, 1)
    os.close(read)


def init_socket() -> socket.socket:
    return socket.socket(fileno=os.dup(descriptors("init")[0]))


def records(count: int) -> list[bytes]:
    """The next exit statuses; waits for them."""
    with init_socket() as sock:
        return [sock.recv(4096) for _ in range(count)]


def ask(command: bytes) -> None:
    """Ask something of PID 1."""
    with init_socket() as sock:
        sock.send(command)


def orphans(count: int, *, status: int = 0) -> list[int]:
    """Processes whose parent has gone by the time this returns: they are PID 1's. They end at once after that."""
    told, tell = os.pipe()
    held, hold = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(hold)
        for _ in range(count):
            if os.fork() == 0:
                os.close(tell)
                os.read(held, 1)
                os._exit(status)
        # Each of them is told apart by its number, which only the middle one learns.
        with open("/proc/thread-self/children", encoding="ascii") as file:
            os.write(tell, file.read().encode())
        os._exit(0)
    os.close(tell)
    os.close(held)
    said = b""
    while piece := os.read(told, 65536):
        said += piece
    os.close(told)
    os.waitpid(middle, 0)
    os.close(hold)
    return [int(word) for word in said.split()]


def _leave(_number: int, _frame: object) -> None:
    os._exit(0)


def serve() -> None:
    """As `guestd serve` would: ready, then one request after the other, until SIGTERM."""
    signal.signal(signal.SIGTERM, _leave)
    world: dict[str, object] = dict(globals())
    exec(os.environ.get("FAKE_SERVE", ""), world)
    notify("READY=1")
    listener = socket.socket(fileno=descriptors("listen")[0])
    while True:
        connection, _ = listener.accept()
        with connection, suppress(BrokenPipeError):
            asked = b""
            while piece := connection.recv(65536):
                asked += piece
            world["answer"] = None
            exec(asked.decode(), world)
            connection.sendall(repr(world["answer"]).encode())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        from guestd.cli import main

        sys.exit(main())
