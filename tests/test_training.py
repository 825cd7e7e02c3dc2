"""A run is a function of its config: however it is cut into processes, ranks or micro-batches."""

from copy import deepcopy
from pathlib import Path

import pytest
import running
import torch
from compose import composed
from processes import SMALL

from ddpm.build import build_data, build_module
from ddpm.callbacks.checkpoint import LAST, PREVIOUS
from ddpm.callbacks.run_log import RunLog, read
from ddpm.checkpoint import resumable
from ddpm.data.stream import TrainBatches
from ddpm.errors import Refused
from ddpm.runs import Run
from ddpm.trainer import build_trainer, refuse_batch
from ddpm.training import Beginning, Start, fit, refuse_change, settings

OFF = ["logger=[]", "metric=[fid_random]", "optimized_metric=fid_random"]


def run(folder: Path, *overrides: str) -> Path:
    return running.run(folder, *SMALL, *OFF, *overrides)


def weights(folder: Path) -> dict:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


def rows(folder: Path) -> list[str]:
    """The run's own log, less its times and the speed."""
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [f"{step} {name} {value}" for step, _, name, value in lines if not name.startswith("speed")]


def assert_same_but_for(step: int, parts: Path, whole: Path) -> None:
    """The first part was to end at a step, and so has scored it and made a picture there; `best.ckpt` is that of the
    best of all scores."""
    extra = [row for row in rows(parts) if row.startswith(f"{step} score/")]
    assert extra
    assert [row for row in rows(parts) if row not in extra] == rows(whole)
    pictures = [{path.name: path.read_bytes() for path in (run / "samples").iterdir()} for run in (parts, whole)]
    assert pictures[0].keys() - pictures[1].keys() == {f"step_{step:07d}.png"}
    assert pictures[0].items() >= pictures[1].items()
    (scores,) = (of for name, of in read(parts / "metrics.csv").items() if name.startswith("score/fid_random/"))
    best = torch.load(parts / "checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == min(scores, key=scores.__getitem__)
    assert best["callbacks"]["Evaluate"]["best"] == min(scores.values())
    assert weights(parts)["callbacks"]["Evaluate"]["scores"] == weights(whole)["callbacks"]["Evaluate"]["scores"]


STATE = (
    "state_dict",
    "current_model_state",
    "optimizer_states",
    "lr_schedulers",
    "averaging_state",
    "global_step",
)


@pytest.mark.parametrize(
    "choices",
    [
        ["data.num_workers=0"],
        pytest.param(
            [
                "trainer.accumulate_grad_batches=2",
                "timestep=loss_aware",
                "schedule.num_steps=4",
                "sampler.num_steps=4",
            ],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(choices, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lasting = [*choices, "lr_schedule=warmup"]  # a cosine would be another one over fewer steps
    whole = run(tmp_path / "whole", *lasting)
    parts = run(tmp_path / "parts", *lasting, "trainer.max_steps=3")
    run(parts, *lasting)
    for key in STATE:
        assert same(weights(whole)[key], weights(parts)[key]), key
    assert_same_but_for(3, parts, whole)


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lasting = ["lr_schedule=warmup", "callbacks.checkpoint.every_n_steps=2"]
    whole = run(tmp_path / "whole", *lasting)
    parts = run(tmp_path / "parts", *lasting, "trainer.max_steps=4")
    last = parts / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    run(parts, *lasting, "trainer.max_steps=4")
    assert "goes on from" in capsys.readouterr().out
    saved = [resumable(parts / "checkpoints" / name)["global_step"] for name in (LAST, PREVIOUS)]
    assert saved == [4, 3]
    run(parts, *lasting)
    assert "goes on from" not in capsys.readouterr().out
    for key in STATE:
        assert same(weights(whole)[key], weights(parts)[key]), key
    assert_same_but_for(4, parts, whole)


def test_accumulation_changes_nothing_but_rounding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    still = ["model.dropout=0.0", "trainer.limit_val_batches=1.0"]
    once, parts = run(tmp_path / "1", *still), run(tmp_path / "4", *still, "trainer.accumulate_grad_batches=4")
    in_parts = weights(parts)["current_model_state"]
    for key, value in weights(once)["current_model_state"].items():
        assert torch.allclose(value, in_parts[key], atol=1e-5), key
    for name in ("train/loss", "val/loss"):
        assert read(parts / "metrics.csv")[name] == pytest.approx(read(once / "metrics.csv")[name], rel=1e-5)


def test_measuring_does_not_change_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    often = [
        "callbacks.evaluation.every_n_steps=1",
        "callbacks.samples.every_n_steps=2",
        "callbacks.checkpoint.every_n_steps=1",
    ]
    seldom, measured = run(tmp_path / "seldom"), run(tmp_path / "often", *often)
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert same(weights(seldom)[key], weights(measured)[key])


def test_scores_during_training_may_have_their_own_sampler_and_are_named_by_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cheap = ["sampler@evaluation_sampler=ddim", "evaluation_sampler.num_steps=3"]
    history = [read(run(tmp_path / name, *extra) / "metrics.csv") for name, extra in (("own", cheap), ("one", []))]
    (own,), (one,) = ([name for name in names if name.startswith("score/fid_random")] for names in history)
    assert own == "score/fid_random/ddim_3"
    assert one == "score/fid_random/ancestral_5"
    assert history[0][own] != history[1][one]


def test_a_label_conditions_the_model(tmp_path, monkeypatch):
    from ddpm.drawing import draw_images

    monkeypatch.chdir(tmp_path)
    folder = run(tmp_path / "run", "model.class_conditional=true", "label_dropout=0.5", "optimizer.lr=0.05")
    assert weights(folder)["state_dict"]["diffusion.network.label_emb.weight"].shape[0] == 11
    asked = [f"checkpoint={folder}", "num_images=4", "sampler.num_steps=4", "trainer=cpu"]
    pictures = []
    for label, guidance in (("null", 1), (3, 1), (3, 4.0), (5, 1)):
        draw_images(
            composed(*asked, f"label={label}", f"guidance={guidance}", f"out={label}-{guidance}", verb="sample")
        )
        pictures.append((tmp_path / f"{label}-{guidance}" / "000000.png").read_bytes())
    assert len(set(pictures)) == 4


def test_a_run_can_not_go_on_as_another_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run(tmp_path / "run", "trainer.max_steps=3")
    for change, key in (("model.channels=16", "model"), ("seed=1", "seed"), ("data.batch_size=32", "data.batch_size")):
        with pytest.raises(Refused, match=f"another {key}"):
            run(folder, change)
    with pytest.raises(Refused, match="averaged weights"):
        run(folder, "~callbacks.ema")


def flat(content):
    content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(1)


SPOILED = {
    "nothing": lambda content: None,
    "an optimiser": lambda content: content.update(optimizer_states=[{"state": {}, "param_groups": 5}]),
    "what the first step would notice": flat,
    "what the second step would": lambda content: content["lr_schedulers"][0].update(step=1),
}


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path, monkeypatch):
    """By what this command asks for, and by what only shows when the checkpoint is restored, or after that."""
    monkeypatch.chdir(tmp_path)
    folder = run(tmp_path / "run", "trainer.max_steps=3")
    with (folder / "metrics.csv").open("a") as file:
        file.write("4,now,train/loss,1.0\n")  # by a part of the run that was killed after its last checkpoint
    (folder / "checkpoints/previous.ckpt").unlink()
    whole = weights(folder)
    for name, spoil in SPOILED.items():
        content = deepcopy(whole)
        spoil(content)
        torch.save(content, folder / "checkpoints/last.ckpt")
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(Refused):
            run(folder, *(["seed=1"] if name == "nothing" else []), "callbacks.samples.num_images=2")
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before, name


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError, torch.OutOfMemoryError),
        (torch.AcceleratorError, torch.AcceleratorError),
        (torch.distributed.DistNetworkError, torch.distributed.DistNetworkError),
        (RuntimeError, Refused),
    ],
)
def test_a_checkpoint_is_not_blamed_for_the_device_or_the_network(error, told, tmp_path, monkeypatch):
    config = composed(*SMALL, *OFF)
    data = build_data(config)
    module, trainer = build_module(config, data.facts), build_trainer(config)
    content = {"global_step": 1, "callbacks": {"SaveLast": {"log_bytes": 0}}}
    beginning = Beginning(Run(tmp_path, None), config, RunLog(tmp_path), Start(tmp_path / LAST, content))

    def failing(*_, **__):
        raise error("of some kind")

    monkeypatch.setattr(trainer, "fit", failing)
    with pytest.raises(told, match="of some kind"):
        fit(trainer, module, data, beginning)


def test_a_batch_that_can_not_be_shared_out_is_refused_in_the_same_words_early_and_late():
    with pytest.raises(Refused) as early:
        refuse_batch(8, build_trainer(composed("trainer=cpu", "trainer.accumulate_grad_batches=3")))
    with pytest.raises(Refused) as late:
        TrainBatches(global_batch=8, first_step=int, rank=0, world_size=1, accumulation=3)
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize(("key", "other"), [("input_perturbation", 0.1), ("zero_terminal_snr", True)])
def test_a_run_goes_on_with_the_noise_it_began_with(key, other):
    config = composed()
    refuse_change(config, config)
    with pytest.raises(Refused, match=f"another {key}"):
        refuse_change(config, config | {key: other})
    with pytest.raises(Refused, match=key):
        settings(config | {key: "no"})


def test_a_run_out_of_time_keeps_its_scores_and_its_last_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    endless = [
        "trainer.max_steps=1000000",
        "trainer.max_time=00:00:00:02",
        "callbacks.checkpoint.every_n_steps=1000000",
    ]
    content = weights(run(tmp_path / "run", *endless, "trainer.val_check_interval=1000000"))
    assert content["global_step"] > 0
    assert content["callbacks"]["Evaluate"]["scores"]["fid_random"] > 0


def test_a_run_that_ends_before_it_logs_anything_ends_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    silent = ["trainer.log_every_n_steps=50", "trainer.val_check_interval=50", "optimized_metric=null"]
    folder = run(tmp_path / "run", *silent, "~callbacks.evaluation", "~callbacks.throughput")
    assert weights(folder)["global_step"] == 6
    assert not (folder / "loss.png").exists()


def test_a_run_needs_no_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run", "optimized_metric=null", "~callbacks.evaluation")
    assert not (tmp_path / "run/checkpoints/best.ckpt").exists()
    with pytest.raises(Refused, match="optimized_metric=null"):
        run(tmp_path / "other", "~callbacks.evaluation")


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "quick"])
def test_a_precision_that_would_cast_the_images_is_refused(precision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="precision"):
        run(tmp_path / "run", f"trainer.precision={precision}")


def test_mixed_precision_stays_near_float32(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    full = run(tmp_path / "32")
    mixed = run(tmp_path / "16", "trainer.precision=bf16-mixed")
    losses = [read(folder / "metrics.csv")["val/loss"] for folder in (full, mixed)]
    for step, value in losses[0].items():
        assert losses[1][step] == pytest.approx(value, rel=1e-2)
    assert all(v.dtype == torch.float32 for v in weights(mixed)["state_dict"].values() if v.is_floating_point())
