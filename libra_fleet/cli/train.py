r"""`libra train`: make a guard by a recipe, or the bundled guard from public data.

    libra train recipes/libra-guard-0.5b.yaml
    accelerate launch --config_file recipes/accelerate/fsdp.yaml \
        --module libra_fleet.cli train recipes/libra-guard-7b.yaml
    libra train --data DATA --out worker/guards/libra_tiny

With `--data` it trains `libra-tiny` from scratch. DATA holds cold_train.jsonl, cold_dev.jsonl (thu-coai/COLDataset) and
jade_medium.json (whitzard-ai/jade-db v3.0) as Libra Bench records. The same data and seed give the same rows, order and
starting weights.
"""

from __future__ import annotations

from pathlib import Path

import click

from infra.errors import UsageError

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("recipe", required=False, type=_FILE)
@click.option("--restart", is_flag=True, help="Throw away what a run has left in the recipe's folder, and start over.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="libra-tiny: folder of cold_train.jsonl, cold_dev.jsonl and jade_medium.json.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="libra-tiny: the checkpoint's folder.")
@click.option("--epochs", type=click.IntRange(min=1), default=1, show_default=True, help="libra-tiny: passes.")
@click.option("--seed", type=int, default=20260101, show_default=True, help="libra-tiny: decides every draw.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="libra-tiny: CPU threads.")
@click.option("--also", multiple=True, type=_FILE, help="libra-tiny: a further set to measure on. Repeatable.")
def train(
    *,
    recipe: Path | None,
    restart: bool,
    data: Path | None,
    out: Path | None,
    epochs: int,
    seed: int,
    threads: int,
    also: tuple[Path, ...],
) -> None:
    """Train a guard by a recipe, and write its model card.

    RECIPE is a YAML file (docs/training.md). The same command resumes an interrupted run.
    Without RECIPE, --data and --out make the small bundled guard from scratch.
    """
    if recipe is not None:
        if data or out:
            raise UsageError("a recipe names its own data and folder; leave --data and --out away")
        from worker.training.recipe import load_recipe  # noqa: PLC0415 - a mistake in it is reported at once

        settings = load_recipe(recipe)
        from worker.training.curriculum import train_guard  # noqa: PLC0415 - torch takes seconds to import

        train_guard(settings, click.echo, restart=restart)
    elif data and out:
        try:  # the maker of the bundled guard is part of the repository, not of the package
            from recipes.libra_tiny.build import build_guard  # noqa: PLC0415
            from recipes.libra_tiny.train import TinyRecipe  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "recipes":
                raise
            raise UsageError("libra-tiny is made from a clone of the repository: make train-tiny") from error

        build_guard(data, out, TinyRecipe(epochs=epochs, seed=seed, threads=threads), also, click.echo)
    else:
        raise UsageError("name a recipe, such as recipes/libra-guard-0.5b.yaml")
