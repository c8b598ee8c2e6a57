"""Object storage through real programs: supervised, restarted, with credentials that nobody sees."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.disks import mount_of, one
from tests.support.life import Follower, serving
from tests.support.objects import BUCKET, KEYS, Store, object_store
from tests.support.peer import PATIENCE, Failed, Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/mnt/bucket"


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    before = set(os.listdir("/mnt"))
    yield
    for name in set(os.listdir("/mnt")) - before:
        shutil.rmtree(f"/mnt/{name}")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("this machine has no /dev/fuse: no program can mount anything here")
    with object_store(tmp_path_factory.mktemp("store")) as store:
        yield store


def s3fs(store: Store, **more: Any) -> dict[str, Any]:  # noqa: ANN401  fields of the request
    options = [
        f"url={store.url}",
        "use_path_request_style",
        "retries=1",
        "connect_timeout=20",
        "readwrite_timeout=20",
    ]
    return {
        "type": "fuse",
        "name": "bucket",
        "source": BUCKET,
        "program": "s3fs",
        "options": options,
        "env": KEYS,
        **more,
    }


def refused(peer: Peer, op: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    with pytest.raises(Failed) as caught:
        peer.ask(op, **fields)
    return caught.value.fields


def program_of(peer: Peer) -> int:
    (job,) = (each for each in peer.ask("ps")["jobs"] if each["id"] == "fuse-bucket")
    return int(job["pid"])


def test_a_bucket_is_a_directory_for_the_sessions_user_and_no_secret_shows(store: Store) -> None:
    with serving(config='user = "nobody"\n') as server, Peer(server.address) as peer:
        found = peer.ask("mount", **s3fs(store))
        assert (found["state"], found["job"]) == ("mounted", "fuse-bucket")
        call = peer.open("exec", shell="echo from the guest > file; cat file", cwd=PATH)
        assert call.end()["code"] == 0, call.stderr
        assert store.get("file") == b"from the guest\n"
        store.put("other", b"from outside")
        assert Path(PATH, "other").read_bytes() == b"from outside"
        secret = KEYS["AWSSECRETACCESSKEY"]
        pid = program_of(peer)
        assert secret.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        call = peer.open("exec", shell=f"cat /proc/*/cmdline; env; cat /proc/{pid}/environ; ls -a", cwd=PATH)
        call.end()
        assert secret.encode() not in call.stdout
        assert secret not in repr(peer.ask("mounts"))
        assert secret not in repr(peer.ask("ps"))
        assert secret not in server.log
        assert peer.ask("unmount", path="bucket")["ways"] == ["plain"]
        assert mount_of(PATH) is None


def test_a_program_that_dies_is_started_again_and_what_was_acknowledged_is_there(store: Store) -> None:
    with serving() as server, Peer(server.address) as peer, Peer(server.address) as other:
        follower = Follower(other)
        peer.ask("mount", **s3fs(store))
        follower.until("mounted", path=PATH)
        Path(PATH, "kept").write_text("acknowledged")
        writer = peer.open("exec", shell="while echo more > more; do :; done; exit 3", cwd=PATH, id="writer")
        writer.accepted()
        os.kill(program_of(peer), signal.SIGKILL)
        lost = follower.until("mount_lost", path=PATH)
        assert (lost["why"], lost["again"]) == ("the program behind it was ended by signal 9", True)
        assert writer.end()["code"] != 0
        follower.until("mounted", path=PATH)
        assert Path(PATH, "kept").read_text() == "acknowledged"
        assert peer.ask("unmount", path="bucket")["ways"] == ["plain"]


def test_one_that_stops_answering_is_told_hangs_nobody_and_is_told_again_when_it_answers(
    store: Store,
) -> None:
    with (
        serving(config="[storage]\ncheck = '1s'\npatience = '2s'\n") as server,
        Peer(server.address) as peer,
    ):
        with Peer(server.address) as other:
            follower = Follower(other)
            peer.ask("mount", **s3fs(store))
            pid = program_of(peer)
            os.kill(pid, signal.SIGSTOP)
            assert follower.until("mount_trouble", path=PATH)["trouble"] == "stalled"
            assert peer.ask("exec", argv=["true"], cwd="/")["code"] == 0
            assert "stalled" in one(peer.ask("mounts"), PATH)["troubles"]
            os.kill(pid, signal.SIGCONT)
            follower.until("mount_recovered", path=PATH, trouble="stalled")
            # And the end of the session does not wait for one that is stopped.
            # What is left for taking it down is a tenth of this.
            os.kill(pid, signal.SIGSTOP)
            receipt = peer.ask("stop", grace=8)
            assert receipt["took"] < PATIENCE
            (entry,) = (each for each in receipt["filesystems"] if each["path"] == PATH)
            assert entry["synced"] is False
            assert entry["why"]
        assert mount_of(PATH) is None


def test_the_end_lets_programs_write_first_and_the_mount_last(store: Store) -> None:
    with serving() as server, Peer(server.address) as peer:
        peer.ask("mount", **s3fs(store))
        # It writes once more when it is asked to end: the mount has to be there still.
        script = "trap 'echo the last > last; exit' TERM; echo up; while :; do sleep 0.1; done"
        peer.open("exec", shell=script, cwd=PATH).lines(1)
        receipt = peer.ask("stop")
        (entry,) = (each for each in receipt["filesystems"] if each["path"] == PATH)
        assert (entry["synced"], entry["unmounted"], entry["why"]) == (True, "plain", None)
    assert store.get("last") == b"the last\n"


def test_a_store_that_dies_in_the_middle_is_an_error_for_who_writes_and_nobody_else(tmp_path: Path) -> None:
    with object_store(tmp_path) as store, serving() as server, Peer(server.address) as peer:
        peer.ask("mount", **s3fs(store))
        Path(PATH, "kept").write_text("acknowledged")
        assert store.get("kept") == b"acknowledged"
        writer = peer.open("exec", shell="while echo more > more; do echo done; done; exit 3", cwd=PATH)
        writer.lines(1)
        store.process.kill()
        assert peer.ask("exec", argv=["true"], cwd="/")["code"] == 0
        assert writer.end()["code"] != 0
        assert writer.stderr
        peer.ask("unmount", path="bucket", force=True)


def test_what_a_program_says_when_it_cannot_is_passed_on(store: Store) -> None:
    with serving() as server, Peer(server.address) as peer:
        wrong = s3fs(store, env={"AWSACCESSKEYID": "x"}, timeout=3)
        error = refused(peer, "mount", **wrong)
        assert error["code"] == "mount_failed"
        assert "s3fs ended with 1" in error["message"]
        assert (
            "SECRET" in " ".join(error["said"]).upper() or "credential" in " ".join(error["said"]).lower()
        ), error
        error = refused(peer, "mount", **{**s3fs(store), "program": "mount-s3", "timeout": 1})
        assert "is it installed in the image?" in error["message"]
        assert mount_of(PATH) is None
        assert peer.ask("mounts")["mounts"] == []


def test_rclone_with_an_env_file(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "rclone.env"
    file.write_text(
        "RCLONE_CONFIG_S_TYPE=s3\nRCLONE_CONFIG_S_PROVIDER=Minio\n"
        f"RCLONE_CONFIG_S_ENDPOINT={store.url}\nexport RCLONE_CONFIG_S_ACCESS_KEY_ID='a'\n"
        'RCLONE_CONFIG_S_SECRET_ACCESS_KEY="b"\n'
    )
    store.put("seen", b"by rclone")
    fields = {
        "type": "fuse",
        "name": "bucket",
        "source": f"s:{BUCKET}",
        "program": "rclone",
        "env_file": str(file),
    }
    with serving() as server, Peer(server.address) as peer:
        assert peer.ask("mount", **fields, options=["config=/dev/null"])["state"] == "mounted"
        assert Path(PATH, "seen").read_bytes() == b"by rclone"
        peer.ask("unmount", path="bucket")
