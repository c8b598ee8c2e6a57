"""The tiers of the suite, in the order in which a failure of one makes the next pointless to read; `./tests/run`.

Each tier is a command. It passes, fails, or is skipped, loudly, with the reason why it cannot run on this machine. A
tier that could run and did not is a failure, and so is one in which there was no test. Some run beside another, which
leaves a core idle; what they say comes in their turn. The summary's last line is in pytest's words, for programs that
read it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from tests.support import namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent

#: A tier's own preparation says with this that it cannot run here (sysexits' EX_UNAVAILABLE).
CANNOT = 69
#: Pytest's exit status when it ran no test.
_FOUND_NOTHING = 5

Outcome = Literal["passed", "FAILED", "SKIPPED"]


@dataclass
class Count:
    passed: int = 0
    failed: int = 0
    skipped: int = 0


@dataclass
class Result:
    """How one tier went. `why` is never empty for a tier that did not pass."""

    tier: str
    outcome: Outcome
    seconds: float
    count: Count = field(default_factory=Count)
    why: str = ""


@dataclass(frozen=True)
class Tier:
    name: str
    about: str
    run: Callable[[Tier, Sequence[str]], Result]
    #: A tier of tests: where it runs.
    private: Literal["no", "if possible", "yes"] = "no"
    #: Run on every Python by `--python`.
    quick: bool = False
    #: It takes root, and this is what for.
    root_for: str = ""
    #: Begun with that one, where both were asked for. Neither may mind what else the machine has to do.
    beside: str = ""


# ------------------------------------------------------------------------------------------------------- kinds of tier


def _commands(*commands: Sequence[str]) -> Callable[[Tier, Sequence[str]], Result]:
    """A tier that passes when each command does; each counts as one test."""

    def run(tier: Tier, _arguments: Sequence[str]) -> Result:
        count, failed, start = Count(), list[str](), time.monotonic()
        for command in commands:
            if _call(command) == 0:
                count.passed += 1
            else:
                count.failed += 1
                failed.append(" ".join([Path(command[0]).name, *command[1:]]))
        why = f"failed: {'; '.join(failed)}" if failed else ""
        return Result(tier.name, "FAILED" if failed else "passed", time.monotonic() - start, count, why)

    return run


def _tests(tier: Tier, arguments: Sequence[str]) -> Result:
    """A tier of pytest's, in a private namespace when it needs one."""
    start = time.monotonic()
    if not (ROOT / "tests" / tier.name).is_dir():
        return Result(tier.name, "FAILED", 0, why=f"there is no tests/{tier.name}")
    if tier.root_for and os.geteuid() != 0:
        return Result(
            tier.name, "SKIPPED", 0, why=f"{tier.root_for} takes root: sudo ./tests/run {tier.name}"
        )
    refused = None if tier.private == "no" else _no_namespace()
    if refused is not None and tier.private == "yes":
        return Result(tier.name, "SKIPPED", 0, why=f"no private mount and PID namespace here: {refused}")
    with tempfile.TemporaryDirectory(prefix="guestd-tests-") as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"tests/{tier.name}", f"--junitxml={report}", *arguments]
        if tier.private != "no" and refused is None:
            command = namespace.command(command)
        status = _call(command)
        count = _read_report(report)
    seconds = time.monotonic() - start
    if status == _FOUND_NOTHING:
        # With a selection of the caller's that is no news; without one the tier has lost its tests.
        return Result(tier.name, "SKIPPED" if arguments else "FAILED", seconds, count, "no test was selected")
    if status != 0:
        why = f"{count.failed} failed" if count.failed else f"pytest ended with status {status}"
        return Result(tier.name, "FAILED", seconds, count, why)
    if count.passed == 0 and not arguments:
        return Result(
            tier.name, "FAILED", seconds, count, "every test was skipped: a tier is not skipped that way"
        )
    return Result(tier.name, "passed", seconds, count)


def _read_report(report: Path) -> Count:
    """What pytest counted: a test that passed and then failed in tear-down (a leak) has failed."""
    if not report.exists():
        return Count()
    count = Count()
    outcomes: dict[tuple[str | None, str | None], str] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        key = case.get("classname"), case.get("name")
        now = "failed" if case.find("failure") is not None or case.find("error") is not None else "passed"
        if now == "passed" and case.find("skipped") is not None:
            now = "skipped"
        if outcomes.get(key) != "failed":
            outcomes[key] = now
    for outcome in outcomes.values():
        setattr(count, outcome, getattr(count, outcome) + 1)
    return count


def _call(command: Sequence[str]) -> int:
    """Runs a command for the reader to see. Its standard input is empty: a test that reads a terminal makes one."""
    sys.stdout.flush()
    return subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=_here.output,
        stderr=None if _here.output is None else subprocess.STDOUT, check=False,
    ).returncode  # fmt: skip


class _Here(threading.local):
    """Where this thread's tier says what it has to say. None: where everybody does."""

    output: IO[bytes] | None = None


_here = _Here()


def _aside(tier: Tier, arguments: Sequence[str]) -> tuple[Result, str]:
    """Run it in a thread of its own, and keep what it says."""
    with tempfile.TemporaryFile() as output:
        _here.output = output
        result = tier.run(tier, arguments)
        output.seek(0)
        return result, output.read().decode(errors="replace")


