"""`python -m guestd` is `guestd`."""

from __future__ import annotations

import sys

from guestd.cli import main

if __name__ == "__main__":
    sys.exit(main())
