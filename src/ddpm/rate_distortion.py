"""Progressive coding: what a receiver knows after so many bits (Ho et al. 2020, Sec. 4.3, Table 4, Figure 5).

Once x_t has been sent, at a rate of L_T + ... + L_t bits/dim, the receiver's estimate of x_0 errs by the
distortion, here the root mean squared error on the scale of 0 to 255.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.whole import whole, write_csv

COLUMNS = ("reverse process time T - t + 1", "rate (bits/dim)", "distortion (RMSE on 0..255)")
Details = Mapping[str, Any]  # of numpy arrays


def rate_and_distortion(details: Details) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rate and distortion at t = 1, ..., T, from the terms of the bound (see `BitsPerDim.details`)."""
    later = details["bits_per_dim"][::-1].cumsum()[::-1] - details["bits_per_dim"]  # L_t + ... + L_{T-1}
    return details["L_T"] + later, 127.5 * np.sqrt(details["x_0_mse"])


def table(details: Details) -> list[tuple[int, float, float]]:
    """The rows of the paper's Table 4: ten times, evenly spaced, the whole rate first."""
    rate, distortion = rate_and_distortion(details)
    T = len(rate)
    times = sorted({T - max(1, round(T * k / 10)) + 1 for k in range(1, 11)})
    return [(T - t + 1, float(rate[t - 1]), float(distortion[t - 1])) for t in times]


def write(details: Details, stem: Path) -> list[Path]:
    """`stem`.npz with every term; where all are known, `stem`.csv with the table and `stem`.png with the figure."""
    paths = [stem.with_suffix(suffix) for suffix in (".npz", ".csv", ".png")]
    stem.parent.mkdir(parents=True, exist_ok=True)
    with whole(paths[0]) as part, part.open("wb") as file:
        np.savez(file, **details)
    if not np.isfinite(details["bits_per_dim"]).all():
        return paths[:1]
    write_csv([COLUMNS, *table(details)], paths[1])
    plot(details, paths[2])
    return paths


def plot(details: Details, path: Path) -> None:
    """Distortion and rate over the reverse process, and one over the other."""
    from matplotlib.figure import Figure

    rate, distortion = rate_and_distortion(details)
    elapsed = np.arange(len(rate), 0, -1)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, x, y, labels in (
        (panels[0], elapsed, distortion, ("reverse process time $T - t + 1$", "distortion (RMSE on 0 to 255)")),
        (panels[1], elapsed, rate, ("reverse process time $T - t + 1$", "rate (bits/dim)")),
        (panels[2], rate, distortion, ("rate (bits/dim)", "distortion (RMSE on 0 to 255)")),
    ):
        axes.plot(x, y, color="#2a5a8c")
        axes.set(xlabel=labels[0], ylabel=labels[1], ylim=(0, None), xlim=(0, None))
        axes.grid(alpha=0.3)
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=120)
