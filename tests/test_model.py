"""The U-Net: the papers' networks to the parameter, and its parts against formulas stated here once more."""

import copy
import inspect
import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from ddpm.errors import Refused
from ddpm.model import UNet
from ddpm.model.layers import Attention, Downsample, Dropout, GroupNorm, ResidualBlock, Upsample, sinusoidal

CONF = Path(__file__).parents[1] / "conf" / "model"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
WIRED = {"shape", "num_classes", "learned"}
NICHOL = {  # every option in which Nichol & Dhariwal differ from Ho et al.
    "scale_shift_norm": True,
    "cos_first": True,
    "half_minus_one": False,
    "asymmetric_padding": False,
    "xavier_init": False,
    "zero_init_scale": 0.0,
    "norm_eps": 1e-5,
    "num_heads": 2,
}


def conf(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CONF / f"{name}.yaml").read_text()))


def unet(
    name: str = "tiny",
    shape: tuple[int, int, int] = (1, 8, 8),
    num_classes: int = 0,
    learned: bool = False,
    **options: Any,
) -> UNet:
    arguments = conf(name) | options
    arguments.pop("_target_")
    return UNet(shape=shape, num_classes=num_classes, learned=learned, **arguments)


def roused(model: UNet) -> UNet:
    """The network with every parameter moved, so that no branch is hidden behind a zero; in eval mode."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def assert_close(actual: Tensor, expected: Tensor, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """As torch.testing has it, without the seconds that importing its parts takes."""
    np.testing.assert_allclose(actual.detach(), expected.detach(), rtol=rtol, atol=atol)


def batch(shape: tuple[int, int, int] = (1, 8, 8), b: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(b, *shape, generator=torch.Generator().manual_seed(2)), torch.arange(b) * 300


@cache
def fitting_side(name: str) -> int:
    """The least side of a common data set that the configuration takes."""
    for side in (8, 28, 32, 64, 256):
        try:
            with torch.device("meta"):
                unet(name, (1, side, side))
        except Refused:
            continue
        return side
    raise AssertionError(f"{name} fits no common data set")


# Every YAML


@pytest.mark.parametrize("name", NAMES)
def test_a_yaml_holds_exactly_the_parameters_that_are_not_wired(name: str) -> None:
    signature = inspect.signature(UNet.__init__).parameters
    assert set(conf(name)) - {"_target_"} == set(signature) - WIRED - {"self"}
    assert conf(name)["_target_"] == "ddpm.model.UNet"
    assert all(parameter.default is parameter.empty for parameter in signature.values())


@pytest.mark.parametrize("name", NAMES)
def test_oblong_images_keep_their_shape_and_v_has_its_own_channels(name: str) -> None:
    shape = (3, fitting_side(name), 2 * fitting_side(name))
    thin = {"channels": 8, "num_groups": 4}  # as deep as it is, but quick
    x, t = batch(shape, b=1)
    with torch.no_grad():
        assert unet(name, shape, learned=False, **thin)(x, t).shape == (1, *shape)
        assert unet(name, shape, learned=True, **thin)(x, t).shape == (1, 6, *shape[1:])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_have_one_to_four_channels(channels: int) -> None:
    x, t = batch((channels, 6, 10))
    assert unet(shape=(channels, 6, 10))(x, t).shape == x.shape


@pytest.mark.parametrize(
    ("name", "side", "learned", "count"),
    [
        ("ddpm_cifar10", 32, False, 35_746_307),
        ("ddpm_cifar10", 32, True, 35_749_766),
        ("ddpm_256", 256, False, 113_673_219),
        ("iddpm_cifar10", 32, True, 52_546_438),
        ("iddpm_imagenet64", 64, True, 121_063_942),
    ],
)
def test_the_papers_networks_have_their_parameters(name: str, side: int, learned: bool, count: int) -> None:
    with torch.device("meta"):
        network = unet(name, (3, side, side), learned=learned)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


# The whole network, stated once more: from its weights alone, in the order of the authors' code


def restated(w: dict[str, Tensor], x: Tensor, t: Tensor, config: dict[str, Any]) -> Tensor:
    """The U-Net as one loop over `w`, in the dtype of x."""

    def norm(name: str, h: Tensor) -> Tensor:
        groups = h.reshape(len(h), config["num_groups"], -1)
        centred = groups - groups.mean(2, keepdim=True)
        unit = centred / (centred.square().mean(2, keepdim=True) + config["norm_eps"]).sqrt()
        return unit.reshape(h.shape) * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def conv(name: str, h: Tensor, **options: Any) -> Tensor:
        return functional.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def dense(name: str, h: Tensor) -> Tensor:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def swish(h: Tensor) -> Tensor:
        return h * torch.sigmoid(h)

    def res(name: str, x: Tensor) -> Tensor:
        h = conv(f"{name}.conv1", swish(norm(f"{name}.norm1", x)), padding=1)
        time = dense(f"{name}.temb_proj", swish(temb))[:, :, None, None]
        if config["scale_shift_norm"]:
            c = h.shape[1]
            h = norm(f"{name}.norm2", h) * (1 + time[:, :c]) + time[:, c:]
        else:
            h = norm(f"{name}.norm2", h + time)
        h = conv(f"{name}.conv2", swish(h), padding=1)
        return h + (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)

    def attention(name: str, x: Tensor) -> Tensor:
        if f"{name}.norm.weight" not in w:
            return x
        b, c, height, width = x.shape
        qkv = dense(f"{name}.qkv", norm(f"{name}.norm", x).flatten(2).mT)
        d = c // config["num_heads"]
        heads = []
        for n in range(config["num_heads"]):
            q, k, v = (part[..., n * d : (n + 1) * d] for part in qkv.split(c, dim=-1))
            heads.append(torch.softmax(q @ k.mT / math.sqrt(d), dim=-1) @ v)
        return x + dense(f"{name}.proj_out", torch.cat(heads, -1)).mT.reshape(b, c, height, width)

    def halved(name: str, h: Tensor) -> Tensor:
        before = 0 if config["asymmetric_padding"] else 1
        return conv(name, functional.pad(h, (before, 1, before, 1)), stride=2)

    half = config["channels"] // 2
    angles = t.to(x)[:, None] * 10_000 ** (-torch.arange(half) / (half - config["half_minus_one"])).to(x)
    waves = [angles.cos(), angles.sin()] if config["cos_first"] else [angles.sin(), angles.cos()]
    temb = dense("temb.dense.1", swish(dense("temb.dense.0", torch.cat(waves, 1))))

    levels, n = range(len(config["channel_mult"])), config["num_res_blocks"]
    h = conv("conv_in", x, padding=1)
    stack = [h]
    for i in levels:
        for j in range(n):
            h = attention(f"down.{i}.attn.{j}", res(f"down.{i}.block.{j}", h))
            stack.append(h)
        if i < levels[-1]:
            h = halved(f"down.{i}.downsample.conv", h)
            stack.append(h)
    h = res("mid.block_2", attention("mid.attn_1", res("mid.block_1", h)))
    for i in reversed(levels):
        for j in range(n + 1):
            h = attention(f"up.{i}.attn.{j}", res(f"up.{i}.block.{j}", torch.cat([h, stack.pop()], 1)))
        if i > 0:
            h = conv(f"up.{i}.upsample.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
    assert not stack
    return conv("conv_out", swish(norm("norm_out", h)), padding=1)


@pytest.mark.parametrize("options", [{}, NICHOL], ids=["ho", "nichol"])
def test_the_network_is_its_restatement(options: dict[str, Any]) -> None:
    options = {
        "channels": 8,
        "channel_mult": [1, 2, 2],
        "num_res_blocks": 2,
        "attention_resolutions": [4, 8],
        **options,
    }
    shape = (2, 8, 12)
    network = roused(unet(shape=shape, learned=True, **options)).double()
    x, t = batch(shape)
    expected = restated(network.state_dict(), x.double(), t, conf("tiny") | options)
    assert expected.std() > 0.1
    assert_close(network(x.double(), t), expected, rtol=1e-4, atol=1e-4)  # float32 sinusoids


# Its parts


@pytest.mark.parametrize("cos_first", [False, True])
@pytest.mark.parametrize("half_minus_one", [False, True])
def test_the_sinusoids_are_the_formula(cos_first: bool, half_minus_one: bool) -> None:
    t = torch.tensor([0, 1, 2, 500, 999])
    i = np.arange(64)
    angle = t.numpy()[:, None] * 10_000.0 ** (-i / (63 if half_minus_one else 64))
    parts = [np.cos(angle), np.sin(angle)] if cos_first else [np.sin(angle), np.cos(angle)]
    ours = sinusoidal(t, 128, cos_first=cos_first, half_minus_one=half_minus_one)
    assert ours.dtype == torch.float32
    assert_close(ours, torch.from_numpy(np.concatenate(parts, 1)), atol=2e-4)


def test_the_sinusoids_stay_float32_under_autocast() -> None:
    t = torch.arange(1000)
    plain = sinusoidal(t, 32, cos_first=False, half_minus_one=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sinusoidal(t, 32, cos_first=False, half_minus_one=True)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_downsampling_pads_where_it_says(asymmetric: bool) -> None:
    x = torch.randn(1, 1, 6, 4)
    part = Downsample(1, asymmetric=asymmetric)
    nn.init.zeros_(part.conv.bias)
    nn.init.zeros_(part.conv.weight)
    part.conv.weight.data[0, 0, 2, 2] = 1  # picks the last pixel of each window
    expected = functional.pad(x[:, :, 2::2, 2::2], (0, 1, 0, 1)) if asymmetric else x[:, :, 1::2, 1::2]
    assert torch.equal(part(x), expected)


def test_upsampling_repeats_pixels() -> None:
    x = torch.randn(2, 1, 3, 2)
    part = Upsample(1)
    nn.init.zeros_(part.conv.bias)
    nn.init.dirac_(part.conv.weight)
    assert torch.equal(part(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_upsampling_is_the_convolution_of_the_repeated_pixels_and_learns_like_it() -> None:
    part, x = Upsample(3).double(), torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    direct = part.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    weights, towards = (x, *part.conv.parameters()), torch.randn_like(direct)
    assert_close(part(x), direct, rtol=0, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(part(x), weights, towards), torch.autograd.grad(direct, weights, towards), strict=True
    ):
        assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_does_not_know_the_order_of_pixels(num_heads: int) -> None:
    part = Attention(8, num_heads=num_heads, num_groups=4, eps=1e-6)
    x, order = torch.randn(2, 8, 3, 5), torch.randperm(15)
    shuffled = x.flatten(2)[..., order].view_as(x)
    assert_close(part(shuffled), part(x).flatten(2)[..., order].view_as(x))


def test_group_norm_keeps_bfloat16_and_counts_in_float32() -> None:
    x = torch.randn(2, 8, 64, 64) + 5  # summed in bfloat16, these means would be off by more than 1
    norm, low = GroupNorm(4, 8, 1e-6), x.bfloat16().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.profiler.profile(record_shapes=True) as seen:
        out = norm(low)
    assert ["float"] in [part.input_dtypes[:1] for part in seen.events() if part.name == "aten::native_group_norm"]
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out.float(), norm(low.float()), rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_each_value_with_1_minus_p_and_scales_it(dtype: torch.dtype) -> None:
    part, p, n = Dropout(0.1), 0.1, 2**20
    x = (1 + torch.rand(n // 2**12, 64, 8, 8)).to(dtype).to(memory_format=torch.channels_last)
    first, second = part(x), part(x)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert_close(
        first.double().sum() / x[first > 0].double().sum(), torch.tensor(1 / (1 - p)).double(), rtol=1e-4, atol=0
    )
    for share, expected in (((first > 0), 1 - p), ((first > 0) & (second > 0), (1 - p) ** 2)):
        assert abs(share.double().mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


def test_dropout_drops_of_the_gradient_what_it_dropped() -> None:
    x = torch.randn(4, 8, 4, 4, requires_grad=True)
    out = Dropout(0.5)(x)
    out.backward(torch.ones_like(out))
    assert torch.equal(x.grad, 2.0 * (out != 0))
    assert torch.equal(out, x.detach() * x.grad)


def test_dropout_is_drawn_from_the_seed_and_nothing_where_p_is_0() -> None:
    x, drawn = torch.randn(4, 8, 4, 4), []
    for p in (0.3, 0.3, 0.0, 1 - 1e-12, 1.0):
        torch.manual_seed(1)
        drawn.append(Dropout(p)(x))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], x)
    assert not drawn[3].any()
    assert not drawn[4].any()


def test_dropout_takes_what_has_gaps_or_no_values() -> None:
    x = torch.randn(4, 8, 4, 4)
    for view in (x[:, ::2], x[:1].expand(4, -1, -1, -1)):
        out = Dropout(0.5)(view)
        assert torch.equal(out[out != 0], 2 * view[out != 0])
        assert 0 < (out[0] != 0).sum() < out[0].numel()
        assert not torch.equal(out[0] != 0, out[1] != 0)
    assert Dropout(0.5)(x[:0]).shape == (0, 8, 4, 4)


# How it begins


@pytest.mark.parametrize("name", ["digits", "mnist", "tiny"])
def test_at_construction_the_output_is_nearly_zero(name: str) -> None:
    side = fitting_side(name)
    x, t = batch((1, side, side), b=1)
    with torch.no_grad():
        assert unet(name, (1, side, side))(x, t).abs().max() < 1e-3


def test_a_scale_of_zero_makes_every_branch_exactly_zero() -> None:
    network, (x, t) = unet(zero_init_scale=0.0), batch()
    features = torch.randn(2, 8, 8, 8)
    block = network.down[0].block[0]
    assert isinstance(block, ResidualBlock)
    assert torch.equal(block(features, torch.randn(2, 32)), features)
    assert torch.equal(network(x, t), torch.zeros_like(x))


def test_weights_begin_as_xavier_and_q_k_v_each_for_itself() -> None:
    network = unet("digits", channels=64)
    qkv, conv = network.mid.attn_1.qkv.weight.detach(), network.mid.block_1.conv1.weight.detach()
    for weight, fans in ((qkv, 2 * 128), (conv, 2 * 128 * 9)):
        bound = math.sqrt(6 / fans)
        assert 0.99 * bound < weight.abs().max() <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    norms = [part for part in network.modules() if isinstance(part, GroupNorm)]
    biases = [value for name, value in network.named_parameters() if name.endswith("bias")]
    assert all((norm.weight == 1).all() for norm in norms)
    assert all((bias == 0).all() for bias in biases)


def test_the_last_layers_have_the_authors_scale() -> None:
    network = unet("digits")
    for layer in (network.mid.attn_1.proj_out, network.mid.block_1.conv2, network.conv_out):
        fans = sum(nn.init._calculate_fan_in_and_fan_out(layer.weight))
        assert float(layer.weight.detach().abs().max()) == pytest.approx(1e-5 * math.sqrt(6 / fans), rel=0.05)


def test_construction_is_a_function_of_the_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(unet(class_conditional=True, num_classes=3).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


# What it does


def test_an_image_is_alone_in_its_batch_and_time_matters() -> None:
    network, (x, t) = roused(unet()), batch()
    out = network(x, t)
    assert_close(network(x[1:2], t[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    assert (network(x, t + 1) - out).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_times_may_be_fractions() -> None:
    network, (x, t) = roused(unet()), batch()
    assert torch.equal(network(x, t), network(x, t.double()))
    assert not torch.equal(network(x, t + 0.25), network(x, t))


def test_labels_condition_and_none_is_the_null_label() -> None:
    network, (x, t) = roused(unet(num_classes=10, class_conditional=True)), batch()
    assert network.null_label == 10
    null = network(x, t)
    assert torch.equal(null, network(x, t, torch.full((3,), network.null_label)))
    mixed = network(x, t, torch.tensor([4, network.null_label, 7]))
    assert torch.equal(mixed[1], null[1])
    assert (mixed - null)[[0, 2]].abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_unless_it_is_conditional_the_classes_of_the_data_do_not_matter() -> None:
    torch.manual_seed(0)
    plain = unet()
    torch.manual_seed(0)
    network = unet(num_classes=10)
    assert network.null_label is None
    assert plain.state_dict().keys() == network.state_dict().keys()
    x, t = batch()
    with pytest.raises(Refused, match="class_conditional=true"):
        network(x, t, torch.zeros(3, dtype=torch.long))


def test_dropout_acts_in_training_alone() -> None:
    network, (x, t) = roused(unet(dropout=0.5)), batch()
    assert torch.equal(network(x, t), network(x, t))
    network.train()
    assert not torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize("options", [{}, NICHOL], ids=["ho", "nichol"])
def test_bfloat16_autocast_is_near_float32(options: dict[str, Any]) -> None:
    network, (x, t) = roused(unet(attention_resolutions=[4], **options)), batch()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(x, t)
    full = network(x, t)
    assert low.dtype == torch.float32
    assert (low - full).square().mean().sqrt() < 0.03 * full.std()


@pytest.mark.parametrize("options", [{}, NICHOL], ids=["ho", "nichol"])
def test_gradients_reach_every_parameter(options: dict[str, Any]) -> None:
    options = {"attention_resolutions": [4], **options}
    network = roused(unet(num_classes=2, learned=True, class_conditional=True, **options))
    x, t = batch()
    network(x, t, torch.arange(3)).square().sum().backward()
    untouched = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert not untouched


def test_a_copy_is_equal_and_independent() -> None:
    network, (x, t) = roused(unet()), batch()
    twin = copy.deepcopy(network)
    before = network(x, t)
    assert torch.equal(twin(x, t), before)
    nn.init.zeros_(twin.conv_out.weight)
    assert torch.equal(network(x, t), before)


def test_every_activation_lies_in_channels_last() -> None:
    network, strides = unet(attention_resolutions=[4]), []
    for part in network.modules():
        if isinstance(part, (ResidualBlock, Attention, Downsample, Upsample, GroupNorm)):
            part.register_forward_hook(
                lambda _, __, out: strides.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    network(*batch())
    assert strides
    assert all(strides)


@pytest.mark.slow
def test_it_compiles_as_one_graph() -> None:
    """In a process of its own: the compiler cannot see through the checks that the tests put around us."""
    subprocess.run([sys.executable, "-c", COMPILE, str(CONF / "tiny.yaml")], check=True)


COMPILE = """
import sys, torch, yaml
from ddpm.model import UNet
options = yaml.safe_load(open(sys.argv[1])) | {"class_conditional": True, "zero_init_scale": 1.0}
options.pop("_target_")
network = UNet(shape=(1, 8, 8), num_classes=2, learned=False, **options).eval()
compiled = torch.compile(network, backend="eager", fullgraph=True)
x, t = torch.randn(3, 1, 8, 8), torch.arange(3)
for label in (None, torch.arange(3)):
    assert torch.allclose(compiled(x, t, label), network(x, t, label), rtol=1e-5, atol=1e-6)
