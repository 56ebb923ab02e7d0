"""The servers that a command works on, and the local fleet that judges for it where one is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import redis
from sqlalchemy.exc import InterfaceError, OperationalError

from infra.errors import ServerError
from infra.servers.services import Services, services
from infra.settings import load_settings
from libra_fleet.cli.options import GuardChoice, LocalFleetOptions
from libra_fleet.cli.show import say
from libra_fleet.machine.fleet import LocalFleet, worker_is_up
from schemas.runs import RunSpec

SERVERS_WAIT_S: Final = 3.0
"""How long a person waits to hear that a server is not there; LIBRA_WAIT_FOR_SERVERS_S overrules it."""


@contextmanager
def connected() -> Iterator[Services]:
    """Open the servers for a command that a person waits for.

    Raises:
        ServerError: one of them cannot be reached, or went away meanwhile.
    """
    settings = load_settings()
    if "wait_for_servers_s" not in settings.model_fields_set:
        settings = settings.model_copy(update={"wait_for_servers_s": SERVERS_WAIT_S})
    with services(settings) as found:
        try:
            yield found
        except (OperationalError, InterfaceError) as error:
            raise ServerError(f"lost Postgres: {str(error.orig).strip()}") from error
        except redis.RedisError as error:
            raise ServerError(f"lost Redis: {error}") from error


@contextmanager
def fleet_for(
    found: Services,
    spec: RunSpec,
    choice: LocalFleetOptions,
    *,
    needed: bool = True,
    worker_options: Sequence[str] = (),
) -> Iterator[Callable[[], None]]:
    """A local fleet where one is wanted, or a hint where a worker is missing; yields a check on the fleet.

    A cascade has a worker for each of its guards.
    """
    guards = [GuardChoice(spec.guard, spec.checkpoint), *(GuardChoice(s.guard, s.checkpoint) for s in spec.stages)]
    is_local = needed and (choice.local or (choice.local is None and found.embedded))
    with ExitStack() as stack:
        fleets = []
        for guard in guards:
            if is_local:
                checkpoint = ["--checkpoint", guard.checkpoint] if guard.checkpoint else []
                options = ["--devices", choice.devices, *checkpoint, *worker_options]
                fleet = LocalFleet(found, guard.name, worker_options=options, say=lambda what: say(f"{what} …"))
                fleets.append(stack.enter_context(fleet))
            elif needed and not worker_is_up(found, guard.name):
                say(f"no worker for {guard.name} is up yet: start one with `libra fleet worker --guard {guard.name}`")

        def check() -> None:
            for fleet in fleets:
                fleet.check()

        yield check
