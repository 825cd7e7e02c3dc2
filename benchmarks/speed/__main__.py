"""`python -m benchmarks.speed run` measures and prints; `python -m benchmarks.speed report` makes the table again."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.speed import report, results
from benchmarks.speed.plan import Group, Options, groups
from benchmarks.speed.race import ROOT, Lost, Race, Result
from benchmarks.speed.start_up import start_up

console = Console(width=None if sys.stdout.isatty() else 200)


def machine() -> dict[str, Any]:
    """What is measured on; asked in another process, since to import torch here would count in every child."""
    asked = [sys.executable, "-m", "benchmarks.speed.machine"]
    told: dict[str, Any] = json.loads(
        subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )
    return told


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, print the table and keep the results")
    size = run.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="tiny sizes: does everything work? Keeps nothing")
    size.add_argument("--full", action="store_true", help="compiled rows on a CPU, too, which take long")
    run.add_argument("--device", choices=["cpu", "cuda"], help="the GPU where there is one, unless told otherwise")
    run.add_argument("--precision", nargs="+", choices=["float32", "tf32", "bf16"], help="instead of all")
    run.add_argument("--row", nargs="+", metavar="ROW", help="only these rows, as in --row train_step sample_step")
    run.add_argument("--force-bf16", action="store_true", help="bf16 also where the processor has to emulate it")
    run.add_argument("--rounds", type=int, help="how often each takes its turn (5; with --quick 2)")
    run.add_argument("--out", type=Path, help="the file of results, instead of benchmarks/results/DATE-DEVICE.json")
    made = commands.add_parser("report", help="the table of some results")
    made.add_argument("results", type=Path, nargs="*", help="files of benchmarks/results/")
    made.add_argument("--into", type=Path, help="put the tables between the two marks of this document")
    return parser.parse_args()


def options(asked: argparse.Namespace, found: dict[str, Any]) -> tuple[Options, list[str]]:
    """What to measure, and notes on what is left out."""
    device = asked.device or ("cuda" if "gpu" in found["machine"] else "cpu")
    precisions = asked.precision or (["tf32", "bf16"] if device == "cuda" else ["float32", "bf16"])
    notes = []
    if "bf16" in precisions and not asked.force_bf16 and not found["machine"]["native_bf16"][device]:
        precisions = [precision for precision in precisions if precision != "bf16"]
        notes.append("No rows in bf16: this processor does not multiply it natively (--force-bf16 measures it).")
    chosen = Options(
        device=device,
        precisions=precisions,
        compiled=asked.full or (device == "cuda" and not asked.quick),
        quick=asked.quick,
        rounds=asked.rounds or (2 if asked.quick else 5),
        seconds=0.02 if asked.quick else 0.5,
        patience=300 if asked.quick else 3600,
    )
    return chosen, notes


def only(group: Group, rows: list[str] | None) -> Group:
    """The group with no other rows than these."""
    tasks = [task for task in group.tasks if rows is None or task in rows]
    return Group(group.problem, group.device, group.precision, group.contenders, tasks)


def race(group: Group, chosen: Options) -> Result:
    """One group, told about while it runs."""
    what = f"{group.problem.model}, {group.precision}: {', '.join(group.tasks)}"
    console.print(f"[bold]{what}[/bold] ({len(group.contenders)} contenders)")
    return Race(group, chosen).run()


def run(asked: argparse.Namespace) -> int:
    """Measure everything; 1 if a contender failed."""
    found = machine()
    chosen, notes = options(asked, found)
    console.print(f"load before: {os.getloadavg()[0]:.2f}; what else works on this machine makes the times worthless")
    wanted = [only(group, asked.row) for group in groups(chosen)]
    finished = [race(group, chosen) for group in wanted if group.tasks]
    more, failed = [], {}
    if asked.row is None or "start_up" in asked.row:
        try:
            more = start_up(chosen.quick, chosen.rounds)
        except Lost as loss:
            failed["start_up"] = str(loss)
    content = results.kept(finished, more, found, notes)
    content["failed"] |= failed
    report.show(content, console)
    if asked.out or not asked.quick:
        path = asked.out or results.place(content, chosen.device)
        results.write(content, path)
        console.print(f"kept in {path}")
    return 1 if content["failed"] else 0


def main() -> None:
    asked = arguments()
    if asked.command == "run":
        sys.exit(run(asked))
    if asked.into:
        report.into(asked.into, asked.results)
    else:
        for path in asked.results:
            report.show(report.read(path), console)


if __name__ == "__main__":
    main()
