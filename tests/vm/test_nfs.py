"""A server of files that dies: nothing that was acknowledged is lost, and nobody but who writes there is held up."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from tests.support import nfs, vm
from tests.support.life import Follower

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.vm import Guest

PATH = "/mnt/n"
RECORD = 200_000
#: Each record is on the server when its number is told.
WRITE = f"""
import itertools, os
fd = os.open("{PATH}/records", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
for number in itertools.count():
    assert os.write(fd, b"%08d" % number * {RECORD // 8}) == {RECORD}
    os.fsync(fd)
    print(number, flush=True)
"""
#: Of a machine under emulation, with two processors that others have too. One that hangs takes for ever.
PROMPT = 15.0
GRACE = 12.0


def test_a_server_dies_in_mid_write_and_comes_back_and_dies_again_before_a_stop(tmp_path: Path) -> None:
    """Mounted as a user would. One machine for both, because it ends."""
    with (
        nfs.serving(tmp_path) as server,
        vm.running(network="user", stopped=True, append="guestd.storage.check=1s") as guest,
    ):
        guest.run(f"guestctl mount 10.0.2.2:/export {PATH} -o port={server.port}")
        assert guest.run(f"stat -f -c %T {PATH}") == "nfs"
        _die_in_mid_write(guest, server)
        _stop_without_it(guest, server)


def _die_in_mid_write(guest: Guest, server: nfs.Server) -> None:
    """The writer goes on when it is back, and all that was acknowledged is there."""
    with guest.peer() as peer, guest.peer() as other:
        events = Follower(other)
        events.until("mounted", path=PATH)
        writer = peer.open("exec", argv=["/opt/guestd/bin/python", "-c", WRITE], user="root", id="writer")
        writer.lines(5)
        server.kill()
        told = events.until("mount_trouble", path=PATH)
        assert (told["trouble"], told["why"]) == ("stalled", "it does not answer")
        # Everybody else goes on as if nothing were.
        for _ in range(3):
            begun = time.monotonic()
            with guest.peer() as third:
                assert PATH in json.dumps(third.ask("status"), default=str)
            assert guest.run("echo there; ls /mnt") == "there\nn\nworkspace"
            assert time.monotonic() - begun < PROMPT
        assert "it does not answer" in guest.run("guestctl mounts")
        had = writer.stdout.count(b"\n")
        server.start()
        events.until("mount_recovered", path=PATH, trouble="stalled")
        writer.lines(had + 5)
        peer.ask("kill", id="writer", signal="KILL")
        writer.end()
    acknowledged = int(writer.stdout.split()[-1])
    found = (server.export / "records").read_bytes()
    for number in range(acknowledged + 1):
        assert found[number * RECORD :][:RECORD] == b"%08d" % number * (RECORD // 8), number


def _stop_without_it(guest: Guest, server: nfs.Server) -> None:
    """It is bounded by its grace, and says what is not safe; the machine ends."""
    with guest.peer() as peer:
        guest.run(f"echo safe >{PATH}/safe && sync {PATH}/safe")
        server.kill()
        lost = peer.open("exec", shell=f"echo lost >{PATH}/lost", user="root", id="lost")
        lost.accepted()
        begun = time.monotonic()
        receipt = peer.open("stop", wait=True, grace=GRACE).end()
        took = time.monotonic() - begun
    assert took < GRACE + PROMPT
    (told,) = (each for each in receipt["filesystems"] if each["path"] == PATH)
    assert told["synced"] is False
    assert told["why"]
    # Where its share was too short even for that, it was not: the machine's end takes it then.
    assert told["unmounted"] in {"force lazy", None}
    assert guest.machine.herald.wait("X_GUESTD_END", vm.PATIENCE) == "power-off"
    assert (server.export / "safe").read_text() == "safe\n"
