"""The plan of a run: nobody is left out, nobody comes twice, and all processes keep step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.training.plan import learning_rate_share, micro_batches, step_rows, steps_per_epoch

counts = st.integers(1, 60)


@given(rows=counts, batch_rows=st.integers(1, 12), epoch=st.integers(0, 3))
def test_an_epoch_takes_every_row_once(rows: int, batch_rows: int, epoch: int) -> None:
    steps = steps_per_epoch(rows, batch_rows)
    taken = [
        row
        for step in range(epoch * steps, (epoch + 1) * steps)
        for row in step_rows(step, rows=rows, batch_rows=batch_rows, seed="s")
    ]
    assert sorted(taken) == list(range(rows))


@given(rows=counts, processes=st.integers(1, 5), device_rows=st.integers(1, 7), lengths=st.randoms())
def test_processes_share_a_step_and_meet_as_often(rows: int, processes: int, device_rows: int, lengths: object) -> None:
    tokens = [lengths.randrange(1, 50) for _ in range(rows)]  # type: ignore[attr-defined]
    shares = [
        micro_batches(range(rows), tokens, process=process, processes=processes, device_rows=device_rows)
        for process in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(rows))
    assert all(len(batch) <= device_rows for share in shares for batch in share)


def test_epochs_have_orders_of_their_own_and_a_seed_repeats_them() -> None:
    first, second = (step_rows(step, rows=50, batch_rows=50, seed="s") for step in (0, 1))
    assert first != second
    assert first == step_rows(0, rows=50, batch_rows=50, seed="s")
    assert first != step_rows(0, rows=50, batch_rows=50, seed="t")


@given(steps=st.integers(1, 200), warmup_share=st.floats(0, 0.9))
def test_the_rate_rises_to_the_peak_and_then_falls(steps: int, warmup_share: float) -> None:
    shares = [learning_rate_share(step, steps=steps, warmup_share=warmup_share) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)
    peak = shares.index(max(shares))
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    if not warmup_share:
        assert shares[0] == 1
