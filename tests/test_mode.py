"""What a model says of images, as theorems about the figures, and every choice of mode= on a small run."""

import csv
from collections import Counter
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from compose import composed
from exact import gaussian, point
from PIL import Image
from running import UNSCORED, run
from torch import nn
from yamls import names, node, schedule

from ddpm.data.facts import Facts
from ddpm.drawing import draw_images
from ddpm.errors import Refused
from ddpm.instantiate import make
from ddpm.likelihood import bound
from ddpm.mode import Scene
from ddpm.mode.files import read_image, read_mask
from ddpm.mode.inpainting import boxed, inpainted, moves
from ddpm.noise import Stream, normal
from ddpm.opening import quiet_trainer
from ddpm.pictures import Figure, write_figure
from ddpm.prediction import Data
from ddpm.sampler import DDIM, Ancestral, Heun
from ddpm.sampling import SamplingModule, draw
from ddpm.sigma import BetaTilde

T, SHAPE = 10, (1, 4, 4)
ALL_STEPS = Ancestral(num_steps=None, spacing="linspace", clip=True)
UNCLIPPED = Ancestral(num_steps=5, spacing="trailing", clip=False)
FEW = Ancestral(num_steps=4, spacing="trailing", clip=True)
NO_NOISE = DDIM(num_steps=10, spacing="trailing", clip=False, eta=0.0)
FIGURED = [name for name in names("mode") if name != "reverse"]
WITH_T = [name for name in FIGURED if "t" in node("mode", name)]


def levels(count: int) -> torch.Tensor:
    """Images of SHAPE on the levels of 256."""
    return torch.randint(0, 256, (count, *SHAPE), generator=torch.Generator().manual_seed(0)) / 127.5 - 1


def wide(name: str = "linear", **choices):
    """Gaussian pixels, on the schedule of that name."""
    return gaussian(schedule(name, T), 0.0, 0.25, BetaTilde(), **choices)


def scene(diffusion, sampler=ALL_STEPS, real=None, batch_size=3, label=None, guidance=1.0) -> Scene:
    module = SamplingModule(diffusion, sampler, shape=SHAPE, seed=5, label=label, guidance=guidance)
    own = levels(4) if real is None else real
    return Scene(module, lambda most: own if real is not None else own[:most], 4, batch_size, silent)


def silent(total):
    return nullcontext(lambda: None)


def figure(name: str, within: Scene, **numbers) -> Figure:
    fewer = {"num_times": 4, "num_lambdas": 5, "resamplings": 2, "jump_length": 4, "columns": 2}
    return make(node("mode", name, **fewer) | numbers, "mode").figure(within)


# interpolation, reconstruction


@pytest.mark.parametrize("sampler", [FEW, Heun(num_steps=4, spacing="linspace", clip=True)])
def test_an_interpolation_ends_in_the_reconstructions_of_its_two_images(sampler):
    ends = levels(2)
    between = figure("interpolation", scene(wide(), sampler, ends)).images
    assert torch.equal(between[:, 0], ends[:1].expand_as(between[:, 0]))
    assert torch.equal(between[:, -1], ends[1:].expand_as(between[:, 0]))
    for end, column in ((ends[:1], 1), (ends[1:], -2)):
        alone = figure("reconstruction", scene(wide(), sampler, end)).images
        assert torch.equal(between[:, column], alone[1:, 0])


def test_on_gaussian_data_an_interpolation_is_straight():
    images = figure("interpolation", scene(wide(), UNCLIPPED), num_lambdas=5).images[:, 1:-1]
    for k in range(5):
        assert torch.allclose(images[:, k], images[:, 0] * (1 - k / 4) + images[:, -1] * k / 4, atol=1e-5)


def test_a_reconstruction_loses_more_from_later_times():
    images = figure("reconstruction", scene(wide(), NO_NOISE), t=[1, 3, 10], columns=4).images
    lost = (images[1:] - images[0]).square().flatten(1).mean(1)
    assert (lost.diff() > 0).all()
    assert lost[0] < 0.05


# progressive generation, shared latents


@pytest.mark.parametrize("sampler", [ALL_STEPS, NO_NOISE, Ancestral(num_steps=5, spacing="leading", clip=True)])
def test_progressive_generation_ends_in_the_samples(sampler):
    within = scene(wide(), sampler)
    samples = draw(within.module.diffusion, sampler, torch.arange(4), SHAPE, 5)
    shown = figure("progressive", within, t=1, rows=4)
    assert torch.equal(shown.images[:, -1], samples)
    assert torch.allclose(shown.images[:, -2], samples, atol=1e-6)  # the estimate at the last time is the sample


