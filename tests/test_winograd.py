import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import floor
from ddpm.model import UNet
from ddpm.model.layers import Upsample
from ddpm.model.winograd import (
    _24G,
    _A_T,
    _B_T,
    TILES,
    Conv3x3,
    _pieces,
    _rimmed,
    convolution,
    direct,
    input_gradient,
    weight_gradient,
)


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
    assert torch.equal(_A_T @ ((_24G @ kernel) * (_B_T @ values)), 24 * known)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 4, 4), (3, 5, 2, 8, 12), (5, 3, 4, 32, 16), (2, 2, 3, 64, 72)])
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
    for operator, given in (
        (convolution, (x, weight, bias)),
        (input_gradient, (grad, weight)),
        (weight_gradient, (grad, x)),
    ):
        torch.library.opcheck(operator, given)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_has_no_gradient_and_costs_none(frozen):
    tensors = arguments(1, 2, 3, 8, 8)
    tensors[frozen].requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        convolution(*tensors).sum().backward()
    assert [tensor.grad is None for tensor in tensors] == [k == frozen for k in range(3)]
    assert counter.get_total_flops() == (3 if frozen == 2 else 2) * 2 * 9 * 2 * 3 * 8 * 8


def test_no_images_at_all():
    x, weight, bias = arguments(0, 2, 3, 8, 8)
    out, *gradients = with_gradients(convolution, (x, weight, bias))
    assert out.shape == (0, 3, 8, 8)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize(("h", "w"), [(6, 8), (8, 6)])
def test_sides_of_no_whole_tiles_are_an_error(h, w):
    with pytest.raises(RuntimeError, match="size"):
        convolution(*arguments(1, 2, 3, h, w))


