"""The manifests of packaging/kubernetes: against Kubernetes' published schemas, and against what a node really does."""

from __future__ import annotations

import re
from typing import Any, cast

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

import meshnode
from meshnode.cli.main import app
from meshnode.client import probe
from meshnode.errors import MeshError
from meshnode.limits import DRAIN_LIMIT_S, PROBE_TIMEOUT_S, SERVICE_STOP_TIMEOUT_S
from meshnode.settings.fields import FIELDS
from meshnode.trust.invite import Invite
from tests.packaging import dockerfile
from tests.packaging.conftest import ROOT

FOLDER = ROOT / "packaging" / "kubernetes"
FILES = {file.name: file.read_text() for file in sorted(FOLDER.glob("*.yaml"))}
ALL: list[tuple[str, dict[str, Any]]] = [
    (name, document) for name, text in FILES.items() for document in yaml.safe_load_all(text)
]
DOCUMENTS = [
    pytest.param(document, id=f"{name}-{document['kind']}-{document['metadata']['name']}")
    for name, document in ALL
]
VERSIONS = ("1.27", "1.30", "1.33", kubernetes_validate.latest_version())


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for _, document in ALL if document["kind"] == kind]


WORKLOADS = [*of_kind("StatefulSet"), *of_kind("DaemonSet")]
PODS = [pytest.param(each["spec"]["template"]["spec"], id=each["kind"]) for each in WORKLOADS]


def node_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return cast("dict[str, Any]", container)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_published_schema_of_each_version_accepts_it(
    document: dict[str, Any], version: str
) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_refuse_what_is_wrong() -> None:
    """Or the test above would show nothing."""
    (wrong,) = of_kind("StatefulSet")
    wrong = yaml.safe_load(yaml.safe_dump(wrong))
    node_of(wrong["spec"]["template"]["spec"])["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.30", strict=True)


@pytest.mark.parametrize("pod", PODS)
def test_it_starts_a_node_with_options_and_variables_that_exist(pod: dict[str, Any]) -> None:
    command, *arguments = node_of(pod)["args"]
    group = get_command(app)
    group.commands[command].make_context(command, list(arguments))  # type: ignore[attr-defined]
    known = {field.variable for field in FIELDS.values()}
    assert {each["name"] for each in node_of(pod)["env"]} <= known


@pytest.mark.parametrize("pod", PODS)
def test_each_probe_asks_what_a_node_answers(pod: dict[str, Any]) -> None:
    """That a real node answers these very commands, tests/packaging/test_container.py shows."""
    node = node_of(pod)
    asked = {"startupProbe": "healthz", "livenessProbe": "healthz", "readinessProbe": "readyz"}
    for name, path in asked.items():
        command = node[name]["exec"]["command"]
        assert command == ["python", "-m", "meshnode.client.probe", path]
        assert path in probe.PATHS
        assert node[name]["timeoutSeconds"] > PROBE_TIMEOUT_S


@pytest.mark.parametrize("pod", PODS)
def test_a_node_has_the_time_that_it_takes_to_leave(pod: dict[str, Any]) -> None:
    before = node_of(pod).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    waits_s = float(before[1]) if before else 0.0
    assert pod["terminationGracePeriodSeconds"] >= waits_s + SERVICE_STOP_TIMEOUT_S > DRAIN_LIMIT_S


@pytest.mark.parametrize("pod", PODS)
def test_a_node_may_as_little_as_it_needs(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    may = node_of(pod)["securityContext"]
    assert may["allowPrivilegeEscalation"] is False
    assert may["readOnlyRootFilesystem"] is True
    assert may["capabilities"] == {"drop": ["ALL"]}
    assert {"requests", "limits"} == set(node_of(pod)["resources"])


@pytest.mark.parametrize("pod", PODS)
def test_it_fits_the_image(pod: dict[str, Any]) -> None:
    final = dockerfile.stages(dockerfile.read((ROOT / "Dockerfile").read_text()))[-1]
    said = {each.word: each.text for each in final}
    user, group = said["USER"].split(":")
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    mounts = {each["mountPath"] for each in node_of(pod)["volumeMounts"]}
    assert {said["VOLUME"], "/tmp"} <= mounts
    ports = {
        f"{each['containerPort']}/{each.get('protocol', 'TCP').lower()}"
        for each in node_of(pod)["ports"]
    }
    assert ports <= set(said["EXPOSE"].split())
    images = {each["image"] for each in (*pod["containers"], *pod.get("initContainers", ()))}
    assert images == {f"meshnode:{meshnode.__version__}"}


@pytest.mark.parametrize("pod", PODS)
def test_what_is_mounted_is_there(pod: dict[str, Any]) -> None:
    volumes = {each["name"] for each in pod["volumes"]}
    for workload in WORKLOADS:
        if workload["spec"]["template"]["spec"] is pod:
            claims = workload["spec"].get("volumeClaimTemplates", ())
            volumes |= {each["metadata"]["name"] for each in claims}
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        assert {each["name"] for each in container["volumeMounts"]} <= volumes


def test_the_secret_is_the_file_that_nodes_read_and_holds_nobodys_invite() -> None:
    (secret,) = of_kind("Secret")
    for workload in WORKLOADS:
        pod = workload["spec"]["template"]["spec"]
        (mounted,) = [each for each in pod["volumes"] if each["name"] == "invite"]
        assert mounted["secret"]["secretName"] == secret["metadata"]["name"]
        (key,) = secret["stringData"]
        (place,) = [
            each["mountPath"] for each in node_of(pod)["volumeMounts"] if each["name"] == "invite"
        ]
        assert f"--invite-file={place}/{key}" in node_of(pod)["args"]
        with pytest.raises(MeshError):
            Invite.parse(secret["stringData"][key])


def test_services_find_the_pods_and_their_ports() -> None:
    (workload,) = of_kind("StatefulSet")
    labels = workload["spec"]["template"]["metadata"]["labels"].items()
    ports = {each["name"] for each in node_of(workload["spec"]["template"]["spec"])["ports"]}
    services = {each["metadata"]["name"]: each["spec"] for each in of_kind("Service")}
    headless = services[workload["spec"]["serviceName"]]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True
    for service in services.values():
        assert service["selector"].items() <= labels
        assert {each["targetPort"] for each in service["ports"]} <= ports


def test_what_a_manifest_says_of_files_beside_it_is_true() -> None:
    for text in FILES.values():
        for name in re.findall(r"\b([\w-]+\.yaml)\b", text):
            assert name in FILES
    assert (ROOT / "docs" / "containers.md").exists()
