"""curl and git of the guest's, which know nothing but their environment, out through the relay `egress` and an HTTP
proxy that stands where a host's would.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import subprocess
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.support.life import serving
from tests.support.passing import PATIENCE, Program
from tests.support.peer import Peer
from tests.support.server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ALLOWED = "git.example"


class Proxy:
    """Takes CONNECT for one name alone, which is a place of the test's own, and refuses everything else."""

    def __init__(self, target: int) -> None:
        self.asked: list[str] = []
        self._target = target

    def serve(self, sock: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = sock.recv(1)
            if not data:
                return
            head += data
        line = head.partition(b"\r\n")[0].decode()
        self.asked.append(line)
        method, where, _ = line.split()
        if method != "CONNECT" or where.partition(":")[0] != _ALLOWED:
            sock.sendall(
                b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\nConnection: close\r\n\r\nnot here\n"
            )
            return
        with socket.create_connection(("127.0.0.1", self._target), PATIENCE) as far:
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            other = {sock: far, far: sock}
            while other:
                for each in select.select(list(other), [], [], PATIENCE)[0]:
                    data = each.recv(65536)
                    if data:
                        (far if each is sock else sock).sendall(data)
                    else:
                        del other[each]
                        with contextlib.suppress(OSError):
                            (far if each is sock else sock).shutdown(socket.SHUT_WR)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A bare repository with one commit, and the certificate of the authority that everybody here believes."""
    work, bare = tmp_path / "work", tmp_path / "www" / "repo.git"
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": "x@example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }  # fmt: skip

    def git(*words: str) -> None:
        subprocess.run(["git", *words], check=True, env=environment, capture_output=True)

    git("init", "-q", "-b", "main", str(work))
    (work / "large").write_bytes(os.urandom(2_000_000))
    git("-C", str(work), "add", ".")
    git("-C", str(work), "commit", "-q", "-m", "first")
    git("clone", "-q", "--bare", str(work), str(bare))
    git("-C", str(bare), "update-server-info")
    return tmp_path


class _Files(SimpleHTTPRequestHandler):
    """Dumb HTTP: git's oldest way, which is nothing but files."""

    directory: str

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def secure(repository: Path) -> Iterator[int]:
    """The port of a server with TLS that shows the repository under the allowed name."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(repository / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(_ALLOWED).configure_cert(context)  # pyright: ignore[reportUnknownMemberType]  also pyOpenSSL's
    www = str(repository / "www")

    def serve(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            _Handler(www, tls)

    with Program(serve) as program:
        yield program.port


class _Handler(_Files):
    def __init__(self, www: str, tls: ssl.SSLSocket) -> None:
        self._www = www
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Files, bind_and_activate=False)
        try:
            super().__init__(tls, ("guest", 0), server, directory=www)
        finally:
            server.server_close()


def test_curl_and_git_reach_what_the_proxy_allows_and_nothing_else(repository: Path, secure: int) -> None:
    port = free_port()
    proxy = Proxy(secure)
    with Program(proxy.serve) as program:
        config = f'[relay.egress]\nlisten = "tcp:127.0.0.1:{port}"\nto = "{program.address}"\n'
        with serving(config=config) as server, Peer(server.address) as peer:

            def run(line: str) -> tuple[int, bytes]:
                env = {"CA": str(repository / "ca.pem"), "GIT_SSL_CAINFO": str(repository / "ca.pem")}
                env |= {"HOME": str(repository), "GIT_CONFIG_NOSYSTEM": "1"}
                call = peer.open("exec", shell=line, cwd=str(repository), env=env, timeout=PATIENCE)
                return int(call.end()["status"]), call.stdout + call.stderr

            status, said = run(
                f"git clone -q https://{_ALLOWED}/repo.git cloned && cmp cloned/large work/large"
            )
            assert (status, said) == (0, b"")
            status, said = run(f"curl -sS --cacert $CA https://{_ALLOWED}/repo.git/HEAD")
            assert (status, said) == (0, b"ref: refs/heads/main\n")
            status, said = run("curl -sS https://elsewhere.example/")
            assert (status, b"403" in said) == (56, True), said
            status, said = run("curl -sS http://elsewhere.example/")
            assert (status, said) == (0, b"not here\n")
            # What is at home needs no proxy.
            status, said = run(
                f"curl -sS --noproxy '' http://127.0.0.1:{free_port()}/; curl -sS http://localhost:1/"
            )
            assert b"not here" in said
            assert b"port 1" in said
    assert f"CONNECT {_ALLOWED}:443 HTTP/1.1" in proxy.asked
    assert "CONNECT elsewhere.example:443 HTTP/1.1" in proxy.asked
    assert not any("localhost" in each for each in proxy.asked)


def test_without_a_proxy_on_the_host_curl_is_told_why() -> None:
    port, target = free_port(), free_port()
    config = f'[relay.egress]\nlisten = "tcp:127.0.0.1:{port}"\nto = "tcp:127.0.0.1:{target}"\n'
    with serving(config=config) as server, Peer(server.address) as peer:
        call = peer.open(
            "exec", shell="curl -sS https://example.com/; curl -sS http://example.com/", timeout=PATIENCE
        )
        call.end()
        assert b"503" in call.stderr
        assert b"guestd, relay egress: nobody takes this; cannot connect to tcp:127.0.0.1" in call.stdout
