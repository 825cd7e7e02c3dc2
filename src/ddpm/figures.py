"""The figures of docs/math.md, drawn from the objects that train and sample.

    python -m ddpm.figures --out docs/images [--checkpoint runs/ddpm/default]

schedules.png         alpha_bar_t, SNR and beta_tilde_t / beta_t of every schedule of conf/schedule/
weights.png           the weight that every objective of conf/objective/ gives each t
bound.png             the terms L_{t-1} of exact networks on Gaussian data, in bits/dim
bound_checkpoint.png  those of a checkpoint on images of its data

The same versions of the libraries draw the same bytes.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from ddpm.checkpoint import load
from ddpm.diffusion import GaussianDiffusion, Output
from ddpm.errors import Refused
from ddpm.instantiate import make
from ddpm.likelihood import mean_flat, term
from ddpm.noise import Stream, normal
from ddpm.objective import Objective
from ddpm.opening import data_of
from ddpm.prediction import Data, Epsilon, posterior_coefficients
from ddpm.schedule import NoiseSchedule
from ddpm.sigma import Beta, BetaTilde, Sigma
from ddpm.types import Images, Times, times

CONF = Path(__file__).parents[2] / "conf"
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito (2008)
DASHES = ("-", (0, (6, 1.5)), (0, (1.5, 1)))
LABELS = {
    "beta": r"$\sigma_t^2=\beta_t$",
    "beta_tilde": r"$\sigma_t^2=\tilde\beta_t$",
    "learned": r"learned $\sigma^2$",
    "best": r"best $\sigma_t^2$",
}


def choices(group: str) -> Iterator[tuple[str, Any]]:
    """Name and object of every YAML of a group."""
    for path in sorted((CONF / group).glob("*.yaml")):
        yield path.stem, make(OmegaConf.to_container(OmegaConf.load(path)), group)


def schedules() -> dict[str, NoiseSchedule]:
    """Every schedule of conf/schedule/, over the T of its YAML."""
    return {name: NoiseSchedule(betas) for name, betas in choices("schedule")}


def all_times(schedule: NoiseSchedule, first: int = 1) -> Times:
    """first, ..., T: (T - first + 1, 1)."""
    return torch.arange(first, schedule.num_steps + 1).reshape(-1, 1)


# The terms of the bound


@dataclass(frozen=True)
class Terms:
    """L_{t-1} at some times in the mean over images, bits/dim: for each sigma a tensor like `t`."""

    title: str
    t: Tensor
    by_sigma: Mapping[str, Tensor]


class ExactNetwork(nn.Module):
    """E[x_0 | x_t] for x_0 ~ N(0, v I): what a perfect x_0-prediction says."""

    def __init__(self, schedule: NoiseSchedule, v: float) -> None:
        super().__init__()
        self.schedule, self.v = schedule, v

    def forward(self, x_t: Images, time: Tensor) -> Images:
        t = times(time + 1, x_t)
        signal = self.schedule.alpha_bar(t) * self.v
        gain: Tensor = signal.sqrt() * self.v**0.5 / (signal + self.schedule.noise_var(t))
        return gain.to(x_t) * x_t


def gaussian_terms(schedule: NoiseSchedule, v: float, title: str) -> Terms:
    """The terms for t = 2, ..., T of the exact network for x_0 ~ N(0, v I), which has no levels and so no L_0.

    A KL is quadratic in (x_0, eps): the four points (+-sqrt(v), +-1) give its expectation exactly.
    """
    t = all_times(schedule, 2)
    points = torch.tensor(list(product((-1.0, 1.0), repeat=2)), dtype=torch.float64).repeat(len(t), 1)
    diffusion = GaussianDiffusion(ExactNetwork(schedule, v), schedule, Beta(), Data(), 256)
    rows = terms_and_error(diffusion, v**0.5 * points[:, :1], t.repeat_interleave(4, 0), points[:, 1:], clip=False)
    return with_best(title, schedule, t, {name: row.reshape(-1, 4).mean(1) for name, row in rows.items()})


def checkpoint_terms(path: str, num_images: int) -> Terms:
    """The terms for t = 1, ..., T of a checkpoint's averaged weights on the first test images of its data."""
    loaded = load(path)
    data, schedule = data_of(loaded, {}), loaded.diffusion.schedule
    index = torch.arange(min(num_images, len(data.load("test"))))
    x_0, t = data.batch("test", index).images, all_times(schedule)
    every: dict[str, list[Tensor]] = {}
    for step in t.flatten().tolist():
        eps = normal(0, Stream.BOUND, index, step, x_0.shape[1:])
        for name, row in terms_and_error(loaded.diffusion, x_0, times(step, x_0), eps, clip=True).items():
            every.setdefault(name, []).append(row.double().mean())
    title = f"{loaded.facts.name}, step {loaded.step:,}, {len(index)} images"
    return with_best(title, schedule, t, {name: torch.stack(rows) for name, rows in every.items()})


