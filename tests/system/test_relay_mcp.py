"""An MCP client of the guest's and a server of the host's, both by the `mcp` package, with relays between them, by
streamable HTTP and by SSE: what the server says while a call goes on arrives while it goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.life import serving
from tests.support.passing import PATIENCE
from tests.support.peer import Peer
from tests.support.server import free_port

if TYPE_CHECKING:
    from collections.abc import Generator

#: `work` says how far it is, and goes on when `go_on` was called: it hangs for ever if anybody keeps its words back.
_SERVER = """
import sys, anyio
from mcp.server.mcpserver import Context, MCPServer
server = MCPServer("host", log_level="INFO")
released = {}
@server.tool()
async def work(steps: int, ctx: Context) -> str:
    for step in range(1, steps + 1):
        released[step] = anyio.Event()
        await ctx.report_progress(step, steps, f"step {step}")
        await released[step].wait()
    return "x" * 200_000
@server.tool()
async def go_on(step: int) -> str:
    released[step].set()
    return "ok"
async def main():
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: server.run_streamable_http_async(port=int(sys.argv[1])))
        tasks.start_soon(lambda: server.run_sse_async(port=int(sys.argv[2])))
anyio.run(main)
"""
_CLIENT = """
import json, os, anyio
from mcp import Client
from mcp.client.sse import sse_client
async def use(there):
    heard = []
    async with Client(there) as client, anyio.create_task_group() as tasks:
        async def progress(step, total, message):
            heard.append([step, total, message])
            tasks.start_soon(client.call_tool, "go_on", {"step": int(step)})
        tools = sorted(tool.name for tool in (await client.list_tools()).tools)
        done = await client.call_tool("work", {"steps": 3}, progress_callback=progress)
    print(json.dumps([tools, heard, len(done.content[0].text)]))
async def main():
    await use(os.environ["MCP_SERVER_URL"])
    await use(sse_client(os.environ["SSE_URL"]))
anyio.run(main)
"""


@contextmanager
def host(streamable: int, sse: int) -> Generator[None]:
    """The server, as soon as it listens both ways."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SERVER, str(streamable), str(sse)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said: list[str] = []
        try:
            while sum("Uvicorn running on" in line for line in said) < 2:
                said.append(process.stderr.readline())
                assert said[-1], "".join(said)
            yield
        finally:
            process.kill()


def test_calls_that_stream() -> None:
    ports = [free_port() for _ in range(4)]
    config = f"""
[relay.mcp]
listen = "tcp:127.0.0.1:{ports[0]}"
to = "tcp:127.0.0.1:{ports[1]}"
[relay.sse]
kind = "http"
listen = "tcp:127.0.0.1:{ports[2]}"
to = "tcp:127.0.0.1:{ports[3]}"
env = {{ SSE_URL = "{{url}}/sse" }}
"""
    with host(ports[1], ports[3]), serving(config=config) as server, Peer(server.address) as peer:
        call = peer.open("exec", argv=[sys.executable, "-W", "ignore", "-c", _CLIENT], timeout=PATIENCE)
        ended = call.end()
        assert ended["status"] == 0, call.stderr.decode()
        for line in call.stdout.splitlines():
            tools, heard, size = json.loads(line)
            assert tools == ["go_on", "work"]
            assert heard == [[step, 3, f"step {step}"] for step in (1, 2, 3)]
            assert size == 200_000
        for relay in peer.ask("status")["relays"]:
            assert relay["bytes_down"] > 200_000
            assert relay["unreachable_count"] == relay["refused"] == 0
