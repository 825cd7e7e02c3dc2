"""Tables of samplers against numbers of steps, all on one checkpoint."""

from collections.abc import Iterable, Mapping, Sequence

from ddpm.tables.published import Grid, Line
from ddpm.tables.running import Checkpoint, Result, among, known, sweep

Cell = tuple[str, int]  # the title of a line, and the number of steps


def score(grid: Grid, checkpoint: Checkpoint, asked: Sequence[str]) -> tuple[Mapping[Cell, Result | None], int]:
    """What is in each cell, and the exit code. The cells that are not scored are, in as few sweeps as they are
    products: two, on a fresh checkpoint. Cells of more steps than the model has are left out."""
    cells = {
        (line.title, steps): arguments(grid, line, [steps], asked)
        for line in grid.lines
        for steps in possible(grid, checkpoint)
    }
    missing = {key for key, one in cells.items() if known(checkpoint, one) is None}
    codes = [sweep("evaluate", [among([checkpoint]), *one]) for one in sweeps(grid, missing, asked)]
    return {key: known(checkpoint, one) for key, one in cells.items()}, max(codes, default=0)


def possible(grid: Grid, checkpoint: Checkpoint) -> list[int]:
    """The numbers of steps that the model has."""
    return [steps for steps in grid.steps if steps <= checkpoint.num_steps]


def arguments(grid: Grid, line: Line, steps: Iterable[int], asked: Sequence[str]) -> list[str]:
    """What evaluate.py is asked of a line at some numbers of steps; `asked`, of all cells alike, has the last word."""
    chosen = ",".join(map(str, steps))
    return [*line.overrides, f"sampler.spacing={grid.spacing}", f"sampler.num_steps={chosen}", *asked]


def sweeps(grid: Grid, missing: Iterable[Cell], asked: Sequence[str]) -> list[list[str]]:
    """The arguments of the sweeps that fill these cells and no others: the lines of one sampler that lack the same
    steps go together."""
    lacking, together = set(missing), dict[tuple[str, tuple[int, ...]], list[Line]]()
    for line in grid.lines:
        steps = tuple(steps for steps in grid.steps if (line.title, steps) in lacking)
        if steps:
            together.setdefault((line.overrides[0], steps), []).append(line)
    return [arguments(grid, merged(lines), steps, asked) for (_, steps), lines in together.items()]


def merged(lines: Sequence[Line]) -> Line:
    """One line that sweeps over the one override that these differ in."""
    columns = [dict.fromkeys(column) for column in zip(*(line.overrides for line in lines), strict=True)]
    swept = [_joined(list(column)) for column in columns]
    return Line(lines[0].title, tuple(swept), ())


def _joined(texts: Sequence[str]) -> str:
    key = texts[0].partition("=")[0]
    return f"{key}=" + ",".join(text.partition("=")[2] for text in texts)
