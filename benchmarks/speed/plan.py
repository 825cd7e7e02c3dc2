"""What is measured: problems, settings, contenders and the groups of rows in which they take turns."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

CIFAR10_32 = {  # of google/ddpm-cifar10-32, as it is published; what is not here is diffusers' default
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}


def small(channels: int, side: int, width: int, groups: int) -> dict[str, Any]:
    """Two levels in the same style, as our small networks have them."""
    return CIFAR10_32 | {
        "sample_size": side,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": [width, 2 * width],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": groups,
    }


@dataclass(frozen=True)
class Problem:
    """A network, its data and its batches.

    model      conf/model/MODEL.yaml
    overrides  of train.py, that make it ours
    unet2d     arguments of diffusers' UNet2DModel
    unet       arguments of denoising-diffusion-pytorch's Unet
    shape      of an image
    """

    model: str
    overrides: list[str]
    callbacks: list[str]  # of a run, but for those that interrupt training; the first is the average of the weights
    unet2d: dict[str, Any]
    unet: dict[str, Any]
    shape: list[int]
    train_batch: int
    sample_batch: int
    pass_steps: int  # optimiser steps of a pass over the training data
    inception_batch: int = 0
    classifier_batch: int = 0

    def images(self, task: str) -> int:
        """How many images a step of a task makes or sees."""
        batches = {"inception": self.inception_batch, "classifier": self.classifier_batch}
        drawn = task in ("sample_step", "ddim50")
        return batches.get(task, self.sample_batch if drawn else self.train_batch)


_ALL = ["learning_rate", "throughput", "finite", "progress"]


def cifar10(train_batch: int, sample_batch: int) -> Problem:
    """The network of Ho et al. (2020) for CIFAR-10, on noise of the size of CIFAR-10."""
    data = ["data._target_=benchmarks.speed.synthetic.Synthetic", "~data.download"]
    quiet = [f"~callbacks.{name}" for name in ("checkpoint", "samples", "evaluation")]  # what interrupts training
    return Problem(
        model="ddpm_cifar10",
        overrides=["experiment=ho2020_cifar10", *data, *quiet],
        callbacks=["ema", *_ALL],
        unet2d=CIFAR10_32,
        unet={"dim": 128, "dim_mults": [1, 2, 2, 2], "channels": 3},
        shape=[3, 32, 32],
        train_batch=train_batch,
        sample_batch=sample_batch,
        pass_steps=50_000 // train_batch,
    )


def digits(model: str = "digits", train_batch: int = 64, sample_batch: int = 50, width: int = 24) -> Problem:
    """What train.py trains without arguments, with the same network or a smaller one."""
    return Problem(
        model=model,
        overrides=[f"model={model}"],
        callbacks=["ema_warmup", *_ALL],
        unet2d=small(1, 8, width, groups=8 if width % 8 == 0 else 4),
        unet={"dim": width, "dim_mults": [1, 2], "channels": 1},
        shape=[1, 8, 8],
        train_batch=train_batch,
        sample_batch=sample_batch,
        pass_steps=-(-1500 // train_batch),
    )


@dataclass(frozen=True)
class Setting:
    """How a contender is set up. `best` are those of its own switches that cost nothing but a line."""

    name: str
    precision: str  # float32 (PyTorch's switches as they are), tf32, bf16
    best: bool = False
    channels_last: bool = False
    compiled: list[str] = field(default_factory=list)  # the mode of torch.compile; of ours, overrides


@dataclass(frozen=True)
class Contender:
    """Who is measured. Of several with one label the fastest counts."""

    label: str
    kind: str  # the module that knows how
    setting: Setting

    @property
    def name(self) -> str:
        return f"{self.label} ({self.setting.name})"


@dataclass(frozen=True)
class Group:
    """Contenders that take turns at each of some tasks, one task after the other."""

    problem: Problem
    device: str
    precision: str
    contenders: list[Contender]
    tasks: list[str]

    def spec(self, contender: Contender) -> dict[str, Any]:
        """What a contender's process has to know."""
        return {
            "problem": asdict(self.problem),
            "device": self.device,
            "precision": self.precision,
            "kind": contender.kind,
            "setting": asdict(contender.setting),
        }


