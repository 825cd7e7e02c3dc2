"""`python -m benchmarks.speed run` measures and prints; `python -m benchmarks.speed report` makes the table again."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.speed import report, results
from benchmarks.speed.plan import Group, Options, groups
from benchmarks.speed.race import ROOT, Lost, Race
from benchmarks.speed.results import Book
from benchmarks.speed.start_up import start_up

console = Console(width=None if sys.stdout.isatty() else 200)
Names = tuple[str, ...]
LEAST = 5  # rounds of what is kept


def machine() -> dict[str, Any]:
    """What is measured on; asked in another process, since to import torch here would count in every child."""
    load = round(os.getloadavg()[0], 2)
    asked = [sys.executable, "-m", "benchmarks.speed.machine"]
    told: dict[str, Any] = json.loads(
        subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )
    told["machine"]["load_before"] = load
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
    run.add_argument(
        "--contender", nargs="+", metavar="WORD", help="only whose name has one of these, beside our own eager one"
    )
    run.add_argument("--resume", action="store_true", help="go on with the file of results, where there is one")
    run.add_argument("--force-bf16", action="store_true", help="bf16 also where the processor has to emulate it")
    run.add_argument("--rounds", type=int, help="how often each takes its turn (5; with --quick 2)")
    run.add_argument("--out", type=Path, help="the file of results, instead of benchmarks/results/DATE-DEVICE.json")
    made = commands.add_parser("report", help="the table of some results")
    made.add_argument("results", type=Path, nargs="*", help="files of benchmarks/results/")
    made.add_argument("--into", type=Path, help="put the tables between the two marks of this document")
    return parser.parse_args()


def refuse(asked: argparse.Namespace, told: dict[str, Any]) -> None:
    """Raises SystemExit for what cannot be measured."""
    if asked.device == "cuda" and "gpu" not in told:
        raise SystemExit("--device cuda: PyTorch finds no GPU of CUDA here; leave it out.")
    if "tf32" in (asked.precision or []) and not on_gpu(asked, told):
        raise SystemExit("--precision tf32 is of GPUs; a CPU has float32 and bf16.")
    if (asked.rounds or LEAST) < LEAST and not asked.quick:
        raise SystemExit(f"--rounds {asked.rounds}: a median of fewer than {LEAST} is not kept; take --quick, or more.")


def refuse_unknown(asked: argparse.Namespace, every: Sequence[Group]) -> None:
    """Raises SystemExit for a row, or a word of contenders, that is nobody's."""
    rows = {task for group in every for task in group.tasks} | {"start_up"}
    if unknown := set(asked.row or []) - rows:
        raise SystemExit(
            f"--row {' '.join(sorted(unknown))}: there are {', '.join(sorted(rows))}, and more with --full."
        )
    names = {contender.name for group in every for contender in group.contenders}
    for word in asked.contender or []:
        if not any(word in name for name in names):
            raise SystemExit(
                f"--contender {word}: it is in no name of {', '.join(sorted(names))}; there are more with --full."
            )


def on_gpu(asked: argparse.Namespace, told: dict[str, Any]) -> bool:
    """Is it the GPU of a machine that is measured?"""
    return (asked.device or "cuda") == "cuda" and "gpu" in told


def chosen(asked: argparse.Namespace, told: dict[str, Any]) -> tuple[Options, list[str], list[Group]]:
    """What to measure of a machine, and notes on what is left out and what disturbs. Raises SystemExit where it
    cannot be."""
    refuse(asked, told)
    precisions, notes = native(asked, told)
    if told["load_before"] > told["cores"] / 4:
        notes.append(f"The machine was busy: its load before the run was {told['load_before']}.")
    options = Options(
        device="cuda" if on_gpu(asked, told) else "cpu",
        precisions=precisions,
        compiled=asked.full or (on_gpu(asked, told) and not asked.quick),
        quick=asked.quick,
        rounds=asked.rounds or (2 if asked.quick else LEAST),
        seconds=0.02 if asked.quick else 0.5,
        patience=300 if asked.quick else 3600,
    )
    every = groups(options)
    refuse_unknown(asked, every)
    return options, notes, every


def native(asked: argparse.Namespace, told: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The precisions to measure, and a note on what is left out of them."""
    device = "cuda" if on_gpu(asked, told) else "cpu"
    precisions = asked.precision or (["tf32", "bf16"] if device == "cuda" else ["float32", "bf16"])
    notes = []
    if "bf16" in precisions and not asked.force_bf16 and not told["native_bf16"][device]:
        precisions = [precision for precision in precisions if precision != "bf16"]
        notes.append("No rows in bf16: this processor does not multiply it natively (--force-bf16 measures it).")
    if not precisions:
        raise SystemExit(notes[0])
    return precisions, notes


def left(group: Group, asked: argparse.Namespace, book: Book) -> Iterator[Group]:
    """What is to be measured of a group: the rows and contenders that were asked for and are not in the book.

    Our own eager one takes part again wherever anybody does: ratios are of those who race together.
    """
    words = asked.contender or [""]
    partners = {c.name for c in group.contenders if c.label == "ours"}
    wanted = {c.name for c in group.contenders if any(word in c.name for word in words)} | partners

    def missing(task: str) -> Names:
        """Those names, in order."""
        new = wanted - book.has(results.key(group, task))
        return tuple(c.name for c in group.contenders if new and c.name in new | partners)

    tasks = [task for task in group.tasks if asked.row is None or task in asked.row]
    for names, some in groupby(tasks, missing):
        if names:
            who = [c for c in group.contenders if c.name in names]
            yield Group(group.problem, group.device, group.precision, who, list(some))


def race(group: Group, options: Options, book: Book) -> None:
    """One group, told about while it runs."""
    what = f"{group.problem.model}, {group.precision}: {', '.join(group.tasks)}"
    console.print(f"[bold]{what}[/bold] ({len(group.contenders)} contenders)")
    for result in Race(group, options).run():
        book.add(results.record(result), result.failures)


def starts(options: Options, book: Book) -> None:
    """The rows of starting up."""
    console.print("[bold]start_up[/bold]")
    try:
        for told in start_up(options.quick, options.rounds):
            book.add(told, {})
    except Lost as loss:
        book.failed["start_up"] = str(loss)
        book.write()


def run(asked: argparse.Namespace) -> int:
    """Measure everything; 1 if a contender failed."""
    if asked.quick:  # where nobody looks at times, threads that wait for each other are in everybody's way
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = machine()
    options, notes, every = chosen(asked, found["machine"])
    if options.device == "cpu":
        found["machine"] = results.without_gpu(found["machine"])
    for note in notes:
        console.print(note, style="yellow", highlight=False)
    path = asked.out or (None if options.quick else results.place(found, options.device))
    book = Book(found, notes, path, resume=asked.resume)
    for group in every:
        for some in left(group, asked, book):
            race(some, options, book)
    if (asked.row is None or "start_up" in asked.row) and not book.has({"row": "start_up"}):
        starts(options, book)
    content = book.content()
    report.show(content, console)
    console.print(f"{content['seconds']:.0f} s{f', kept in {path}' if path else ''}", highlight=False)
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
