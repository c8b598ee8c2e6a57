"""Run as a program of its own: TREE PREFIX VERSION. Compiles what is in the tree, in order, as what it will be called.

`unchecked-hash`: nobody edits an image, so no start compares dates or reads a source.
"""

from __future__ import annotations

import py_compile
import sys
from pathlib import Path

#: Its source stays beside the byte code.
_WITH_SOURCE = "site-packages/guestd/"


def main(tree: Path, prefix: str, version: str) -> None:
    library = tree / "lib" / version
    for source in sorted(library.rglob("*.py")):
        name = source.relative_to(library).as_posix()
        keep = name.startswith(_WITH_SOURCE)
        py_compile.compile(
            str(source),
            None if keep else str(source.with_suffix(".pyc")),
            f"{prefix}/lib/{version}/{name}",
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        if not keep:
            source.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
