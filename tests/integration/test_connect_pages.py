"""Each page of docs/connect is done as it says, with the bundled guard, and shows what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from infra.servers.services import Services
from tests.support.cli import Cli, require_command
from tests.support.clients import LITELLM_KEY, PROGRAMS, client_python, server_of
from tests.support.doc_blocks import Command, blocks, commands, require_shown
from tests.support.fleet import ROOT, Fleet, fleet_on
from tests.support.gateway import answers, free_port

PAGES = sorted(page for page in (ROOT / "docs/connect").glob("*.md") if page.name != "README.md")
pytestmark = [pytest.mark.foreign, pytest.mark.timeout(900)]  # an environment is made on first use
MASTER = "0123456789abcdef0123456789abcdef"
NAMED = re.compile(r"key (k[0-9a-f]{10}) of")


@pytest.fixture(scope="module")
def fleet(module_services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A collector and a worker of the bundled guard."""
    with fleet_on(module_services, tmp_path_factory.mktemp("fleet"), LIBRA_CONNECTOR_SECRET=MASTER) as started:
        started.start_collector()
        worker = started.start("worker", "--guard", "libra-tiny", "--devices", "cpu")
        started.wait(lambda: started.is_ready(worker))
        yield started


@pytest.fixture(scope="module")
def port(fleet: Fleet) -> int:
    """The port of a gateway of the bundled guard."""
    found = free_port()
    fleet.start("gateway", "--port", str(found), "--guard", "libra-tiny", "--no-local")
    fleet.wait(lambda: answers(found))
    return found


class Given(NamedTuple):
    """What stands in the place of a page's placeholders; filled as its commands are run."""

    port: int
    other_port: int
    key_id: str = ""
    key: str = ""
    signing_secret: str = ""

    def put_into(self, text: str) -> str:
        """The text with real addresses, and real keys where the page leaves them out."""
        for shown, real in {
            "127.0.0.1:8000": f"127.0.0.1:{self.port}",
            "127.0.0.1:4000": f"127.0.0.1:{self.other_port}",
            "--port 4000": f"--port {self.other_port}",
            "lk_…": self.key,
            "ls_…": self.signing_secret,
            "k…": self.key_id,
        }.items():
            text = text.replace(shown, real)
        return text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_leads_from_nothing_to_a_blocked_text(
    page: Path, port: int, module_services: Services, tmp_path: Path
) -> None:
    given = Given(port, free_port())
    libra = Cli(tmp_path, **module_services.environment(), LIBRA_CONNECTOR_SECRET=MASTER)
    shutil.copytree(ROOT / "integrations", tmp_path / "integrations")
    printed = ""
    with ExitStack() as servers:
        for block in blocks(page):
            if block.language == "console":
                for command in commands(block):
                    given = _done(command, given, page.stem, libra, servers)
            elif block.language == "yaml":
                (tmp_path / "config.yaml").write_text(given.put_into(block.body), encoding="utf-8")
            elif block.language == "python":
                printed = _run([str(client_python(page.stem)), "-c", given.put_into(block.body)], tmp_path)
            elif block.language == "text":
                require_shown(block.body, printed)
    assert given.key, "the page makes a key"


def _done(command: Command, given: Given, name: str, libra: Cli, servers: ExitStack) -> Given:
    """Do what a command of a page says; what it brings about."""
    words = given.put_into(command.line).split()
    if words[0] == "pip":
        _require_installable(words[2:], name)
    elif words[:2] == ["libra", "keys"]:
        done = libra(*words[1:])
        assert done.returncode == 0, done.stderr
        if words[2] == "secret":
            return given._replace(signing_secret=done.stdout.strip())
        found = NAMED.search(done.stderr)
        assert found is not None
        return given._replace(key_id=found[1], key=done.stdout.strip())
    elif words[0] == "libra":
        require_command(words[1:])
    elif words[0] == "litellm":
        servers.enter_context(server_of(name, *words, folder=libra.folder, port=given.other_port))
    else:
        line = given.put_into(command.line)
        require_shown(
            command.printed, _run(["bash", "-c", line], libra.folder, KEY=given.key, LITELLM_MASTER_KEY=LITELLM_KEY)
        )
    return given


def _require_installable(packages: list[str], name: str) -> None:
    """Fail unless the page's packages are ours with extras that we have, or in the list of the page's client."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package in (one.strip("'") for one in packages):
        base, _, wanted = package.removesuffix("]").partition("[")
        if base == "libra-fleet":
            assert set(wanted.split(",")) <= set(extras)
        else:
            pinned = (PROGRAMS / f"{name}.txt").read_text().lower().replace("_", "-")
            assert re.search(rf"^{base.lower().replace('_', '-')}==", pinned, re.MULTILINE), package


def _run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr[-3000:]}\n{done.stdout[-1000:]}"
    return done.stdout
