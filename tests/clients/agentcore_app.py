"""A workload as AgentCore's own package has it: `python agentcore_app.py PORT FIFO`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from bedrock_agentcore import BedrockAgentCoreApp

if TYPE_CHECKING:
    from collections.abc import Iterator

app: Any = BedrockAgentCoreApp()
tasks: list[int] = []


@app.entrypoint
def invoke(payload: dict[str, Any], context: Any) -> object:  # noqa: ANN401  their class
    """Do what the payload says."""
    match payload.get("do"):
        case "begin":
            tasks.append(app.add_async_task("work"))
            return {"running": len(tasks)}
        case "finish":
            app.complete_async_task(tasks.pop())
            return {"running": len(tasks)}
        case "stream":
            return stream()
        case "fail":
            raise ValueError("it cannot do that")
        case _:
            return {"said": payload, "session": context.session_id, "headers": context.request_headers}


def stream() -> Iterator[dict[str, int]]:
    yield {"part": 1}
    with open(sys.argv[2], encoding="ascii") as fifo:
        fifo.read()
    yield {"part": 2}


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]), host="127.0.0.1")
