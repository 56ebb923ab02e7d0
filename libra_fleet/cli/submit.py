"""`libra submit -`: items from a pipe to a gateway, their ids or verdicts to standard output as they come."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

import click
from pydantic import ValidationError

from infra.errors import DataError, RunError, ServerError, UsageError
from infra.settings import load_settings
from libra_fleet import client as api
from libra_fleet.cli.show import say
from libra_fleet.client import Client
from producer.datasets.records import RowError, decode_line, to_item
from schemas.http import ItemRequest

_WINDOW_ITEMS: Final = 256


@click.command()
@click.argument("source", type=click.File("rb"))
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The gateway.")
@click.option("--guard", help="Guard by name. Default: the gateway's.")
@click.option("--policy", help="Policy to apply to the verdicts.")
@click.option("--callback-url", help="Where the verdicts are sent.")
@click.option("--wait", is_flag=True, help="Print verdicts, not ids.")
@click.option("--timeout", "timeout_s", type=float, default=60, show_default=True, help="Seconds to wait for each.")
def submit(*, source: BinaryIO, url: str, wait: bool, timeout_s: float, guard: str | None, **said: str | None) -> None:
    """Submit JSONL from SOURCE (- for standard input) to a gateway; LIBRA_API_KEY is the key.

    Rows are read as `libra bench` reads them: a text, or question and response; a row's id is its custom_id.
    """
    key = load_settings().api_key
    if key is None:
        raise UsageError("LIBRA_API_KEY is not set: `libra keys create --tenant NAME` makes a key")
    count = 0
    with _exit_codes(), Client(url, key.get_secret_value(), guard=guard, timeout_s=timeout_s) as client:
        for window in _windows(_items(source, said)):
            for line in _done(client, window, wait=wait):
                click.echo(json.dumps(line, ensure_ascii=False))
            count += len(window)
    say(f"{count:,} items {'judged' if wait else 'accepted'}")
    sys.stdout.flush()


def _items(source: BinaryIO, said: dict[str, str | None]) -> Iterator[ItemRequest]:
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            item = to_item(decode_line(line), str(number))
            texts = {"response": item.response, "question": item.question} if item.question else {"text": item.response}
            yield ItemRequest.model_validate({**texts, "custom_id": item.id, **said})
        except RowError as error:
            raise DataError(f"line {number}: {error}") from error
        except ValidationError as error:
            detail = error.errors(include_input=False, include_url=False)[0]
            raise DataError(f"line {number}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}") from None


def _windows(items: Iterator[ItemRequest]) -> Iterator[list[ItemRequest]]:
    while window := list(itertools.islice(items, _WINDOW_ITEMS)):
        yield window


def _done(client: Client, window: list[ItemRequest], *, wait: bool) -> Iterator[dict[str, Any]]:
    if not wait:
        for item, item_id in zip(window, client.submit(window), strict=True):
            yield {"id": item_id, "custom_id": item.custom_id}
        return
    for verdict in client.judge_all(window):
        yield {
            "id": verdict.id,
            "custom_id": verdict.custom_id,
            **verdict.model_dump(mode="json", include={"outcome", "label", "p_unsafe", "categories", "reason"}),
        }


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Give the client's errors the exit codes of this command line."""
    codes = {
        api.AuthenticationError: UsageError,
        api.BadRequestError: DataError,
        api.GatewayTimeoutError: ServerError,
        api.VerdictTimeoutError: RunError,
    }
    try:
        yield
    except api.ClientError as error:
        raise codes[type(error)](str(error)) from error
