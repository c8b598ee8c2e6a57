"""`python -m guestd.ctl` is guestctl."""

from __future__ import annotations

import sys

from guestd.ctl.main import main

sys.exit(main())
