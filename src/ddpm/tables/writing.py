"""A table as Markdown: the published numbers, ours beside them, and the protocol of ours below."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ddpm.sweep import markdown
from ddpm.tables.grid import Cell
from ddpm.tables.published import UNCHECKED, Grid, Table
from ddpm.tables.rows import Ran
from ddpm.tables.running import Result

Lines = list[list[str]]
_RIPE = 0.01  # share of the initial weights in an average that they no longer show in


def of_rows(table: Table, ran: Mapping[str, Ran]) -> tuple[list[str], Lines]:
    """Columns and cells of a table whose rows are runs."""
    published = list(dict.fromkeys(name for row in table.rows for name in row.published))
    names = measured(one.result for one in ran.values())
    ours = [f"{name} (ours)" for name in names]
    columns = ["row", *(f"{name} (published)" for name in published), *ours, "state"]
    cells = [
        [row.title]
        + [row.published.get(name, "") for name in published]
        + [number(ran[row.experiment].result if row.experiment in ran else None, name) for name in names]
        + [state(ran.get(row.experiment))]
        for row in table.rows
    ]
    return columns, cells


def of_grid(grid: Grid, scored: Mapping[Cell, Result | None]) -> tuple[list[str], Lines]:
    """Columns and cells of a grid: for each number of steps the published score and ours."""
    names = measured(scored.values())
    columns, cells = ["S"], [[line.title] for line in grid.lines]
    for place, steps in enumerate(grid.steps):
        columns += [f"{steps}: {grid.reports} (published)", *(f"{steps}: {name} (ours)" for name in names)]
        for line, row in zip(grid.lines, cells, strict=True):
            row += [line.published[place], *(number(scored.get((line.title, steps)), name) for name in names)]
    return columns, cells


def measured(results: Iterable[Result | None]) -> list[str]:
    """The names of the metrics of these results, which say on what features they are."""
    return list(dict.fromkeys(name for result in results if result for name in result["protocol"]["metrics"]))


def number(result: Result | None, name: str) -> str:
    """A score, with its deviation over splits where it has one."""
    scores = result["scores"] if result else {}
    if name not in scores:
        return ""
    deviation = scores.get(f"{name}_std")
    return f"{scores[name]:.4g}" + (f"±{deviation:.2g}" if deviation is not None else "")


def state(one: Ran | None) -> str:
    """How a row's run ended, why, and how far it came."""
    if one is None:
        return "not run"
    steps = f"step {one.checkpoint.step:,}" if one.checkpoint else ""
    scored = "" if one.result else "not scored"
    reason = (one.told.get("reason") or "").rstrip(".")
    return ", ".join(text for text in (one.told.get("state", ""), steps, scored, reason) if text)


def text(
    source: str, columns: Sequence[str], cells: Lines, results: Iterable[Result | None], notes: Iterable[str]
) -> str:
    """The whole file."""
    unchecked = any(cell.endswith(UNCHECKED) for row in cells for cell in row)
    dagger = [f"{UNCHECKED} from memory, not compared with the paper."] if unchecked else []
    below = [f"Published: {source}", *dagger, *notes, "Ours:"]
    body = "\n\n".join(below) + "\n\n" + "".join(f"- {line}\n" for line in protocol([one for one in results if one]))
    return f"{markdown(columns, cells)}\n{body}"


def unripe(ran: Iterable[Ran]) -> list[str]:
    """A remark on runs that were too short for their average of the weights."""
    share = max((one.checkpoint.initial for one in ran if one.checkpoint), default=0.0)
    told = (
        f"The averaged weights, which are what is scored, are still {share:.0%} the initial ones: such short runs want "
        "an average with a warm-up (ema_warmup among callbacks)."
    )
    return [told] if share > _RIPE else []


def trained(overrides: Iterable[Sequence[str]]) -> str:
    """What runs were started with, beside their experiments."""
    chosen = [" ".join(text for text in one if not text.startswith("experiment=")) for one in overrides]
    return "Trained with: " + (" / ".join(dict.fromkeys(text for text in chosen if text)) or "nothing changed") + "."


def protocol(results: Sequence[Result]) -> list[str]:
    """What the results were measured with, a line a subject; where they differ, all values."""
    if not results:
        return ["nothing was measured."]
    subjects = [one["protocol"] | one["protocol"]["metrics"] for one in results]
    names = dict.fromkeys(key for subject in subjects for key in subject if key != "metrics")
    told = [f"{name}: {differing([one[name] for one in subjects if name in one])}" for name in names]
    versions = differing([one["versions"] for one in results])
    return [*told, f"versions: {versions}", f"commit: {differing([one['commit'] for one in results])}"]


def differing(values: Sequence[Any]) -> str:
    """The different ones of some values; of mappings, those of each key."""
    nodes = [value for value in values if isinstance(value, dict)]
    keys = dict.fromkeys(key for node in nodes for key in node)
    parts = [_entry(key, differing([node[key] for node in nodes if key in node])) for key in keys]
    plain = dict.fromkeys(json.dumps(value, ensure_ascii=False) for value in values if not isinstance(value, dict))
    return " / ".join([*([", ".join(parts)] if parts else []), *(one.strip('"') for one in plain)])


def _entry(key: str, told: str) -> str:
    if key == "_target_":
        return " / ".join(name.rpartition(".")[2] for name in told.split(" / "))
    return f"{key}={told}"
