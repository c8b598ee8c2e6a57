"""The floor of what is passed on, as a process: reads from one socket, writes to another, one connection after another.

One buffer for ever, blocking, no event loop, no counters, no limits, and nothing in the other direction but the first
eight bytes.
"""

from __future__ import annotations

import socket
import sys

_CHUNK = 256 * 1024


def main() -> None:
    near_path, far_path = sys.argv[1:]
    buffer = memoryview(bytearray(_CHUNK))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(near_path)
        listener.listen()
        while True:
            near, _ = listener.accept()
            with near, socket.socket(socket.AF_UNIX) as far:
                asked = near.recv(8, socket.MSG_WAITALL)
                if not asked:
                    continue  # somebody has looked whether this listens
                far.connect(far_path)
                far.sendall(asked)
                while size := far.recv_into(buffer):
                    near.sendall(buffer[:size])


if __name__ == "__main__":
    main()
