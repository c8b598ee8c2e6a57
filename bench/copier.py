"""The floor of bulk output, as a process: pipe → Unix socket, no frames, no offsets, no credit, no event
loop.

Reads one JSON line with an argv, runs it, copies its stdout to the socket, and waits for the next line. The
pipe is as large as a process without privileges may make it, one buffer is used for ever, and it is sent
from where it lies.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys

PIPE_SIZE = 1024 * 1024


def copy(argv: list[str], peer: socket.socket, buffer: memoryview) -> None:
    """Run `argv` and copy all that it prints."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write_end, 1)])
    os.close(write_end)
    while count := os.readv(read_end, [buffer]):
        sent = 0
        while sent < count:
            sent += peer.sendmsg([buffer[sent:count]])
    os.close(read_end)
    os.waitpid(pid, 0)


def main() -> None:
    buffer = memoryview(bytearray(PIPE_SIZE))
    with socket.socket(fileno=int(sys.argv[1])) as peer, peer.makefile("rb") as requests:
        for line in requests:
            copy(json.loads(line), peer, buffer)


if __name__ == "__main__":
    main()
