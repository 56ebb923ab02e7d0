"""`libra train`: makes the bundled guard `libra-tiny` from public data.

    libra train --data DATA --out worker/guards/libra_tiny

DATA holds cold_train.jsonl, cold_dev.jsonl (thu-coai/COLDataset) and jade_medium.json (whitzard-ai/jade-db v3.0) as
Libra Bench records. The command trains the tokenizer and the model, measures the checkpoint as it is served, and
writes its model card from the figures. About half an hour on two CPU cores. The same data and seed give the same
rows, order and starting weights.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of cold_train.jsonl, cold_dev.jsonl and jade_medium.json.",
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="The checkpoint's folder.")
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="Passes over the rows.")
@click.option("--seed", type=int, default=20260101, show_default=True, help="Decides every draw of the run.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="CPU threads.")
@click.option(
    "--also",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A further data set to measure on. Repeatable.",
)
def train(*, data: Path, out: Path, epochs: int, seed: int, threads: int, also: tuple[Path, ...]) -> None:
    """Train the small bundled guard from scratch and write its model card."""
    from worker.training.build import build_guard  # noqa: PLC0415 - torch takes seconds to import
    from worker.training.train import Recipe  # noqa: PLC0415

    recipe = Recipe(epochs=epochs, seed=seed, threads=threads)
    build_guard(data, out, recipe, also, click.echo)
