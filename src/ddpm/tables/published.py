"""What the papers print, and which experiment of conf/experiment/ each row is.

A cell that ends in a dagger is from memory: it was not compared with the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass

UNCHECKED = "†"


@dataclass(frozen=True)
class Row:
    """A row of a paper: how it names it, the experiment that is it, and what it reports."""

    title: str
    experiment: str
    published: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """Rows that are trained, each for itself; `metrics` are those of conf/metric/ that the paper reports."""

    source: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Line:
    """A row of a grid: what it overrides of evaluate.py, and the published score at each number of steps."""

    title: str
    overrides: tuple[str, ...]
    published: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """Samplers (rows) against numbers of steps (columns), on one checkpoint."""

    source: str
    reports: str
    metrics: tuple[str, ...]
    spacing: str
    steps: tuple[int, ...]
    lines: tuple[Line, ...]


def _scores(inception_score: str, fid: str, **likelihood: str) -> dict[str, str]:
    return {"IS": inception_score, "FID": fid} | {f"NLL {split}": number for split, number in likelihood.items()}


def _ablated(nll: str, fid: str) -> dict[str, str]:
    return {"NLL": nll, "FID": fid}


TABLES: Mapping[str, Table] = {
    "table1": Table(
        "Ho et al. (2020), Table 1, the rows of DDPM: CIFAR-10, 800,000 steps, the minimum of FID over training, "
        "50,000 samples against the training split; NLL in bits/dim, an upper bound.",
        ("fid", "inception_score", "bits_per_dim", "bits_per_dim_train"),
        (
            Row(
                "L, fixed isotropic Sigma",
                "ho2020_cifar10_epsilon_vlb_fixed",
                _scores("7.67±0.13", "13.51", test="≤3.70", train="3.69"),
            ),
            Row("L_simple", "ho2020_cifar10", _scores("9.46±0.11", "3.17", test="≤3.75", train="3.72")),
        ),
    ),
    "table2": Table(
        "Ho et al. (2020), Table 2: CIFAR-10, 800,000 steps, the minimum of FID over training, 50,000 samples against "
        "the training split; – where training was unstable or samples poor.",
        ("fid", "inception_score"),
        (
            Row("mu_tilde, L, learned diagonal", "ho2020_cifar10_mean_vlb_learned", _scores("7.28±0.10", "23.69")),
            Row("mu_tilde, L, fixed isotropic", "ho2020_cifar10_mean_vlb_fixed", _scores("8.06±0.09", "13.22")),
            Row("mu_tilde, squared error", "ho2020_cifar10_mean_simple", _scores("–", "–")),
            Row("eps, L, learned diagonal", "ho2020_cifar10_epsilon_vlb_learned", _scores("–", "–")),
            Row("eps, L, fixed isotropic", "ho2020_cifar10_epsilon_vlb_fixed", _scores("7.67±0.13", "13.51")),
            Row("eps, squared error (L_simple)", "ho2020_cifar10", _scores("9.46±0.11", "3.17")),
        ),
    ),
    "table_iddpm": Table(
        "Nichol & Dhariwal (2021), schedules and objectives on CIFAR-10: 500,000 steps, 50,000 samples against the "
        "training split, all T steps; NLL in bits/dim of the test split.",
        ("fid", "bits_per_dim"),
        (
            Row("1K, linear, L_simple", "nichol2021_cifar10_1k_linear_simple", _ablated("3.73†", "3.29†")),
            Row("4K, linear, L_simple", "nichol2021_cifar10_4k_linear_simple", _ablated("3.37†", "2.90†")),
            Row("4K, linear, L_hybrid", "nichol2021_cifar10_4k_linear_hybrid", _ablated("3.26†", "3.07†")),
            Row("4K, cosine, L_simple", "nichol2021_cifar10_4k_cosine_simple", _ablated("3.26†", "3.05†")),
            Row("4K, cosine, L_hybrid", "nichol2021_cifar10_4k_cosine_hybrid", _ablated("3.17†", "3.19")),
            Row("4K, cosine, L_vlb", "nichol2021_cifar10_4k_cosine_vlb", _ablated("2.94", "11.47†")),
        ),
    ),
}


def _grid(data: str, spacing: str, published: tuple[tuple[str, ...], ...]) -> Grid:
    """Table 1 of Song et al. (2021): DDIM over eta, x_0 not clipped as in its code, then DDPM with sigma-hat."""
    etas = ("0", "0.2", "0.5", "1")
    ddim = [(f"eta = {eta}", ("sampler=ddim", "sampler.clip=false", f"sampler.eta={float(eta)}")) for eta in etas]
    ancestral = ("sigma-hat (beta)", ("sampler=ancestral", "sampler.clip=true", "sigma=beta"))
    named = [*ddim, ancestral]
    return Grid(
        f"Song et al. (2021), Table 1, {data}: 50,000 samples against the training split.",
        "FID",
        ("fid",),
        spacing,
        (10, 20, 50, 100, 1000),
        tuple(Line(title, chosen, cells) for (title, chosen), cells in zip(named, published, strict=True)),
    )


GRIDS: Mapping[str, Grid] = {
    "table_ddim": _grid(
        "CIFAR-10 (the model of Ho et al. with L_simple)",
        "quadratic",
        (
            ("13.36", "6.84", "4.67", "4.16", "4.04"),
            ("14.04", "7.11", "4.77", "4.25", "4.09"),
            ("16.66", "8.35", "5.25", "4.46", "4.29"),
            ("41.07", "18.36", "8.01", "5.78", "4.73"),
            ("367.43", "133.37", "32.72", "9.99", "3.17"),
        ),
    ),
    "table_ddim_celeba": _grid(
        "CelebA 64x64",
        "leading",
        (
            ("17.33", "13.73", "9.17", "6.53", "3.51"),
            ("17.66", "14.11", "9.51", "6.79", "3.64"),
            ("19.86", "16.06", "11.01", "8.09", "4.28"),
            ("33.12", "26.03", "18.48", "13.93", "5.98"),
            ("299.71", "183.83", "71.71", "45.20", "3.26"),
        ),
    ),
}
