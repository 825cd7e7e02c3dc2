"""A loss or gradient that is lost stops the run before weights, averages or files take it, and the run says where."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from tiny import tiny_trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from yamls import one, schedule

from ddpm.callbacks.ema import EMA, averaged
from ddpm.callbacks.finite import StopOnNonFinite
from ddpm.callbacks.overflow import first_overflow
from ddpm.data.facts import Facts
from ddpm.data.image_data import ImageData, ImageSet, TensorSet
from ddpm.data.stream import Permuted
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Diverged, Refused
from ddpm.module import DiffusionModule
from ddpm.objective import Simple
from ddpm.prediction import Epsilon
from ddpm.sigma import Beta

B, N, SEED = 8, 80, 3
POSITION = 6  # of the bad image in its batch: the second of two micro-batches, or rank 1 of two


class Images(ImageData):
    """Dark images, of which those that are seen under some numbers are bright."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(root=None, batch_size=B, num_workers=0, flip=True, seed=SEED)
        self.bright = Permuted(N, SEED)(torch.tensor(numbers, dtype=torch.long))

    @property
    def facts(self) -> Facts:
        return Facts(name="bright", shape=(1, 2, 2), num_levels=17, class_names=(), note="")

    def read(self, split: str) -> ImageSet:
        levels = torch.randint(0, 4, (N, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        levels[self.bright] += 13
        return TensorSet(levels, torch.full((N,), -1))


class Infinite(nn.Module):
    """Its output is infinite for marked images."""

    def forward(self, x: Tensor, mark: Tensor) -> Tensor:
        return x + mark / (1 - mark)


class Steep(nn.Module):
    """Its gradient is not finite for marked images: that of |w|^(1/2) at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor, mark: Tensor) -> Tensor:
        return x + (self.w.abs() + 1 - mark).sqrt()


class Layers(nn.Module):
    """A network that marks bright images, and keeps what it saw in training."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.drop, self.middle, self.last = nn.Linear(4, 4), nn.Dropout(0.5), middle, nn.Linear(4, 4)
        self.saw: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        mark = (x.flatten(1).mean(1, keepdim=True) > 0).float()
        dropped = self.drop(self.first(x.flatten(1)))
        if self.training:
            self.saw.append(torch.cat((x.flatten(1), dropped.detach().float(), time.reshape(-1, 1)), dim=1))
        out: Tensor = self.last(self.middle(dropped, mark))
        return out.reshape(x.shape)


def small(middle: nn.Module, timestep: str = "stratified", **optimizer: Any) -> DiffusionModule:
    """A module whose x_t is nearly x_0."""
    torch.manual_seed(0)
    network = Layers(middle)
    return DiffusionModule(
        GaussianDiffusion(network, schedule("constant", 5), Beta(), Epsilon(), 17),
        Simple(),
        one("timestep", timestep, num_steps=5),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01, **optimizer),
        lr_factor=lambda step: 1.0,
        seed=SEED,
        batch_size=B,
        label_dropout=0.0,
        input_perturbation=0.0,
        card={},
    )


def stop(folder: Path, data: ImageData, most_left_out: int = 100) -> StopOnNonFinite:
    return StopOnNonFinite(most_left_out=most_left_out, folder=folder, data=data)


class SaveEachStep(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{trainer.global_step}.ckpt")


class Late(StopOnNonFinite):
    """Reads its verdicts as on a GPU: one step later, if the optimizer can leave a step out by itself."""

    def may_wait(self, trainer: Trainer, optimizer: Optimizer, counts: Tensor) -> bool:
        assert not counts.is_cuda
        return bool(optimizer.defaults["fused"])


def numbers(step: int) -> Tensor:
    """What the images of a step (from 1) are called."""
    return torch.arange((step - 1) * B, step * B)


def bad(step: int) -> int:
    return int(numbers(step)[POSITION])


def finite(values: Any) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_infinite_loss_stops_the_run_before_anything_takes_it(
    tmp_path: Path, accumulate: int, precision: str
) -> None:
    data, module = Images(bad(5)), small(Infinite())
    callbacks = (EMA(decay=0.5, warmup=False), stop(tmp_path, data), SaveEachStep())
    trainer = tiny_trainer(tmp_path, 8, *callbacks, accumulate_grad_batches=accumulate, precision=precision)
    with pytest.raises(Diverged) as told:
        trainer.fit(module, datamodule=data)
    message, file = str(told.value), json.loads((tmp_path / "diverged.json").read_text())
    assert message.startswith(
        "The training loss is nan or infinite in step 5: first in the output of diffusion.network.mid"
    )
    assert ("(micro-batch 2)" in message) == (accumulate == 2)
    assert "lower optimizer.lr" in message
    assert ("trainer.precision=32-true" in message) == (precision == "bf16-mixed")
    assert file["indices"] == data.indices_of(numbers(5)).tolist()
    assert f"of indices {', '.join(map(str, file['indices'][:8]))} (all in {tmp_path}/diverged.json)" in message
    assert (file["what"], file["step"], file["rank"], file["micro_batch"]) == ("training loss", 5, 0, accumulate)
    assert file["where"] == "the output of diffusion.network.middle (Infinite)"

    saved = torch.load(tmp_path / "4.ckpt", weights_only=True)
    for name, value in module.named_parameters():
        assert torch.equal(value, saved["current_model_state"][name])
    with averaged(trainer):
        for name, value in module.named_parameters():
            assert torch.equal(value, saved["state_dict"][name])
    assert {path.stem for path in tmp_path.glob("*.ckpt")} <= set("01234")


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("timestep", ["stratified", "loss_aware"])
def test_the_second_run_of_the_step_sees_what_the_first_one_saw(tmp_path: Path, timestep: str, accumulate: int) -> None:
    """Images, flips, t, noise and dropout; also where t was learnt, also from the losses of this step."""
    data, module = Images(bad(5)), small(Infinite(), timestep)
    if timestep == "loss_aware":
        module.timestep.update(torch.arange(1, 6).repeat(10), torch.arange(50.0))
    callbacks = (stop(tmp_path, data),)
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 1000}
    with pytest.raises(Diverged, match="step 5"):
        tiny_trainer(tmp_path, 8, *callbacks, **options).fit(module, datamodule=data)
    network = module.diffusion.network
    assert isinstance(network, Layers)
    first, again = network.saw[4 * accumulate : 5 * accumulate], network.saw[5 * accumulate :]
    assert len(again) == POSITION * accumulate // B + 1  # as far as the bad image
    for a, b in zip(first, again, strict=False):
        assert torch.equal(a, b)
    assert finite(module.timestep.state_dict().values())


def test_a_lost_gradient_of_a_finite_loss_stops_the_run(tmp_path: Path) -> None:
    data, module = Images(bad(3)), small(Steep())
    with pytest.raises(Refused, match=r"The gradient of the training loss is nan or infinite in step 3") as told:
        tiny_trainer(tmp_path, 8, stop(tmp_path, data)).fit(module, datamodule=data)
    assert "first in the gradient of diffusion.network.middle.w, on 8 training images" in str(told.value)
    assert finite(module.parameters())


@pytest.mark.parametrize("middle", [Infinite, Steep])
@pytest.mark.parametrize("step", [5, 8])
def test_a_verdict_that_is_read_late_still_comes_before_the_weights_and_a_file(
    tmp_path: Path, step: int, middle: type[nn.Module]
) -> None:
    """The optimizer leaves the step out by itself, as the one that knows in time."""
    data, module = Images(bad(step)), small(middle(), fused=True)
    late = Late(most_left_out=1, folder=tmp_path, data=data)
    with pytest.raises(Diverged, match=rf"in step {step}: first in the .* of diffusion.network.middle") as told:
        trainer = tiny_trainer(tmp_path, 8, late, SaveEachStep(), val_check_interval=100)
        trainer.fit(module, datamodule=data)
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert [path.name for path in saved] == [f"{k}.ckpt" for k in range(1, step)]
    for name, value in torch.load(saved[-1], weights_only=True)["state_dict"].items():
        assert torch.equal(value, module.state_dict()[name])
    with pytest.raises(Diverged) as again:
        trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert again.value is told.value


@pytest.mark.parametrize("step", [5, 6, 8])
def test_a_verdict_that_is_read_late_stops_the_run_without_a_file(tmp_path: Path, step: int) -> None:
    """In the next step, before a validation (after step 6), or at the end."""
    data, module = Images(bad(step)), small(Infinite(), fused=True)
    with pytest.raises(Diverged, match=f"step {step}: first in the output"):
        late = Late(most_left_out=1, folder=tmp_path, data=data)
        tiny_trainer(tmp_path, 8, late, val_check_interval=6).fit(module, datamodule=data)
    assert finite(module.parameters())


def test_an_image_that_is_gone_by_the_second_run_hides_nothing_else(tmp_path: Path) -> None:
    class Gone(Images):
        def trained_on(self, number: Tensor, device: torch.device) -> Any:
            raise Refused(f"{tmp_path}/1.png cannot be read")

    data, module = Gone(bad(2)), small(Infinite())
    with pytest.raises(
        Diverged, match=r"in step 2: it could not be run once more \(\S+1.png cannot be read\), on 8 tr"
    ):
        tiny_trainer(tmp_path, 8, stop(tmp_path, data)).fit(module, datamodule=data)
    noted = json.loads((tmp_path / "diverged.json").read_text())
    assert noted["where"] is None
    assert "1.png" in noted["why"]
    assert str(tmp_path) not in noted["why"]  # the file may be handed on


def test_the_file_of_an_earlier_attempt_goes(tmp_path: Path) -> None:
    (tmp_path / "diverged.json").write_text("{}")
    data = Images()
    tiny_trainer(tmp_path, 1, stop(tmp_path, data)).fit(small(Infinite()), datamodule=data)
    assert not (tmp_path / "diverged.json").exists()


def scaled(initial: float) -> tuple[torch.amp.GradScaler, MixedPrecision]:
    scaler = torch.amp.GradScaler("cpu", init_scale=initial, growth_interval=10**6)
    return scaler, MixedPrecision("16-mixed", "cpu", scaler)


def test_the_loss_scaler_leaves_steps_out_which_are_counted_and_not_averaged(tmp_path: Path) -> None:
    """Too large a scale at first, and later an image that no scale helps; on the way a run that resumes."""
    data, module, (scaler, plugin) = Images(bad(9)), small(Infinite(), "loss_aware"), scaled(2.0**22)
    ema, watch = EMA(decay=0.5, warmup=True), stop(tmp_path, data)
    trainer = tiny_trainer(tmp_path, 8, ema, watch, plugins=[plugin])
    trainer.fit(module, datamodule=data)
    too_large = 22 - torch.tensor(scaler.get_scale()).log2().item()
    assert watch.skipped == trainer.logged_metrics["train/skipped_steps"] == too_large > 1
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    module, ema, watch = small(Infinite(), "loss_aware"), EMA(decay=0.5, warmup=True), stop(tmp_path, data)
    trainer = tiny_trainer(tmp_path, 12, ema, watch, plugins=[scaled(2.0**22)[1]])
    trainer.fit(module, datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert watch.skipped == trainer.logged_metrics["train/skipped_steps"] == too_large + 1
    assert ema._average_model is not None
    assert int(ema._average_model.n_averaged) == 12 - watch.skipped
    assert finite(module.state_dict().values())
    assert finite(ema._average_model.state_dict().values())


def test_an_average_of_a_step_left_out_is_the_one_before_it(tmp_path: Path) -> None:
    data, module = Images(bad(4)), small(Infinite())
    saved: list[list[Tensor]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            with averaged(trainer):
                saved.append([value.clone() for value in pl_module.parameters()])

    callbacks = (EMA(decay=0.5, warmup=False), Watch(), stop(tmp_path, data))
    tiny_trainer(tmp_path, 5, *callbacks, plugins=[scaled(1.0)[1]]).fit(module, datamodule=data)
    same = [all(map(torch.equal, a, b)) for a, b in zip(saved, saved[1:], strict=False)]
    assert same == [False, False, True, False]


def test_a_scale_that_collapses_ends_the_run(tmp_path: Path) -> None:
    data, module = Images(*(bad(step) for step in range(4, 9))), small(Infinite())
    trainer = tiny_trainer(tmp_path, 12, stop(tmp_path, data, most_left_out=5), plugins=[scaled(1.0)[1]])
    with pytest.raises(Diverged, match=r"infinite in step 8, as in the 4 before: first in the output") as told:
        trainer.fit(module, datamodule=data)
    assert "trainer.precision=bf16-mixed or 32-true" in str(told.value)
    assert finite(module.parameters())


def test_an_impossible_patience_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="most_left_out is 0"):
        stop(tmp_path, Images(), most_left_out=0)


class Root(nn.Module):
    """The root's weight does nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1e38 * 100


class Flat(nn.Module):
    """The gradient with respect to its input is not finite."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 0).abs().sqrt()


@pytest.mark.parametrize(
    ("middle", "found"),
    [
        (nn.Identity(), None),
        (Root(), "the output of network.2 (Root)"),
        (Flat(), "the gradient at the output of network.1 (SiLU)"),
        (nn.Linear(3, 3), "the gradient of unused"),
    ],
)
def test_the_first_overflow_is_found_and_nothing_left_behind(middle: nn.Module, found: str | None) -> None:
    root = nn.Module()
    root.network = network = nn.Sequential(nn.Linear(3, 3), nn.SiLU(inplace=True), middle, nn.Linear(3, 2))
    root.unused = nn.Parameter(torch.zeros(()))
    steep = isinstance(middle, nn.Linear)

    def loss_of() -> Tensor:
        loss: Tensor = network(torch.ones(4, 3)).square().mean()
        return loss + root.unused.abs().sqrt() if steep else loss

    network.compile(backend="eager")
    assert first_overflow(root, loss_of) == found
    assert all(value.grad is None and not value._backward_hooks for value in root.parameters())
    assert not any(part._forward_hooks for part in root.modules())


def test_a_loss_that_overflows_by_itself_is_told_from_the_network(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)
    found = first_overflow(network, lambda: network(torch.ones(1, 1)).sum() * torch.inf)
    assert found == "the loss, computed from finite outputs of the network,"


@pytest.mark.slow
def test_ranks_stop_together_and_tell_what_one_of_them_saw(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "PYTHONPATH": str(Path(__file__).parent)}
    program = f"import test_callbacks_finite as t; t.one_rank({str(tmp_path)!r})"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
        )
        for rank in "01"
    ]
    told = [rank.communicate(timeout=400)[0].decode() for rank in ranks]
    assert told[0] == told[1]
    losses, gradients = told[0].splitlines()
    place = "diffusion.network.middle"
    assert (
        f"The training loss is nan or infinite in step 3: first in the output of {place} (Infinite) (rank 1)" in losses
    )
    assert (
        f"The gradient of the training loss is nan or infinite in step 3: first in the gradient of {place}.w"
        in gradients
    )
    for name in ("Infinite", "Steep"):
        known = json.loads((tmp_path / name / "diverged.json").read_text())
        assert known["rank"] == 1
        assert known["indices"] == Images().indices_of(numbers(3)).tolist()
        assert len(list((tmp_path / name).glob("*.ckpt"))) == 2


def one_rank(folder: str) -> None:
    """A loss that one rank loses, and a gradient, which all lose with it."""
    for middle in (Infinite(), Steep()):
        data, mine = Images(bad(3)), Path(folder) / type(middle).__name__
        mine.mkdir(exist_ok=True)
        callbacks = (EMA(decay=0.5, warmup=False), stop(mine, data), SaveEachStep())
        trainer = tiny_trainer(mine, 8, *callbacks, strategy="ddp", devices=2, use_distributed_sampler=False)
        try:
            trainer.fit(small(middle), datamodule=data)
        except Diverged as end:
            print(end)


def test_weights_that_a_step_of_finite_gradients_lost_reach_no_file(tmp_path: Path) -> None:
    data, module = Images(), small(Infinite())
    trainer = tiny_trainer(tmp_path, 1, stop(tmp_path, data))
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = torch.inf
    with pytest.raises(Diverged, match="after step 1, whose loss and gradient were not"):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["good.ckpt"]