@torch.no_grad()
def terms_and_error(diffusion: GaussianDiffusion, x_0: Images, t: Times, eps: Images, clip: bool) -> dict[str, Tensor]:
    """Of one network call: each image's term (b,) under each fixed sigma and the model's own learned one,
    and its mean squared "error" of x_0 (b,)."""
    sigmas: dict[str, Sigma] = {"beta": Beta(), "beta_tilde": BetaTilde()}
    if diffusion.sigma.learned:
        sigmas["learned"] = diffusion.sigma
    x_t = diffusion.q(x_0, t, t * 0).sample(eps)
    output = diffusion(x_t, t)
    found = {name: term(diffusion.with_sigma(s), output, x_0, x_t, t, clip) for name, s in sigmas.items()}
    return found | {"error": mean_flat((x_0 - diffusion.x_0(output, x_t, t, clip)).square())}


def with_best(title: str, schedule: NoiseSchedule, t: Times, rows: dict[str, Tensor]) -> Terms:
    """The terms, and the least that one variance for all pixels of time t allows the same means: its
    variance is beta_tilde + of_x_0^2 error. At t = 1 there is no KL to minimise, hence nan."""
    of_x_0, _ = posterior_coefficients(schedule, t, t - 1)
    excess = (of_x_0.square() / schedule.beta_tilde(t, t - 1)).flatten() * rows.pop("error")
    best = torch.where(t.flatten() == 1, torch.nan, 0.5 * torch.log2(1 + excess))
    return Terms(title, t.flatten(), rows | {"best": best})


# The weights of the objectives


def weight(objective: Objective, schedule: NoiseSchedule, sigma: Sigma) -> Tensor:
    """The weight (T - 1,) that an objective gives the mean squared error of x_0 at t = 2, ..., T under
    epsilon-prediction: half the derivative of its loss where the estimate is off by one. (At t = 1 the
    bound is no squared error.)"""
    t, prediction = all_times(schedule, 2), Epsilon()
    x_0 = x_t = eps = torch.zeros(t.shape, dtype=torch.float64)
    off = torch.ones_like(x_0, requires_grad=True)
    a, b = schedule.alpha_bar(t).sqrt(), schedule.noise_var(t).sqrt()
    output = Output(prediction.target(schedule, off, (x_t - a * off) / b, t), None)
    diffusion = GaussianDiffusion(nn.Identity(), schedule, sigma, prediction, 256)
    (slope,) = torch.autograd.grad(objective.loss(diffusion, output, x_0, x_t, t, eps).sum(), off)
    return slope.flatten() / 2


def weights(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """The weight of every objective, for both sigmas where it depends on them; equal ones under one name."""
    named: list[tuple[str, Tensor]] = []
    for name, objective in choices("objective"):
        of = {word: weight(objective, schedule, s) for word, s in (("beta", Beta()), ("beta_tilde", BetaTilde()))}
        same = torch.equal(of["beta"], of["beta_tilde"])
        named += [(name, of["beta"])] if same else [(f"{name}, {LABELS[word]}", w) for word, w in of.items()]
    found: dict[str, Tensor] = {}
    for name, values in named:
        twin = next((key for key, other in found.items() if torch.allclose(values, other, rtol=1e-9)), None)
        found[f"{twin}, {name}" if twin else name] = found.pop(twin) if twin else values
    return found


# Drawing


def of_schedules() -> Figure:
    """alpha_bar, SNR and beta_tilde / beta of every schedule over t / T."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for look, (name, schedule) in zip(looks(), schedules().items(), strict=False):
        t = all_times(schedule)
        u = t.flatten() / schedule.num_steps
        look |= {"marker": "o", "ms": 3.5} if schedule.num_steps <= 50 else {}
        left.plot(u, schedule.alpha_bar(t), label=name, **look)
        middle.plot(u, schedule.snr(t), **look)
        right.plot(u[1:], (schedule.beta_tilde(t, t - 1) / schedule.beta(t, t - 1))[1:], **look)
    finish(left, r"$\bar\alpha_t$", "t / T")
    finish(middle, r"SNR$(t)=\bar\alpha_t\,/\,(1-\bar\alpha_t)$", "t / T", yscale="log", ylim=(1e-10, 1e5))
    finish(right, r"$\tilde\beta_t\,/\,\beta_t$", "t / T, from t = 2", xscale="log", ylim=(0, 1.03))
    figure.legend(loc="outside lower center", ncols=5, frameon=False, handlelength=3)
    return figure


def draw_weights(path: Path, schedule: NoiseSchedule, title: str) -> Path:
    """The weights on the errors of x_0, and those on the errors of eps with their mean over t as the unit."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    of_x_0, of_eps = figure.subplots(1, 2)
    t = all_times(schedule, 2)
    snr = schedule.snr(t).flatten()
    for look, (name, values) in zip(looks(), weights(schedule).items(), strict=False):
        of_x_0.plot(t, values, label=name, **look)
        of_eps.plot(t, values / snr / (values / snr).mean(), **look)
    finish(of_x_0, r"weight of $\Vert x_0-\hat x_0\Vert^2$", "t", xscale="log", yscale="log")
    words = r"weight of $\Vert\epsilon-\epsilon_\theta\Vert^2$, mean over t is 1"
    finish(of_eps, words, "t", xscale="log", yscale="log")
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, handlelength=3)
    return saved(figure, path)


