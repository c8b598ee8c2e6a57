"""`image/build`, `image/run` and `image/try --vm`: which of them, and how their failures are said."""

from __future__ import annotations

import os
import sys
from importlib import import_module

# This folder is where Python looks first, when it is run as a program; the names of what is in it begin above it.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

FAILED = 125


def main() -> int:
    from image.vm.failure import Failure, say

    command, *arguments = sys.argv[1:]
    try:
        return import_module(f"image.vm.{command}").main(arguments)
    except Failure as failure:
        say(str(failure))
        return FAILED
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
