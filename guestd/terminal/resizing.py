"""Another size for a terminal: both of its screens, the saved cursors, the tab stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestd.terminal import reflow
from guestd.terminal.screen import TAB
from guestd.terminal.screens import NEVER

if TYPE_CHECKING:
    from guestd.terminal.screen import Terminal
    from guestd.terminal.screens import Screen


def resize(terminal: Terminal, columns: int, rows: int) -> None:
    """Another size: the main screen's lines are wrapped anew, the alternate one is clipped or padded."""
    columns, rows = max(columns, 1), max(rows, 1)
    if (columns, rows) == (terminal.columns, terminal.rows):
        return
    terminal.leave()
    size = reflow.Size(terminal.columns, terminal.rows), reflow.Size(columns, rows)
    main = terminal.main
    plan = reflow.resize(
        [*terminal.history, *main.lines],
        len(terminal.history),
        main.x,
        main.y,
        main.saved.y,
        *size,
        history=terminal.history.maxlen or 0,
        wrap=True,
    )
    terminal.history.clear()
    terminal.history.extend(plan.lines[: plan.base])
    _fit(main, plan, columns, rows)
    if terminal.other is not None:
        plan = reflow.resize(
            terminal.other.lines,
            0,
            terminal.other.x,
            terminal.other.y,
            terminal.other.saved.y,
            *size,
            history=0,
            wrap=False,
        )
        _fit(terminal.other, plan, columns, rows)
    if terminal.left is not None:
        saved = terminal.left.saved
        if saved is not NEVER:
            terminal.left.saved = saved._replace(x=min(saved.x, columns - 1), y=min(saved.y, rows - 1))
        terminal.left.bottom = rows - 1
    if terminal.stops is not None:
        last = max((stop for stop in terminal.stops if stop < columns), default=0)
        terminal.stops = {stop for stop in terminal.stops if stop < columns} | set(range(last, columns, TAB))
    terminal.columns, terminal.rows = columns, rows
    terminal.enter(terminal.screen)
    terminal.x, terminal.y = terminal.screen.x, terminal.screen.y


def _fit(screen: Screen, plan: reflow.Plan, columns: int, rows: int) -> None:
    screen.lines = plan.lines[plan.base :]
    screen.x, screen.y = plan.x, plan.y
    screen.top, screen.bottom = 0, rows - 1
    if screen.saved is not NEVER:
        screen.saved = screen.saved._replace(x=min(screen.saved.x, columns - 1), y=plan.saved_y)