def draw_bound(path: Path, models: Sequence[Terms]) -> Path:
    """The terms of each model over t (L_0 as a dot), and below how far each sigma lies above the best one."""
    figure = Figure(figsize=(5.5 * len(models) + 1, 6.2), layout="constrained")
    panels = figure.subplots(2, len(models), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 2))
    for (top, bottom), model in zip(panels.T, models, strict=True):
        kl = model.t > 1
        for look, (name, terms) in zip(looks(), model.by_sigma.items(), strict=False):
            top.plot(model.t[kl], terms[kl], label=LABELS[name], **look)
            top.plot(model.t[~kl], terms[~kl], "o", color=look["color"])
            above = terms - model.by_sigma["best"]
            bottom.plot(model.t, above.where(above > 0, torch.nan), **look)
        finish(top, model.title, "", xscale="log", yscale="log")
        finish(bottom, "above the best", "t", xscale="log", yscale="log")
        bottom.set_ylim(bottom=max(bottom.get_ylim()[0], 1e-10))  # below is rounding
        top.legend(frameon=False, handlelength=3)
    panels[0, 0].set_ylabel(r"$L_{t-1}$, bits/dim")
    panels[1, 0].set_ylabel("bits/dim")
    return saved(figure, path)


def looks() -> Iterator[dict[str, Any]]:
    """Colours that the colour-blind tell apart, and dashes, so that curves that coincide both show."""
    for (above, dashes), colour in zip(cycle(enumerate(DASHES)), cycle(COLOURS), strict=False):
        yield {"color": colour, "ls": dashes, "lw": 1.8, "zorder": 2 + 0.1 * above}


def finish(axes: Axes, title: str, xlabel: str, **settings: Any) -> None:
    """Words, scales and a quiet grid."""
    axes.set(title=title, xlabel=xlabel, **settings)
    axes.grid(True, color="0.9", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def saved(figure: Figure, path: Path) -> Path:
    """Write a PNG of 128 colours, a third of the size of a full one and without a word on the software."""
    drawing = BytesIO()
    figure.savefig(drawing, dpi=110, format="png")  # Agg, whatever the display
    Image.open(drawing).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def drawn(out: Path, checkpoint: str | None, num_images: int) -> Iterator[Path]:
    """Each figure as it is done."""
    models = [checkpoint_terms(checkpoint, num_images)] if checkpoint else []  # first: it may be refused
    known = schedules()
    yield saved(of_schedules(), out / "schedules.png")
    yield draw_weights(out / "weights.png", known["linear"], "linear schedule, T = 1000, epsilon-prediction")
    gaussian = [gaussian_terms(known[k], 0.25, f"{k} schedule, $x_0\\sim N(0, 1/4)$") for k in ("linear", "cosine")]
    yield draw_bound(out / "bound.png", gaussian)
    if models:
        yield draw_bound(out / "bound_checkpoint.png", models)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw everything and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the pictures")
    parser.add_argument("--checkpoint", help="a .ckpt or the folder of a run, whose bound is drawn too")
    parser.add_argument("--images", type=int, default=64, help="test images for the bound of the checkpoint")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    try:
        with style.context("default"):
            for path in drawn(chosen.out, chosen.checkpoint, chosen.images):
                print(path)
    except Refused as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
