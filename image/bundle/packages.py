"""guestd and the packages it depends on, in the versions that image/requirements.txt pins by their digests."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from python import VERSION

#: What only OTLP over gRPC needs.
_GRPC = ("grpcio", "opentelemetry-exporter-otlp-proto-grpc", "opentelemetry-exporter-otlp")
#: Of a package: what nobody runs.
_NOT_RUN = ("tests", "_tests", "testing", "_tools")
_NOT_RUN_FILES = (
    "*.pyi",
    "*.pyx",
    "*.pxd",
    "*.c",
    "*.h",
    "py.typed",
    "RECORD",
    "INSTALLER",
    "REQUESTED",
    "direct_url.json",
)

_PROGRAM = """\
#!{prefix}/bin/python -IXutf8
from __future__ import annotations

import sys

from {module} import main

sys.exit(main())
"""


def install(tree: Path, root: Path, prefix: str, *, grpc: bool) -> Path:
    """Fills site-packages, and writes bin/guestd and bin/guestctl. Returns site-packages."""
    site = tree / "lib" / VERSION / "site-packages"
    with tempfile.TemporaryDirectory(prefix="guestd-pip-") as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(_requirements(root / "image" / "requirements.txt", grpc=grpc), encoding="utf-8")
        _run(sys.executable, "-m", "venv", f"{scratch}/venv")
        _run(
            f"{scratch}/venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--no-input", "--no-compile", "--no-deps", "--require-hashes", "--target", str(site),
            "--requirement", str(wanted),
        )  # fmt: skip
    _trim(site)
    shutil.copytree(root / "guestd", site / "guestd", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    _describe(root, site)
    for name, module in (("guestd", "guestd.cli"), ("guestctl", "guestd.ctl.main")):
        # -I: no variable of the image's reaches it. UTF-8 whatever the image's locale, and whether it has one.
        program = tree / "bin" / name
        program.write_text(_PROGRAM.format(prefix=prefix, module=module), encoding="ascii")
        program.chmod(0o755)
    return site


def version(root: Path) -> str:
    """Guestd's own, as its source has it."""
    source = ast.parse((root / "guestd" / "__init__.py").read_text(encoding="utf-8"))
    for statement in source.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="__version__")], value=ast.Constant(value=str(text))):
                return text
            case _:
                pass
    raise AssertionError("guestd/__init__.py says no version")


def _requirements(path: Path, *, grpc: bool) -> str:
    """The pinned packages: one a paragraph, its digests on the lines that follow."""
    text = path.read_text(encoding="utf-8")
    entries = re.findall(r"^(\S+?)==(?:.*\\\n)+.*\n", text, re.MULTILINE)
    assert entries, f"nothing is pinned in {path}"
    if grpc:
        return text
    for name in _GRPC:
        text = re.sub(rf"^{name}==(?:.*\\\n)+.*\n", "", text, flags=re.MULTILINE)
    return text


def _trim(site: Path) -> None:
    shutil.rmtree(site / "bin", ignore_errors=True)
    for name in _NOT_RUN:
        for found in sorted(site.rglob(name)):
            if found.is_dir():
                shutil.rmtree(found)
    for pattern in _NOT_RUN_FILES:
        for found in site.rglob(pattern):
            found.unlink()
    for library in sorted(site.rglob("*.so")):
        _run("strip", "--strip-unneeded", str(library))


def _describe(root: Path, site: Path) -> None:
    """What `importlib.metadata` and scanners of images find guestd by."""
    number = version(root)
    about = site / f"guestd-{number}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: guestd\nVersion: {number}\nLicense: Apache-2.0\n", encoding="ascii"
    )


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