def _machines(tier: Tier, arguments: Sequence[str]) -> Result:
    """A tier of pytest's that needs machines, which are made before it: no test's time is spent on that."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.vm"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    why = done.stdout.strip()
    if done.returncode == CANNOT:
        return Result(tier.name, "SKIPPED", 0, why=why)
    if done.returncode != 0:
        return Result(tier.name, "FAILED", time.monotonic() - start, why=f"no machine could be made: {why}")
    print(f"the machine was made, or found, in {time.monotonic() - start:.1f} s")
    result = _tests(tier, arguments)
    result.seconds = time.monotonic() - start
    return result


@cache
def _no_namespace() -> str | None:
    return namespace.unavailable()


def _program(name: str, *arguments: str) -> list[str]:
    return [str(PROGRAMS / name), *arguments]


# -------------------------------------------------------------------------------------------------------------- tiers

_SHELL_SCRIPTS = (
    "tests/run", "image/build", "image/opt", "image/run", "image/try", "image/venv",
    "image/vm/base.sh", "image/vm/init.sh", ".ci/run",
)  # fmt: skip

TIERS = (
    Tier(
        "lint",
        "ruff's rules and its format; shell scripts parse",
        _commands(
            _program("ruff", "check", "."),
            _program("ruff", "format", "--check", "--quiet", "."),
            *(["sh", "-n", script] for script in _SHELL_SCRIPTS),
        ),
    ),
    Tier("pure", "the pure rooms, byte by byte", _tests, quick=True),
    Tier("aio", "Trio with memory streams and a jumping clock", _tests, quick=True),
    Tier(
        "types",
        "pyright, strict",
        # Its own environment, whatever else is in PATH.
        _commands(_program("pyright", "--pythonpath", sys.executable)),
        beside="pure",
    ),
    Tier("system", "real processes, terminals, mounts, sockets", _tests, private="yes"),
    Tier("clients", "clients written from the protocol alone", _tests, private="yes"),
    Tier("vm", "real kernels in machines of their own, guestd as PID 1", _machines, private="if possible"),
    Tier("package", "the built wheel, and what ships around it", _tests, private="if possible", beside="vm"),
    Tier(
        "image",
        "the Dockerfile, really built, and its containers",
        _tests,
        private="yes",
        root_for="a container engine of its own",
    ),
)


# ------------------------------------------------------------------------------------------------------------ the run


def _summary(results: Sequence[Result]) -> None:
    print("\n" + "=" * 78)
    for result in results:
        count = result.count
        counted = f"{count.passed} passed"
        counted += f", {count.failed} failed" if count.failed else ""
        counted += f", {count.skipped} skipped" if count.skipped else ""
        if result.outcome == "SKIPPED":
            counted = "DID NOT RUN: see below"
        why = result.why if result.outcome == "FAILED" else ""
        print(f"{result.tier:8}  {result.outcome:7}  {result.seconds:6.1f} s  {counted:32}  {why}".rstrip())
    skipped = [result for result in results if result.outcome == "SKIPPED"]
    for result in skipped:
        print(f"\n!!! SKIPPED, NOT TESTED: the tier {result.tier}. {result.why}")
    print("=" * 78)
    passed = sum(result.count.passed for result in results)
    # A tier that failed without a failed test (it did not start, it had none) counts as one.
    failed = sum(max(result.count.failed, result.outcome == "FAILED") for result in results)
    not_run = sum(result.count.skipped for result in results) + len(skipped)
    print(f"{passed} passed, {failed} failed, {not_run} skipped")


def _run(chosen: Sequence[Tier], arguments: Sequence[str]) -> list[Result]:
    results: list[Result] = []
    with ThreadPoolExecutor() as pool:
        begun: dict[str, Future[tuple[Result, str]]] = {}
        for tier in chosen:
            for other in chosen:
                if other.beside == tier.name:
                    begun[other.name] = pool.submit(_aside, other, arguments)
            print(f"\n{'=' * 20} {tier.name}: {tier.about} {'=' * 20}")
            if tier.name in begun:
                result, said = begun[tier.name].result()
                print(said, end="")
            else:
                result = tier.run(tier, arguments)
            results.append(result)
    return results


def main(arguments: Sequence[str]) -> int:
    words = list(arguments)
    for_pytest: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, for_pytest = words[:at], words[at + 1 :]
    quick = "--quick" in words
    names = [word for word in words if word != "--quick"]
    known = {tier.name: tier for tier in TIERS}
    if unknown := [name for name in names if name not in known]:
        about = "\n".join(f"    {tier.name:8}  {tier.about}" for tier in TIERS)
        print(f"there is no tier {', '.join(unknown)}; the tiers are\n{about}", file=sys.stderr)
        return 2
    chosen = [known[name] for name in names] or [tier for tier in TIERS if tier.quick or not quick]
    print(
        f"{sys.executable}: Python {sys.version.split()[0]}, Linux {os.uname().release}, {os.cpu_count()} cores"
    )
    results = _run(chosen, for_pytest)
    _summary(results)
    return 1 if any(result.outcome == "FAILED" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