"""


# What it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "model.channels must be"),
        ({"channels": -8}, "model.channels must be"),
        ({"channels": 9}, "even"),
        ({"channel_mult": []}, "model.channel_mult"),
        ({"channel_mult": [1, 0]}, "model.channel_mult"),
        ({"num_res_blocks": 0}, "model.num_res_blocks"),
        ({"dropout": 1.0}, "model.dropout must lie in"),
        ({"dropout": -0.1}, "model.dropout must lie in"),
        ({"dropout": math.nan}, "model.dropout must lie in"),
        ({"norm_eps": 0.0}, "model.norm_eps"),
        ({"zero_init_scale": -1.0}, "model.zero_init_scale"),
        ({"num_groups": 3}, "model.num_groups must divide model.channels=8"),
        ({"num_groups": 0}, "model.num_groups"),
        ({"num_heads": 3}, "model.num_heads must divide model.channels=8"),
        (
            {"attention_resolutions": [4, 5]},
            r"\[4, 5\].*\[8, 4\].*choose a model= for images of 8x8, such as model=mnist",
        ),
        ({"class_conditional": True}, "no labels.*model.class_conditional=false"),
        ({"shape": (0, 8, 8)}, "at least 1 channel"),
        ({"shape": (3, 9, 8)}, "9x8 pixels cannot be halved 1 times.*2, 4, 6"),
        ({"channel_mult": [1, 1, 1, 1, 1]}, "multiples of 16"),
    ],
)
def test_the_impossible_is_refused_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        unet(**options)
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)
