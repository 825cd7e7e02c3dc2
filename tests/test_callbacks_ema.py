"""The averages are what the recursion says; no file and no exception exchanges them with the raw weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from tiny import Tiny, fit, tiny_trainer
from torch import Tensor

from ddpm.callbacks.ema import EMA, averaged
from ddpm.errors import Refused

STEPS, SAVED_AT = 10, 6
Weights = list[Tensor]
File = dict[str, Any]


def weights(module: torch.nn.Module) -> Weights:
    return [p.detach().clone() for p in module.parameters()]


def same(a: Any, b: Any) -> bool:
    """Equal, bit for bit, all the way down."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


class Watch(Callback):
    """Stands before the average in the list; keeps the raw weights of each step, and what validation sees."""

    def __init__(self) -> None:
        self.raw: list[Weights] = []
        self.seen: list[Weights] = []
        self.validated: list[Weights] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == len(self.raw):
            return
        self.raw.append(weights(pl_module))
        with averaged(trainer):
            self.seen.append(weights(pl_module))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.validated.append(weights(pl_module))


class SaveInside(Callback):
    """Saves while validation shows the averages."""

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == SAVED_AT:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "saved.ckpt")


class SaveEarly(Callback):
    """Saves after an optimiser step that the average has not seen yet."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        path = Path(trainer.default_root_dir) / "early.ckpt"
        if trainer.global_step == SAVED_AT and not path.exists():
            trainer.save_checkpoint(path)


class Fail(Callback):
    """Raises while validation shows the averages."""

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == SAVED_AT:
            raise KeyError("in validation")


def recursion(raw: list[Weights], decay: Callable[[int], float]) -> list[Weights]:
    """The averages after each step, in float64."""
    result = [[p.double() for p in raw[0]]]
    for n, step in enumerate(raw[1:], start=1):
        d = decay(n)
        result.append([d * a + (1 - d) * p.double() for a, p in zip(result[-1], step, strict=True)])
    return result


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("warmup", "decay"), [(False, lambda n: 0.9), (True, lambda n: min(0.9, (1 + n) / (10 + n)))])
def test_the_average_is_the_recursion(
    tmp_path: Path, accumulate: int, warmup: bool, decay: Callable[[int], float]
) -> None:
    watch = Watch()
    trainer = tiny_trainer(tmp_path, STEPS, watch, EMA(decay=0.9, warmup=warmup), accumulate_grad_batches=accumulate)
    fit(trainer, Tiny())
    expected = recursion(watch.raw, decay)
    assert len(watch.seen) == STEPS
    for exact, seen in zip(expected, watch.seen, strict=True):
        for a, b in zip(exact, seen, strict=True):
            torch.testing.assert_close(a, b.double(), rtol=0, atol=1e-6)
    assert not same(watch.seen[-1], watch.raw[-1])


def test_validation_sees_the_averages(tmp_path: Path) -> None:
    watch, module = Watch(), Tiny()
    fit(tiny_trainer(tmp_path, 3, watch, EMA(decay=0.5, warmup=False)), module)
    assert same(watch.validated, [watch.seen[-1]] * 2)
    assert same(weights(module), watch.raw[-1])


def uninterrupted(folder: Path, **options: Any) -> File:
    trainer = tiny_trainer(folder, STEPS, EMA(decay=0.8, warmup=True), **options)
    fit(trainer, Tiny())
    trainer.save_checkpoint(folder / "whole.ckpt")
    return opened(folder / "whole.ckpt")


def opened(path: Path) -> File:
    file: File = torch.load(path, weights_only=True)
    return {key: file[key] for key in KEPT}


KEPT = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "global_step")


def save_inside_validation(folder: Path, **options: Any) -> Path:
    fit(tiny_trainer(folder, 8, SaveInside(), EMA(decay=0.8, warmup=True), **options), Tiny())
    return folder / "saved.ckpt"


def save_by_a_monitor(folder: Path, **options: Any) -> Path:
    best = ModelCheckpoint(folder, monitor="val/loss", save_top_k=-1, filename="{step}")
    fit(
        tiny_trainer(folder, 8, best, EMA(decay=0.8, warmup=True), **options | {"enable_checkpointing": True}),
        Tiny(),
    )
    return folder / f"step={SAVED_AT}.ckpt"


def save_on_exception(folder: Path, **options: Any) -> Path:
    """The saving callback is asked before the average is: nothing may depend on the order."""
    saver = OnExceptionCheckpoint(folder)
    module = Tiny()
    callbacks = (EMA(decay=0.8, warmup=True), Fail(), saver)
    trainer = tiny_trainer(folder, 8, *callbacks, **options | {"enable_checkpointing": True})
    trainer.callbacks.reverse()  # type: ignore[attr-defined]
    with pytest.raises(KeyError, match="in validation"):
        fit(trainer, module)
    path = folder / "on_exception.ckpt"
    assert same(module.state_dict(), dict(torch.load(path)["current_model_state"]))
    return path


def save_after_the_end(folder: Path, **options: Any) -> Path:
    trainer = tiny_trainer(folder, SAVED_AT, EMA(decay=0.8, warmup=True), **options)
    fit(trainer, Tiny())
    trainer.save_checkpoint(folder / "end.ckpt")
    return folder / "end.ckpt"


def save_before_the_average_is_updated(folder: Path, **options: Any) -> Path:
    fit(tiny_trainer(folder, 8, SaveEarly(), EMA(decay=0.8, warmup=True), **options), Tiny())
    return folder / "early.ckpt"


SAVES = [
    save_before_the_average_is_updated,
    save_inside_validation,
    save_by_a_monitor,
    save_on_exception,
    save_after_the_end,
]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("save", SAVES)
def test_resumed_training_equals_uninterrupted_training(
    tmp_path: Path, save: Callable[..., Path], accumulate: int
) -> None:
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 3 * accumulate}
    path = save(tmp_path, **options)
    watch = Watch()
    fit(tiny_trainer(tmp_path, SAVED_AT, watch, EMA(decay=0.8, warmup=True), **options), Tiny())
    file = opened(path)
    names = [name for name, _ in Tiny().named_parameters()]
    assert file["global_step"] == SAVED_AT
    assert same([file["state_dict"][name] for name in names], watch.seen[-1])
    assert same([file["current_model_state"][name] for name in names], watch.raw[-1])

    trainer = tiny_trainer(tmp_path, STEPS, EMA(decay=0.8, warmup=True), **options)
    fit(trainer, Tiny(), path)
    trainer.save_checkpoint(tmp_path / "resumed.ckpt")
    assert same(opened(tmp_path / "resumed.ckpt"), uninterrupted(tmp_path, **options))


def test_a_trainer_that_fits_once_more_goes_on_averaging(tmp_path: Path) -> None:
    watch, module = Watch(), Tiny()
    trainer = tiny_trainer(tmp_path, SAVED_AT, watch, EMA(decay=0.9, warmup=False))
    fit(trainer, module)
    trainer.fit_loop.epoch_loop.max_steps = STEPS
    fit(trainer, module)
    expected = recursion(watch.raw, lambda n: 0.9)
    assert len(watch.raw) == STEPS
    for exact, seen in zip(expected[-1], watch.seen[-1], strict=True):
        torch.testing.assert_close(exact, seen.double(), rtol=0, atol=1e-6)


def test_buffers_are_the_modules_own(tmp_path: Path) -> None:
    file = uninterrupted(tmp_path)
    for state in (file["state_dict"], file["current_model_state"]):
        assert same(state["table"], Tiny().get_buffer("table"))
        assert state["seen"] == STEPS


def test_averaged_restores_the_raw_weights_after_an_exception(tmp_path: Path) -> None:
    trainer, module = tiny_trainer(tmp_path, 4, EMA(decay=0.8, warmup=True)), Tiny()
    fit(trainer, module)
    raw, places = weights(module), [p.data_ptr() for p in module.parameters()]
    with pytest.raises(KeyError), averaged(trainer):
        shown = weights(module)
        with averaged(trainer):
            assert same(weights(module), shown)
        assert same(weights(module), shown)
        raise KeyError
    assert not same(shown, raw)
    assert same(weights(module), raw)
    assert [p.data_ptr() for p in module.parameters()] == places


def test_averaged_without_an_average_changes_nothing(tmp_path: Path) -> None:
    trainer, module = tiny_trainer(tmp_path, 2), Tiny()
    fit(trainer, module)
    raw = weights(module)
    with averaged(trainer):
        assert same(weights(module), raw)


def test_the_average_of_bfloat16_weights_is_kept_in_float32(tmp_path: Path) -> None:
    class Narrow(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            output: Tensor = self.network(torch.ones(4, 3, dtype=torch.bfloat16))
            return output.square().mean()

    trainer = tiny_trainer(tmp_path, 4, EMA(decay=0.999, warmup=False), precision="bf16-true", limit_val_batches=0)
    fit(trainer, Narrow())
    trainer.save_checkpoint(tmp_path / "narrow.ckpt")
    file = opened(tmp_path / "narrow.ckpt")
    assert file["state_dict"]["network.0.weight"].dtype == torch.float32
    assert file["current_model_state"]["network.0.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_an_impossible_decay_is_refused(decay: float) -> None:
    with pytest.raises(Refused, match=r"callbacks.ema.decay"):
        EMA(decay=decay, warmup=False)


def test_sharded_weights_are_refused(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", devices=1, strategy=ModelParallelStrategy(), logger=False)
    with pytest.raises(Refused, match=r"trainer=ddp"):
        EMA(decay=0.9, warmup=False).setup(trainer, Tiny(), "fit")


def test_files_of_weights_alone_are_refused(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, save_weights_only=True)
    trainer = tiny_trainer(tmp_path, 1, saver, EMA(decay=0.9, warmup=False), enable_checkpointing=True)
    with pytest.raises(Refused, match="save_weights_only"):
        fit(trainer, Tiny())
