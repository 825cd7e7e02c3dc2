"""The papers' formulas a second time, as their text has them, in numpy and without a line of ours: what the
tables and the bound are measured against. Indices are the papers', t = 1, ..., T; arrays begin with t = 1."""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

REAL = np.longdouble  # 64 bits of mantissa or more: its own rounding does not show at 1e-12
assert np.finfo(REAL).eps < 1e-18
SCHEDULES = ("linear", "quadratic", "constant", "warmup10", "warmup50", "jsd", "cosine", "sigmoid")
SIGMAS = ("beta", "beta_tilde", "interpolated", "analytic", "learned", "learned_range")
Array = NDArray[np.floating]


@cache
def betas(name: str, T: int) -> Array:
    """beta_1, ..., beta_T of Ho et al. (2020, code), of Nichol & Dhariwal (2021), Eq. 17, and of DDIM's code."""
    lo, hi, steps = REAL("1e-4"), REAL("0.02"), np.arange(T, dtype=REAL)
    ramp = steps / (T - 1)
    first = {"warmup10": T // 10, "warmup50": T // 2}.get(name, T)
    if name == "cosine":
        pi, offset = 4 * np.arctan(REAL(1)), REAL("0.008")
        f = np.cos((np.arange(T + 1, dtype=REAL) / T + offset) / (1 + offset) * pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], REAL("0.999"))
    return {
        "linear": lo + (hi - lo) * ramp,
        "quadratic": (np.sqrt(lo) + (np.sqrt(hi) - np.sqrt(lo)) * ramp) ** 2,
        "constant": np.full(T, hi),
        "warmup10": np.minimum(lo + (hi - lo) * steps / (first - 1), hi),
        "warmup50": np.minimum(lo + (hi - lo) * steps / (first - 1), hi),
        "jsd": 1 / (T - steps),
        "sigmoid": lo + (hi - lo) / (1 + np.exp(-(-6 + 12 * ramp))),
    }[name]


def tables(beta: Array) -> dict[str, Array]:
    """Every number that the papers make of the betas, float64. 1/sqrt(alpha_bar) is inf where nothing is left."""
    beta = beta.astype(REAL)
    alpha_bar = np.cumprod(1 - beta)
    before = np.concatenate(([REAL(1)], alpha_bar[:-1]))
    with np.errstate(divide="ignore"):
        found = {
            "beta": beta,
            "alpha_bar": alpha_bar,
            "noise_var": 1 - alpha_bar,
            "beta_tilde": (1 - before) / (1 - alpha_bar) * beta,  # Ho et al. (2020), Eq. 7
            "snr": alpha_bar / (1 - alpha_bar),
            "of_x_0": np.sqrt(before) * beta / (1 - alpha_bar),  # Eq. 7
            "of_x_t": np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar),  # Eq. 7
            "inverse_root": 1 / np.sqrt(alpha_bar),
        }
    return {key: value.astype(np.float64) for key, value in found.items()}


def log_variance(sigma: str, table: dict[str, Array], t: int, v: Array) -> Array:
    """log sigma_t^2, where at t = 1 beta_tilde_2 stands in for beta_tilde_1 = 0 and for the beta_1 of sigma=beta,
    but not for the upper end of learned_range."""
    small = np.log(table["beta_tilde"][max(t, 2) - 1])
    beta = np.log(table["beta"][t - 1])
    large = beta if t > 1 else small
    return {
        "beta": large + 0 * v,
        "beta_tilde": small + 0 * v,
        "interpolated": (large + small) / 2 + 0 * v,
        "analytic": max(analytic(table, t), small) + 0 * v,
        "learned": v,
        "learned_range": (v + 1) / 2 * beta + (1 - v) / 2 * small,
    }[sigma]


def power(t: Array) -> Array:
    """Some Gamma_t = E |eps_theta(x_t, t)|^2 / d: from a network that knows next to nothing to one that knows all."""
    return 0.5 + 0.499 * np.cos(3 * np.asarray(t, dtype=np.float64))


