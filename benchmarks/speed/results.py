"""The file of results: what was measured, task by task, and the rows that are made of it."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.speed import rows
from benchmarks.speed.plan import SCORES, Contender, Group
from benchmarks.speed.race import ROOT, Result, Timing

FOLDER = ROOT / "benchmarks" / "results"
FORWARDS = {"sample_step": 1, "ddim50": 50}  # calls of the network for each image
TRAINED = ("train_step", "train_loop", "epoch")
SAME = ("commit", "versions")  # of what is put together in one file
HOST = {"load_before": None, "memory_gb": None, "system": None}  # in which two machines of one kind may differ
Record = dict[str, Any]


def record(result: Result) -> Record:
    """A task of a group as it is kept: the seconds of a step in each round of each contender.

    `asked` are all who were to take part; who cannot do the task, or failed, is not among the contenders.
    """
    group, task = result.group, result.task
    return key(group, task) | {
        "unit": "images/s",
        "batch": group.problem.images(task),
        "asked": [contender.name for contender in group.contenders],
        "contenders": {name: taken(result, timing) for name, timing in result.timings.items()},
    }


def key(group: Group, task: str) -> Record:
    """What makes records belong to one row."""
    model = task if task in SCORES else group.problem.model
    return {"row": task, "model": model, "device": group.device, "precision": group.precision}


def taken(result: Result, timing: Timing) -> Record:
    """What a contender took."""
    contender = timing.contender
    return {
        "label": contender.label,
        "setting": contender.setting.name,
        "compiled": bool(contender.setting.compiled),
        "first_step_seconds": timing.first,
        "seconds": timing.seconds,
        "peak_memory_mb": round(timing.peak_memory_mb),
        "flops": work(result, contender),
    }


def work(result: Result, contender: Contender) -> int | None:
    """Floating-point operations for one image, or of one step of a peak; None where they were not counted."""
    facts, task = result.facts[contender.name], result.task
    counted = facts.get("flops", {})
    each = {name: counted.get("training") for name in TRAINED}
    each |= {name: counted["forward"] * calls for name, calls in FORWARDS.items() if counted}
    operations: int | None = (each | facts.get("operations", {})).get(task)
    return operations


class Book:
    """The results so far, written to their file after each task, so that whoever stops the run loses one at most.

    found   what is measured on, and with what
    notes   on what is left out
    path    of the file; None keeps nothing
    resume  go on with what the file has, if it is there. Raises SystemExit where that comes from elsewhere
    """

    def __init__(self, found: Mapping[str, Any], notes: list[str], path: Path | None, *, resume: bool) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        fresh = {"date": now, **found, "commit": commit(), "seconds": 0.0, "races": [], "notes": notes, "failed": {}}
        self.path, self.since = path, perf_counter()
        self.start = going_on(fresh, json.loads(path.read_text())) if resume and path and path.exists() else fresh
        self.races: list[Record] = self.start["races"]
        self.failed: dict[str, str] = self.start["failed"]

    def has(self, wanted: Record) -> set[str]:
        """Who was asked already to do what such records tell of."""
        return {name for told in self.races if wanted.items() <= told.items() for name in told["asked"]}

    def add(self, told: Record, failures: Mapping[str, str]) -> None:
        """Another record, and who has failed."""
        self.races.append(rounded(told))
        self.failed |= failures
        self.write()

    def content(self) -> dict[str, Any]:
        """All of the file."""
        made = {"peaks_gflops": rows.peaks(self.races), "rows": rows.rows(self.races)}
        total = self.start["seconds"] + perf_counter() - self.since
        told: dict[str, Any] = rounded(self.start | made | {"seconds": total, "failed": self.failed})
        return told | {"races": told.pop("races")}  # the rows first: they are what is read

    def write(self) -> None:
        if self.path is not None:
            write(self.content(), self.path)


def going_on(fresh: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The results of another run, to be gone on with. Raises SystemExit where this one would not belong to it."""
    machines = [content["machine"] | HOST for content in (fresh, before)]
    if "races" not in before or machines[0] != machines[1] or any(fresh[name] != before[name] for name in SAME):
        raise SystemExit("The results there are of another commit, machine or version: give --out, or no --resume.")
    return before | {"notes": list(dict.fromkeys([*before["notes"], *fresh["notes"]]))}


def without_gpu(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be known of a machine whose CPU is measured."""
    kept = {name: value for name, value in machine.items() if name not in ("gpu", "cuda", "cudnn")}
    return kept | {"native_bf16": {"cpu": machine["native_bf16"]["cpu"]}}


def commit() -> str | None:
    """The checkout's, marked where a tracked file but results was changed since; None outside of one or without git."""
    if shutil.which("git") is None:
        return None
    head, changed = git("rev-parse", "HEAD"), git("diff", "--name-only", "HEAD", "--", ".", ":!benchmarks/results")
    return f"{head}{'-dirty' if changed else ''}" or None


def git(*asked: str) -> str:
    """What git says in the checkout; nothing outside of one."""
    told = subprocess.run(["git", *asked], cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip()


def place(found: Mapping[str, Any], device: str) -> Path:
    """benchmarks/results/DATE-DEVICE.json, of today. A cloud gives one name to several generations of processors."""
    machine = found["machine"]
    cpu = "cpu {processor} {instructions} {cores} cores".format_map(machine)
    name = machine["gpu"] if device == "cuda" else cpu
    slug = re.sub(r"\W+", "-", name.lower()).strip("-")
    return FOLDER / f"{datetime.now(UTC):%Y-%m-%d}-{slug}.json"


def write(content: Mapping[str, Any], path: Path) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def rounded(value: Any) -> Any:
    """With floats to five digits: more of them were never measured."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value
