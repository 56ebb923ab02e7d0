"""A sender's shares: who answers quickly gets more, who does not answer gets one, and nobody gets all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from producer.webhooks.shares import FIRST_SHARE, QUICK_S, Shares

CONNECTIONS = 32


def answers(shares: Shares, count: int, *, answered: bool = True, took_s: float = 0.01) -> None:
    for _ in range(count):
        shares.begin("a", "t")
        shares.end("a", "t", answered=answered, took_s=took_s)


def test_a_share_grows_with_quick_answers_up_to_half_of_all_connections() -> None:
    shares = Shares(CONNECTIONS)
    assert shares.first == FIRST_SHARE

    answers(shares, 100)

    assert shares.rooms() == {"a": CONNECTIONS // 2}


def test_without_an_answer_a_share_is_one_and_a_late_answer_halves_it() -> None:
    shares = Shares(CONNECTIONS)
    answers(shares, 100)

    answers(shares, 1, took_s=2 * QUICK_S)
    assert shares.rooms() == {"a": CONNECTIONS // 4}
    answers(shares, 1, answered=False)
    assert shares.rooms() == {"a": 1}


def test_a_tenant_of_many_destinations_leaves_a_quarter_of_the_connections_to_others() -> None:
    shares = Shares(CONNECTIONS)
    for number in range(CONNECTIONS * 3 // 4):
        assert shares.full_tenants() == []
        shares.begin(f"{number}", "t")

    assert shares.full_tenants() == ["t"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 5)), max_size=60))
def test_no_destination_ever_has_room_for_more_than_half_or_for_less_than_none(
    ended: list[tuple[str, bool, float]],
) -> None:
    shares = Shares(CONNECTIONS)
    for name, answered, took_s in ended:
        shares.begin(name, name)
        shares.end(name, name, answered=answered, took_s=took_s)

    assert all(0 < room <= CONNECTIONS // 2 for room in shares.rooms().values())
