"""The bound on images of the data: exact, subsampled, killed and gone on with."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from compose import composed
from rich.console import Console

from ddpm.build import build_data, build_diffusion, build_metrics
from ddpm.data.digits import Digits
from ddpm.data.image_data import TensorSet
from ddpm.likelihood import bound
from ddpm.metric.bits_per_dim import chosen
from ddpm.noise import Stream, normal
from ddpm.rate_distortion import rate_and_distortion, table, write
from ddpm.report import score_table

T = 12


@pytest.fixture(scope="module")
def model():
    config = composed("model=tiny", f"schedule.num_steps={T}", "metric=[bits_per_dim]")
    data = build_data(config)
    torch.manual_seed(0)
    diffusion = build_diffusion(config, data.facts).eval()
    for parameter in diffusion.parameters():  # the last layers begin at nearly nothing
        torch.nn.init.normal_(parameter, std=0.1)
    return config, data, diffusion


def metric_of(model, **changes):
    config, data, _ = model
    node = config["metric"]["bits_per_dim"] | {"num_images": 10, "batch_size": 4} | changes
    (metric,) = build_metrics({"metric": {"bits_per_dim": node}}).values()
    metric.prepare(data)
    metric.reset(T)
    return metric


@torch.no_grad()
def measured(metric, diffusion, batches=None):
    for indices in metric.batches(0, 1) if batches is None else batches:
        metric.update(diffusion, indices)
    return metric.compute()


def whole(model):
    """All terms of ten test images."""
    _, data, diffusion = model
    indices = chosen(10, len(data.load("test")))
    x_0 = data.batch("test", indices).images
    with torch.no_grad():
        return bound(diffusion, x_0, lambda t: normal(0, Stream.BOUND, indices, t, x_0.shape[1:]))


def test_the_score_is_the_mean_bound_and_its_details_are_the_terms(model):
    terms, metric = whole(model), metric_of(model)
    scores = measured(metric, model[2])
    total = terms.total.double()
    assert scores["bits_per_dim"] == pytest.approx(total.mean().item(), rel=1e-6)
    assert scores["bits_per_dim_std_error"] == pytest.approx(total.std().item() / 10**0.5, rel=1e-5)
    assert scores["rate"] + scores["distortion"] == pytest.approx(scores["bits_per_dim"], rel=1e-6)
    details = metric.details()
    for name, values in (("bits_per_dim", terms.kl), ("x_0_mse", terms.x_0_mse), ("eps_mse", terms.eps_mse)):
        assert np.allclose(details[name], values.double().mean(1), rtol=1e-5)
    rate, distortion = rate_and_distortion(details)
    assert rate[0] == pytest.approx(terms.rate.mean().item(), rel=1e-5)
    assert rate[-1] == pytest.approx(terms.prior.mean().item(), rel=1e-5)
    assert distortion[0] == pytest.approx(127.5 * terms.x_0_mse[0].mean().sqrt().item(), rel=1e-5)


def test_as_many_times_as_there_are_terms_is_the_exact_bound(model):
    """Stratified times hit each t once: what remains is the choice of noise, which is the same."""
    exact, all_times = (measured(metric_of(model, num_times=k), model[2]) for k in (None, T - 1))
    for name, value in exact.items():
        assert all_times[name] == pytest.approx(value, rel=1e-5), name


def test_few_times_are_right_within_the_error_that_they_state(model):
    exact = measured(metric_of(model, num_images=None, batch_size=300), model[2])
    few = measured(metric_of(model, num_images=None, num_times=2, batch_size=300), model[2])
    assert few["bits_per_dim"] != exact["bits_per_dim"]
    assert abs(few["bits_per_dim"] - exact["bits_per_dim"]) < 4 * few["bits_per_dim_std_error"]
    assert few["distortion"] == pytest.approx(exact["distortion"], rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5, 11, 14])
def test_the_mean_over_all_choices_of_times_is_the_exact_bound(model, k, monkeypatch):
    """What k stratified times make of one u, in the mean over a grid of u that falls on each t equally often."""
    terms, metric, indices = whole(model), metric_of(model, num_times=k), chosen(10, 297)[:2]
    count = k * (T - 1)
    grid = (torch.arange(count).double() + 0.5) / count
    monkeypatch.setattr("ddpm.metric.bits_per_dim.uniform", lambda seed, stream, index: grid)
    for number, index in enumerate(indices):
        x_0 = model[1].batch("test", index.reshape(1)).images.expand(count, -1, -1, -1)
        with torch.no_grad():
            sums = metric.subsampled(model[2], x_0, index.expand(count), k)
        for name in ("total", "rate", "distortion", "prior"):
            expected = getattr(terms, name)[number].item()
            assert sums[name].item() / count == pytest.approx(expected, rel=1e-6), name
        assert sums["count"].tolist() == [count] + [k * k] * (T - 1)
        assert torch.allclose(sums["kl"] / sums["count"], terms.kl[:, number].double(), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_the_interval_holds_the_exact_bound_in_95_of_100(model, monkeypatch):
    """Over 200 choices of 100 images, of two times and of the noise: three deviations about 190."""
    exact = measured(metric_of(model, num_images=None, batch_size=300), model[2])["bits_per_dim"]
    hits = 0
    for seed in range(200):
        monkeypatch.setattr("ddpm.metric.bits_per_dim._SEED", seed)
        few = measured(metric_of(model, num_images=100, num_times=2, batch_size=100), model[2])
        hits += abs(few["bits_per_dim"] - exact) < 1.96 * few["bits_per_dim_std_error"]
    assert 181 <= hits <= 199


class ByClass(Digits):
    """A test split as a folder of classes gives it: blank images, then noise."""

    def read(self, split):
        noise = torch.randint(17, (150, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        levels = torch.cat((torch.zeros_like(noise), noise)).to(torch.uint8)
        return TensorSet(levels, torch.arange(300) // 150)


@pytest.mark.parametrize("num_times", [None, 6])
def test_some_images_stand_for_all_also_where_they_lie_by_class(model, num_times):
    config, _, diffusion = model
    by_class = (config, ByClass(root=None, batch_size=8, num_workers=0, flip=False, seed=0), diffusion)
    all_ = measured(metric_of(by_class, num_images=None, batch_size=300), diffusion)
    metric = metric_of(by_class, num_images=60, num_times=num_times)
    some = measured(metric, diffusion)
    assert abs(some["bits_per_dim"] - all_["bits_per_dim"]) < 4 * some["bits_per_dim_std_error"]
    assert metric.protocol()["chosen"] == "at random, seed 0"
    assert "chosen" not in metric_of(by_class, num_images=300).protocol()


def test_the_fewer_images_are_among_the_more_and_all_are_each_once():
    assert chosen(9, 9).tolist() == list(range(9))
    assert chosen(4, 9).tolist() == chosen(6, 9).tolist()[:4]
    assert len(set(chosen(8, 9).tolist())) == 8


def test_of_one_image_no_interval_is_told(model):
    alone = measured(metric_of(model, num_images=1), model[2])
    assert alone["bits_per_dim"] > 0
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(score_table(alone))
    assert not {"±", "nan"} & set(console.export_text().split())


class Counted(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, *arguments):
        self.calls += 1
        return self.network(*arguments)


def test_the_table_of_scores_tells_196_standard_errors_as_what_95_of_100_lie_within(model):
    few = measured(metric_of(model, num_images=None, num_times=2, batch_size=300), model[2])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(score_table(few))
    half = 1.96 * few["bits_per_dim_std_error"]
    assert f"{few['bits_per_dim']:.5g} ± {half:.2g} (95 %)" in console.export_text()


def test_a_killed_measurement_goes_on_where_it_was(model, tmp_path: Path, caplog):
    diffusion = model[2].with_sigma(model[2].sigma)
    diffusion.network = Counted(diffusion.network)
    undisturbed = measured(metric_of(model), diffusion)
    first = metric_of(model)
    first.keep_at(tmp_path / "terms")
    measured(first, diffusion, first.batches(0, 1)[:2])
    (kept, damaged) = sorted((tmp_path / "terms").glob("*.npz"))
    damaged.write_bytes(kept.read_bytes()[:200])
    diffusion.network.calls = 0
    second = metric_of(model)
    second.keep_at(tmp_path / "terms")
    assert measured(second, diffusion) == undisturbed
    assert diffusion.network.calls == 2 * T  # the damaged batch and the one that was never begun
    assert "is made again" in caplog.text


def test_the_table_of_progressive_coding_has_ten_times(model, tmp_path: Path):
    metric = metric_of(model)
    measured(metric, model[2])
    rows = table(metric.details())
    assert [row[0] for row in rows] == sorted((max(1, round(T * k / 10)) for k in range(1, 11)), reverse=True)
    assert rows[0][1] == pytest.approx(measured(metric_of(model), model[2])["rate"])
    paths = write(metric.details(), tmp_path / "new" / "bits_per_dim-x")
    assert [path.suffix for path in paths] == [".npz", ".csv", ".png"]
    assert set(np.load(paths[0], allow_pickle=False)) == {"t", "count", "bits_per_dim", "x_0_mse", "eps_mse", "L_T"}
    few = metric_of(model, num_times=1, num_images=2)
    measured(few, model[2])
    assert [path.suffix for path in write(few.details(), tmp_path / "few")] == [".npz"]
