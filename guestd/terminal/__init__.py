"""What a terminal shows, kept without one: so that a shell can be attached again with the right screen. Pure.

`model.TerminalModel` takes the bytes that a shell writes, at any split, and knows the screen, the scrollback and the
modes that they lead to. `restore` writes the bytes that put another terminal into that state.

Nothing is imported here: who needs one file of this room does not pay for the others.
"""

from __future__ import annotations
