"""From timings to rows, and to the file that keeps them."""

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.speed.plan import PEAKS, Contender
from benchmarks.speed.race import ROOT, Result, Timing

FOLDER = ROOT / "benchmarks" / "results"
FORWARDS = {"sample_step": 1, "ddim50": 50}  # calls of the network for each image
TRAINED = ("train_step", "train_loop", "epoch")
Row = dict[str, Any]


def rows(result: Result) -> list[Row]:
    """Those of a group: one for each of ours (eager, compiled) at each task."""
    peak = max(peaks(result).values(), default=None)
    made = []
    for task, timings in result.timings.items():
        if task in PEAKS:
            continue
        fastest = by_label(timings)
        for label in fastest:
            if label.startswith("ours"):
                made.append(row(result, task, label, fastest, peak))
    return made


def by_label(timings: Iterable[Timing]) -> dict[str, Timing]:
    """The fastest contender of each label."""
    fastest: dict[str, Timing] = {}
    for timing in timings:
        label = timing.contender.label
        if label not in fastest or timing.typical < fastest[label].typical:
            fastest[label] = timing
    return fastest


def row(result: Result, task: str, label: str, fastest: Mapping[str, Timing], peak: float | None) -> Row:
    """Rates in images a second; `floor_ratio` is how many times the floor's time ours takes."""
    group, mine = result.group, fastest[label]
    images = group.problem.images(task)
    floor = fastest.get("floor")
    peers = {name: timing for name, timing in fastest.items() if name != "floor" and not name.startswith("ours")}
    shown = {"ours": mine, **peers}
    operations = {name: work(result, timing.contender, task) for name, timing in shown.items()}
    return {
        "row": task,
        "model": group.problem.model if task not in ("classifier", "inception") else task,
        "device": group.device,
        "precision": group.precision,
        "unit": "images/s",
        "ours": images / mine.typical,
        "peers": {name: images / timing.typical for name, timing in peers.items()},
        "floor_ratio": None if floor is None else mine.typical / floor.typical,
        "peak_memory_mb": round(mine.peak_memory_mb),
        "peers_peak_memory_mb": {name: round(timing.peak_memory_mb) for name, timing in peers.items()},
        "compiled": bool(mine.contender.setting.compiled),
        "batch": images,
        "settings": {name: timing.contender.setting.name for name, timing in shown.items()},
        "first_step_seconds": {name: timing.first for name, timing in shown.items()},
        "flops_per_image": {name: count for name, count in operations.items() if count},
        "share_of_peak": share(operations["ours"], images / mine.typical, peak),
        "rounds": {name: [images / second for second in timing.seconds] for name, timing in shown.items()},
    }


def work(result: Result, contender: Contender, task: str) -> int | None:
    """Floating-point operations of a task for one image, where they were counted."""
    counted = result.facts[contender.name].get("flops")
    if counted is None or task not in (*FORWARDS, *TRAINED):
        return None
    operations: int = counted["training"] if task in TRAINED else counted["forward"] * FORWARDS[task]
    return operations


def share(operations: int | None, rate: float, peak: float | None) -> float | None:
    """Of the machine's own highest rate, that of a large product or convolution."""
    return None if operations is None or peak is None else operations * rate / peak / 1e9


def peaks(result: Result) -> dict[str, float]:
    """GFLOP/s of the large product and convolution."""
    found = {}
    for task in PEAKS:
        for timing in result.timings.get(task, []):
            operations = result.facts[timing.contender.name]["operations"][task]
            found[task] = operations / timing.typical / 1e9
    return found


def times_training(made: list[Row]) -> None:
    """Tell each row of a loader how many times it delivers what training consumes."""
    for loader in (row for row in made if row["row"] == "loader"):
        consumers = [row["ours"] for row in made if row["row"] in TRAINED and row["model"] == loader["model"]]
        loader["times_training"] = loader["ours"] / max(consumers) if consumers else None


def kept(results: Iterable[Result], more: list[Row], machine: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The content of a file."""
    results = list(results)
    made = [row for result in results for row in rows(result)] + more
    times_training(made)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine,
        "commit": commit(),
        "peaks_gflops": {r.group.precision: found for r in results if (found := peaks(r))},
        "rows": made,
        "notes": notes,
        "failed": {name: said for result in results for name, said in result.failures.items()},
    }


def commit() -> str | None:
    """The checkout's, marked where it was changed since; None outside of one."""
    asked = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or None


def place(content: Mapping[str, Any], device: str) -> Path:
    """benchmarks/results/DATE-DEVICE.json."""
    machine = content["machine"]
    name = machine["gpu"] if device == "cuda" else f"cpu {machine['processor']} {machine['cores']} cores"
    slug = re.sub(r"\W+", "-", name.lower()).strip("-")
    return FOLDER / f"{content['date'][:10]}-{slug}.json"


def write(content: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(content), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """With floats to five digits: more of them were never measured."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value
