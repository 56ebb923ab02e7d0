"""Items: what can be stored and sent, and what cannot."""

import pytest
from pydantic import ValidationError

from schemas.items import MAX_ITEM_BYTES, Item


@pytest.mark.parametrize(
    ("question", "response"),
    [
        ("", "r" * MAX_ITEM_BYTES),
        ("q" * (MAX_ITEM_BYTES - 1), "r"),
        ("问" * (MAX_ITEM_BYTES // 3), "r"),
    ],
)
def test_question_and_response_together_may_fill_half_a_chunk_to_the_byte(question: str, response: str) -> None:
    assert Item(id="x", question=question, response=response).text_bytes <= MAX_ITEM_BYTES


@pytest.mark.parametrize(
    ("question", "response"),
    [("", "r" * (MAX_ITEM_BYTES + 1)), ("q" * MAX_ITEM_BYTES, "r"), ("问" * (MAX_ITEM_BYTES // 3), "r" * 3)],
)
def test_a_byte_more_is_refused_with_both_numbers(question: str, response: str) -> None:
    with pytest.raises(ValidationError, match=r"524,2(89|90) bytes long; the limit is 524,288"):
        Item(id="x", question=question, response=response)


@pytest.mark.parametrize(("name", "problem"), [("a\0", "NUL"), ("a\ud800", "unicode"), ("", "at least 1")])
def test_an_id_is_text_that_can_be_stored(name: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Item(id=name, response="text")


@pytest.mark.parametrize("field", ["question", "response", "source", "category", "subcategory"])
@pytest.mark.parametrize("bad", ["a\0", "a\udfff"])
def test_no_field_holds_what_the_ledger_cannot(field: str, bad: str) -> None:
    with pytest.raises(ValidationError):
        Item.model_validate({"id": "x", "response": "text", field: bad})
