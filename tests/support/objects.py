"""An object store with the S3 protocol, on the loopback: moto's server, a process of its own that can be killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from tests.support.server import free_port

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_PATIENCE = 60
BUCKET = "bucket"
#: It looks for a signature, and does not look at it.
_SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=x, Signature=0",
    "Content-Type": "application/octet-stream",
}
KEYS = {"AWSACCESSKEYID": "AKIAGUESTDTEST", "AWSSECRETACCESSKEY": "hush-hush-secret"}


class Store:
    """A running one. What is in it is gone when it is killed, so that stands for a store that cannot be reached."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    def get(self, key: str) -> bytes:
        request = urllib.request.Request(f"{self.url}/{BUCKET}/{key}", headers=_SIGNED)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def put(self, key: str, data: bytes) -> None:
        request = urllib.request.Request(
            f"{self.url}/{BUCKET}/{key}", data=data, method="PUT", headers=_SIGNED
        )
        urllib.request.urlopen(request).close()


@contextlib.contextmanager
def object_store(directory: Path) -> Generator[Store]:
    """With one bucket in it."""
    port = free_port()
    with (directory / "store.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
    store = Store(process, port)
    try:
        due = time.monotonic() + _PATIENCE
        while True:
            try:
                store.put("", b"")
                break
            except (urllib.error.URLError, ConnectionError):
                # It says nowhere that others can wait for when it listens.
                assert process.poll() is None, (directory / "store.log").read_text()
                assert time.monotonic() < due
                time.sleep(0.05)
        yield store
    finally:
        process.kill()
        process.wait()
