"""What `./tests/run` concludes from what its tiers did: nothing that failed, or was not there, looks like success."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.support import tiers
from tests.support.tiers import Count, Result, Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

REPORT = """<testsuites><testsuite>
<testcase classname="a" name="passes"/>
<testcase classname="a" name="fails"><failure/></testcase>
<testcase classname="a" name="leaks"/><testcase classname="a" name="leaks"><error/></testcase>
<testcase classname="a" name="skips"><skipped/></testcase>
</testsuite></testsuites>"""


def _ended(result: Result) -> Callable[[Tier, Sequence[str]], Result]:
    return lambda _tier, _arguments: result


def _run(monkeypatch: pytest.MonkeyPatch, *results: Result) -> int:
    monkeypatch.setattr(tiers, "TIERS", tuple(Tier(r.tier, "", _ended(r)) for r in results))
    return tiers.main([])


def test_a_test_that_leaked_has_failed_once_and_not_passed(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert tiers._read_report(report) == Count(passed=1, failed=2, skipped=1)


def test_all_passed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        _run(monkeypatch, Result("one", "passed", 1, Count(3)), Result("two", "passed", 1, Count(4, 0, 1)))
        == 0
    )
    assert capsys.readouterr().out.splitlines()[-1] == "7 passed, 0 failed, 1 skipped"


def test_one_that_failed_fails_all_also_without_a_failed_test(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    died = Result("two", "FAILED", 1, why="pytest ended with status 3")
    assert _run(monkeypatch, Result("one", "passed", 1, Count(3)), died) == 1
    said = capsys.readouterr().out
    assert "pytest ended with status 3" in said
    assert said.splitlines()[-1] == "3 passed, 1 failed, 0 skipped"


def test_one_that_cannot_run_is_loud_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unable = Result("two", "SKIPPED", 0, why="no kernel for it")
    assert _run(monkeypatch, Result("one", "passed", 1, Count(3)), unable) == 0
    said = capsys.readouterr().out
    assert "!!! SKIPPED, NOT TESTED: the tier two. no kernel for it" in said
    assert said.splitlines()[-1] == "3 passed, 0 failed, 1 skipped"


@pytest.mark.parametrize(
    ("status", "report", "arguments", "outcome"),
    [
        pytest.param(0, REPORT, [], "passed", id="all well"),
        pytest.param(1, REPORT, [], "FAILED", id="a failed test"),
        pytest.param(3, None, [], "FAILED", id="pytest itself broke"),
        pytest.param(5, None, [], "FAILED", id="a tier that has lost its tests"),
        pytest.param(5, None, ["-k", "other"], "SKIPPED", id="none of those asked for"),
        pytest.param(0, "<testsuites/>", [], "FAILED", id="each test skips itself"),
    ],
)
def test_a_tier_is_judged_by_what_it_ran(
    monkeypatch: pytest.MonkeyPatch, status: int, report: str | None, arguments: list[str], outcome: str
) -> None:
    def call(command: Sequence[str]) -> int:
        if report is not None:
            (path,) = (word.partition("=")[2] for word in command if word.startswith("--junitxml="))
            with open(path, "w") as f:
                f.write(report)
        return status

    monkeypatch.setattr(tiers, "_call", call)
    (pure,) = (tier for tier in tiers.TIERS if tier.name == "pure")
    result = tiers._tests(pure, arguments)
    assert result.outcome == outcome
    assert result.why or outcome == "passed"


def test_a_tier_that_does_not_exist_is_told_with_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert tiers.main(["pur"]) == 2
    assert "pure" in capsys.readouterr().err


def test_what_takes_root_is_not_tried_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers.os, "geteuid", lambda: 1000)
    result = tiers._tests(Tier("image", "", tiers._tests, root_for="an engine"), [])
    assert (result.outcome, result.why) == ("SKIPPED", "an engine takes root: sudo ./tests/run image")


def test_one_beside_another_is_told_in_its_turn(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    met = threading.Barrier(2, timeout=30)

    def speaking(tier: Tier, _arguments: Sequence[str]) -> Result:
        met.wait()  # both run at the same time
        assert tiers._call(["sh", "-c", f"echo {tier.name} out; echo {tier.name} err >&2"]) == 0
        return Result(tier.name, "passed", 1, Count(1))

    monkeypatch.setattr(
        tiers, "TIERS",
        (Tier("long", "", speaking), Tier("next", "", _ended(Result("next", "passed", 1, Count(1)))),
         Tier("short", "", speaking, beside="long")),
    )  # fmt: skip
    assert tiers.main([]) == 0
    said = capfd.readouterr()
    assert said.err == "long err\n"
    words = [line.split()[:2] for line in said.out.splitlines() if line.startswith(("long", "short"))]
    assert words == [
        ["long", "out"],
        ["short", "out"],
        ["short", "err"],
        ["long", "passed"],
        ["short", "passed"],
    ]


def test_one_that_is_asked_for_alone_has_nobody_to_run_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Tier("short", "", _ended(Result("short", "passed", 1, Count(1))), beside="long")
    monkeypatch.setattr(tiers, "TIERS", (Tier("long", "", _ended(Result("long", "FAILED", 1))), alone))
    assert tiers.main(["short"]) == 0