def test_progressive_generation_says_when_each_estimate_was_made():
    visited = []

    class Tells(nn.Module):
        def forward(self, x_t, time):
            visited.append(int(time[0]) + 1)
            return torch.full_like(x_t, len(visited) / 100)

    diffusion = wide(prediction=Data())
    diffusion.network = Tells()
    shown = figure("progressive", scene(diffusion, batch_size=4), t=[3, 6, 10])
    assert shown.columns == ["$t = 10$", "$t = 6$", "$t = 3$", "sample"]
    assert visited == list(range(T, 0, -1))
    expected = [(T + 1 - t) / 100 for t in (10, 6, 3, 1)]
    assert torch.allclose(shown.images[0, :, 0, 0, 0], torch.tensor(expected))


def test_images_that_share_a_latent_go_different_ways_below_it():
    within = scene(wide())
    shown = figure("shared_latent", within, t=[2, 5, 10], columns=6)
    x_t, x_0 = shown.images[:, 0], shown.images[:, 1:]
    way = {step.s: step.x_s for _, step in within.walk([within.latent(torch.arange(1))])}
    assert torch.equal(x_t, torch.cat((within.noise(torch.arange(1))(T), way[5], way[2])))
    assert torch.equal(x_0[:, 0], way[0].expand_as(x_0[:, 0]))  # the first goes on as it was going
    spread = (x_0[:, 1:] - x_0[:, :1]).square().flatten(1).mean(1)
    assert spread[0] > spread[1] > spread[2] > 0


def test_without_noise_a_latent_has_one_image():
    x_0 = figure("shared_latent", scene(wide(), NO_NOISE)).images[:, 1:]
    assert torch.equal(x_0, x_0[:, :1].expand_as(x_0))


# lossy coding


@pytest.mark.parametrize(("name", "batch_size"), [("linear", 3), ("cosine", 4)])
def test_lossy_coding_counts_the_terms_of_the_bound(name, batch_size):
    x_0, diffusion = levels(4), wide(name)
    table = figure("lossy_coding", scene(diffusion, batch_size=batch_size)).table
    terms = bound(diffusion, x_0, lambda t: normal(5, Stream.FORWARD, torch.arange(4), t, SHAPE))
    assert [row[0] for row in table.rows] == list(range(T, 0, -1))
    sent = terms.prior.double()
    for t, rate, rmse in table.rows:
        assert rate == pytest.approx(sent.mean().item(), rel=1e-5)
        assert rmse == pytest.approx(127.5 * terms.x_0_mse[t - 1].mean().item() ** 0.5, rel=1e-5)
        sent = sent + terms.kl[t - 1].double()
    assert table.rows[-1][1] == pytest.approx(terms.rate.mean().item(), rel=1e-5)
    assert sent.mean().item() == pytest.approx(terms.total.mean().item(), rel=1e-5)


def test_what_a_receiver_sees_has_the_error_that_the_table_says():
    shown = figure("lossy_coding", scene(wide()), num_times=4)
    assert [label.split("\n")[0] for label in shown.columns[:-1]] == [f"$t = {t}$" for t in (10, 8, 5, 2, 1)]
    errors = {t: rmse for t, _, rmse in shown.table.rows}
    for k, t in enumerate((10, 8, 5, 2, 1)):
        seen = (shown.images[:, k] - shown.images[:, -1]).square().mean().item() ** 0.5 * 127.5
        assert seen == pytest.approx(errors[t], rel=1e-4)


# inpainting


@pytest.mark.parametrize("sampler", [ALL_STEPS, NO_NOISE, Ancestral(num_steps=5, spacing="leading", clip=True)])
def test_inpainting_keeps_what_is_known_and_fills_in_the_point(sampler):
    within = scene(point(schedule("linear", T), 0.25, BetaTilde()), sampler)
    filled = figure("inpainting", within, jump_length=3, resamplings=2, box=[0.0, 0.5, 1.0, 1.0], columns=2).singles
    assert torch.equal(filled[..., :2], levels(4).repeat_interleave(2, 0)[..., :2])
    assert torch.allclose(filled[..., 2:], torch.tensor(0.25), atol=1e-5)


