"""The table: what is in the tree, and how large it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from python import VERSION

if TYPE_CHECKING:
    from pathlib import Path

#: In this order; a file counts for the first that fits. The path begins in the tree.
_PARTS = (
    ("gRPC (OTLP over gRPC; --without-grpc leaves it out)", ("site-packages/grpc/", "site-packages/grpcio-")),
    ("OpenTelemetry, protobuf", ("site-packages/opentelemetry", "site-packages/google")),
    ("HTTP client and its certificates", ("site-packages/requests", "site-packages/urllib3", "site-packages/certifi",
                                          "site-packages/charset_normalizer", "site-packages/idna")),
    ("guestd, with source", ("site-packages/guestd", "/bin/guestd", "/bin/guestctl")),
    ("Trio, msgpack, psutil and the other packages", ("site-packages/",)),
    ("standard library", (f"/lib/{VERSION}/",)),
    ("interpreter", ("/bin/python",)),
    ("C library, OpenSSL and other libraries", ("/lib/",)),
    ("licences", ("/licenses/", "/NOTICE")),
)  # fmt: skip


def show(tree: Path) -> None:
    total: dict[str, tuple[int, int]] = {}
    for path in tree.rglob("*"):
        if path.is_file():
            name = "/" + path.relative_to(tree).as_posix()
            part = next(part for part, begins in _PARTS if any(begin in name for begin in begins))
            size, count = total.get(part, (0, 0))
            total[part] = size + path.stat().st_size, count + 1
    for part, (size, count) in sorted(total.items(), key=lambda item: -item[1][0]):
        print(f"{size / 1e6:6.1f} MB  {count:5}  {part}")
    size, count = sum(size for size, _ in total.values()), sum(count for _, count in total.values())
    print(f"{size / 1e6:6.1f} MB  {count:5}  files in all")
