"""Scores during training: they leave the run as it was, and nothing behind but themselves."""

import gc
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from compose import composed
from running import measured
from test_metric import kid, precision_recall
from test_training import run, same, weights

from ddpm.build import build_data, build_diffusion, build_metrics, build_sampler
from ddpm.callbacks.evaluation import Evaluate
from ddpm.callbacks.run_log import read
from ddpm.errors import Refused
from ddpm.evaluation import Evaluation
from ddpm.metric import FID, FeatureBatch, Nearest, Pixels, RandomConv
from ddpm.sampler import DDIM, Ancestral, Heun, Sampler
from ddpm.sampling import SamplingModule
from ddpm.scheduler_adapter import Diffusers


class Followed(RandomConv):
    """Random features that note where they are sent, and when they are asked."""

    story: ClassVar[list[str]] = []

    def to(self, device: Any) -> "Followed":  # type: ignore[override]
        self.story.append(str(device))
        return super().to(device)

    def extract(self, images: torch.Tensor) -> FeatureBatch:
        self.story.append("asked")
        return super().extract(images)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Evaluation, SamplingModule]:
    """All kinds of metrics, prepared, and a model to draw from."""
    config = composed("model=tiny", "schedule.num_steps=3", "sampler.num_steps=3", "metric=[bits_per_dim]")
    config["metric"]["bits_per_dim"] |= {"num_images": 10}
    data = build_data(config)
    nearest = {"held_out": "test", "quantile": 0.025, "at_most": 999, "neighbours": 2, "shown": 1}
    metrics = {
        "fid": FID(features=Followed(channels=[8, 4], resolution=32, seed=1), reference="train", cache=str(tmp_path)),
        "kid": kid(tmp_path),
        "precision_recall": precision_recall(tmp_path),
        "nearest": Nearest(features=Pixels(resolution=32), cache=str(tmp_path), **nearest),
    }
    evaluation = Evaluation(metrics | build_metrics(config), data, num_images=100, batch_size=40)
    evaluation.prepare(torch.device("cpu"))
    diffusion = build_diffusion(config, data.facts).eval()
    sampler = build_sampler(config, diffusion)
    return evaluation, SamplingModule(diffusion, sampler, shape=(1, 8, 8), seed=0, label=None, guidance=1.0)


def alive() -> int:
    """The bytes of all tensors that anything still holds."""
    gc.collect()
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if torch.is_tensor(t)
    }
    return sum(held.values())


@torch.no_grad()
def test_an_evaluation_frees_its_memory(parts: tuple[Evaluation, SamplingModule]) -> None:
    """But for two images and their neighbours, to be shown."""
    evaluation, model = parts
    evaluation.reset(model.device, model.diffusion.num_steps)
    before = alive()
    evaluation.run(model, 0, 1)
    after = alive()
    assert after - before == 2 * (8 + 64 + 2 * (4 + 8))
    evaluation.run(model, 0, 1)
    assert alive() == after


@torch.no_grad()
def test_extractors_are_on_the_device_only_while_they_are_asked(parts: tuple[Evaluation, SamplingModule]) -> None:
    evaluation, model = parts
    Followed.story.clear()
    evaluation.run(model, 0, 1)
    first, *asked, last = Followed.story
    assert (first, set(asked), last) == (str(model.device), {"asked"}, "cpu")
    evaluation.prepare(torch.device("cpu", 0))
    assert Followed.story[-1] == "cpu"


def tensors(content: Any) -> Counter[tuple[int, ...]]:
    """The shapes of all tensors in a checkpoint, with how often each is there."""
    if isinstance(content, torch.Tensor):
        return Counter([tuple(content.shape)])
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum(map(tensors, parts), Counter())


