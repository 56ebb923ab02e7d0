"""Facts of the deployment files that can be checked without a container engine."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.settings import Settings
from tests.support.cli import require_command

ROOT = Path(__file__).parents[2]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
DOCKERFILE = (ROOT / "infra/docker/Dockerfile").read_text(encoding="utf-8")
ENV_EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")

VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
TO_END_THE_DEVICE_S = 20


def _seconds(duration: str) -> int:
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def _without_variables(words: list[str]) -> list[str]:
    return [VARIABLE.sub(lambda match: match[3], word) for word in words]


def _commands() -> list[tuple[str, list[str]]]:
    """Every `libra …` that compose starts: services' commands and health checks."""
    found = []
    for name in OURS:
        service = SERVICES[name]
        if "command" in service:
            found.append((name, _without_variables(service["command"])))
        if test := service.get("healthcheck", {}).get("test"):
            assert test[:2] == ["CMD", "libra"]
            found.append((f"{name} health", test[2:]))
    return found


def test_compose_is_valid_by_the_compose_specification() -> None:
    check = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run(
        [*check, ROOT / "docker-compose.yml"], capture_output=True, text=True, check=False, timeout=60
    )
    assert checked.returncode == 0, checked.stdout


def test_a_service_reads_only_folders_that_the_observability_files_have() -> None:
    mounted = [
        volume.split(":")[0] for name in SERVICES for volume in SERVICES[name].get("volumes", []) if volume[0] == "."
    ]
    assert sorted(mounted) == ["./infra/grafana/dashboards", "./infra/grafana/provisioning", "./infra/prometheus"]
    for folder in mounted:
        asked_by = [name for name in SERVICES if any(folder in v for v in SERVICES[name].get("volumes", []))]
        assert all(SERVICES[name]["profiles"] == ["observability"] for name in asked_by)


def test_webhook_exceptions_pass_through_to_those_who_ask_for_them() -> None:
    for name in ("gateway", "webhooks", "libra"):
        assert SERVICES[name]["environment"]["LIBRA_WEBHOOK_ALLOW"] == "${LIBRA_WEBHOOK_ALLOW:-}"


def test_a_receiver_of_traces_passes_through_to_all_of_ours() -> None:
    ours = [
        service["environment"] for service in SERVICES.values() if "LIBRA_REDIS_URL" in service.get("environment", {})
    ]
    assert len(ours) > 3
    # Without a value: compose takes it from the shell or .env, and leaves it unset where neither has it.
    assert all(environment["LIBRA_OTLP_ENDPOINT"] is None for environment in ours)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_is_watched_or_ends_by_itself(name: str) -> None:
    service = SERVICES[name]
    assert ("healthcheck" in service) != (service["restart"] == "no")


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_has_few_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] not in {"root", "0", "0:0"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("privileged") is None
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_waits_for_services_that_can_tell_when_they_are_ready(name: str) -> None:
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        needed = "service_healthy" if "healthcheck" in SERVICES[other] else "service_completed_successfully"
        assert wait["condition"] == needed
        assert not SERVICES[other].get("profiles"), "a service behind a profile may not be there"


@pytest.mark.parametrize("name", [name for name in OURS if SERVICES[name]["restart"] != "no"])
def test_stop_waits_longer_than_a_drain(name: str) -> None:
    drain_s = float(SERVICES[name]["environment"]["LIBRA_DRAIN_S"])
    assert _seconds(SERVICES[name]["stop_grace_period"]) >= drain_s + TO_END_THE_DEVICE_S


@pytest.mark.parametrize("name", OURS)
def test_environment_names_settings(name: str) -> None:
    ours = {key for key in SERVICES[name]["environment"] if key.startswith("LIBRA_")}
    assert ours <= {f"LIBRA_{field.upper()}" for field in Settings.model_fields}


@pytest.mark.parametrize(("name", "words"), _commands(), ids=[name for name, _ in _commands()])
def test_command_parses(name: str, words: list[str]) -> None:
    require_command(words)


@pytest.mark.parametrize("name", OURS)
def test_build_target_is_a_stage(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (ROOT / build["dockerfile"]).is_file()
    assert re.search(rf"^FROM \S+ AS {build['target']}$", DOCKERFILE, re.MULTILINE)
    assert SERVICES[name]["image"] == f"libra-fleet:{build['target']}"
    assert all(f"ARG {argument}=" in DOCKERFILE for argument in build.get("args", {}))


def test_passwords_have_no_default() -> None:
    variables = VARIABLE.findall(COMPOSE_TEXT)
    assert {name for name, operator, _ in variables if operator == "?"} == {"POSTGRES_PASSWORD", "REDIS_PASSWORD"}
    assert all(operator == "?" for name, operator, _ in variables if name.endswith("PASSWORD"))
    assert re.findall(r"^(\w+)=(.*)$", ENV_EXAMPLE, re.MULTILINE) == [("POSTGRES_PASSWORD", ""), ("REDIS_PASSWORD", "")]


def test_example_names_every_variable_of_compose_and_no_other() -> None:
    used = {name for name, _, _ in VARIABLE.findall(COMPOSE_TEXT)}
    used |= {key for name in OURS for key, value in SERVICES[name]["environment"].items() if value is None}
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE)) == used


def test_redis_never_drops_what_it_was_given() -> None:
    options = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in options
    assert "--maxmemory-policy noeviction" in options


def test_images_run_unprivileged_and_base_has_no_torch() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    final = {stage.split()[2]: stage for stage in stages if stage.startswith("runtime AS")}
    assert set(final) == {"base", "worker-cpu", "worker-gpu"}
    assert all(stage.rstrip().endswith("USER 10001:10001") for stage in final.values())
    base_dependencies = next(stage for stage in stages if " AS deps\n" in stage)
    assert "worker]" not in base_dependencies


def test_what_images_copy_is_let_through_and_secrets_are_not() -> None:
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    ]
    assert "*" in allowed
    assert {f"!{word}" for word in copied} == {word for word in allowed if word.startswith("!")}


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    groups = [project["build-system"]["requires"], project["project"]["dependencies"], *extras.values()]
    needed = {canonicalize_name(Requirement(line).name): Requirement(line) for line in itertools.chain(*groups)}
    del needed["libra-fleet"]
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(line.split("==") for line in text.splitlines() if not line.startswith("#"))
    assert set(needed) <= set(pins)
    assert [name for name, version in pins.items() if name in needed and version not in needed[name].specifier] == []
    assert "+" not in "".join(pins.values()), "a local build would tie everybody to one kind of machine"