def test_where_nothing_is_known_inpainting_is_sampling():
    within = scene(wide())
    whole = figure("inpainting", within, box=[0.0, 0.0, 1.0, 1.0], resamplings=1, columns=1).singles
    assert torch.equal(whole, draw(within.module.diffusion, ALL_STEPS, torch.arange(4), SHAPE, 5))


@pytest.mark.parametrize(("jump_length", "resamplings"), [(1, 1), (1, 3), (3, 2), (10, 10), (50, 2)])
@pytest.mark.parametrize("visited", [list(range(T, -1, -1)), [19, 12, 7, 1, 0], [4, 0]])
def test_every_stretch_is_walked_so_often_and_no_noise_twice(visited, jump_length, resamplings):
    way = moves(visited, jump_length, resamplings)
    assert way[0][0] == visited[0]
    assert all(a[1] == b[0] for a, b in pairwise(way))
    walked = Counter(move for move in way if move[0] > move[1])
    assert walked == dict.fromkeys(pairwise(visited[:-1]), resamplings) | {(visited[-2], 0): 1}


def test_no_noise_enters_twice():
    asked: Counter[tuple[str, int]] = Counter()

    def noise(name):
        return lambda step: (asked.update([(name, step)]), normal(0, Stream.SAMPLE, torch.arange(1), step, SHAPE))[1]

    way = moves(list(range(T, -1, -1)), 4, 3)
    known = boxed([0.0, 0.0, 0.5, 1.0], 4, 4)
    inpainted(wide(), ALL_STEPS, levels(1), known, way, noise("down"), noise("up"), lambda: None)
    assert set(asked.values()) == {1}
    assert sum(asked.values()) == 1 + len(way) + sum(t > s for t, s in way)


def test_a_jump_up_is_q():
    diffusion, (x, eps) = wide(), levels(2).split(1)
    known = torch.zeros(4, 4, dtype=torch.bool)
    noise = {T: x, 8: eps}.get
    up = inpainted(diffusion, ALL_STEPS, x, known, [(3, 8)], noise, noise, lambda: None)
    a, b = (
        f(torch.tensor([8]), torch.tensor([3])).sqrt().float()
        for f in (diffusion.schedule.alpha, diffusion.schedule.beta)
    )
    assert torch.allclose(up, a * x + b * eps, atol=1e-6)


# image to image


def test_sdedit_forgets_the_guide_where_nothing_of_it_is_left():
    diffusion = wide("jsd", prediction=Data())
    results = [figure("image_to_image", scene(diffusion, real=guide), t=T).singles for guide in levels(2).split(1)]
    assert torch.equal(*results)


def test_sdedit_keeps_the_guide_at_the_first_time():
    made = figure("image_to_image", scene(wide()), t=1, columns=1).singles
    assert (made - levels(4)).abs().max() < 0.05
    assert not torch.equal(made, levels(4))


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_sdedit_leaves_the_point_where_it_is(share):
    guide = torch.full((1, *SHAPE), 0.25)
    within = scene(point(schedule("linear", T), 0.25, BetaTilde()), real=guide)
    made = figure("image_to_image", within, share=share).singles
    assert torch.allclose(made, guide.expand_as(made), atol=1e-5)


# every mode


@pytest.mark.parametrize("name", FIGURED)
def test_a_figure_does_not_depend_on_its_batches(name):
    alone, together = (figure(name, scene(wide(), FEW, batch_size=b)) for b in (2, 100))
    assert torch.allclose(alone.images, together.images, atol=1e-6)
    assert alone.images.shape[:2] == (len(alone.rows), len(alone.columns))


class Labelled(nn.Module):
    """The exact network of one point for each label, as x_0."""

    null_label = 0

    def forward(self, x_t, time, label=None):
        at = torch.zeros(len(x_t)) if label is None else label / 10
        return at.reshape(-1, 1, 1, 1).expand_as(x_t)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("progressive", slice(0, None)),
        ("interpolation", slice(1, -1)),
        ("shared_latent", slice(1, None)),
        ("lossy_coding", slice(0, -1)),
        ("inpainting", slice(2, None)),
        ("image_to_image", slice(2, None)),
    ],
)
def test_what_is_generated_is_of_the_label(name, shown):
    diffusion = wide(prediction=Data())
    diffusion.network = Labelled()
    for label, guidance, value in ((None, 1.0, 0.0), (3, 1.0, 0.3), (3, 2.0, 0.6)):
        numbers = {"box": [0.0, 0.0, 1.0, 1.0]} if name == "inpainting" else {}
        made = figure(name, scene(diffusion, FEW, label=label, guidance=guidance), **numbers).images[:, shown]
        assert torch.allclose(made, torch.tensor(value), atol=1e-5)


