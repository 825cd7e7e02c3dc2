"""The figures of docs/math.md: their curves are the papers' formulas, and the text tells their numbers."""

import math

import numpy as np
import papers
import pytest
import torch
from compose import composed
from yamls import names, node, schedule

from ddpm import figures
from ddpm.build import build_module
from ddpm.checkpoint import load
from ddpm.data.facts import Facts
from ddpm.likelihood import bound
from ddpm.noise import Stream, normal
from ddpm.opening import data_of

V = 0.25


@pytest.fixture(scope="module")
def linear():
    return figures.schedules()["linear"]


def test_the_curves_of_the_schedules_are_the_papers():
    panels = [axes.lines for axes in figures.of_schedules().axes]
    drawn = [line.get_label() for line in panels[0]]
    assert sorted(drawn) == names("schedule")
    for name, lines in zip(drawn, zip(*panels, strict=True), strict=True):
        betas = np.array(node("schedule", name)["betas"]) if name == "custom" else papers.betas(name, 1000)
        table, u = papers.tables(betas), np.arange(1, len(betas) + 1) / len(betas)
        ratio = (table["beta_tilde"] / table["beta"])[1:]
        for line, x, y in zip(lines, (u, u, u[1:]), (table["alpha_bar"], table["snr"], ratio), strict=True):
            np.testing.assert_allclose(line.get_xdata(), x, rtol=1e-6)
            np.testing.assert_allclose(np.ravel(line.get_ydata()), y, rtol=1e-10)


def around(s):
    """ab_{t-1}, ab_t for t = 2, ..., T, in the paper's products."""
    ab = s.alpha_bar(torch.arange(s.num_steps + 1))
    return ab[1:-1], ab[2:]


def closed_weights(s):
    before, ab = around(s)
    snr, beta = ab / (1 - ab), 1 - ab / before
    c = before.sqrt() * beta / (1 - ab)
    bits = s.num_steps / (2 * math.log(2))
    return {
        "simple": snr,
        "hybrid": snr,
        "min_snr": snr.clamp(max=5),
        "truncated_snr": snr.clamp(min=1),
        "p2": snr / (1 + snr),
        f"vlb, {figures.LABELS['beta']}": bits * c**2 / beta,
        f"vlb, {figures.LABELS['beta_tilde']}": bits * (before / (1 - before) - snr),  # Kingma et al., Eq. 13
    }


def test_the_weights_are_the_closed_ones(linear):
    drawn, closed = figures.weights(linear), closed_weights(linear)
    for name, expected in closed.items():
        (curve,) = (values for label, values in drawn.items() if name in (label, *label.split(", ")))
        torch.testing.assert_close(curve, expected, rtol=1e-6, atol=0)


def test_every_objective_is_drawn_once(linear):
    words = [word for label in figures.weights(linear) for word in label.split(", ") if "$" not in word]
    assert set(words) == set(names("objective"))
    assert len(words) == len(set(words)) + 1  # vlb, for both sigmas


@pytest.mark.parametrize("name", sorted(set(names("schedule"))))
def test_the_terms_of_a_gaussian_are_the_closed_ones(name):
    s = schedule(name, 30)
    terms = figures.gaussian_terms(s, V, name)
    before, ab = around(s)
    beta, tilde = 1 - ab / before, (1 - before) / (1 - ab) * (1 - ab / before)
    best = tilde + before * beta**2 / (1 - ab) ** 2 / (1 / V + ab / (1 - ab))  # Var(x_{t-1} | x_t)
    expected = {"best": torch.log(best / tilde)}
    for sigma, variance in {"beta": beta, "beta_tilde": tilde}.items():
        expected[sigma] = torch.log(variance / tilde) + best / variance - 1
    assert terms.by_sigma.keys() == expected.keys()
    for sigma, nats in expected.items():
        torch.testing.assert_close(terms.by_sigma[sigma], nats / (2 * math.log(2)), rtol=1e-6, atol=1e-12)
    assert (terms.by_sigma["beta"] >= terms.by_sigma["best"] - 1e-12).all()


def test_the_numbers_of_the_text(linear):
    by_sigma = figures.gaussian_terms(linear, V, "").by_sigma
    best = by_sigma["best"]
    assert best[:99].sum() / best.sum() == pytest.approx(0.85, abs=0.005)
    assert (by_sigma["beta"] - best).sum() == pytest.approx(0.0016, abs=5e-5)
    assert (by_sigma["beta_tilde"] - best).sum() == pytest.approx(0.66, abs=0.005)
    t = figures.all_times(linear)
    beta, alpha, noise = linear.beta(t, t - 1), linear.alpha(t, t - 1), linear.noise_var(t)
    factor = beta / (alpha * noise).sqrt()
    assert [factor.min().item(), factor.max().item()] == pytest.approx([0.006, 0.02], abs=5e-4)
    eq_12 = (beta / (2 * alpha * noise)).flatten()
    assert eq_12[[1, 349, 999]].tolist() == pytest.approx([0.27, 0.005, 0.01], rel=0.05)
    t, s = torch.tensor([100]), torch.tensor([50])
    assert linear.beta_tilde(t, s) / linear.beta(t, s) == pytest.approx(0.28, abs=0.005)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    chosen = ("model=tiny", "lr_schedule=constant", "schedule.num_steps=5", "sigma=learned_range", "objective=hybrid")
    module = build_module(composed(*chosen), Facts("digits", (1, 8, 8), 17, tuple("0123456789"), ""))
    torch.save({"ddpm": module.card, "state_dict": module.state_dict(), "global_step": 7}, tmp_path / "x.ckpt")
    return str(tmp_path / "x.ckpt")


def test_the_terms_of_a_checkpoint_are_its_bound(checkpoint):
    terms, loaded, index = figures.checkpoint_terms(checkpoint, 4), load(checkpoint), torch.arange(4)
    x_0 = data_of(loaded, {}).batch("test", index).images
    with torch.no_grad():
        expected = bound(loaded.diffusion, x_0, lambda t: normal(0, Stream.BOUND, index, t, x_0.shape[1:]))
    torch.testing.assert_close(terms.by_sigma["learned"], expected.kl.double().mean(1), rtol=1e-5, atol=0)
    assert terms.t.tolist() == [1, 2, 3, 4, 5]
    assert (terms.by_sigma["beta"] > terms.by_sigma["best"])[1:].all()
    assert terms.by_sigma["best"][0].isnan()


def test_the_figures_in_the_documents_are_small():
    sizes = {path.name: path.stat().st_size for path in (figures.CONF.parent / "docs/images").glob("*.png")}
    assert {"schedules.png", "weights.png", "bound.png"} <= sizes.keys()
    assert all(sizes[name] < 120_000 for name in ("schedules.png", "weights.png", "bound.png"))


def test_a_checkpoint_that_is_not_there_is_refused_before_anything_is_drawn(tmp_path, capsys):
    with pytest.raises(SystemExit):
        figures.main(["--out", str(tmp_path), "--checkpoint", str(tmp_path / "nothing.ckpt")])
    assert "no checkpoint at" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_all_figures_are_drawn_the_same_again(tmp_path, checkpoint):
    for out in ("once", "again"):
        assert figures.main(["--out", str(tmp_path / out), "--checkpoint", checkpoint, "--images", "4"]) == 0
    drawn, again = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("once", "again"))
    assert drawn.keys() == {"schedules.png", "weights.png", "bound.png", "bound_checkpoint.png"}
    assert drawn == again
