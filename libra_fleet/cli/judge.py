"""`libra judge` and `libra submit`: one text over the live lane, or a stream of items to a gateway."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from typing import BinaryIO, Final

import click
from pydantic import ValidationError
from pydantic_core import from_json

from infra.errors import DataError, RunError, ServerError, UsageError
from infra.settings import load_settings
from libra_fleet import client as api
from libra_fleet.cli.context import connected, fleet_for
from libra_fleet.cli.options import (
    GuardChoice,
    LocalFleetOptions,
    analysis_option,
    cache_option,
    family_option,
    form_option,
    guard_option,
    json_option,
    mode_for,
    mode_option,
    takes_fleet,
)
from libra_fleet.cli.show import print_verdict, say
from libra_fleet.client import Client
from producer.datasets.records import to_item
from producer.datasets.rows import RowError, decode_line
from producer.intake.live import LiveClient
from schemas.guards import TextForm
from schemas.http import ItemRequest
from schemas.items import Dialogue, Kind
from schemas.messages import Lane
from schemas.verdicts import Outcome

_WINDOW_ITEMS: Final = 256
_EXIT_CODES: Final = {
    api.AuthenticationError: UsageError,
    api.BadRequestError: DataError,
    api.GatewayTimeoutError: ServerError,
    api.VerdictTimeoutError: RunError,
}
"""The errors of this command line that the client's become."""


@click.command()
@click.argument("text", required=False)
@click.option("--question", default="", help="The question that TEXT answers, if it is a model's response.")
@click.option("--prompt", help="A user's text, alone or with --response.")
@click.option("--response", help="A model's text, alone or with --prompt.")
@click.option("--messages", type=click.File("rb"), help="JSON file of a conversation: a list of role and content.")
@guard_option
@family_option
@mode_option
@cache_option(default=True)
@form_option
@analysis_option
@click.option("--timeout", "timeout_s", type=float, default=30, show_default=True, help="Seconds to wait.")
@takes_fleet
@json_option
def judge(
    *,
    text: str | None,
    question: str,
    prompt: str | None,
    response: str | None,
    messages: BinaryIO | None,
    guard: GuardChoice,
    family: str | None,
    mode: str | None,
    cache: bool,
    form: TextForm,
    analysis: bool,
    timeout_s: float,
    fleet: LocalFleetOptions,
    as_json: bool,
) -> None:
    """Judge one text over the live lane.

    TEXT is the text itself, or - for standard input. A guard takes it as what it judges first: a prompt or a response.
    Say which with --prompt, --response, or both; a conversation is --messages. Exit 7 if it could not be judged.
    """
    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise DataError(f"-: not UTF-8 (byte {error.start + 1})") from error
    dialogue = _dialogue(text, question, prompt, response, messages)
    chosen = mode_for(guard, mode, family)
    spec = guard.spec(chosen, "live:cli", lane=Lane.LIVE, family=family)
    with connected() as found, fleet_for(found, spec, fleet):
        client = LiveClient(
            found, guard=guard.name, mode=chosen, tenant="cli", cache=cache, form=form, analysis=analysis
        )
        try:
            verdict = client.judge(dialogue, timeout_s=timeout_s)
        except ValidationError as error:
            details = error.errors(include_input=False, include_url=False)
            problems = [(".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in details]
            raise DataError("; ".join(f"{name}: {said}" if name else said for name, said in problems)) from error
        finally:
            client.close()
        print_verdict(verdict, as_json=as_json)
    if verdict.outcome is Outcome.DEAD:
        raise RunError("the text could not be judged")


def _dialogue(
    text: str | None, question: str, prompt: str | None, response: str | None, messages: BinaryIO | None
) -> Dialogue:
    """What is to be judged, given in one of four ways."""
    if text is not None and question and (prompt, response) == (None, None):
        text, response = None, text
    given = {"text": text, "prompt": prompt, "question": question or None, "response": response}
    try:
        if messages is not None:
            given["messages"] = from_json(messages.read())
        return ItemRequest.model_validate({name: value for name, value in given.items() if value is not None}).dialogue
    except ValidationError as error:
        said = error.errors(include_input=False, include_url=False)[0]
        if said["loc"]:
            raise DataError(f"--{said['loc'][0]}: {said['msg'].removeprefix('Value error, ')}") from None
        raise UsageError("give TEXT, --messages, or --prompt and --response (one or both)") from None
    except ValueError as error:
        raise DataError(f"--messages: broken JSON: {error}") from None


@click.command()
@click.argument("source", type=click.File("rb"))
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The gateway.")
@click.option("--guard", help="Guard by name. Default: the gateway's.")
@click.option("--policy", help="Policy to apply to the verdicts.")
@click.option("--callback-url", help="Where the verdicts are sent.")
@click.option("--wait", is_flag=True, help="Print verdicts, not ids.")
@click.option("--timeout", "timeout_s", type=float, default=60, show_default=True, help="Seconds to wait for each.")
def submit(
    *, source: BinaryIO, url: str, wait: bool, timeout_s: float, guard: str | None, **defaults: str | None
) -> None:
    """Submit JSON lines to a gateway, and print ids or verdicts.

    SOURCE is a file, or - for standard input; LIBRA_API_KEY is the key. Rows are read as `libra run` reads them: a
    text, or question and response; a row's id is its custom_id.
    """
    key = load_settings().api_key
    if key is None:
        raise UsageError("LIBRA_API_KEY is not set: `libra keys create --tenant NAME` makes a key")
    count = 0
    try:
        with Client(url, key.get_secret_value(), guard=guard, timeout_s=timeout_s) as client:
            items = _items(source, defaults)
            while window := list(itertools.islice(items, _WINDOW_ITEMS)):
                if wait:
                    shown = {"outcome", "label", "p_unsafe", "categories", "reason"}
                    lines = [
                        {"id": one.id, "custom_id": one.custom_id, **one.model_dump(mode="json", include=shown)}
                        for one in client.judge_all(window)
                    ]
                else:
                    accepted = zip(window, client.submit(window), strict=True)
                    lines = [{"id": item_id, "custom_id": item.custom_id} for item, item_id in accepted]
                for line in lines:
                    click.echo(json.dumps(line, ensure_ascii=False))
                count += len(window)
    except api.ClientError as error:
        raise _EXIT_CODES[type(error)](str(error)) from error
    say(f"{count:,} items {'judged' if wait else 'accepted'}")
    sys.stdout.flush()


def _fields(dialogue: Dialogue) -> dict[str, object]:
    """The fields of a request that stand for these texts."""
    if dialogue.kind is Kind.MESSAGES:
        return {"messages": dialogue.messages}
    texts = {"question": dialogue.question, "response": dialogue.response}
    return {"text" if dialogue.kind is Kind.TEXT else name: text for name, text in texts.items() if text}


def _items(source: BinaryIO, defaults: dict[str, str | None]) -> Iterator[ItemRequest]:
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            item = to_item(decode_line(line), str(number))
            yield ItemRequest.model_validate({**_fields(item.dialogue), "custom_id": item.id, **defaults})
        except RowError as error:
            raise DataError(f"line {number}: {error}") from error
        except ValidationError as error:
            detail = error.errors(include_input=False, include_url=False)[0]
            raise DataError(f"line {number}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}") from None
