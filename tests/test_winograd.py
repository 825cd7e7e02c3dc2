import pytest
import torch
from torch.nn import functional

from ddpm.model import UNet
from ddpm.model.winograd import _24G, _A, _B, Conv3x3, convolution, direct, of_input, of_weight


def drawn(*shape, dtype=torch.float64):
    """Numbers, in channels_last where they are maps or kernels."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)
    return values.to(memory_format=torch.channels_last) if len(shape) == 4 else values


def arguments(b, c, d, h, w, dtype=torch.float64):
    return [drawn(*shape, dtype=dtype).requires_grad_() for shape in ((b, c, h, w), (d, c, 3, 3), (d,))]


def with_gradients(convolve, tensors):
    out = convolve(*tensors)
    return [out, *torch.autograd.grad(out, tensors, drawn(*out.shape, dtype=out.dtype))]


def by_definition(x, weight, bias):
    return functional.conv2d(x, weight, bias, padding=1)


def away(found, known):
    """The error in units of what is known, the worst of several tensors."""
    return max(((one - other).norm() / other.norm()).item() for one, other in zip(found, known, strict=True))


def test_the_transforms_are_those_of_a_correlation():
    """In whole numbers, so exactly: F(4, 3) of Lavin & Gray (2016), sec. 4.3, along one side."""
    values, kernel = torch.arange(6) ** 2 - 7, torch.tensor([3, -5, 2])
    known = torch.stack([values[i : i + 3] @ kernel for i in range(4)])
    assert torch.equal(_A @ ((_24G @ kernel) * (_B @ values)), 24 * known)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 4, 4), (3, 5, 2, 8, 12), (5, 3, 4, 32, 16), (2, 2, 3, 64, 64)])
def test_it_and_its_gradients_are_the_convolution(sizes):
    tensors = arguments(*sizes)
    assert away(with_gradients(convolution, tensors), with_gradients(by_definition, tensors)) < 1e-13


def test_what_is_not_in_channels_last_is_convolved_as_well():
    tensors = [tensor.detach().contiguous().requires_grad_() for tensor in arguments(3, 5, 2, 8, 12)]
    assert away(with_gradients(convolution, tensors), with_gradients(by_definition, tensors)) < 1e-13


def test_gradients_of_gradients():
    tensors = arguments(2, 2, 3, 4, 8)
    assert torch.autograd.gradcheck(convolution, tensors)
    assert torch.autograd.gradgradcheck(convolution, tensors)


def test_the_operators_keep_what_they_promise_to_torch():
    x, weight, bias = arguments(3, 4, 6, 16, 16, dtype=torch.float32)
    grad = drawn(3, 6, 16, 16, dtype=torch.float32).requires_grad_()
    for operator, given in ((convolution, (x, weight, bias)), (of_input, (grad, weight)), (of_weight, (grad, x))):
        torch.library.opcheck(operator, given)


def test_in_float32_it_rounds_a_few_times_as_much_as_a_direct_one():
    tensors = arguments(4, 128, 128, 16, 16, dtype=torch.float32)
    known = with_gradients(by_definition, [tensor.detach().double().requires_grad_() for tensor in tensors])
    fast, plain = (away(with_gradients(way, tensors), known) for way in (convolution, by_definition))
    assert fast < 1e-5
    assert fast < 10 * plain


def layer_and_map(c=64, d=64, side=16, dtype=torch.float32):
    torch.manual_seed(1)
    return Conv3x3(c, d).to(dtype, memory_format=torch.channels_last), drawn(2, c, side, side, dtype=dtype)


def test_large_maps_take_the_fast_way_unless_told_otherwise():
    layer, x = layer_and_map()
    assert torch.equal(layer(x), convolution(x, layer.weight, layer.bias))
    assert not torch.equal(layer(x), by_definition(x, layer.weight, layer.bias))
    with direct():
        assert torch.equal(layer(x), by_definition(x, layer.weight, layer.bias))
    assert torch.equal(layer(x), convolution(x, layer.weight, layer.bias))


@pytest.mark.parametrize("other", [{"c": 32}, {"d": 32}, {"side": 12}, {"side": 18}, {"dtype": torch.float64}])
def test_what_gains_nothing_or_can_not_take_it_is_left_to_torch(other):
    layer, x = layer_and_map(**other)
    assert torch.equal(layer(x), by_definition(x, layer.weight, layer.bias))


def test_autocast_is_left_to_torch():
    layer, x = layer_and_map()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_a_network_predicts_and_learns_alike_either_way(unet_of_64):
    x, time = drawn(2, 3, 16, 16, dtype=torch.float32), torch.tensor([3, 700])

    def learned():
        out = unet_of_64(x, time)
        return [out, *torch.autograd.grad(out.square().sum(), list(unet_of_64.parameters()))]

    fast = learned()
    with direct():
        plain = learned()
    assert 0 < away(fast, plain) < 1e-4


@pytest.fixture
def unet_of_64():
    torch.manual_seed(2)
    options = {"channels": 64, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [], "num_heads": 1}
    norms = {"num_groups": 32, "norm_eps": 1e-6, "scale_shift_norm": False, "dropout": 0.0, "zero_init_scale": 1.0}
    kinds = {"cos_first": False, "half_minus_one": True, "asymmetric_padding": True, "xavier_init": True}
    rest = {"num_classes": 0, "learned": False, "class_conditional": False, "rescale_time": True}
    return UNet(shape=(3, 16, 16), **options, **norms, **kinds, **rest)
