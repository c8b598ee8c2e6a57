"""image/kubernetes/: the manifests fit the schema that Kubernetes publishes, and agree with each other and guestd."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate  # pyright: ignore[reportMissingTypeStubs]  it has annotations, and no py.typed
import pytest
import yaml

from guestd.config import resolve
from tests.package.conftest import ROOT

PLACE = ROOT / "image" / "kubernetes"
#: By kind. Whatever else is in the directory is read, too.
FOUND: dict[str, dict[str, Any]] = {
    document["kind"]: document
    for path in sorted(PLACE.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
}
#: The oldest with everything in them stable, and the newest known here.
VERSIONS = ("1.27", kubernetes_validate.latest_version())


def test_there_is_a_class_and_a_machine_of_it() -> None:
    assert set(FOUND) == {"RuntimeClass", "PersistentVolumeClaim", "Pod"}
    assert FOUND["Pod"]["spec"]["runtimeClassName"] == FOUND["RuntimeClass"]["metadata"]["name"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", FOUND)
def test_each_is_valid_and_has_no_field_that_there_is_not(kind: str, version: str) -> None:
    kubernetes_validate.validate(FOUND[kind], version, strict=True)


def test_a_field_that_there_is_not_would_be_seen() -> None:
    wrong = {**FOUND["Pod"], "spec": {**FOUND["Pod"]["spec"], "terminationGracePeriod": 30}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_machine_starts_guestd_and_gives_it_the_time_it_takes() -> None:
    spec = FOUND["Pod"]["spec"]
    (machine,) = spec["containers"]
    entry = re.findall(r"^ENTRYPOINT \[(.*)\]$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {tuple(re.findall(r'"(.*?)"', words)) for words in entry} == {tuple(machine["command"])}
    assert spec["terminationGracePeriodSeconds"] >= resolve().settings.stop.grace + 10
    for probe in ("startupProbe", "livenessProbe"):
        assert machine[probe]["exec"]["command"][0] == "/opt/guestd/bin/guestctl"


def test_the_workspace_is_where_guestd_has_it_and_of_a_claim_that_is_there() -> None:
    spec = FOUND["Pod"]["spec"]
    (mount,) = spec["containers"][0]["volumeMounts"]
    (volume,) = spec["volumes"]
    assert mount == {"name": volume["name"], "mountPath": resolve().settings.workspace}
    assert volume["persistentVolumeClaim"]["claimName"] == FOUND["PersistentVolumeClaim"]["metadata"]["name"]
