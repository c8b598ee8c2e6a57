"""Which names are not watched. A glob without a slash is about names, one with a slash about paths below the top."""

from __future__ import annotations

import fnmatch
import re


class Globs:
    """`match` a name and its path."""

    def __init__(self, globs: list[bytes]) -> None:
        names = [glob for glob in globs if b"/" not in glob.strip(b"/")]
        paths = [glob for glob in globs if b"/" in glob.strip(b"/")]
        self._names = _any_of([glob.strip(b"/") for glob in names])
        self._paths = _any_of([glob.strip(b"/") for glob in paths])

    def match(self, name: bytes, path: bytes) -> bool:
        return (self._names is not None and self._names.match(name) is not None) or (
            self._paths is not None and self._paths.match(path) is not None
        )


def _any_of(globs: list[bytes]) -> re.Pattern[bytes] | None:
    # latin-1: a byte a character, whatever the name is made of.
    texts = [fnmatch.translate(glob.decode("latin-1")) for glob in globs]
    return re.compile("|".join(texts).encode("latin-1")) if texts else None
