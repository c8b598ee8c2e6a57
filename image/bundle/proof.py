"""Run by the tree's own interpreter: TREE [grpc]. Imports all that guestd may import, and says what is wrong.

Every module of guestd is imported; for what guestd and its packages import late, the modules that the source names are
looked for. And nothing that was loaded may have come from outside of the tree.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

#: What is imported by name, or only when a setting asks for it.
_ALSO = (
    "encodings.idna",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk.metrics",
    "opentelemetry.sdk.trace",
    "ssl",
    "trio",
    "trio_websocket",
)
_GRPC = (
    "opentelemetry.exporter.otlp.proto.grpc.metric_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
)


def main(tree: Path, *, grpc: bool) -> int:
    wrong: list[str] = []
    site = Path(importlib.util.find_spec("guestd").submodule_search_locations[0]).parent  # type: ignore[union-attr, index]
    names: set[str] = {*_ALSO, *(_GRPC if grpc else ())}
    for source in sorted((site / "guestd").rglob("*.py")):
        module = ".".join(source.relative_to(site).with_suffix("").parts).removesuffix(".__init__")
        if not module.endswith("__main__"):
            names.add(module)
        wrong += [
            f"{module} imports {name}, which was left out: see LEFT_OUT in image/bundle/python.py"
            for name in _imports(source)
            if name.split(".")[0] in sys.stdlib_module_names and not _is_there(name)
        ]
    for name in sorted(names):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  whatever it is, it is told with the rest
            wrong.append(f"{name} cannot be imported: {type(error).__name__}: {error}")
    for extension in sorted((tree / "lib").rglob("lib-dynload/*.so")):
        importlib.import_module(extension.name.split(".")[0])
    wrong += [
        f"{file} was loaded, which is not in the tree"
        for file in sorted(_loaded())
        if not file.startswith(f"{tree}/")
    ]
    print("\n".join(wrong))
    return 1 if wrong else 0


def _imports(source: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _loaded() -> set[str]:
    """Files that are mapped executable into this process."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        lines = [line.split(maxsplit=5) for line in maps]
    return {
        words[5].rstrip("\n")
        for words in lines
        if len(words) == 6 and "x" in words[1] and words[5].startswith("/")
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), grpc="grpc" in sys.argv[2:]))
