"""What PID 1 reads and writes: addresses, `ip=`, mountinfo, notifications, records."""

from __future__ import annotations

import os
import struct

import pytest

from guestd.init import listen, mounts, network, notify, reap


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("unix:/run/x.sock", ("unix", "/run/x.sock")),
        ("vsock:any:1024", ("vsock", 0xFFFFFFFF, 1024)),
        ("vsock:3:5", ("vsock", 3, 5)),
        ("vsock:any", ("vsock", 0xFFFFFFFF, 1024)),
        ("tcp:127.0.0.1:80", ("tcp", "127.0.0.1", 80)),
        ("tcp:[::1]:80", ("tcp", "::1", 80)),
        ("tcp:localhost", ("tcp", "localhost", 1024)),
    ],
)
def test_where_to_listen(text: str, place: tuple[str | int, ...]) -> None:
    assert listen._place(text) == place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unix:", "missing"),
        ("unix:" + "x" * 108, "108 bytes"),
        ("hybrid:/x:1", "listens on unix"),
        ("tcp:127.0.0.1:65536", "65535"),
        ("vsock:any:99999999999", "port"),
        ("elsewhere", "no scheme"),
    ],
)
def test_where_nobody_can_listen(text: str, words: str) -> None:
    scheme, said = listen._place(text)
    assert scheme == ""
    assert words in str(said)


def wanted(text: str, **known: object) -> network.Wanted:
    found = network.Wanted(**known)  # pyright: ignore[reportArgumentType]  the test's own words
    found.fill(text)
    return found


def test_ip_gives_address_gateway_name_device_and_servers() -> None:
    found = wanted("10.0.0.2::10.0.0.1:255.255.255.252:box:eth1:off:1.1.1.1:0.0.0.0")
    assert found.addresses == ("10.0.0.2/30",)
    assert (found.gateways, found.dns) == (("10.0.0.1",), ("1.1.1.1",))
    assert (found.hostname, found.interface, found.by_kernel) == ("box", "eth1", "")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.2", "10.0.0.2/8"),
        ("172.16.0.2", "172.16.0.2/16"),
        ("192.168.0.2::", "192.168.0.2/24"),
        ("10.0.0.2:::24", "10.0.0.2/24"),
    ],
)
def test_without_a_netmask_the_class_of_the_address_decides(text: str, address: str) -> None:
    assert wanted(text).addresses == (address,)


def test_settings_win_over_ip() -> None:
    found = wanted(
        "10.0.0.2::10.0.0.1:::eth1::1.1.1.1", addresses=("10.9.9.9/8",), interface="eth0", dns=("9.9.9.9",)
    )
    assert (found.addresses, found.gateways) == (("10.9.9.9/8",), ())
    assert (found.interface, found.dns) == ("eth0", ("9.9.9.9",))


@pytest.mark.parametrize(
    ("text", "by_kernel"),
    [("dhcp", "dhcp"), ("off", ""), ("none", ""), (":::::eth0:dhcp", "dhcp"), (":::::eth0:off", "")],
)
def test_ip_may_ask_for_what_only_the_kernel_does(text: str, by_kernel: str) -> None:
    found = wanted(text)
    assert (found.by_kernel, found.addresses) == (by_kernel, ())


def test_a_line_of_mountinfo() -> None:
    whole = mounts.Mounted(r"36 35 98:0 / /mnt/a\040b\134c rw,noatime master:1 - ext3 /dev/root rw" + "\n")
    assert (whole.id, whole.target, whole.kind, whole.whole) == (36, "/mnt/a b\\c", "ext3", True)
    part = mounts.Mounted("37 35 98:0 /sub /mnt rw - ext3 /dev/root rw\n")
    assert not part.whole


def test_a_notification_is_read_line_by_line() -> None:
    message = notify.Message(b"FDSTORE=1\nFDNAME=a=b\nnonsense\nSTATUS=\xff\n", [], 7, cut=False)
    assert message.words == {"FDSTORE": "1", "FDNAME": "a=b", "STATUS": "�"}


def test_a_record_is_what_the_page_says() -> None:
    packed = struct.pack("<BIIddQdd", 1, 7, 0x300, 0.5, 0.25, 1024, 1.5, 2.5)
    assert reap.RECORD.unpack(packed) == (reap.RECORD_VERSION, 7, 0x300, 0.5, 0.25, 1024, 1.5, 2.5)
    assert reap.RECORD.size == len(packed) == 49
    assert os.waitstatus_to_exitcode(reap.RECORD.unpack(packed)[2]) == 3


def test_only_the_newest_records_are_kept_and_the_lost_ones_counted() -> None:
    statuses = reap.Statuses()
    for number in range(reap.KEPT + 3):
        statuses.add(number.to_bytes(4, "little"))
    assert len(statuses.waiting) == reap.KEPT
    assert statuses.waiting[0] == (3).to_bytes(4, "little")
    assert statuses.news() == f"exit statuses are being lost: {reap.KEPT} wait for a serve that takes them"
    assert not statuses.news(), "it is said once"
    statuses.waiting.clear()
    assert statuses.news() == "3 exit statuses are lost"
    assert not statuses.news()


@pytest.mark.parametrize(
    ("status", "words", "exit_status"), [(0x300, "status 3", 3), (9, "killed by signal 9", 137)]
)
def test_a_wait_status_in_words_and_as_an_exit_status(status: int, words: str, exit_status: int) -> None:
    assert (reap.in_words(status), reap.as_exit_status(status)) == (words, exit_status)
