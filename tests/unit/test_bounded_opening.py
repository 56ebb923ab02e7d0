"""A command that somebody waits for soon says that a server is away: all of them open the servers by `connected`."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NoReturn

import pytest

from infra.errors import ServerError
from infra.servers import services
from infra.settings import Settings
from libra_fleet.cli import context
from libra_fleet.cli.main import libra

ROOT = Path(__file__).parents[2]
DATA = '{"id": "1", "prompt": "a", "response": "b", "label": "safe"}\n'
AWAITED = (
    "bench cancel RUN",
    "bench compare A B",
    "bench list",
    "bench parity data.jsonl --guard fake",
    "bench report RUN",
    "bench resume RUN",
    "bench run data.jsonl --guard fake",
    "bench status RUN",
    "bench submit data.jsonl --guard fake",
    "bench watch RUN",
    "cascade fit --run RUN",
    "cascade report RUN",
    "cost --run RUN",
    "dead list RUN",
    "dead retry RUN",
    "dead show RUN ITEM",
    "export RUN --out out.jsonl",
    "infer --base_model fake --data_path data.jsonl",
    "judge text --guard fake",
    "keys create --tenant t",
    "keys list",
    "keys revoke ID",
    "policy list",
    "policy show default",
    "purge --older-than 30d",
    "remoderate --run RUN --guard fake",
    "status",
    "verify RUN",
    "webhooks endpoints add t https://example.com/",
    "webhooks endpoints enable ID",
    "webhooks endpoints list",
    "webhooks endpoints remove ID",
    "webhooks endpoints rotate ID",
    "webhooks list",
    "webhooks replay ID",
    "webhooks secret t",
)
OPENED_BY = {
    "libra_fleet/cli/context.py": "`connected` itself",
    "libra_fleet/cli/fleet.py": "worker, collector, gateway, webhook sender: they may start before their servers",
    "libra_fleet/cli/up.py": "a service",
}
"""Callers of `services`, and why each may wait longer than a person would."""


@pytest.mark.parametrize("command", AWAITED)
def test_a_command_waits_for_the_servers_as_long_as_a_person_does(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def no_ledger(*_: object, wait_s: float, **__: object) -> NoReturn:
        waited.append(wait_s)
        raise ServerError("away")

    def no_coordination(_: str, settings: Settings) -> NoReturn:
        no_ledger(wait_s=settings.wait_for_servers_s)

    monkeypatch.chdir(tmp_path)
    for name in ("LIBRA_WAIT_FOR_SERVERS_S", "LIBRA_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LIBRA_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("LIBRA_DATABASE_URL", "postgresql://libra@127.0.0.1:1/libra")
    monkeypatch.setattr(services, "open_ledger", no_ledger)
    monkeypatch.setattr(services, "open_coordination", no_coordination)
    (tmp_path / "data.jsonl").write_text(DATA)

    with pytest.raises(ServerError, match="away"):
        libra.main(command.split(), standalone_mode=False)

    assert waited == [context.SERVERS_WAIT_S]


def test_only_services_and_connected_itself_open_servers_in_another_way() -> None:
    callers = {
        file.relative_to(ROOT).as_posix()
        for package in ("libra_fleet", "producer", "worker")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "services"
    }

    assert callers == set(OPENED_BY)
