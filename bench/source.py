"""A program at the far end of what is passed on: whoever connects says how many bytes, and gets them."""

from __future__ import annotations

import socket
import sys

CHUNK = 256 * 1024


def main() -> None:
    data = memoryview(bytes(CHUNK))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        while True:
            sock, _ = listener.accept()
            with sock:
                left = int.from_bytes(sock.recv(8, socket.MSG_WAITALL))
                while left:
                    left -= sock.send(data[:left])


if __name__ == "__main__":
    main()
