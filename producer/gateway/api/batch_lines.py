"""A batch's file, line by line: OpenAI's batch input format, each line one text to judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from infra.ledger.batches import LineError
from infra.ledger.submissions import Submission
from producer.datasets.records import RowError, decode_line
from producer.gateway.api.moderations import ModerationRequest
from producer.gateway.api.requests import GuardSelection, guard_of, item_of, require_known
from producer.gateway.problems import ProblemError, field_name
from producer.gateway.state import Gateway
from schemas.http import ApiRequest, CustomId, ItemRequest
from schemas.items import Item

ENDPOINTS: Final = ("/v1/moderations", "/v1/items")
Endpoint = Literal["/v1/moderations", "/v1/items"]

_MOST_LINES: Final = 50_000
"""As OpenAI's."""
_ERRORS_KEPT: Final = 100


class BatchItemRequest(ItemRequest):
    """The body of a line for /v1/items: one item, and the guard that judges it."""

    guard: str | None = None


class _Line(ApiRequest):
    custom_id: CustomId
    method: Literal["POST"]
    url: str
    body: Annotated[dict[str, Any], Field(min_length=1)]


@dataclass
class BatchOrder:
    """What a file orders: items with what was said of them, by the item's id, for one guard."""

    items: list[Item] = field(default_factory=list)
    submissions: dict[str, Submission] = field(default_factory=dict)
    guard: GuardSelection | None = None
    errors: list[LineError] = field(default_factory=list)


class _LineError(Exception):
    """What is wrong with a line."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def read_order(content: bytes, endpoint: str, tenant: str, gateway: Gateway) -> BatchOrder:
    """Read a whole file. Where `errors` are found, nothing of it should be judged."""
    reader = _Reader(endpoint, tenant, gateway)
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            reader.read(number, line)
        if len(reader.order.errors) >= _ERRORS_KEPT:
            break
    if not reader.order.items and not reader.order.errors:
        reader.order.errors.append(LineError(1, "empty_file", "the file has no lines"))
    return reader.order


class _Reader:
    def __init__(self, endpoint: str, tenant: str, gateway: Gateway) -> None:
        self.order = BatchOrder()
        self._endpoint = endpoint
        self._tenant = tenant
        self._gateway = gateway
        self._custom_ids: set[str] = set()

    def read(self, number: int, line: bytes) -> None:
        """Add a line to the order, or what is wrong with it to the errors."""
        try:
            self._add(str(number), _parse(line, self._endpoint))
        except _LineError as error:
            self.order.errors.append(LineError(number, error.code, str(error), error.param))

    def _add(self, item_id: str, line: _Line) -> None:
        if len(self._custom_ids) >= _MOST_LINES:
            raise _LineError("too_many_lines", f"a file holds {_MOST_LINES:,} lines at most")
        if line.custom_id in self._custom_ids:
            raise _LineError("duplicate_custom_id", "another line has this custom_id", "custom_id")
        try:
            guard, item, said = self._judgeable(item_id, line)
        except ValidationError as error:
            raise _invalid(error, "body.") from None
        except ProblemError as error:
            raise _LineError("invalid_request", error.detail, str(error.more.get("field"))) from None
        order = self.order
        if order.guard is not None and guard != order.guard:
            raise _LineError("mismatched_model", f"the lines before are for {order.guard.name}", "body.model")
        order.guard = guard
        order.items.append(item)
        order.submissions[item.id] = said
        self._custom_ids.add(line.custom_id)

    def _judgeable(self, item_id: str, line: _Line) -> tuple[GuardSelection, Item, Submission]:
        if line.url == "/v1/moderations":
            asked = ModerationRequest.model_validate(line.body)
            if len(asked.input) != 1:
                raise _LineError("invalid_request", "a line of a batch holds one text", "body.input")
            guard = guard_of(asked.model, self._gateway, field="body.model")
            item = item_of(asked.input[0], fields={"response": "input"}, where="body.", item_id=item_id)
            return guard, item, Submission(self._tenant, line.custom_id)
        one = BatchItemRequest.model_validate(line.body)
        require_known(one, self._gateway, where="body.")
        guard = guard_of(one.guard, self._gateway, field="body.guard")
        item = item_of(one.main, one.question, fields={"response": one.main_field}, where="body.", item_id=item_id)
        return guard, item, Submission(self._tenant, line.custom_id, one.policy, one.callback_url, one.metadata)


def _parse(line: bytes, endpoint: str) -> _Line:
    try:
        parsed = _Line.model_validate(decode_line(line))
    except RowError as error:
        raise _LineError("invalid_json_line", str(error)) from None
    except ValidationError as error:
        raise _invalid(error) from None
    if parsed.url != endpoint:
        raise _LineError("mismatched_url", f"the batch is for {endpoint}", "url")
    return parsed


def _invalid(error: ValidationError, where: str = "") -> _LineError:
    detail = error.errors(include_input=False, include_url=False)[0]
    name = where + field_name(detail["loc"]) if detail["loc"] else where.rstrip(".") or None
    return _LineError("invalid_request", detail["msg"].removeprefix("Value error, "), name)
