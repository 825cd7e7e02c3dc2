"""What all data sets share: their YAMLs, scaling, flips, loaders under a real Trainer, refusals."""

import gzip
import hashlib
import importlib
import inspect
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data._utils import signal_handling
from torchvision import datasets

from ddpm.data.cifar10 import CIFAR10
from ddpm.data.digits import Digits
from ddpm.data.facts import Batch, Facts
from ddpm.data.image_data import ImageData, ImageSet, TensorSet, flipped
from ddpm.data.mnist import MNIST, FashionMNIST, idx
from ddpm.errors import Failed, Refused

CONF = Path(__file__).parents[1] / "conf" / "data"
YAMLS = sorted(CONF.glob("*.yaml"))
WIRED = {"self", "seed"}
COMMON: dict[str, Any] = {"batch_size": 8, "num_workers": 0, "flip": False, "seed": 0}


def target(conf: dict[str, Any]) -> type[ImageData]:
    module, _, name = conf["_target_"].rpartition(".")
    found: type[ImageData] = getattr(importlib.import_module(module), name)
    return found


def digits(**changes: Any) -> Digits:
    return Digits(root=None, **COMMON | changes)


class Numbered(ImageData):
    """Ten images that show their index, to follow them through the loaders."""

    @property
    def facts(self) -> Facts:
        return Facts(name="numbered", shape=(1, 2, 2), num_levels=17, class_names=(), note="")

    def read(self, split: str) -> ImageSet:
        levels = torch.arange(10, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        return TensorSet(levels, torch.full((10,), -1))


class FatalSet(TensorSet):
    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
        raise Refused("broken.png cannot be read")


class Fatal(Numbered):
    def read(self, split: str) -> ImageSet:
        whole = super().read(split)
        assert isinstance(whole, TensorSet)
        return FatalSet(whole.levels, whole.labels)


class KilledSet(TensorSet):
    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Killed(Numbered):
    def read(self, split: str) -> ImageSet:
        whole = super().read(split)
        assert isinstance(whole, TensorSet)
        return KilledSet(whole.levels, whole.labels)


class Witness(LightningModule):
    """Notes the batches that training and validation bring."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[Batch] = []
        self.validated: list[Batch] = []

    def training_step(self, batch: Batch) -> Tensor:
        self.trained.append(batch)
        return self.weight * batch.images.mean()

    def validation_step(self, batch: Batch) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, max_steps: int, **changes: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "default_root_dir": folder,
        "use_distributed_sampler": False,
    }
    return Trainer(max_steps=max_steps, **quiet | changes)


def numbers(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.number for batch in batches]).tolist()


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_is_one_object(path: Path) -> None:
    assert path.read_text().startswith("# ")
    conf = yaml.safe_load(path.read_text())
    parameters = inspect.signature(target(conf)).parameters
    assert set(conf) - {"_target_"} == set(parameters) - WIRED
    assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters.values())


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_set_has_the_keys_that_scripts_rely_on(path: Path) -> None:
    assert {"root", "batch_size", "num_workers", "flip"} <= set(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "cifar10"])
def test_facts_need_no_data(name: str, tmp_path: Path) -> None:
    conf = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    arguments = conf | {"root": str(tmp_path / "nowhere"), "seed": 0}
    facts = target(conf)(**{key: value for key, value in arguments.items() if key != "_target_"}).facts
    assert facts.name == name
    assert facts.num_classes == len(set(facts.class_names)) == 10
    assert Facts.from_dict(facts.as_dict()) == facts


def test_digits_are_1500_and_297_that_scikit_learn_knows() -> None:
    data = digits()
    train, test = data.load("train"), data.load("test")
    assert isinstance(train, TensorSet)
    assert isinstance(test, TensorSet)
    assert (len(train), len(test)) == (1500, 297)
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(10))
    both = torch.cat((train.levels, test.levels))
    assert int(both.sum()) == 561718  # no image twice, none lost
    assert set(both.flatten().tolist()) == set(range(17))


def test_the_split_of_the_digits_knows_no_seed() -> None:
    a, b = digits(seed=0).batch("test", range(297)), digits(seed=1).batch("test", range(297))
    assert torch.equal(a.images, b.images)


def test_digits_come_as_floats_of_their_shape() -> None:
    data = digits()
    batch = data.batch("train", torch.tensor([5, 0, 5]))
    assert batch.images.shape == (3, *data.facts.shape)
    assert (batch.images.dtype, batch.labels.dtype, batch.number.dtype) == (
        torch.float32,
        torch.int64,
        torch.int64,
    )
    assert (float(batch.images.min()), float(batch.images.max())) == (-1, 1)
    assert torch.equal(batch.images[0], batch.images[2])
    assert batch.number.tolist() == [5, 0, 5]


def test_levels_survive_the_round_trip() -> None:
    data = digits()
    images, stored = data.batch("train", range(1500)).images, data.load("train")
    assert isinstance(stored, TensorSet)
    assert torch.equal(((images + 1) * 8).round().to(torch.uint8), stored.levels)


def test_batches_go_through_a_split_in_order() -> None:
    data = digits()
    batches = list(data.batches("test", 100))
    assert [len(batch.images) for batch in batches] == [100, 100, 97]
    assert numbers(batches) == list(range(297))
    assert torch.equal(batches[1].images[3], data.batch("test", [103]).images[0])
    assert numbers(list(data.batches("test", 2, indices=[9, 4, 7]))) == [9, 4, 7]


def test_a_split_is_opened_once() -> None:
    data = digits()
    assert data.load("train") is data.load("train")


def test_a_wrong_split_is_refused() -> None:
    with pytest.raises(Refused, match="no split 'valid': choose train or test"):
        digits().load("valid")


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"batch_size": -4}, {"num_workers": -1}])
def test_impossible_loaders_are_refused(bad: dict[str, int]) -> None:
    (key,) = bad
    with pytest.raises(Refused, match=rf"data.{key}="):
        digits(**bad)


def test_a_flip_is_a_function_of_the_number() -> None:
    images = torch.rand(64, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    number = torch.arange(1000, 1064)
    whole = flipped(images, number, seed=0)
    mirrored = (whole != images).flatten(1).any(1)
    assert torch.equal(whole[mirrored], images[mirrored].flip(-1))
    assert 16 < int(mirrored.sum()) < 48
    parts = [flipped(images[i::4], number[i::4], seed=0) for i in range(4)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)
    assert not torch.equal(flipped(images, number, seed=1), whole)


def test_the_trainer_sees_the_stream_and_validation_the_test_split(tmp_path: Path) -> None:
    data, witness = digits(flip=True, seed=5), Witness()
    trainer(tmp_path, 4, limit_val_batches=1.0, val_check_interval=4).fit(witness, datamodule=data)
    assert numbers(witness.trained) == list(range(32))
    seen = torch.cat([batch.images for batch in witness.trained])
    stored = data.batch("train", data.indices_of(torch.arange(32)))
    assert torch.equal(seen, flipped(stored.images, torch.arange(32), seed=5))
    assert torch.equal(torch.cat([batch.labels for batch in witness.trained]), stored.labels)
    unflipped = torch.cat([batch.images for batch in witness.validated[-38:]])
    assert torch.equal(unflipped, data.batch("test", range(297)).images)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(num_workers: int, tmp_path: Path) -> None:
    data, witness = Numbered(root=None, **COMMON | {"num_workers": num_workers}), Witness()
    trainer(tmp_path, 6).fit(witness, datamodule=data)  # a batch of 8, of 10 images: passes meet inside
    assert numbers(witness.trained) == list(range(48))
    shown = torch.cat([batch.images[:, 0, 0, 0] for batch in witness.trained])
    assert torch.equal((shown + 1) * 8, data.indices_of(torch.arange(48)).float())


def test_a_set_smaller_than_the_batch_is_seen_evenly(tmp_path: Path) -> None:
    data, witness = Numbered(root=None, **COMMON | {"batch_size": 30}), Witness()
    trainer(tmp_path, 1).fit(witness, datamodule=data)
    shown = ((witness.trained[0].images[:, 0, 0, 0] + 1) * 8).long()
    assert shown.bincount().tolist() == [3] * 10


def test_resuming_goes_on_with_the_next_image(tmp_path: Path) -> None:
    first, second = Witness(), Witness()
    begun = trainer(tmp_path, 3)
    begun.fit(first, datamodule=digits())
    begun.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, 6).fit(second, datamodule=digits(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert numbers(first.trained + second.trained) == list(range(48))


def test_epochs_that_a_trainer_makes_up_repeat_nothing(tmp_path: Path) -> None:
    witness = Witness()
    trainer(tmp_path, 6, limit_train_batches=2).fit(witness, datamodule=digits())
    assert numbers(witness.trained) == list(range(48))


def test_accumulated_batches_are_one_global_batch(tmp_path: Path) -> None:
    witness = Witness()
    trainer(tmp_path, 2, accumulate_grad_batches=4).fit(witness, datamodule=digits())
    assert [len(batch.number) for batch in witness.trained] == [2] * 8
    assert numbers(witness.trained) == list(range(16))


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="choose a multiple of 3"):
        trainer(tmp_path, 1, accumulate_grad_batches=3).fit(Witness(), datamodule=digits())


def test_loaders_draw_nothing_from_the_global_generator(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    trainer(tmp_path, 2).fit(Witness(), datamodule=digits())
    list(digits().batches("test", 100))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_refusal_in_a_worker_arrives_as_one_sentence(tmp_path: Path) -> None:
    data = Fatal(root=None, **COMMON | {"num_workers": 1})
    with pytest.raises(Refused) as caught:
        trainer(tmp_path, 1).fit(Witness(), datamodule=data)
    assert str(caught.value) == "broken.png cannot be read"


def test_a_worker_that_dies_ends_the_run_at_once(tmp_path: Path) -> None:
    data, start = Killed(root=None, **COMMON | {"num_workers": 1}), time.monotonic()
    with pytest.raises(Failed, match=r"a process that reads images died .* choose fewer data.num_workers"):
        trainer(tmp_path, 1).fit(Witness(), datamodule=data)
    assert time.monotonic() - start < 15


class Killer(Witness):
    """Kills a worker and goes on computing."""

    def training_step(self, batch: Batch) -> Tensor:
        if len(self.trained) == 2:
            worker = multiprocessing.active_children()[0]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            time.sleep(60)
        return super().training_step(batch)


def test_a_worker_that_dies_during_a_step_ends_the_run_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # as in the first run of a process
    data, start = Numbered(root=None, **COMMON | {"num_workers": 2}), time.monotonic()
    with pytest.raises(Failed, match=r"died \(DataLoader worker .* killed by signal: Killed\)") as told:
        trainer(tmp_path, 9).fit(Killer(), datamodule=data)
    assert time.monotonic() - start < 15
    assert "\n" not in str(told.value)
    assert not multiprocessing.active_children()


def test_other_errors_of_a_loader_stay_what_they_are(tmp_path: Path) -> None:
    class Odd(TensorSet):
        def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
            raise RuntimeError("odd")

    class Broken(Numbered):
        def read(self, split: str) -> ImageSet:
            return Odd(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.zeros(10, dtype=torch.long))

    with pytest.raises(RuntimeError, match=r"^odd$"):
        trainer(tmp_path, 1).fit(Witness(), datamodule=Broken(root=None, **COMMON))


def test_what_training_saw_can_be_read_anew(tmp_path: Path) -> None:
    data, witness = digits(flip=True, seed=5), Witness()
    trainer(tmp_path, 2, accumulate_grad_batches=2).fit(witness, datamodule=data)
    shares = islice(data.numbers(lambda: 0), 4)
    for seen, number in zip(witness.trained, shares, strict=True):
        again = data.trained_on(number, torch.device("cpu"))
        assert all(map(torch.equal, seen, again))


def test_a_run_that_resumes_with_other_data_is_refused(tmp_path: Path) -> None:
    class More(Numbered):
        def read(self, split: str) -> ImageSet:
            return TensorSet(torch.zeros(11, 1, 2, 2, dtype=torch.uint8), torch.full((11,), -1))

    More.__qualname__ = Numbered.__qualname__
    begun = trainer(tmp_path, 1)
    begun.fit(Witness(), datamodule=Numbered(root=None, **COMMON))
    begun.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(Refused, match=r"begun with other data \(numbered: 10 images then, 11 images now\)"):
        trainer(tmp_path, 2).fit(Witness(), datamodule=More(root=None, **COMMON), ckpt_path=str(tmp_path / "last.ckpt"))


def official(root: Path, download: bool = False) -> list[ImageData]:
    arguments = COMMON | {"root": str(root), "download": download}
    return [MNIST(**arguments), FashionMNIST(**arguments), CIFAR10(**arguments)]


@pytest.mark.parametrize("which", range(3))
def test_missing_files_are_refused_with_the_remedy(which: int, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"missing: pass data.download=true .* data.root=FOLDER"):
        official(tmp_path)[which].load("train")


def bomb() -> bytes:
    """100 MB in 100 KB, as gzip."""
    return gzip.compress(bytes(10**8))


@pytest.mark.parametrize("content", [b"cos\nsystem\n(S'exit 1'\ntR.", bomb()], ids=["pickle", "bomb"])
@pytest.mark.parametrize("which", range(3))
def test_a_wrong_checksum_is_refused_before_the_file_is_opened(which: int, content: bytes, tmp_path: Path) -> None:
    data = official(tmp_path)[which]
    assert isinstance(data, MNIST | CIFAR10)
    path = next(iter(data.checksums()))
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(Refused, match=rf"{path.name} is damaged .*: delete it or pass data.download=true"):
        data.load("train")


def test_a_failed_download_is_refused_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"file://{tmp_path}/not/here/"])
    with pytest.raises(Refused, match=r"mnist could not be downloaded to .*data.root=FOLDER"):
        official(tmp_path, download=True)[0].prepare_data()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a local server serves as the second mirror of MNIST; the first one fails."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address + "not/here/", address])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_is_verified_and_then_read(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"images-idx3": ([2, 28, 28], bytes(2 * 28 * 28)), "labels-idx1": ([2], bytes([7, 3]))}
    resources = []
    for name, (sizes, body) in small.items():
        header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
        file = mirror / f"t10k-{name}-ubyte.gz"
        file.write_bytes(gzip.compress(header + body))
        resources.append((file.name, hashlib.md5(file.read_bytes()).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    batch = official(tmp_path / "root", download=True)[0].batch("test", [0, 1])
    assert batch.images.shape == (2, 1, 28, 28)
    assert batch.labels.tolist() == [7, 3]


def test_idx_files_are_read_in_their_byte_order(tmp_path: Path) -> None:
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    assert idx(tmp_path / "a.gz").tolist() == [[1, 2, 3], [4, 5, 6]]
