"""Progress of a stage: which measurement is the best, and when it is enough."""

from __future__ import annotations

from worker.training.checkpoints import Evaluation, Progress


def measured(step: int, macro_f1: float, dev_nll: float = 1.0) -> Evaluation:
    return Evaluation(step=step, loss=1.0, dev_nll=dev_nll, macro_f1=macro_f1, learning_rate=1e-5)


def test_a_stage_ends_after_so_many_measurements_without_a_better_macro_f1() -> None:
    progress = Progress()
    better = [progress.record(measured(step, f1), patience=2) for step, f1 in enumerate((0.5, 0.7, 0.7, 0.6))]
    assert better == [True, True, False, False]
    assert progress.stopped
    assert progress.best == measured(1, 0.7)


def test_without_patience_it_goes_on() -> None:
    progress = Progress()
    for step in range(20):
        progress.record(measured(step, 0.5), patience=None)
    assert not progress.stopped


def test_among_equal_macro_f1_the_likelier_is_better() -> None:
    progress = Progress()
    progress.record(measured(1, 0.5, dev_nll=0.9), patience=1)
    assert progress.record(measured(2, 0.5, dev_nll=0.8), patience=1)
    assert not progress.record(measured(3, 0.4, dev_nll=0.1), patience=1)
    assert progress.stopped


def test_progress_survives_being_written() -> None:
    progress = Progress(step=3)
    progress.record(measured(3, 0.5), patience=1)
    assert Progress.model_validate_json(progress.model_dump_json()) == progress
