"""A table from files of results, for a terminal and for docs/performance.md."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BEGIN, END = "<!-- made by `make bench-table` -->", "<!-- end of what is made -->"
EMPTY = "Nothing has been measured yet."
SHORT = {"diffusers": "diffusers", "denoising-diffusion-pytorch": "d-d-p"}
Row = Mapping[str, Any]
Content = Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def columns(rows: Sequence[Row]) -> list[str]:
    """The peers that any row has, in order."""
    return list(dict.fromkeys(peer for row in rows for peer in row["peers"]))


def header(rows: Sequence[Row]) -> list[str]:
    peers = [f"÷ {short(peer)}" for peer in columns(rows)]
    return ["row", "model", "precision", "ours", *peers, "time ÷ floor", "of peak", "MB"]


def short(peer: str) -> str:
    """A peer's label, as it fits above a column."""
    for long, word in SHORT.items():
        peer = peer.replace(long, word)
    return peer


def line(row: Row, peers: Sequence[str]) -> list[str]:
    """A row's cells."""
    how = " compiled" if row.get("compiled") else ""
    return [
        row["row"],
        row["model"],
        f"{row['precision'] or ''}{how}",
        f"{row['ours']:.3g} {row['unit']}{supply(row)}",
        *(ratio(row, peer) for peer in peers),
        times(row["floor_ratio"], quartiles(row, "floor")),
        "" if row.get("share_of_peak") is None else f"{row['share_of_peak']:.0%}",
        str(row["peak_memory_mb"]),
    ]


def supply(row: Row) -> str:
    """Beside a loader's rate, how many times it is what training consumes."""
    found = row.get("times_training")
    return "" if found is None else f" ({found:.3g} × training)"


def ratio(row: Row, peer: str) -> str:
    """How many times a peer's rate ours is; per operation too, where theirs is another network."""
    if peer not in row["peers"]:
        return ""
    paired = row.get("ratios", {}).get(peer)
    rates = paired["median"] if paired else row["ours"] / row["peers"][peer]
    shown = times(rates, quartiles(row, peer))
    counted = row.get("flops_per_image", {})
    if peer.startswith("diffusers") or not {"ours", peer} <= set(counted):
        return shown
    return f"{shown} ({rates * counted['ours'] / counted[peer]:.2f} per FLOP)"


def quartiles(row: Row, name: str) -> Sequence[float]:
    """Of a ratio over its rounds; none where the two did not race together, whose medians alone are compared."""
    found: Sequence[float] = row.get("ratios", {}).get(name, {}).get("quartiles", [])
    return found


def times(value: float | None, between: Sequence[float] = ()) -> str:
    """A ratio, and what half of its rounds lie between."""
    shown = "" if value is None else f"{value:.2f}"
    return f"{shown} [{', '.join(f'{edge:.2f}' for edge in between)}]" if between else shown


def heading(content: Content) -> str:
    """What was measured on, and with what."""
    machine, versions = content["machine"], content["versions"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['cores']} cores ({machine['instructions']})"
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "ddpm")
    commit, _, changed = (content["commit"] or "unknown").partition("-")
    state = f"commit {commit[:12]}{' with changes' if changed else ''}"
    return f"{where}; {content['date'][:10]}, {state}; {told}."


def peaks(content: Content) -> str:
    """One sentence a precision."""
    found = content.get("peaks_gflops", {})
    return " ".join(
        f"Peaks in {precision}: {', '.join(f'{name} {rate:,.0f} GFLOP/s' for name, rate in rates.items())}."
        for precision, rates in found.items()
    )


def best_settings(content: Content) -> str:
    """Which setting of each peer was its best, task by task."""
    chosen = {
        f"{short(peer)}, {row['row']} in {row['precision']}: {row['settings'][peer]}"
        for row in content["rows"]
        for peer in row.get("peers", {})
        if "best" in peer or "compiled" in peer
    }
    return f"Best settings: {'; '.join(sorted(chosen))}." if chosen else ""


def compile_times(content: Content) -> str:
    """What the first step of everything compiled took, which is no part of a rate."""
    took = [
        f"{short(who)}, {row['row']} in {row['precision']} ({row['settings'][who]}): {seconds:,.0f} s"
        for row in content["rows"]
        if row.get("compiled")
        for who, seconds in row["first_step_seconds"].items()
        if who == "ours" or "compiled" in who
    ]
    return f"First steps, with compiling: {'; '.join(took)}." if took else ""


def remarks(content: Content) -> list[str]:
    """What a reader has to know beside the table."""
    failed = [f"{name} failed: {said}" for name, said in content.get("failed", {}).items()]
    found = (peaks(content), best_settings(content), compile_times(content), *content.get("notes", []), *failed)
    return [text for text in found if text]


def markdown(files: Sequence[Path]) -> str:
    """A section for each file, the table between its machine and its remarks."""
    return "\n\n".join(section(path) for path in files) or EMPTY


def section(path: Path) -> str:
    content = read(path)
    rows = content["rows"]
    head, peers = header(rows), columns(rows)
    lines = [head, ["---"] * len(head), *(line(row, peers) for row in rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([f"`{path.name}`: {heading(content)}", table, *remarks(content)])


def into(document: Path, files: Sequence[Path]) -> None:
    """Put the sections between the two marks of a document."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{document} has no lines {BEGIN} and {END} for the table to stand between.")
    document.write_text(f"{before}{BEGIN}\n\n{markdown(files)}\n\n{END}{after}")


def made_from(document: Path) -> tuple[list[str], str]:
    """The files that a document's sections are made from, and what stands between its marks."""
    made = document.read_text().partition(BEGIN)[2].partition(END)[0].strip()
    return re.findall(r"^`([\w.-]+\.json)`: ", made, flags=re.MULTILINE), made


def show(content: Content, console: Console) -> None:
    """The table in a terminal."""
    rows = content["rows"]
    table = Table(*header(rows), title=heading(content))
    for row in rows:
        table.add_row(*line(row, columns(rows)))
    console.print(table)
    for remark in remarks(content):
        console.print(remark, highlight=False)