OF_A_CLASSIFIER = [f"{kind}_classifier" for kind in ("fid", "inception_score", "kid", "precision_recall")]
ALL_KINDS = [  # of metrics, and a sampler of its own
    f"metric=[fid_random,share_nearer_pixels,bits_per_dim,{','.join(OF_A_CLASSIFIER)}]",
    *(f"metric.{name}.features.images_seen=256" for name in OF_A_CLASSIFIER),
    "metric.bits_per_dim.num_images=4",
    "metric.bits_per_dim.num_times=2",
    "sampler@evaluation_sampler=ddim",
    "evaluation_sampler.num_steps=3",
    "callbacks.evaluation.every_n_steps=2",
]


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_with_and_without_it_the_run_is_the_same_and_no_checkpoint_holds_an_extractor(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    precise = f"trainer.precision={precision}"
    without = run(tmp_path / "without", "metric=[]", "optimized_metric=null", "~callbacks.evaluation", precise)
    scored = run(tmp_path / "with", *ALL_KINDS, precise)
    for key in ("state_dict", "current_model_state", "optimizer_states", "averaging_state"):
        assert same(weights(without)[key], weights(scored)[key]), key
    for name in ("last", "best"):
        kept = torch.load(scored / f"checkpoints/{name}.ckpt", weights_only=True)
        assert tensors(kept) == tensors(weights(without))
        assert kept["callbacks"]["Evaluate"].keys() == {"best", "best_of", "scores"}
    told = read(scored / "metrics.csv")
    for name in ("fid_random", "share_nearer_pixels", "bits_per_dim", *OF_A_CLASSIFIER):
        assert sorted(told[f"score/{name}/ddim_3"]) == [2, 4, 6], name


@pytest.mark.parametrize(
    ("metric", "best_of", "cheaply"),
    [
        ("fid_random", min, []),
        pytest.param(
            "inception_score_classifier",
            max,
            ["metric.inception_score_classifier.features.images_seen=256"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_best_checkpoint_is_that_of_the_best_score_also_after_a_resume(
    metric: str, best_of: Any, cheaply: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [f"metric=[{metric}]", f"optimized_metric={metric}", "callbacks.evaluation.every_n_steps=1", *cheaply]
    asked += BAD
    run(tmp_path / "run", *asked, "trainer.max_steps=3")
    folder = run(tmp_path / "run", *asked, "trainer.max_steps=5")
    (history,) = (told for name, told in read(folder / "metrics.csv").items() if name.startswith(f"score/{metric}/"))
    assert sorted(history) == [1, 2, 3, 4, 5]
    best = best_of(history, key=history.__getitem__)
    assert best <= 3  # so that the second part has to know of the first
    kept = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert kept["global_step"] == best
    assert kept["callbacks"]["Evaluate"]["best"] == history[best]


BAD = ["lr_schedule=warmup", "optimizer.lr=0.05"]  # soon for the worse


def scores_of(folder: Path) -> dict[int, float]:
    (history,) = (told for name, told in read(folder / "metrics.csv").items() if name.startswith("score/fid_random/"))
    return history


def test_a_score_that_is_measured_otherwise_has_a_best_value_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*BAD, "callbacks.evaluation.every_n_steps=1"]
    run(tmp_path / "run", *asked, "trainer.max_steps=2")
    folder = run(tmp_path / "run", *asked, "trainer.max_steps=4", "callbacks.evaluation.num_images=3")
    history = scores_of(folder)
    later = {step: history[step] for step in (3, 4)}
    assert min(history, key=history.__getitem__) < 3  # and would stay the best
    kept = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert kept["global_step"] == min(later, key=later.__getitem__)
    assert kept["callbacks"]["Evaluate"]["best"] == min(later.values())
    assert kept["callbacks"]["Evaluate"]["best_of"].startswith("fid_random/ancestral_5 of 3 images, ")


def test_scores_of_another_protocol_or_another_way_to_draw_are_told_apart(
    parts: tuple[Evaluation, SamplingModule], tmp_path: Path
) -> None:
    evaluation, _ = parts
    usual = {"num_steps": 3, "spacing": "leading", "clip": True}

    def told(sampler: Sampler, monitor: str = "fid") -> str:
        few = {"every_n_steps": 1, "num_images": 100, "batch_size": 40, "seed": 0, "folder": tmp_path}
        callback = Evaluate(
            monitor=monitor, metrics=evaluation.metrics, data=evaluation.data, evaluation_sampler=sampler, **few
        )
        return callback.told(monitor, "drawn")

    scheduler = {"scheduler": "DDIMScheduler", "options": {}}
    ways = [Ancestral(**usual), Ancestral(**usual | {"spacing": "trailing"}), Ancestral(**usual | {"clip": 0.99})]
    ways += [Heun(**usual), DDIM(**usual, eta=0.0), DDIM(**usual, eta=0.5), Diffusers(**usual, **scheduler)]
    before = [told(way) for way in ways]
    assert len(set(before)) == len(ways)
    assert told(Ancestral(**usual)) == before[0]
    evaluation.metrics["fid"].features.key = "another weights file"
    assert told(Ancestral(**usual)) not in before


def test_a_best_score_of_before_its_protocol_was_kept_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*BAD, "callbacks.evaluation.every_n_steps=1"]
    folder = run(tmp_path / "run", *asked, "trainer.max_steps=1")
    content = weights(folder)
    content["callbacks"]["Evaluate"] |= {"best": -1.0, "best_of": "fid_random/ancestral_5 of 20 images"}
    torch.save(content, folder / "checkpoints/last.ckpt")
    run(tmp_path / "run", *asked, "trainer.max_steps=2")
    kept = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert kept["callbacks"]["Evaluate"]["best"] == scores_of(folder)[2]


def test_what_is_measured_in_training_is_what_evaluate_measures_of_the_averaged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["callbacks.evaluation.num_images=8", "callbacks.evaluation.batch_size=8", "sampler.num_steps=4"]
    folder = run(tmp_path / "run", *BAD, *few)
    as_there = ["batch_size=8", "trainer.precision=32-true"]
    ema, raw = (measured(folder, tmp_path / "r.jsonl", *as_there, f"weights={name}") for name in ("ema", "raw"))
    assert scores_of(folder)[6] == pytest.approx(ema, rel=1e-5)
    assert raw != pytest.approx(ema, rel=1e-2)


def test_too_few_images_are_an_error(parts: tuple[Evaluation, SamplingModule]) -> None:
    evaluation, _ = parts
    with pytest.raises(Refused, match="at least two images, and num_images is 1"):
        Evaluation(evaluation.metrics, evaluation.data, num_images=1, batch_size=4)
    with pytest.raises(Refused, match="batch size of an evaluation is 0"):
        Evaluation(evaluation.metrics, evaluation.data, num_images=2, batch_size=0)
