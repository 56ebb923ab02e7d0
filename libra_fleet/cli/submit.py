"""`libra submit -`: items from a pipe to a gateway, their ids or verdicts to standard output as they come."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import click

from infra.errors import DataError, UsageError
from infra.settings import load_settings
from libra_fleet.cli.show import say
from libra_fleet.client import GatewayClient, Judged, NewItem
from producer.datasets.records import RowError, decode_line, to_item

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
    with GatewayClient(url, key.get_secret_value(), guard=guard, timeout_s=timeout_s) as client:
        for window in _windows(_items(source, said)):
            for line in _done(client, window, wait=wait):
                click.echo(json.dumps(line, ensure_ascii=False))
            count += len(window)
    say(f"{count:,} items {'judged' if wait else 'accepted'}")
    sys.stdout.flush()


def _items(source: BinaryIO, said: dict[str, str | None]) -> Iterator[NewItem]:
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            item = to_item(decode_line(line), str(number))
        except RowError as error:
            raise DataError(f"line {number}: {error}") from error
        yield NewItem(item.response, item.question, custom_id=item.id, **said)  # type: ignore[arg-type]


def _windows(items: Iterator[NewItem]) -> Iterator[list[NewItem]]:
    while window := list(itertools.islice(items, _WINDOW_ITEMS)):
        yield window


def _done(client: GatewayClient, window: list[NewItem], *, wait: bool) -> Iterator[dict[str, Any]]:
    if not wait:
        for item, item_id in zip(window, client.submit(window), strict=True):
            yield {"id": item_id, "custom_id": item.custom_id}
        return
    for judged in client.judge_all(window):
        yield _line(judged)


def _line(judged: Judged) -> dict[str, Any]:
    return {
        "id": judged.id,
        "custom_id": judged.custom_id,
        "outcome": judged.outcome.value,
        "label": judged.label.value if judged.label else None,
        "p_unsafe": judged.p_unsafe,
        "categories": list(judged.categories),
        "reason": judged.reason,
    }
