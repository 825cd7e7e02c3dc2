"""The tables of the papers, run row by row at whatever size the machine affords.

    python -m ddpm.tables table2 --steps 800000 --images 50000 -- data.root=FOLDER

Each row is an experiment of conf/experiment/, trained in one sweep that goes on where an earlier one
stopped; the published numbers stand beside ours.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.runs import status
from ddpm.sweep import markdown

TRAIN = Path(__file__).parents[2] / "train.py"


@dataclass(frozen=True)
class Row:
    """A row of a paper: how it names it, the experiment that is it, and what it reports."""

    title: str
    experiment: str
    published: Mapping[str, str]


def _reported(inception_score: str, fid: str) -> dict[str, str]:
    return {"IS": inception_score, "FID": fid}


TABLES: Mapping[str, Sequence[Row]] = {
    "table2": [  # Ho et al. (2020), Table 2: CIFAR-10, the minimum over training, 50,000 samples
        Row(
            "mu_tilde, L, learned diagonal",
            "ho2020_cifar10_mean_vlb_learned",
            _reported("7.28±0.10", "23.69"),
        ),
        Row("mu_tilde, L, fixed isotropic", "ho2020_cifar10_mean_vlb_fixed", _reported("8.06±0.09", "13.22")),
        Row("mu_tilde, squared error", "ho2020_cifar10_mean_simple", _reported("–", "–")),
        Row("eps, L, learned diagonal", "ho2020_cifar10_epsilon_vlb_learned", _reported("–", "–")),
        Row("eps, L, fixed isotropic", "ho2020_cifar10_epsilon_vlb_fixed", _reported("7.67±0.13", "13.51")),
        Row("eps, squared error (L_simple)", "ho2020_cifar10", _reported("9.46±0.11", "3.17")),
    ]
}


def sweep_command(name: str, rows: Sequence[Row], common: Sequence[str]) -> list[str]:
    """One multirun over the experiments of a table."""
    return [
        sys.executable,
        str(TRAIN),
        "-m",
        "experiment=" + ",".join(row.experiment for row in rows),
        f"name={name}",
        "resume=auto",
        *common,
    ]


def found(folder: Path, row: Row, common: Sequence[str]) -> dict[str, Any]:
    """How the run of a row with these overrides ended."""
    told = [status(file.parent) for file in sorted(folder.glob("*/status.json"))]
    wanted = {f"experiment={row.experiment}", *common}
    mine = [one for one in told if wanted <= set(one["overrides"])]
    return mine[-1] if mine else {"state": "not run", "scores": {}}


def table(folder: Path, rows: Sequence[Row], common: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Published numbers and ours, side by side."""
    results = [found(folder, row, common) for row in rows]
    scores = list(dict.fromkeys(name for result in results for name in result.get("scores", {})))
    published = list(dict.fromkeys(name for row in rows for name in row.published))
    columns = ["row", *(f"{name} (published)" for name in published), *(f"{name} (ours)" for name in scores)]
    cells = [
        [row.title]
        + [row.published.get(name, "") for name in published]
        + [_number(result, name) for name in scores]
        + [f"{result['state']} {result.get('reason') or ''}".strip()]
        for row, result in zip(rows, results, strict=True)
    ]
    return [*columns, "state"], cells


def _number(result: Mapping[str, Any], name: str) -> str:
    value = result.get("scores", {}).get(name)
    return "" if value is None else f"{value:.4g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a table and write it beside its runs; the exit code is that of the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--steps", type=int, required=True, help="optimiser steps of each row")
    parser.add_argument("--images", type=int, required=True, help="samples that each row is scored on")
    parser.add_argument("extra", nargs="*", help="overrides for all rows")
    chosen = parser.parse_intermixed_args(arguments)
    if chosen.steps < 1 or chosen.images < 2:
        parser.error("--steps must be at least 1 and --images at least 2.")
    common = [f"trainer.max_steps={chosen.steps}", f"callbacks.evaluation.num_images={chosen.images}", *chosen.extra]
    rows, folder = TABLES[chosen.table], Path("runs") / chosen.table
    done = subprocess.run(sweep_command(chosen.table, rows, common), check=False)
    columns, cells = table(folder, rows, common)
    protocol = f"{chosen.steps:,} steps, {chosen.images:,} samples a row, last step. {' '.join(chosen.extra)}".strip()
    text = f"{markdown(columns, cells)}\nOurs: {protocol}\n"
    (folder / f"{chosen.table}.md").write_text(text)
    print(text)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
