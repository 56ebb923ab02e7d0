"""The Kubernetes manifests, as `kubectl kustomize` builds them, by their schemas and by the fleet's own facts."""

from __future__ import annotations

import copy
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject

from infra.guard_catalogue import GUARDS
from infra.settings import Settings
from tests.support.cli import require_command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KUBECTL = Path(sys.executable).with_name("kubectl")
KUBERNETES = "1.36"
OVERLAYS = ("cpu", "gpu")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
TO_END_THE_DEVICE_S = 20
_WRITABLE = {"/tmp", "/state"}  # noqa: S108 - a path in a container

Resource = dict[str, Any]


@functools.cache
def _built(overlay: str) -> list[Resource]:
    folder = ROOT / "infra/kubernetes/overlays" / overlay
    built = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    return list(yaml.safe_load_all(built.stdout))


def _of_kind(overlay: str, kind: str) -> dict[str, Resource]:
    return {found["metadata"]["name"]: found for found in _built(overlay) if found["kind"] == kind}


def _pods(overlay: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and pod template of everything that starts pods."""
    starters = {**_of_kind(overlay, "Deployment"), **_of_kind(overlay, "Job")}
    return [(name, starter["spec"]["template"]) for name, starter in starters.items()]


def _container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return dict(container)


def _settings(overlay: str) -> dict[str, str]:
    (found,) = _of_kind(overlay, "ConfigMap").values()
    return dict(found["data"])


def _matches(selector: Resource, pod: dict[str, Any]) -> bool:
    return selector["matchLabels"].items() <= pod["metadata"]["labels"].items()


def _check(resource: Resource) -> None:
    """By Kubernetes' own schema or KEDA's; both would let fields pass that they do not know, so they must not."""
    if resource["kind"] != "ScaledObject":
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        return
    read = ScaledObject.model_validate(resource).model_dump(by_alias=True, exclude_unset=True, mode="json")
    assert read == resource, "a field that KEDA's definition does not have"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_is_valid_by_its_schema(overlay: str) -> None:
    for resource in _built(overlay):
        _check(resource)
        assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "libra-fleet"


@pytest.mark.parametrize("kind", ["Deployment", "ScaledObject"])
def test_check_sees_a_misspelt_field(kind: str) -> None:
    resource = copy.deepcopy(_of_kind("gpu", kind)["libra-worker"])
    resource["spec"]["minReplicaCuont"] = 1
    with pytest.raises((kubernetes_validate.ValidationError, AssertionError)):
        _check(resource)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pod_has_few_rights_and_bounds(overlay: str) -> None:
    for _, pod in _pods(overlay):
        container = _container(pod)
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= _WRITABLE
        assert all("emptyDir" in volume for volume in pod["spec"]["volumes"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_urls_come_by_reference_and_no_secret_is_written(overlay: str) -> None:
    assert _of_kind(overlay, "Secret") == {}
    assert not re.search(r"(redis|rediss|postgresql)://", yaml.safe_dump_all(_built(overlay)))
    for _, pod in _pods(overlay):
        assert {"secretRef": {"name": "libra-servers"}} in _container(pod)["envFrom"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_environment_names_settings(overlay: str) -> None:
    assert _settings(overlay)["LIBRA_STATE_DIR"] in _WRITABLE
    assert set(_settings(overlay)) <= {f"LIBRA_{field.upper()}" for field in Settings.model_fields}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_commands_and_probes_parse(overlay: str) -> None:
    for _, pod in _pods(overlay):
        container = _container(pod)
        require_command(container["args"])
        probes = [container[key] for key in container if key.endswith("Probe")]
        for words in (probe["exec"]["command"] for probe in probes if "exec" in probe):
            assert words[0] == "libra"
            require_command(words[1:])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_runs_on_is_asked_whether_it_is_ready_and_alive(overlay: str) -> None:
    for deployment in _of_kind(overlay, "Deployment").values():
        container = _container(deployment["spec"]["template"])
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_grace_outlasts_a_drain_and_a_drain_a_batch(overlay: str) -> None:
    drain_s = float(_settings(overlay)["LIBRA_DRAIN_S"])
    assert drain_s >= Settings.model_fields["batch_deadline_s"].default
    for deployment in _of_kind(overlay, "Deployment").values():
        pod = deployment["spec"]["template"]
        stop_s = _container(pod).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod["spec"]["terminationGracePeriodSeconds"] >= stop_s + drain_s + TO_END_THE_DEVICE_S


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_those_that_compose_builds(overlay: str) -> None:
    images = {service["image"] for service in COMPOSE["services"].values() if "build" in service}
    assert {_container(pod)["image"] for _, pod in _pods(overlay)} <= images


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_drained_node_takes_one_pod_of_each_kind_at_a_time(overlay: str) -> None:
    budgets = _of_kind(overlay, "PodDisruptionBudget").values()
    for deployment in _of_kind(overlay, "Deployment").values():
        (budget,) = [b for b in budgets if _matches(b["spec"]["selector"], deployment["spec"]["template"])]
        assert budget["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_network_is_closed_but_for_what_is_listed(overlay: str) -> None:
    policies = _of_kind(overlay, "NetworkPolicy")
    closed = policies.pop("default-deny")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    to_servers = policies["to-servers"]["spec"]["podSelector"]
    assert all(_matches(to_servers, pod) for _, pod in _pods(overlay))
    opened = [p["spec"] for p in policies.values() if "Ingress" in p["spec"]["policyTypes"]]
    (gateway,) = [pod for name, pod in _pods(overlay) if name == "libra-gateway"]
    assert [spec["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for spec in opened] == ["libra-gateway"]
    assert opened[0]["ingress"][0]["ports"][0]["port"] == _container(gateway)["ports"][0]["containerPort"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_scale_by_age_and_backlog_of_the_guard_they_run(overlay: str) -> None:
    (scaled,) = _of_kind(overlay, "ScaledObject").values()
    worker = _of_kind(overlay, "Deployment")[scaled["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in worker["spec"], "an apply would undo the scaling"
    assert {trigger["type"] for trigger in scaled["spec"]["triggers"]} == {"prometheus"}
    queries = {trigger["name"]: trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]}
    named = {name: re.findall(r'(libra_\w+)\{guard="([^"]+)"', query) for name, query in queries.items()}
    assert {trigger["metadata"]["ignoreNullValues"] for trigger in scaled["spec"]["triggers"]} == {"false"}
    assert not any("vector(" in query for query in queries.values()), "a metric that nobody tells would read as 0"
    arguments = _container(worker["spec"]["template"])["args"]
    guard = arguments[arguments.index("--guard") + 1]
    assert guard in GUARDS
    assert named == {
        "live_age": [("libra_queue_oldest_age_seconds", guard)],
        "bulk_age": [("libra_queue_oldest_age_seconds", guard)],
        "backlog": [("libra_items_pending", guard)],
    }
    gateway = _container(_of_kind(overlay, "Deployment")["libra-gateway"]["spec"]["template"])["args"]
    assert gateway[gateway.index("--guard") + 1] == guard


def test_a_gpu_worker_has_one_gpu() -> None:
    worker = _container(_of_kind("gpu", "Deployment")["libra-worker"]["spec"]["template"])
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert worker["resources"]["requests"]["nvidia.com/gpu"] == 1
    others = [pod for name, pod in _pods("gpu") if name != "libra-worker"]
    assert not any("nvidia.com/gpu" in _container(pod)["resources"]["limits"] for pod in others)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_ledger_is_migrated_by_a_job_that_makes_room_for_the_next(overlay: str) -> None:
    (job,) = _of_kind(overlay, "Job").values()
    assert _container(job["spec"]["template"])["args"] == ["migrate"]
    assert job["spec"]["ttlSecondsAfterFinished"] > 0
