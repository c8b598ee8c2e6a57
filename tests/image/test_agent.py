"""The agent machine, and a harness in it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.image.conftest import ROOT
from tests.support.container import running

if TYPE_CHECKING:
    from tests.support.engine import Engine

HARNESSES = ROOT / "image" / "harness"
#: By npm; the others are installed by their makers' own means, from hosts that tests have no business with.
FROM_NPM = ("claude-code", "codex", "gemini-cli", "opencode")

WORK = """
set -e
id -un; pwd
printf 'int main(void) { return 42; }' >/tmp/answer.c && cc -o /tmp/answer /tmp/answer.c && { /tmp/answer || echo $?; }
python3 -m venv --without-pip /tmp/venv && python3 -m pip --version >/dev/null && echo venv
git init -q repository && echo git
node --print '"no" + "de"' && npm --version >/dev/null && echo npm
echo '{"a": 1}' | jq .a
command -v sudo || echo nobody else
"""


def test_an_agent_can_work_in_it(docker: Engine, agent: str) -> None:
    with running(docker, agent) as container:
        assert container.output("bash", "-c", WORK).split() == [
            "agent", "/mnt/workspace", "42", "venv", "git", "node", "npm", "1", "nobody", "else",
        ]  # fmt: skip
        assert json.loads(container.guestctl("--json", "status").stdout)["workspace"]["there"]
        # What asks for systemd is left to a machine that has it.
        assert container.guestctl("exec", "--", "test", "-e", "/lib/systemd/systemd").returncode == 1
        assert container.stop() == 0


def test_its_workspace_outlives_it(docker: Engine, agent: str) -> None:
    volume = docker("volume", "create").strip()
    try:
        for script, said in (("echo kept >file", ""), ("cat file; cat ~/file 2>/dev/null || true", "kept\n")):
            with running(docker, agent, options=["--volume", f"{volume}:/mnt/workspace"]) as container:
                assert container.output("bash", "-c", script) == said
                receipt = json.loads(container.guestctl("--json", "stop").stdout)
                assert all(each["synced"] for each in receipt["filesystems"]), receipt
                assert container.wait() == 0
    finally:
        docker("volume", "rm", volume)


@pytest.mark.parametrize("name", FROM_NPM)
def test_a_recipe_pins_its_version_and_keeps_its_state_in_the_workspace(name: str) -> None:
    recipe = (HARNESSES / f"{name}.Dockerfile").read_text(encoding="utf-8")
    assert "ARG MACHINE=guestd-agent\nFROM ${MACHINE}\n" in recipe
    assert re.search(r"^ARG VERSION=\d+\.\d+\.\d+$", recipe, re.MULTILINE)
    assert "@${VERSION}" in recipe
    assert "/mnt/workspace/.harness" in recipe


def test_a_harness_runs_in_it(docker: Engine, agent: str) -> None:
    """The smallest of the four; all are made by the same two lines."""
    recipe = HARNESSES / "gemini-cli.Dockerfile"
    (version,) = re.findall(r"^ARG VERSION=(.*)$", recipe.read_text(encoding="utf-8"), re.MULTILINE)
    image = "guestd-gemini-cli"
    docker("build", "--network=host", "--tag", image, "--file", str(recipe), str(HARNESSES), timeout=900)
    with running(docker, image) as container:
        done = container.guestctl("exec", "-t", "--", "gemini", "--version")
        assert (done.returncode, version in done.stdout.decode()) == (0, True), done
        assert container.stop() == 0