@dataclass(frozen=True)
class Options:
    """What a benchmark is asked for."""

    device: str
    precisions: list[str]
    compiled: bool
    quick: bool
    rounds: int
    seconds: float  # of a round, where a step is shorter
    patience: float  # seconds to wait for an answer


MODELS = ["loader", "sample_step", "train_step"]  # a process keeps its peak: first what needs least
DIGITS = ["loader", "ddim50", "epoch"]
SCORES = ["classifier", "inception"]
PEAKS = ["matmul", "conv3x3"]


def groups(options: Options) -> list[Group]:
    """The groups of a benchmark."""
    if options.quick:
        return [smallest(options)]
    large = cifar10(128, 256) if options.device == "cuda" else cifar10(8, 16)
    steps = [models(large, options, precision) for precision in options.precisions]
    shown = options.precisions if options.compiled else options.precisions[:1]  # so that a CPU is through in time
    small_ones = [Group(digits(), options.device, precision, everybody(precision), DIGITS) for precision in shown]
    return [*steps, *small_ones, scores(options)]


def models(problem: Problem, options: Options, precision: str) -> Group:
    """The steps of the large network, ours and theirs."""
    more = compiled(precision, options.device) if options.compiled else []
    loop = ["train_loop"] if options.compiled else []  # on a CPU its rate is that of train_step
    return Group(problem, options.device, precision, [*everybody(precision), *more], [*MODELS, *loop, *PEAKS])


def smallest(options: Options) -> Group:
    """Every task, and every peer once, in the shortest time."""
    tiny = digits("tiny", 16, 4, width=8)
    problem, precision = replace(tiny, pass_steps=4, inception_batch=2, classifier_batch=20), "float32"
    who = [*ours(precision), default(precision)[0], best(precision)[-1], *floor(precision), *scorer()]
    tasks = dict.fromkeys([*MODELS, "train_loop", *DIGITS, *PEAKS, *SCORES])
    return Group(problem, options.device, precision, who, list(tasks))


def scores(options: Options) -> Group:
    """The networks that metrics are made of, which compute in float32 whatever else does."""
    inceptions = 256 if options.device == "cuda" else 8
    problem = replace(digits(), inception_batch=inceptions, classifier_batch=500)
    return Group(problem, options.device, "float32", [*scorer(), *floor("float32")], SCORES)


def everybody(precision: str) -> list[Contender]:
    """All that does not compile."""
    return [*ours(precision), *default(precision), *best(precision), *floor(precision)]


DIFFUSERS, DENOISING = "diffusers", "denoising-diffusion-pytorch"
PEERS = {DIFFUSERS: "peer_diffusers", DENOISING: "peer_denoising"}


def ours(precision: str) -> list[Contender]:
    return [Contender("ours", "ours", Setting("eager", precision))]


def scorer() -> list[Contender]:
    return [Contender("ours", "scores", Setting("scores", "float32"))]


def floor(precision: str) -> list[Contender]:
    return [Contender("floor", "floor", Setting("eager", precision))]


def default(precision: str) -> list[Contender]:
    """Peers as they are used without a thought: float32, whatever the others compute in; and in bf16 as they
    are with nothing but that switched on."""
    settings = {"default": Setting("float32", "float32")}
    if precision == "bf16":
        settings["default in bf16"] = Setting("autocast", "bf16")
    return [Contender(f"{peer} {said}", kind, s) for peer, kind in PEERS.items() for said, s in settings.items()]


def best(precision: str) -> list[Contender]:
    """Peers with everything that their own switches and PyTorch's offer, in either memory format."""
    settings = [
        Setting("channels_last", precision, best=True, channels_last=True),
        Setting("contiguous", precision, best=True),
    ]
    return [Contender(f"{peer} best eager", kind, setting) for peer, kind in PEERS.items() for setting in settings]


def compiled(precision: str, device: str) -> list[Contender]:
    """Everybody through torch.compile."""
    modes = ["default", "max-autotune"] if device == "cuda" else ["default"]
    mine = [[f"compile={how}", f"compile.mode={mode}"] for how in ("whole", "blocks") for mode in modes]
    who = [Contender("ours compiled", "ours", Setting(" ".join(o), precision, compiled=o)) for o in mine]
    for peer, kind in PEERS.items():
        for mode in modes:
            setting = Setting(mode, precision, best=True, channels_last=True, compiled=[mode])
            who.append(Contender(f"{peer} compiled", kind, setting))
    return who
