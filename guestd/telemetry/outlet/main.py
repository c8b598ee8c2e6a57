"""The exporter's process: hears serve on descriptor 0 and never makes it wait; sends from threads, one a signal.

When serve is gone, what was open is ended here if nobody else will, and what there is is sent, within a bound.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import msgpack

from guestd.telemetry.outlet.logs import record_of
from guestd.telemetry.outlet.metrics import Metrics
from guestd.telemetry.outlet.queue import Outcome, Queue
from guestd.telemetry.outlet.resources import resource_of, scope_of
from guestd.telemetry.outlet.spans import is_sampled, span_of
from guestd.telemetry.outlet.transport import Sender, timeout_of, wanted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_READ = 256 * 1024
#: A message that is longer is no message of serve's.
_MESSAGE_MAX = 16 * 1024 * 1024
#: How often serve is told how it goes, while that changes.
_REPORT_EVERY = 0.5
_LEAST_WAIT = 0.01
#: What is still sent when serve is gone.
_LAST_WORDS = 5.0
#: A request that takes so many times its timeout is stuck in a way that no timeout sees; another process begins anew.
_STUCK = 6.0
_STUCK_STATUS = 70


class Outlet:
    """See the module."""

    def __init__(self, sock: socket.socket, hello: dict[str, Any]) -> None:
        self._sock = sock
        self._identity = hello
        self._rule: str = hello["arguments"]
        self._taken = 0
        self._open: dict[str, dict[str, Any]] = {}
        self._reported: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._resource, self._scope = resource_of(hello), scope_of(hello)
        self._timeout = max(timeout_of(name, hello["timeout"]) for name in ("traces", "metrics", "logs"))
        self._queues: dict[str, Queue] = {}
        for name in ("traces", "logs"):
            if wanted(name):
                sender = Sender(name, timeout_of(name, hello["timeout"]))
                self._queues[name] = Queue(name, hello["queue"], hello["delay"], sender)
        self._metrics: Metrics | None = None
        if wanted("metrics"):
            sender = Sender("metrics", timeout_of("metrics", hello["timeout"]))
            self._metrics = Metrics(sender.exporter, hello["started"], of_jobs=hello["job_metrics"])
            self._metrics.report = self._dropped
            # A sending of metrics that failed is none to repeat: the next one has it all, and newer.
            self._queues["metrics"] = Queue("metrics", 2, 0.0, _of_one(sender))
        for queue in self._queues.values():
            queue.start()
        if self._metrics is not None:
            threading.Thread(target=self._look, name="metrics", daemon=True).start()

    # ------------------------------------------------------------------------------------ hearing

    def run(self, unpacker: msgpack.Unpacker) -> None:
        """Until serve has gone. `unpacker` may hold the first messages."""
        flushes: dict[int, float] = {}
        while True:
            for message in cast("Iterable[Sequence[Any]]", unpacker):
                self._taken += 1
                if message[0] == "flush":
                    flushes[message[1]] = time.monotonic() + message[2]
                    self._flush()
                else:
                    self._hear(message)
            self._look_for_stuck()
            self._answer(flushes)
            self._report()
            wait = 0.01 if flushes else _REPORT_EVERY if self._is_news() else None
            if self._sock in select.select([self._sock], [], [], wait)[0]:
                try:
                    data = self._sock.recv(_READ)
                except ConnectionResetError:
                    data = b""
                if not data:
                    return
                unpacker.feed(data)

    def _answer(self, flushes: dict[int, float]) -> None:
        """Say which flushes are done, or have had their time."""
        for number, due in list(flushes.items()):
            done = all(queue.empty for queue in self._queues.values())
            if done or time.monotonic() > due:
                del flushes[number]
                self._report()
                self._say("flushed", number, done and not any(each.error for each in self._queues.values()))

    def _hear(self, message: Sequence[Any]) -> None:
        kind, told = message
        if kind == "span":
            self._end(told)
        elif kind == "open":
            self._open[told["id"]] = told
            if self._metrics is not None:
                self._metrics.opened(told)
        elif kind == "log" and "logs" in self._queues:
            self._queues["logs"].put(record_of(told, self._resource, self._scope))
        elif kind == "state":
            self._note_identity(told)
            if self._metrics is not None:
                self._metrics.state(told)

    def _end(self, told: dict[str, Any]) -> None:
        self._open.pop(told["id"], None)
        if self._metrics is not None:
            self._metrics.ended(told)
        if "traces" in self._queues and is_sampled(told):
            self._queues["traces"].put(
                span_of(told, self._identity["session"], self._resource, self._scope, self._rule)
            )

    def _note_identity(self, told: Mapping[str, Any]) -> None:
        """After a resume it is another session: all that is told from then on is that one's."""
        if told["session"] != self._identity["session"] or told["generation"] != self._identity["generation"]:
            for name in ("session", "generation"):
                self._identity[name] = told[name]
            self._resource = resource_of(self._identity)

    # ------------------------------------------------------------------------------------ metrics

    def _look(self) -> None:
        assert self._metrics is not None
        interval, every = self._identity["interval"], self._identity["sampling"]
        due = time.monotonic() + min(interval, every)
        while True:
            left = max(_LEAST_WAIT, due - time.monotonic())
            if self._metrics.busy:
                time.sleep(min(every, left))
            else:
                # While nothing runs, a look before each sending is enough.
                self._metrics.stirred.wait(left)
                self._metrics.stirred.clear()
            self._metrics.sample()
            if time.monotonic() >= due:
                due = time.monotonic() + interval
                self._send_metrics()

    def _send_metrics(self) -> None:
        assert self._metrics is not None
        with self._lock:
            found = self._metrics.collect(self._resource, self._scope)
        if found is not None:
            self._queues["metrics"].put(found)

    # ------------------------------------------------------------------------------------ telling

    def _report(self) -> None:
        found = {name: queue.report() for name, queue in self._queues.items()}
        if {**found, "taken": self._taken} != self._reported:
            self._reported = {**found, "taken": self._taken}
            self._say("report", self._reported)

    def _is_news(self) -> bool:
        return (
            any(not queue.empty for queue in self._queues.values())
            or self._reported.get("taken") != self._taken
        )

    def _dropped(self) -> dict[str, dict[str, Any]]:
        return {name: queue.report() for name, queue in self._queues.items()}

    def _say(self, *message: object) -> None:
        try:
            # Serve takes everything at once; where it does not, it is gone, or about to be.
            self._sock.sendall(msgpack.packb(message))
        except OSError:
            return

    def _look_for_stuck(self) -> None:
        now = time.monotonic()
        for queue in self._queues.values():
            begun = queue.begun
            if begun is not None and now - begun > _STUCK * self._timeout:
                os._exit(_STUCK_STATUS)

    # ------------------------------------------------------------------------------------ the end

    def _flush(self) -> None:
        if self._metrics is not None:
            self._metrics.sample()
            self._send_metrics()
        for queue in self._queues.values():
            queue.flush()

    def serve_is_gone(self) -> None:
        """End what nobody else will, and send what there is."""
        now = time.time_ns()
        for told in list(self._open.values()):
            job = told.get("job")
            if job is None or not job.get("survives"):
                told["facts"] = {**told["facts"], "why": "guestd serve was gone before it ended"}
                told["end"] = max(now, told["start"])
                if job is not None:
                    told["job"] = {**job, "result": None}
                self._end(told)
        self._flush()
        due = time.monotonic() + _LAST_WORDS
        while time.monotonic() < due and not all(queue.empty for queue in self._queues.values()):
            time.sleep(0.01)


def _of_one(sender: Sender) -> Any:  # noqa: ANN401  what a Queue sends with
    def send(batch: Sequence[Any]) -> Outcome:
        outcome = sender(batch[-1])
        outcome.final = outcome.why is not None
        return outcome

    return send


def main() -> None:
    """Be the exporter."""
    # Serve decides when this ends: by closing its end, or with SIGKILL.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # What the packages have to say is told as the reason of a failure; not here.
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    logging.getLogger("opentelemetry").propagate = False
    sock = socket.socket(fileno=os.dup(0))
    unpacker = msgpack.Unpacker(
        max_buffer_size=_MESSAGE_MAX, unicode_errors="surrogateescape", strict_map_key=False
    )
    messages = cast("Iterator[Sequence[Any]]", unpacker)
    while (hello := next(messages, None)) is None:
        data = sock.recv(_READ)
        if not data:
            return
        unpacker.feed(data)
    kind, told = hello
    if kind != "hello":
        return
    outlet = Outlet(sock, told)
    try:
        outlet.run(unpacker)
        outlet.serve_is_gone()
    finally:
        sys.stderr.flush()
        # Threads that wait for a collector are no reason to stay.
        os._exit(0)
