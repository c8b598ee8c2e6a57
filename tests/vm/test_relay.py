"""A program of the guest reaches a program of the host's through a relay, over real vsock and without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.pure.test_relay_preface import read
from tests.support import vm
from tests.support.life import Follower

if TYPE_CHECKING:
    from tests.support.vm import Guest

SIZE = 1_000_000
#: Says all, and prints what comes back. The program ends it: vhost-device-vsock passes no end of one side alone.
PROGRAM = f"""
import socket, sys
with socket.create_connection(("127.0.0.1", {vm.RELAY})) as sock:
    sock.sendall(b"u" * {SIZE})
    left = {SIZE}
    while left:
        piece = sock.recv(left)
        if not piece:
            sys.exit("the host has ended it")
        sys.stdout.buffer.write(piece)
        left -= len(piece)
"""


def test_a_program_is_led_to_the_host_and_its_session_is_told(guest: Guest) -> None:
    with guest.listening(vm.RELAY) as listener, guest.peer() as peer:
        call = peer.open("exec", argv=["/opt/guestd/bin/python", "-c", PROGRAM])
        far, _ = listener.accept()
        with far:
            far.settimeout(vm.PATIENCE)
            header = read(far.recv(65536))
            assert header.tlvs[0xE3] == b"x"
            assert header.tlvs[0xE0] == peer.hello["session_id"].encode()
            up = bytearray(header.rest)
            while len(up) < SIZE and (piece := far.recv(65536)):
                up += piece
            assert up == b"u" * SIZE
            far.sendall(b"d" * SIZE)
            end = call.end()
            assert (end["code"], call.stdout) == (0, b"d" * SIZE), call.stderr
        (found,) = (each for each in peer.ask("status")["relays"] if each["name"] == "x")
        assert found["bytes_down"] == SIZE


def test_a_host_that_does_not_listen_is_a_prompt_break_and_told(guest: Guest) -> None:
    with guest.peer() as peer, guest.peer() as other:
        events = Follower(other)
        call = peer.open("exec", argv=["/opt/guestd/bin/python", "-c", PROGRAM])
        assert call.end()["code"] == 1
        assert b"Error: [Errno" in call.stderr
        assert f"vsock:2:{vm.RELAY}" in events.until("relay_unreachable", relay="x")["why"]