@pytest.mark.parametrize("shape", [(3, 2, 256, 256), (20, 2, 8, 8), (2, 2, 16, 4096), (5, 2, 40, 40)])
def test_what_is_computed_at_once_is_bounded(shape):
    pieces = list(_pieces(torch.empty(shape), _rimmed))
    assert sum(piece.shape[:3].numel() for piece in pieces) * 16 == shape[0] * shape[2] * shape[3]
    assert max(piece.shape[:3].numel() for piece in pieces) <= max(TILES, shape[3] // 4)


def test_in_float32_it_rounds_a_few_times_as_much_as_a_direct_one():
    tensors = arguments(4, 128, 128, 16, 16, dtype=torch.float32)
    known = with_gradients(by_definition, [tensor.detach().double().requires_grad_() for tensor in tensors])
    fast, plain = (away(with_gradients(way, tensors), known) for way in (convolution, by_definition))
    assert fast < 1e-5
    assert fast < 6 * plain


def layer_and_map(c=128, d=128, side=16, dtype=torch.float32):
    torch.manual_seed(1)
    return Conv3x3(c, d).to(dtype, memory_format=torch.channels_last), drawn(2, c, side, side, dtype=dtype)


def test_large_maps_take_the_fast_way_unless_told_otherwise():
    layer, x = layer_and_map()
    assert torch.equal(layer(x), convolution(x, layer.weight, layer.bias))
    assert not torch.equal(layer(x), by_definition(x, layer.weight, layer.bias))
    with direct():
        assert torch.equal(layer(x), by_definition(x, layer.weight, layer.bias))
    assert torch.equal(layer(x), convolution(x, layer.weight, layer.bias))


@pytest.mark.parametrize("other", [{"c": 64}, {"d": 64}, {"side": 12}, {"side": 18}, {"dtype": torch.float64}])
def test_what_gains_nothing_or_can_not_take_it_is_left_to_torch(other):
    layer, x = layer_and_map(**other)
    assert torch.equal(layer(x), by_definition(x, layer.weight, layer.bias))


def test_autocast_is_left_to_torch_but_not_backward_alone():
    layer, x = layer_and_map()
    plain, within = (torch.autograd.grad(layer(x).sum(), layer.weight)[0] for _ in range(2))
    out = layer(x).sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        (within,) = torch.autograd.grad(out, layer.weight)
    assert torch.equal(within, plain)


def test_derivatives_forward_and_torch_func_are_left_to_torch():
    layer, x = layer_and_map()
    along = torch.ones_like(x)
    with direct():
        known = torch.func.jvp(layer, (x,), (along,))
    assert all(torch.equal(one, other) for one, other in zip(torch.func.jvp(layer, (x,), (along,)), known, strict=True))
    with forward_ad.dual_level():
        assert torch.equal(forward_ad.unpack_dual(layer(forward_ad.make_dual(x, along))).tangent, known[1])
    assert torch.func.grad(lambda x: layer(x).sum())(x).shape == x.shape


def test_direct_within_direct():
    layer, x = layer_and_map()
    with direct():
        with direct():
            assert not layer.suits(x)
        assert not layer.suits(x)
    assert layer.suits(x)


def test_compiled_it_is_the_same():
    layer, x = layer_and_map()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    ours, theirs = (torch.autograd.grad(way(x).square().sum(), layer.weight)[0] for way in (layer, compiled))
    assert torch.equal(ours, theirs)
    with torch.inference_mode():
        assert torch.equal(compiled(x), layer(x))


def test_it_counts_the_operations_of_the_definition():
    layer, x = layer_and_map(128, 256)
    with FlopCounterMode(display=False) as ours:
        layer(x.requires_grad_()).sum().backward()
    with direct(), FlopCounterMode(display=False) as known:
        layer(x).sum().backward()
    assert ours.get_total_flops() == known.get_total_flops() > 0


def test_the_floor_of_the_benchmark_does_what_we_do():
    layer, x = layer_and_map()
    calls = floor.recorded(lambda: layer(x.requires_grad_()).sum().backward())
    names = [call.operation.overloadpacket.__name__ for call in calls]
    assert names == ["conv3x3", "conv3x3_input_gradient", "conv3x3_weight_gradient"]
    floor.repeatable(calls, x.device)()


@pytest.mark.parametrize(("channels", "side", "way"), [(4, 4, 4), (128, 4, 3), (128, 9, 4), (128, 8, 6)])
def test_upsampling_is_the_convolution_of_repeated_pixels_in_each_way(channels, side, way):
    """As a transposed convolution by 4x4, one by 3x3, or by 6x6 products."""
    torch.manual_seed(1)
    part, x = Upsample(channels), drawn(2, channels, side, side, dtype=torch.float32)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert part.conv.suits(x, scale=2) == (way == 6)
    (call,) = floor.recorded(lambda: part(x))
    assert call.operation.overloadpacket.__name__ == ("conv3x3" if way == 6 else "convolution")
    assert call.arguments[1].shape[-1] == {4: 4, 3: 3, 6: 3}[way]
    torch.testing.assert_close(part(x), by_definition(repeated, part.conv.weight, part.conv.bias), rtol=1e-4, atol=1e-4)


def test_a_network_predicts_and_learns_alike_either_way(unet_of_128):
    x, time = drawn(2, 3, 16, 16, dtype=torch.float32), torch.tensor([3, 700])

    def learned():
        out = unet_of_128(x, time)
        return [out, *torch.autograd.grad(out.square().sum(), list(unet_of_128.parameters()))]

    fast, again = learned(), learned()
    assert all(torch.equal(one, other) for one, other in zip(fast, again, strict=True))
    with direct():
        plain = learned()
    assert 0 < away(fast, plain) < 1e-4


@pytest.fixture
def unet_of_128():
    torch.manual_seed(2)
    options = {"channels": 128, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [], "num_heads": 1}
    norms = {"num_groups": 32, "norm_eps": 1e-6, "scale_shift_norm": False, "dropout": 0.0, "zero_init_scale": 1.0}
    kinds = {"cos_first": False, "half_minus_one": True, "asymmetric_padding": True, "xavier_init": True}
    rest = {"num_classes": 0, "learned": False, "class_conditional": False, "rescale_time": True}
    return UNet(shape=(3, 16, 16), **options, **norms, **kinds, **rest)
