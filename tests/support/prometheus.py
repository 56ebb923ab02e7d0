"""Debian's Prometheus and promtool for tests: found on the PATH, run on the loopback address."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import stop

RULES = Path(__file__).resolve().parents[2] / "infra" / "prometheus"


def tool(name: str) -> str:
    """The path of `prometheus` or `promtool`. Without it, the test is skipped, but fails in CI."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI has no {name}; .ci/run installs Debian's prometheus")
        pytest.skip(f"no {name} here (Debian: apt-get install prometheus)")
    return found


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """A running server's query API."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/api/v1"

    def value(self, query: str) -> float | None:
        """The one value of an instant query; None while there is none, or nobody to ask."""
        try:
            result = self._get(f"query?{urllib.parse.urlencode({'query': query})}")["result"]
        except OSError:
            return None
        return float(result[0]["value"][1]) if result else None

    def rules(self) -> list[str]:
        """Names of the alerts that the server has loaded."""
        return [rule["name"] for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._base}/{path}", timeout=5) as answer:  # noqa: S310 - our own server
            return json.load(answer)["data"]


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """The repository's configuration and rules with another target, scraped every second."""
    program = tool("prometheus")
    config = yaml.safe_load((RULES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield Prometheus(port)
    finally:
        stop(process, grace_s=15)