def analytic(table: dict[str, Array], t: int) -> float:
    """log sigma_t^2 of Bao et al. (2022), Theorem 1 with lambda^2 = beta_tilde, at most that of Theorem 2 for data in
    [-1, 1]."""
    alpha_bar, before = table["alpha_bar"][t - 1], table["alpha_bar"][t - 2] if t > 1 else 1.0
    alpha, small = alpha_bar / before, table["beta_tilde"][t - 1]
    rest = np.sqrt(1 - before - small)
    with np.errstate(divide="ignore"):
        score = (np.sqrt((1 - alpha_bar) / alpha) - rest) ** 2 * (1 - power(t))
    widest = (np.sqrt(before) - rest * np.sqrt(alpha_bar / (1 - alpha_bar))) ** 2
    return float(np.log(small + min(score, widest)))


def estimate(prediction: str, table: dict[str, Array], t: int, x_t: Array, output: Array, clip: bool) -> Array:
    """The x_0 that the network's output stands for."""
    a, b = np.sqrt(table["alpha_bar"][t - 1]), np.sqrt(table["noise_var"][t - 1])
    of_x_0, of_x_t = table["of_x_0"][t - 1], table["of_x_t"][t - 1]
    x_0 = {
        "epsilon": lambda: (x_t - b * output) / a,
        "x0": lambda: output,
        "mean": lambda: (output - of_x_t * x_t) / of_x_0,
        "velocity": lambda: a * x_t - b * output,
    }[prediction]()
    return np.clip(x_0, -1, 1) if clip else x_0


def prior(table: dict[str, Array], x_0: Array) -> Array:
    """L_T of each image, bits/dim: Ho et al. (2020), Eq. 5."""
    alpha_bar = table["alpha_bar"][-1]
    kl = 0.5 * (-np.log1p(-alpha_bar) - alpha_bar + alpha_bar * x_0**2) if alpha_bar < 1 else np.inf
    return flat_mean(kl) / math.log(2)


def term(table: dict[str, Array], t: int, x_0: Array, estimated: Array, log_var: Array, levels: int) -> Array:
    """L_{t-1}, or L_0 where t = 1, of each image, bits/dim: Ho et al. (2020), Eq. 5, 8 and 13."""
    if t == 1:
        return -flat_mean(decoder(x_0, estimated, np.exp(log_var / 2), levels)) / math.log(2)
    beta_tilde, apart = table["beta_tilde"][t - 1], table["of_x_0"][t - 1] * (x_0 - estimated)
    kl = 0.5 * (log_var - np.log(beta_tilde) - 1 + (beta_tilde + apart**2) * np.exp(-log_var))
    return flat_mean(kl) / math.log(2)


def decoder(x_0: Array, mean: Array, std: Array, levels: int) -> Array:
    """The log of the mass in the bin of each level, nats: Eq. 13."""
    half = 1 / (levels - 1)
    upper = np.where(x_0 > 1 - half, np.inf, (x_0 - mean + half) / std)
    lower = np.where(x_0 < -1 + half, -np.inf, (x_0 - mean - half) / std)
    flip = lower + upper > 0
    lower, upper = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    return log_ndtr(upper) + np.log(-np.expm1(log_ndtr(lower) - log_ndtr(upper)))


def tanh_decoder(x_0: Array, mean: Array, std: Array) -> Array:
    """The same for 256 levels in the way of the authors' code, nats."""

    def cdf(x: Array) -> Array:
        return 0.5 * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * np.power(x, 3))))

    below, above = cdf((x_0 - mean + 1 / 255) / std), cdf((x_0 - mean - 1 / 255) / std)
    mass = np.where(x_0 < -0.999, below, np.where(x_0 > 0.999, 1 - above, below - above))
    return np.log(np.maximum(mass, 1e-12))


def flat_mean(x: Array) -> Array:
    return x.reshape(len(x), -1).mean(1)
