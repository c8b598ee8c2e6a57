"""The audit log: a record of each thing that was done, in a chain that shows every change."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from guestd.ctl.main import main
from tests.support.hanging import hanging_mount
from tests.support.life import serving
from tests.support.peer import Failed, Peer
from tests.system.test_ctl import guestctl, started

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.server import Server


def _records(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (server.directory / "audit.jsonl").read_text().splitlines()]


def _of(records: list[dict[str, Any]], event: str, **facts: object) -> dict[str, Any]:
    (found,) = (
        each
        for each in records
        if each["event"] == event and all(each.get(key) == facts[key] for key in facts)
    )
    return found


def _audit(peer: Peer, **fields: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    call = peer.open("audit", **fields)
    call.end()
    return [json.loads(each["line"]) for each in call.events if each["event"] == "record"]


def test_it_says_who_did_what_when_and_what_came_of_it() -> None:
    with serving(config="[access]\nunix_uids = []\n") as server:
        with Peer(server.address) as peer:
            result = peer.open(
                "exec", argv=["sh", "-c", "echo output; exit 3", "--token=hunter2"], id="one"
            ).end()
            with pytest.raises(Failed):
                peer.open("exec", argv=["true"], id="one").end()
            peer.open("exec", shell="sleep 100", id="two").accepted()
            peer.ask("kill", id="two", signal="KILL")
            peer.ask("timers", idle_timeout=1000)
            peer.ask("ps")
            # Nobody writes the record of what they do themselves.
            forged = {
                "who": "nobody",
                "n": 1,
                "hash": "0",
                "result": "refused",
                "event": "nothing",
                "at": 0,
                "deed": "x",
            }
            peer.ask("busy", **forged, **{"for": 0.01})
        assert server.stop() == 0
        path = server.directory / "audit.jsonl"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        records, text = _records(server), path.read_text()
    me = f"unix uid 0 pid {os.getpid()}"
    opened = records[0]
    assert (opened["event"], opened["n"], opened["after"], opened["prev"]) == (
        "log_opened",
        1,
        "nothing",
        "0" * 64,
    )
    assert records[-1]["event"] == "log_closed"
    started = _of(records, "exec", job="one", result="accepted")
    assert started["who"] == me
    ended = _of(records, "job_ended", job="one")
    assert ended["command"] == ["sh", "-c", "echo output; exit 3", "--token=***"]
    assert (ended["outcome"], ended["status"], ended["pid"]) == ("exited", 3, result["pid"])
    assert ended["bytes"] == {"stdout": 7, "stderr": 0}
    assert result["started_at"] - 1 < started["at"] <= ended["at"] < result["ended_at"] + 5
    refused = _of(records, "exec", result="conflict")
    assert "asked for differently" in refused["why"]
    assert _of(records, "kill")["asked"] == {"id": "two", "signal": "KILL"}
    assert _of(records, "job_ended", job="two")["signal"] == 9
    assert _of(records, "timers")["asked"] == {"idle_timeout": 1000}
    assert _of(records, "connection_began")["who"] == _of(records, "connection_ended")["who"] == me
    assert _of(records, "stop_ended")["cause"] == "signal"
    busy = _of(records, "busy")
    assert (busy["who"], busy["result"], busy["asked"]) == (me, "accepted", {**forged, "for": 0.01})
    assert not [each for each in records if each["event"] in {"ps", "status", "attachment_ended"}]
    assert '"output\\n"' not in text
    assert "hunter2" not in text


def test_its_chain_is_checked_here_there_and_from_a_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "audit.jsonl"

    def check(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        return main(["events", "--verify", str(copy), *arguments]), capsys.readouterr().out

    with serving() as server, Peer(server.address) as peer:
        for _ in range(3):
            peer.open("exec", argv=["true"]).end()
        done = guestctl(server.address, "events", "--verify")
        assert (done.returncode, "the chain holds" in done.stdout.decode()) == (0, True), done
        report = peer.ask("audit", verify=True)
        assert (report["whole"], report["broken"]) == (True, 0)
        head = f"{report['head']['n']}:{report['head']['hash']}"
        shown = guestctl(server.address, "--json", "events", "--audit").stdout.splitlines()
        path = server.directory / "audit.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        assert shown[: len(lines)] == [line.rstrip(b"\n") for line in lines[: len(shown)]]
        # An edit, a deletion, an end that is missing: with whole lines, and within one.
        for broken, said in (
            (
                [*lines[:2], lines[2].replace(b'"result":"accepted"', b'"result":"not_found"'), *lines[3:]],
                "was changed",
            ),
            (lines[:2] + lines[3:], "should be here"),
        ):
            assert broken != lines
            copy.write_bytes(b"".join(broken))
            status, text = check()
            assert (status, "BROKEN" in text, said in text) == (1, True, True), text
        copy.write_bytes(b"".join(lines))
        assert check("--head", head)[0] == 0
        copy.write_bytes(b"".join(lines[:-4]))
        assert check()[0] == 0
        status, text = check("--head", head)
        assert (status, "its end is missing" in text) == (1, True), text
        # The head lies beside it, and the guest knows its own.
        (tmp_path / "audit.jsonl.head").write_bytes((server.directory / "audit.jsonl.head").read_bytes())
        assert check()[0] == 1
        with path.open("r+b") as file:
            file.truncate(len(b"".join(lines[:-4])) + 10)
        report = peer.ask("audit", verify=True)
        assert not report["whole"]
        assert guestctl(server.address, "events", "--verify").returncode == 1


def test_it_goes_on_over_restarts_and_says_where_it_cannot(tmp_path: Path) -> None:
    path = str(tmp_path / "made" / "audit.jsonl")
    with serving(config=f"[audit]\npath = '{path}'\n") as server:
        assert server.stop() == 0
    with serving(config=f"[audit]\npath = '{path}'\n") as server, Peer(server.address) as peer:
        assert peer.ask("audit", verify=True)["opened"] == 2
        server.kill()
    with open(path, "ab") as file:
        file.write(b'{"n":99,"at":1,"eve')
    with serving(config=f"[audit]\npath = '{path}'\n") as server, Peer(server.address) as peer:
        report = peer.ask("audit", verify=True)
        assert (report["whole"], report["opened"]) == (True, 3)
        assert any("died" in note for note in report["notes"])
        opened = [each for each in _audit(peer) if each["event"] == "log_opened"]
        assert [each["after"] for each in opened] == ["nothing", "closed", "died"]
        assert opened[2]["torn"] == 19
        assert server.stop() == 0
    with open(path, "rb") as file:
        lines = file.readlines()
    with open(path, "wb") as file:
        file.writelines(lines[:-2])
    with serving(config=f"[audit]\npath = '{path}'\n") as server, Peer(server.address) as peer:
        report = peer.ask("audit", verify=True)
        assert (report["whole"], report["broken"]) == (False, 1)
        assert "record" in report["breaks"][0]["why"]


def test_it_is_bounded_and_read_across_its_files() -> None:
    with serving(config="[audit]\nlimit = '4 KiB'\nfiles = 2\n") as server, Peer(server.address) as peer:
        call = peer.open("audit", follow=True)
        call.accepted()
        for batch in range(6):
            for _ in range(8):
                peer.open("exec", argv=["true"], retain=0).end()
            peer.ask("audit", last=1)
            del batch
        sizes = {each.name: each.stat().st_size for each in server.directory.glob("audit.jsonl*")}
        assert {"audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"} <= set(sizes)
        assert "audit.jsonl.3" not in sizes
        newest = peer.ask("status")["audit"]["head"]["n"]
        while len(call.events) < newest:
            call.step()
        # Who follows misses none, whichever file it was in.
        assert [json.loads(each["line"])["n"] for each in call.events] == list(range(1, len(call.events) + 1))
        assert [each["n"] for each in _audit(peer, last=3)][-1] >= newest
        report = peer.ask("audit", verify=True)
        assert report["whole"]
        assert any("older files go" in note for note in report["notes"])


def test_a_place_that_cannot_be_written_costs_records_and_they_are_counted(tmp_path: Path) -> None:
    blocked = tmp_path / "not-yet"
    blocked.write_text("a file where a directory should be")
    config = f"[audit]\npath = '{blocked}/audit.jsonl'\nqueue = 64\n"
    with serving(config=config) as server, Peer(server.address) as peer:
        while not (found := peer.ask("status")["audit"])["dropped"]:
            peer.open("exec", argv=["true"], retain=0).end()
        assert "audit.jsonl" in found["failure"]
        blocked.unlink()
        # Asking for it is one more try.
        records = _audit(peer)
        (dropped,) = (each for each in records if each["event"] == "dropped")
        assert dropped["count"] == peer.ask("status")["audit"]["dropped"]
        assert peer.ask("audit", verify=True)["dropped"] == dropped["count"]
        assert peer.ask("status")["audit"]["failure"] is None


def test_a_full_disk_costs_time_and_no_record(tmp_path: Path) -> None:
    """It had room for records and none for their head: each try wrote them once more, but for the first of them all,
    which says how the log was found.
    """
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    (tmp_path / "filler").write_bytes(bytes(60 * 1024))
    config = f"[audit]\npath = '{tmp_path}/audit.jsonl'\n"
    try:
        with serving(config=config) as server, Peer(server.address) as peer:
            peer.open("exec", argv=["true"], id="meanwhile").end()
            assert _audit(peer) == []
            assert "No space left" in peer.ask("status")["audit"]["failure"]
            (tmp_path / "filler").unlink()
            records = _audit(peer)
            assert [each["event"] for each in records].count("log_opened") == 1
            assert [each["event"] for each in records if each.get("job") == "meanwhile"] == [
                "exec",
                "job_ended",
            ]
            assert [each["n"] for each in records] == list(range(1, len(records) + 1))
            report = peer.ask("audit", verify=True)
            assert (report["whole"], report["dropped"]) == (True, 0)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_disk_that_does_not_answer_holds_up_neither_commands_nor_the_stop(tmp_path: Path) -> None:
    with hanging_mount(tmp_path) as hanging:
        # The stop has that disk to flush as well, and gives it its share.
        config = f"[audit]\npath = '{hanging.path}/audit.jsonl'\n[stop]\ngrace = '1s'\n"
        with serving(config=config) as server, Peer(server.address) as peer:
            for _ in range(5):
                assert peer.open("exec", argv=["true"]).end()["code"] == 0
            assert peer.ask("status")["audit"]["waiting"] > 0


def test_without_it_there_is_none() -> None:
    with serving(config="[audit]\nenabled = false\n") as server, Peer(server.address) as peer:
        with pytest.raises(Failed, match=r"audit\.enabled"):
            peer.ask("audit")
        assert not (server.directory / "audit.jsonl").exists()
        assert peer.ask("status")["audit"] is None


def test_guestctl_follows_it() -> None:
    with serving() as server, Peer(server.address) as peer:
        with started(server.address, "events", "--audit", "-f") as process:
            assert process.stdout is not None
            assert b"log_opened" in process.stdout.readline()
            peer.open("exec", argv=["true"], id="seen").end()
            while b"job=seen" not in (line := process.stdout.readline()):
                assert line
        done = guestctl(server.address, "events", "--head", "1:2")
        assert (done.returncode, b"--verify" in done.stderr) == (125, True)
