"""A shell that is stayed at across connections that break at any byte: nothing is shown or typed twice, or lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from guestd.client import (
    Backoff,
    Began,
    Gap,
    InputState,
    Output,
    Resized,
    Restore,
    Role,
    ShellRequest,
    TerminalSize,
    stay,
    to_shell,
)  # fmt: skip
from guestd.client.tasks import background
from guestd.errors import Conflict, GuestdError, NotFound, Unauthorized
from guestd.wire.frames import Kind
from tests.aio.scripted import accept, client_and_peer, control, data_frame, end
from tests.aio.shell_guest import ShellGuest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestd.client import Client, Item, Notice, Stayed

TEXT = bytes(range(256)) * 12
STEADY = Backoff(random=lambda: 0.5)
INFINITE = float("inf")


def shell_accept(channel: int, /, **fields: object) -> bytes:
    usual: dict[str, object] = {
        "kind": "shell", "role": "owner", "size": {"columns": 80, "rows": 24},
        "streams": {"terminal": {"start": 0, "end": 0}},
    }  # fmt: skip
    return accept(channel, "work", **{**usual, **fields})


async def items_until_end(shell: Stayed) -> list[Item]:
    return [item async for item in shell]


def drawn(items: Sequence[Item]) -> bytes:
    """What a terminal shows of all that, where a restore puts everything behind it that was not shown before.

    Fails where bytes come twice, or are left out without a restore.
    """
    at: int | None = None
    shown = b""
    restoring = 0
    for item in items:
        if isinstance(item, Restore):
            # The picture stands for everything up to its offset.
            shown, at, restoring = TEXT[: item.offset], item.offset, item.size
        elif isinstance(item, Output) and item.stream == "screen":
            restoring -= len(item.data)
            assert restoring >= 0
        elif isinstance(item, Output):
            assert restoring == 0 or at is None, "output came before the screen was drawn whole"
            assert at is None or item.offset == at, "output left out, or shown twice"
            shown += item.data
            at = item.offset + len(item.data)
        elif isinstance(item, Began):
            restoring = 0
    assert restoring == 0, "the screen was never drawn whole"
    return shown


@settings(max_examples=150)
@given(data=st.data())
def test_wherever_connections_break_nothing_is_shown_or_typed_twice_or_lost(data: st.DataObject) -> None:
    text = TEXT[: data.draw(st.integers(0, len(TEXT)), "text")]
    keys = TEXT[: data.draw(st.integers(0, len(TEXT)), "keys")]
    limits = st.one_of(st.integers(200, 4000), st.just(INFINITE))
    cuts = data.draw(st.lists(st.tuples(limits, limits), min_size=1, max_size=8), "cuts")
    later = data.draw(st.lists(st.tuples(st.integers(0, 800), st.integers(0, 800)), max_size=4), "later cuts")
    piece = data.draw(st.integers(1, 400), "piece")
    sizes = data.draw(st.lists(st.integers(1, 900), min_size=1, max_size=5), "sizes")
    start: Any = data.draw(st.sampled_from(["restore", "start"]), "start")
    redraws = data.draw(st.lists(st.integers(0, 12), max_size=3), "redraws")

    async def run() -> None:
        async with background() as tasks:
            guest = ShellGuest(tasks, text=text, wants=len(keys), cuts=[*cuts, *later], piece=piece)
            async with stay(guest.dial, to_shell(None, None, {}, start), backoff=STEADY) as shell:
                tasks.start_soon(_type, shell, keys, sizes)
                items: list[Item] = []
                async for item in shell:
                    items.append(item)
                    if len(items) in redraws:
                        shell.redraw()
                assert (await shell.result()).status == 0
            assert drawn(items) == text
            assert not [item for item in items if isinstance(item, Gap)]
            assert b"".join(guest.typed.values()) == keys
            assert len(guest.typed) == 1, "it came back as somebody else"
            assert guest.started == 1
            assert len({each.fields["id"] for each in guest.opened if "id" in each.fields}) == 1

    trio.run(run, clock=MockClock(autojump_threshold=0))


async def _type(shell: Stayed, keys: bytes, sizes: Sequence[int]) -> None:
    at = turn = 0
    while at < len(keys):
        size = sizes[turn % len(sizes)]
        await shell.send(keys[at : at + size])
        at += size
        turn += 1


# ------------------------------------------------------------------------------------------------ what is asked for


async def test_a_shell_is_asked_for_as_the_protocol_has_it() -> None:
    async with client_and_peer() as (client, peer), background() as tasks:
        tasks.start_soon(
            lambda: client.shell(
                "work",
                ["htop"],
                size=TerminalSize(80, 24, 640, 480),
                role="writer",
                client="me",
                term="xterm",
            )
        )
        opened = await peer.expect(Kind.OPEN)
        assert opened.fields == {
            "op": "shell", "id": "work", "argv": ["htop"], "role": "writer", "client": "me", "term": "xterm",
            "size": {"columns": 80, "rows": 24, "width": 640, "height": 480}, "from": "restore", "window": 262144,
        }  # fmt: skip


async def test_everything_a_guest_says_comes_in_its_place() -> None:
    async with client_and_peer() as (client, peer):
        async with background() as tasks:

            async def guest() -> None:
                opened = await peer.expect(Kind.OPEN)
                at = opened.channel
                await peer.send(
                    shell_accept(at, created=True, streams={"terminal": {"start": 5, "end": 100}})
                    + control(
                        Kind.EVENT, at, event="restore", offset=90, bytes=4, columns=80, rows=24, exact=False
                    )
                    + data_frame(at, 4, 0, b"ab")
                    + data_frame(at, 4, 2, b"cd")
                    + data_frame(at, 3, 90, b"live")
                    + control(Kind.EVENT, at, event="size", columns=3, rows=4)
                    + control(Kind.EVENT, at, event="size", columns=100, rows=30)
                    + control(Kind.EVENT, at, event="role", role="writer", by="somebody")
                    + control(Kind.EVENT, at, event="of a newer guest", role=7)
                    + control(Kind.EVENT, at, event="input", state="blocked", waiting=9)
                    + control(Kind.EVENT, at, event="gap", stream=3, **{"from": 94, "to": 98})
                    + control(
                        Kind.EVENT, at, event="restore", offset=100, bytes=0, columns=80, rows=24, exact=True
                    )
                    + data_frame(at, 3, 100, b"on")
                    + end(at, "work", kind="shell")
                )

            tasks.start_soon(guest)
            shell = await client.shell("work")
            items = [item async for item in shell]
        assert items == [
            Began("owner", 80, 24, 100, created=True),
            Restore(90, 4, 80, 24, exact=False),
            Output("screen", 0, b"abcd"),
            Output("terminal", 90, b"live"),
            Resized(100, 30),
            Role("writer", "somebody"),
            InputState("blocked", 9),
            Gap("terminal", 94, 98),
            Restore(100, 0, 80, 24, exact=True),
            Output("terminal", 100, b"on"),
        ]
        assert shell.positions == {"terminal": 102}
        assert (shell.role, shell.size) == ("writer", TerminalSize(100, 30))


async def test_a_job_of_the_plain_kind_shows_the_output_of_a_shell() -> None:
    async with client_and_peer() as (client, peer), background() as tasks:

        async def guest() -> None:
            at = (await peer.expect(Kind.OPEN)).channel
            await peer.send(
                shell_accept(at)
                + control(Kind.EVENT, at, event="role", role="writer", by="somebody")
                + data_frame(at, 3, 0, b"out")
                + end(at, "work", kind="shell")
            )

        tasks.start_soon(guest)
        job = await client.attach("work")
        assert [item async for item in job] == [Output("terminal", 0, b"out")]
        assert (job.kind, (await job.result()).kind) == ("shell", "shell")


async def test_a_command_is_no_shell_and_that_is_said() -> None:
    async with client_and_peer() as (client, peer), background() as tasks:

        async def guest() -> None:
            await peer.send(accept((await peer.expect(Kind.OPEN)).channel, "build"))

        tasks.start_soon(guest)
        with pytest.raises(Conflict, match="is a command, not a shell"):
            await client.attach_shell("build")


async def test_the_guest_may_send_more_only_when_what_was_taken_has_been_shown() -> None:
    """Credit for what is on its way to a slow terminal let the guest run ahead by a window for each step."""
    async with client_and_peer() as (client, peer), background() as tasks:

        async def guest() -> None:
            at = (await peer.expect(Kind.OPEN)).channel
            await peer.send(shell_accept(at) + data_frame(at, 3, 0, b"x" * 1000))

        tasks.start_soon(guest)
        shell = await client.shell("work", window=1000)
        assert isinstance(await anext(shell), Began)
        assert await anext(shell) == Output("terminal", 0, b"x" * 1000)
        granted = trio.Event()

        async def hear() -> None:
            assert (await peer.expect(Kind.CREDIT)).fields == {"bytes": 1000}
            granted.set()

        tasks.start_soon(hear)
        await wait_all_tasks_blocked()
        assert not granted.is_set()
        tasks.start_soon(anext, shell)
        await granted.wait()


async def test_commands_are_listed() -> None:
    async with client_and_peer() as (client, peer), background() as tasks:
        found = [{"n": 1, "text": "make"}]

        async def guest() -> None:
            opened = await peer.expect(Kind.OPEN)
            assert opened.fields == {"op": "commands", "id": "work"}
            await peer.send(control(Kind.ACCEPT, opened.channel))
            await peer.send(control(Kind.END, opened.channel, commands=found))

        tasks.start_soon(guest)
        assert await client.commands("work") == found


# ------------------------------------------------------------------------------------------------------ coming back


async def test_back_come_the_client_the_role_the_size_and_the_offset(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks, text=TEXT, cuts=[(1500, INFINITE)])
        request = to_shell(
            "work", ["htop"], {"size": TerminalSize(80, 24), "role": "writer", "hold": True}, "start"
        )

        def turn(notice: Notice) -> None:
            if notice.what == "lost":
                shell.resize(TerminalSize(100, 30))

        async with stay(guest.dial, request, backoff=STEADY, notice=turn) as shell:
            await items_until_end(shell)
        first, again = (each.fields for each in guest.opened)
        assert (again["op"], again["id"], again["role"], again["hold"]) == ("attach", "work", "writer", True)
        assert again["client"] == first["client"]
        assert again["size"] == {"columns": 100, "rows": 30, "width": 0, "height": 0}
        assert 0 < again["from"]["terminal"] < len(TEXT)
        assert again["or_restore"] is True


async def test_a_restore_of_which_a_part_is_missing_comes_again_whole(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks, text=TEXT, piece=10, cuts=[(800, INFINITE)])
        async with stay(guest.dial, to_shell("work", None, {}), backoff=STEADY) as shell:
            items = await items_until_end(shell)
        restores = [item for item in items if isinstance(item, Restore)]
        screens = [item for item in items if isinstance(item, Output) and item.stream == "screen"]
        assert len(restores) == 2
        assert 0 < sum(len(each.data) for each in screens) - restores[1].size < restores[0].size
        assert [each.fields["from"] for each in guest.opened if each.fields["op"] != "ps"] == [
            "restore",
            "restore",
        ]


async def test_where_the_offsets_are_gone_the_screen_comes_instead(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks, text=TEXT, cuts=[(1500, INFINITE)])

        def lose(notice: Notice) -> None:
            guest.kept_from = 3000

        async with stay(
            guest.dial, to_shell("work", None, {}, "start"), backoff=STEADY, notice=lose
        ) as shell:
            items = await items_until_end(shell)
        assert drawn(items) == TEXT
        assert [item.offset for item in items if isinstance(item, Restore)] == [3000]


@pytest.mark.parametrize(
    ("viewers", "role"),
    [
        ([], "owner"),
        ([{"role": "owner", "client": "mine"}], "owner"),
        ([{"role": "owner", "client": "somebody"}], "writer"),
        ([{"role": "watcher", "client": "somebody"}], "owner"),
    ],
)
async def test_an_ownership_that_somebody_took_meanwhile_is_theirs(
    autojump_clock: MockClock, viewers: list[dict[str, Any]], role: str
) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks, text=TEXT, cuts=[(1500, INFINITE)])
        guest.viewers = viewers
        async with stay(guest.dial, to_shell("work", None, {"client": "mine"}), backoff=STEADY) as shell:
            await items_until_end(shell)
            assert shell.role == role
        assert guest.opened[-1].fields["role"] == role


async def test_keys_typed_without_a_connection_arrive_once_it_is_back(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks, wants=7, cuts=[(INFINITE, 350)])
        lost = trio.Event()

        def note(notice: Notice) -> None:
            guest.down = not lost.is_set()
            lost.set()

        async with stay(
            guest.dial, to_shell("work", None, {"client": "me"}), backoff=STEADY, notice=note
        ) as shell:
            tasks.start_soon(items_until_end, shell)
            # Breaks the connection, which carries no more than so many bytes.
            await shell.send(b"abc")
            while not lost.is_set():
                shell.resize(TerminalSize(1, 1))
                await trio.lowlevel.checkpoint()
            assert not shell.connected
            await shell.send(b"defg")
            guest.down = False
            await shell.result()
        assert guest.typed == {"me": b"abcdefg"}


async def test_what_was_typed_has_left_when_flush_returns(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks, wants=None, window=4000)
        async with stay(guest.dial, to_shell("work", None, {"client": "me"}), backoff=STEADY) as shell:
            await shell.send(TEXT)
            await shell.flush()
        await wait_all_tasks_blocked()
        assert guest.typed == {"me": TEXT}


@pytest.mark.parametrize("own_id", [True, False])
async def test_what_ran_and_ended_before_its_answer_came_does_not_run_again(
    autojump_clock: MockClock, own_id: bool
) -> None:
    """Only where nobody else can have the id: an id of the user's may be somebody's new shell by then."""
    async with background() as tasks:
        guest = ShellGuest(tasks, text=b"done", cuts=[(150, INFINITE)])
        request = to_shell(None if own_id else "work", ["make", "deploy"], {})
        async with stay(guest.dial, request, backoff=STEADY) as shell:
            await items_until_end(shell)
        assert guest.started == 1
        asked = [each.fields["op"] for each in guest.opened]
        assert asked == ["shell", "attach" if own_id else "shell"]


@pytest.mark.parametrize("size", range(130, 400, 15))
async def test_a_request_that_is_cut_anywhere_opens_one_shell(autojump_clock: MockClock, size: int) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks, text=b"done", cuts=[(INFINITE, size)], wants=300)
        async with stay(guest.dial, to_shell(None, None, {}), backoff=STEADY) as shell:
            await shell.send(b"x" * 300)
            await items_until_end(shell)
        asked = [each.fields["op"] for each in guest.opened]
        assert asked in (["attach", "shell"], ["shell", "ps", "attach"], ["shell"])
        assert guest.started == 1


async def test_a_shell_that_must_be_there_is_not_opened(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks)
        with pytest.raises(NotFound, match="no such job"):
            await _stay_to_the_end(guest, ShellRequest("work", "me", role="watcher"))
        assert guest.started == 0


@pytest.mark.parametrize(("boot", "why"), [("boot", "no longer kept"), ("another", "started anew")])
async def test_a_shell_that_is_gone_is_said_and_no_new_one_is_opened(
    autojump_clock: MockClock, boot: str, why: str
) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks, text=TEXT, cuts=[(1500, INFINITE)], boot=["boot", boot])

        def forget(notice: Notice) -> None:
            guest.forgotten = True

        with pytest.raises(NotFound, match=f"'work' is gone: .*{why}"):
            await _stay_to_the_end(guest, to_shell("work", None, {}), notice=forget)
        assert guest.started == 1


async def _stay_to_the_end(guest: ShellGuest, request: ShellRequest, **options: Any) -> None:  # noqa: ANN401 - stay's own
    async with stay(guest.dial, request, backoff=STEADY, **options) as shell:
        await items_until_end(shell)


async def test_a_refused_token_is_final_and_a_guest_that_is_down_never_is(autojump_clock: MockClock) -> None:
    refusal = Unauthorized("the token is wrong")
    tries = 0

    async with background() as tasks:
        guest = ShellGuest(tasks, text=TEXT, cuts=[(1500, INFINITE)])

        def dial() -> Any:  # noqa: ANN401
            if tries > 50:
                raise refusal
            return guest.dial()

        def note(notice: Notice) -> None:
            nonlocal tries
            guest.down = True
            tries += 1

        began = trio.current_time()
        with pytest.raises(GuestdError) as caught:
            async with stay(dial, to_shell("work", None, {}), backoff=STEADY, notice=note) as shell:
                await items_until_end(shell)
        assert caught.value.code == "unauthorized"
        assert trio.current_time() - began == 1 + 2 + 4 + 8 + 15 + 46 * 30


async def test_a_redraw_begins_anew_over_the_same_connection(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks, text=TEXT, wants=4)
        async with stay(
            guest.dial, to_shell("work", None, {"client": "me"}, "start"), backoff=STEADY
        ) as shell:
            assert isinstance(await anext(shell), Began)
            await shell.send(b"ab")
            shell.redraw()
            shell.redraw()
            await shell.send(b"cd")
            items = await items_until_end(shell)
        assert guest.connections == 1
        assert [each.fields.get("from") for each in guest.opened if each.fields["op"] != "ps"] == [
            "start",
            "restore",
        ]
        assert guest.typed == {"me": b"abcd"}
        assert drawn(items) == TEXT


async def test_a_shell_that_ends_with_its_connection_is_not_redrawn(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks, text=TEXT)
        async with stay(
            guest.dial, to_shell("work", None, {"kill_on_disconnect": True}), backoff=STEADY
        ) as shell:
            shell.redraw()
            await items_until_end(shell)
        assert len(guest.opened) == 1


async def test_a_role_that_is_asked_for_without_a_connection_is_asked_for_with_the_next(
    autojump_clock: MockClock,
) -> None:
    async with background() as tasks:
        guest = ShellGuest(tasks, text=TEXT, cuts=[(1500, INFINITE)])

        def note(notice: Notice) -> None:
            if notice.what == "lost":
                shell.ask_role("owner")

        request = to_shell("work", None, {"role": "writer"})
        async with stay(guest.dial, request, backoff=STEADY, notice=note) as shell:
            await items_until_end(shell)
        assert [each.fields["role"] for each in guest.opened] == ["writer", "owner"]


async def test_asking_while_connected_is_an_event_of_the_channel(autojump_clock: MockClock) -> None:
    async with client_and_peer() as (client, peer), background() as tasks:
        shells: list[Any] = []

        async def ask(client: Client) -> None:
            shell = await client.shell("work")
            await shell.resize(10, 20, 30, 40)
            await shell.ask_role("owner")
            shells.append(shell)

        tasks.start_soon(ask, client)
        await peer.send(shell_accept((await peer.expect(Kind.OPEN)).channel))
        assert (await peer.expect(Kind.EVENT)).fields == {
            "event": "resize", "columns": 10, "rows": 20, "width": 30, "height": 40,
        }  # fmt: skip
        assert (await peer.expect(Kind.EVENT)).fields == {"event": "role", "role": "owner"}
