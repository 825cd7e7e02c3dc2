"""The tables of the papers, at whatever size the machine affords, the published numbers beside ours.

    python -m ddpm.tables table2 --steps 2000 --images 1000 -- data.root=FOLDER
    python -m ddpm.tables table1 --checkpoint runs/table2 --images 1000
    python -m ddpm.tables table_ddim --checkpoint runs/table1/RUN --images 1000

table1 and table2 are those of Ho et al. (2020), table_iddpm is the CIFAR-10 table of Nichol & Dhariwal (2021). Each of
their rows is an experiment of conf/experiment/. They are trained in one sweep of train.py, which goes on where an
earlier one stopped, and scored at their last step in one of evaluate.py. With --checkpoint nothing is trained: the rows
that are there are scored as they are. table_ddim is the CIFAR-10 half of Table 1 of Song et al. (2021),
table_ddim_celeba the other one, for a model of 64x64 faces; each needs a checkpoint.

After a few thousand steps the papers' average of the weights is still mostly the initial ones, and a warm-up of 5,000
steps may not be over. For such runs add, after --, callbacks=[checkpoint,ema_warmup,samples,evaluation,learning_rate,
throughput,finite,progress], and for table1 and table2 lr_schedule.num_steps=N.

The table is written beside the runs, or into the folder of --checkpoint.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ddpm.cli import EXPECTED
from ddpm.tables import grid, rows, running, writing
from ddpm.tables.published import GRIDS, TABLES
from ddpm.whole import whole
from ddpm.wording import sentence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a table and write it; the exit code is that of its sweeps."""
    chosen = parse(arguments)
    try:
        return run_grid(chosen) if chosen.table in GRIDS else run_rows(chosen)
    except EXPECTED as error:
        sys.exit(f"error: {sentence(error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on.")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the user asks for. Exits where it cannot be."""
    parser = argparse.ArgumentParser(
        "python -m ddpm.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=[*TABLES, *GRIDS])
    parser.add_argument("--checkpoint", type=Path, help="a .ckpt, a run's folder, or a folder of runs (not for grids)")
    parser.add_argument("--steps", type=int, help="optimiser steps of each row; the paper's if left out")
    parser.add_argument(
        "--images", type=int, default=50_000, help="samples that a score is of, at most; the paper's are 50000"
    )
    parser.add_argument(
        "extra",
        nargs="*",
        help="overrides, after --: of train.py (those of metric, sampler and trainer hold for scoring too), or with "
        "--checkpoint of evaluate.py",
    )
    chosen = parser.parse_intermixed_args(arguments)
    if chosen.images < 2 or (chosen.steps is not None and chosen.steps < 1):
        parser.error("--steps must be at least 1 and --images at least 2.")
    if chosen.table in GRIDS and chosen.checkpoint is None:
        parser.error(f"{chosen.table} scores a trained model; give --checkpoint.")
    if chosen.checkpoint is not None and chosen.steps is not None:
        print("--steps is not used: with --checkpoint nothing is trained.")
    return chosen


def run_rows(chosen: argparse.Namespace) -> int:
    """Train the rows or take those of --checkpoint, score them, write the table."""
    table, trained = TABLES[chosen.table], 0
    if chosen.checkpoint is not None:
        asked = running.protocol(table.metrics, chosen.images, chosen.extra)
        runs, folder = rows.given(chosen.checkpoint, table.rows), beside(chosen.checkpoint)
    else:
        sweep = rows.training(chosen.table, table.rows, chosen.steps, chosen.images, chosen.extra)
        asked = running.protocol(table.metrics, chosen.images, rows.for_scoring(chosen.extra))
        trained = running.sweep("train", sweep)
        runs, folder = rows.made(sweep), rows.place(sweep)
    if not runs:
        return trained  # nothing could start, and train.py has said why
    ran, scored = rows.score(runs, asked)
    columns, cells = writing.of_rows(table, ran)
    results = [one.result for one in ran.values()]
    notes = [writing.trained(one.told.get("overrides", []) for one in ran.values()), *writing.unripe(ran.values())]
    keep(folder / f"{chosen.table}.md", writing.text(table.source, columns, cells, results, notes))
    return max(trained, scored)


def run_grid(chosen: argparse.Namespace) -> int:
    """Score the cells of a grid on one checkpoint, write the table."""
    table, checkpoint = GRIDS[chosen.table], running.opened(chosen.checkpoint)
    asked = running.protocol(table.metrics, chosen.images, chosen.extra)
    scored, code = grid.score(table, checkpoint, asked)
    columns, cells = writing.of_grid(table, scored)
    left_out = [str(steps) for steps in table.steps if steps not in grid.possible(table, checkpoint)]
    note = f"Left out: S = {', '.join(left_out)}, more than the T = {checkpoint.num_steps} of this checkpoint."
    notes = [*([note] if left_out else []), writing.trained([rows.overrides_of(chosen.checkpoint)])]
    text = writing.text(table.source, columns, cells, scored.values(), notes)
    keep(beside(chosen.checkpoint) / f"{chosen.table}.md", text)
    return code


def beside(checkpoint: Path) -> Path:
    """The folder where a table of given checkpoints is written."""
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def keep(file: Path, text: str) -> None:
    """Write a table, and show it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as part:
        part.write_text(text)
    print(f"{text}\ntable: {file}")


if __name__ == "__main__":
    sys.exit(main())
