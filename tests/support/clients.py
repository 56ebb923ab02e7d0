"""Clients of other platforms, each in an environment of its own: their packages and ours need different versions.

tests/clients holds a list of exact versions for each and the programs that are run in it. An environment is made on
first use, in out/clients, and made anew when its list changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from infra.process import wait_until
from tests.support.processes import stop

ROOT: Final = Path(__file__).resolve().parents[2]
PROGRAMS: Final = ROOT / "tests/clients"
LITELLM_KEY: Final = f"sk-{'0123456789abcdef' * 4}"
"""The key of LiteLLM's own proxy, which starts with none that is short."""


def client_python(name: str) -> Path:
    """The interpreter of the environment that tests/clients/NAME.txt describes."""
    wanted = PROGRAMS / f"{name}.txt"
    digest = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = ROOT / "out/clients" / f"{name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin/python"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it at a time
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            # `make` has pip keep to constraints.txt, which is about our own environment.
            ours = {"PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PYTHONPATH"}
            environment = {one: value for one, value in os.environ.items() if one not in ours}
            install = [
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--requirement",
                wanted,
            ]
            subprocess.run(install, env=environment, check=True, stdin=subprocess.DEVNULL)
            (folder / "complete").touch()
    return python


def told_by(name: str, *arguments: str) -> Any:
    """What tests/clients/NAME.py prints as JSON, run in its environment with these arguments."""
    python = client_python(name)
    done = subprocess.run(
        [python, PROGRAMS / f"{name}.py", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONWARNINGS": "ignore"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@contextlib.contextmanager
def server_of(name: str, program: str, *arguments: str, folder: Path, port: int) -> Iterator[None]:
    """A server that comes with a client's package, run in its environment until the context ends."""
    log = folder / f"{program}.log"
    own = {"LITELLM_MASTER_KEY": LITELLM_KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # nothing is fetched from outside
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **own}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [client_python(name).parent / program, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: _listens(port) or process.poll() is not None, timeout_s=120)
        assert _listens(port), log.read_text(errors="replace")[-4000:]
        yield
    finally:
        stop(process, grace_s=10)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