def test_a_reconstruction_is_of_the_label():
    diffusion = wide(prediction=Data())
    diffusion.network = Labelled()
    assert torch.allclose(figure("reconstruction", scene(diffusion, label=4)).images[1:], torch.tensor(0.4), atol=1e-5)


def test_times_between_those_of_the_sampler_are_moved_and_shown_as_they_are():
    within = scene(wide(), FEW)
    assert within.visited == [10, 8, 5, 2, 0]
    assert figure("reconstruction", within, t=[1, 6, 9]).rows == ["$x_0$", "$t = 2$", "$t = 5$", "$t = 10$"]


# what cannot be


class Never(nn.Module):
    def forward(self, *_):
        raise AssertionError("the network was called")


def refused(name: str, words: str, real=None, **numbers) -> None:
    diffusion = wide()
    diffusion.network = Never()
    with pytest.raises(Refused, match=words) as refusal:
        figure(name, scene(diffusion, real=real), **numbers)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", WITH_T)
def test_an_impossible_time_is_refused_before_the_network_is_called(name):
    for t in (0, T + 1):
        refused(name, "1, ..., 10", t=t)
    if name != "image_to_image":
        refused(name, "1, ..., 10", t=[])
        refused(name, "mode.t", t=[1, 11])


def test_what_else_can_not_be_is_refused_before_the_network_is_called(tmp_path):
    Image.new("L", (5, 4)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    refused("inpainting", "5 x 4, but the model's images are 4 x 4", mask=str(tmp_path / "large.png"))
    refused("inpainting", "cannot be read", mask=str(tmp_path / "text.png"))
    refused("inpainting", "no image at", mask=str(tmp_path / "nothing.png"))
    for box in ([0.5, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.1], [0.0, 1.0], [0.0, 0.0, 0.01, 0.01]):
        refused("inpainting", "mode.box", box=box)
    refused("interpolation", "two images, not 3", real=levels(3))
    refused("image_to_image", "share", share=0.0)
    refused("interpolation", "at least 2", num_lambdas=1)
    for name, number in (("forward", "rows"), ("inpainting", "resamplings"), ("shared_latent", "num_times")):
        refused(name, f"mode.{number} is 0", **{number: 0})


def test_inpainting_needs_a_sampler_without_memory():
    class Remembers(Ancestral.__base__.__base__):
        def trajectory(self, diffusion, x_T, noise, start=None):
            yield from ()

    with pytest.raises(Refused, match="sampler=ancestral"):
        figure("inpainting", scene(wide(), Remembers(num_steps=None, spacing="linspace", clip=True)))


# files


def test_a_users_image_is_fitted_to_the_model_and_put_on_its_levels(tmp_path, capsys):
    Image.linear_gradient("L").resize((40, 20)).save(tmp_path / "wide.png")
    x_0 = read_image(str(tmp_path / "wide.png"), Facts("x", (1, 8, 8), 17, (), ""))
    assert x_0.shape == (1, 1, 8, 8)
    assert torch.allclose((x_0 + 1) * 8, ((x_0 + 1) * 8).round(), atol=1e-5)
    assert "40 x 20" in capsys.readouterr().out
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    assert (read_image(str(tmp_path / "white.png"), Facts("x", (1, 8, 8), 17, (), "")) == 1).all()
    assert capsys.readouterr().out == ""


def test_a_mask_is_white_where_it_is_painted(tmp_path):
    mask = torch.tensor([[0, 0, 255], [0, 200, 255]], dtype=torch.uint8)
    Image.fromarray(mask.numpy()).save(tmp_path / "mask.png")
    assert torch.equal(read_mask(str(tmp_path / "mask.png"), 2, 3), mask > 127)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_figure_shows_each_pixel_as_it_is(channels, tmp_path):
    images = torch.linspace(-1, 1, 2 * 3 * channels * 16).reshape(2, 3, channels, 4, 4)
    (path,) = write_figure(Figure("shown", images, ["a", "b"], ["$t = 1$", "", "c"]), tmp_path / "new")
    picture = torch.tensor(list(Image.open(path).convert("RGB").getdata()))
    seen = {tuple(colour) for colour in picture.tolist()}
    levels_ = ((images + 1) * 127.5).round().long().permute(0, 1, 3, 4, 2).reshape(-1, channels)
    assert {tuple(colour) for colour in levels_.expand(-1, 3).tolist()} <= seen
    assert Image.open(path).width > 3 * 84


# a small run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A conditional model of 10 steps, trained for a moment."""
    return run(tmp_path_factory.mktemp("run"), *UNSCORED, "model.class_conditional=true")


def drawn(trained: Path, *overrides: str) -> None:
    asked = [f"checkpoint={trained}", "num_images=3", "sampler.num_steps=4", "trainer=cpu", "out=out"]
    draw_images(composed(*asked, *overrides, verb="sample"))


@pytest.mark.parametrize("name", names("mode"))
def test_every_mode_draws_for_a_label_or_refuses_it(name, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "forward":
        with pytest.raises(Refused, match="no use for label=0"):
            drawn(trained, "mode=forward", "label=0")
        assert not (tmp_path / "out").exists()
        drawn(trained, "mode=forward")
    else:
        drawn(trained, f"mode={name}", "label=3", "guidance=2.0")
    assert (tmp_path / "out" / ("overview/grid.png" if name == "reverse" else f"{name}.png")).exists()
    for picture in (tmp_path / "out").rglob("*.png"):
        Image.open(picture).verify()
    singles = {"reverse": 3, "inpainting": 9, "image_to_image": 9}
    assert len(list((tmp_path / "out").rglob("0*.png"))) == singles.get(name, 0)
    if name == "lossy_coding":
        header, *rows = csv.reader((tmp_path / "out/lossy_coding.csv").open())
        assert header == ["t", "rate_bits_per_dim", "rmse"]
        assert len(rows) == 10


def test_shards_go_once_they_are_together_also_after_a_kill(trained, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", killed)
        drawn(trained, "png=false", "npz=true")
    whole = (tmp_path / "out/samples.npz").read_bytes()
    assert list((tmp_path / "out/shards").iterdir())
    drawn(trained, "png=false", "npz=true")
    assert not (tmp_path / "out/shards").exists()
    assert (tmp_path / "out/samples.npz").read_bytes() == whole


def test_the_images_may_be_files_and_numbers(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (30, 20), 99).save("a.png")
    drawn(trained, "mode=interpolation", "images=[a.png,7]", "mode.t=10")
    for images, words in (("[b.png]", "no image at b.png"), ("[297]", "0, ..., 296"), ("[]", "no image")):
        with pytest.raises(Refused, match=words):
            drawn(trained, "mode=reconstruction", f"images={images}")
    for useless in ("images=[0]", "npz=true", "trajectory=true"):
        with pytest.raises(Refused, match="no use for"):
            drawn(trained, "mode=progressive", useless)


def test_where_nothing_can_be_written_nothing_is_drawn(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(torch.nn.Module, "__call__", Never().forward)
    for mode in ("progressive", "reverse"):
        with pytest.raises(Refused, match=r"file is no folder\); set out=FOLDER"):
            drawn(trained, f"mode={mode}", "out=file/pictures")


def test_figures_are_made_in_the_trainers_precision(trained, tmp_path):
    config = composed(f"checkpoint={trained}", "trainer=cpu", "trainer.precision=bf16-mixed", verb="sample")
    from ddpm.drawing import studio
    from ddpm.opening import opened

    place = studio(config, opened(config))
    with place.scene(quiet_trainer(config, [])) as within:
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert within.module.device.type == "cpu"
    assert not torch.is_autocast_enabled("cpu")


def test_pictures_that_are_gone_are_made_again_also_where_all_images_lie_in_an_npz(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["mode=reverse", "npz=true", "batch_size=2", "trajectory=true"]
    drawn(trained, *asked)
    files = {path: path.read_bytes() for path in Path("out").rglob("*.*") if path.is_file()}
    assert {path.name for path in Path("out").iterdir() if path.suffix == ".png"} == {f"00000{i}.png" for i in range(3)}
    assert {path.name for path in Path("out/overview").iterdir()} == {"grid.png", "trajectory.png", "trajectory.webp"}
    Path("out/000001.png").unlink()
    Path("out/000002.png").write_bytes(b"")
    Path("out/overview/grid.png").unlink()
    drawn(trained, *asked)
    for path, content in files.items():
        assert path.read_bytes() == content, path
