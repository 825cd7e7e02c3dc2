"""DINOv2: the authors' network, written out; its weights opened safely; its images resized as Pillow does."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from metric_data import digits
from test_metric import seen
from test_metric_features import noise
from test_metric_inception import Executed
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm
from torchvision import transforms

from ddpm.errors import Refused
from ddpm.metric import DINOv2, FrechetDistance
from ddpm.metric.dinov2 import URL
from ddpm.metric.dinov2_network import DINOv2Network, positions

State = dict[str, Tensor]


def shapes(depth: int, width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of the authors' file."""
    outer = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 37 * 37 + 1, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    block = {
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    block |= {name: (width,) for norm in ("norm1", "norm2") for name in (f"{norm}.weight", f"{norm}.bias")}
    block |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
    return outer | {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}


def weights(depth: int, width: int) -> State:
    source = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=source) for name, shape in shapes(depth, width).items()}


def class_token(state: State, x: Tensor, depth: int, heads: int) -> Tensor:
    """Oquab et al. (2023) on normalised images (b, 3, 224, 224), in float64 and as plainly as can be."""
    state = {name: tensor.double() for name, tensor in state.items()}
    width = state["norm.bias"].numel()

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def attention(name: str, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linear(f"{name}.qkv", x).chunk(3, -1))
        share = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return linear(f"{name}.proj", (share @ v).transpose(1, 2).flatten(2))

    patches = conv2d(x.double(), state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    tokens = torch.cat((state["cls_token"].expand(len(x), 1, width), patches.flatten(2).mT), 1)
    tokens = tokens + resized_positions(state["pos_embed"])
    for i in range(depth):
        block = f"blocks.{i}"
        tokens = tokens + state[f"{block}.ls1.gamma"] * attention(f"{block}.attn", norm(f"{block}.norm1", tokens))
        inner = gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens)))
        tokens = tokens + state[f"{block}.ls2.gamma"] * linear(f"{block}.mlp.fc2", inner)
    return norm("norm", tokens)[:, 0]


def cubic(x: float) -> float:
    """Keys' kernel (1981) with a = -3/4."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def resized_positions(trained: Tensor) -> Tensor:
    """From 37 x 37 to 16 x 16 patches, as if they were 16.1."""
    weight = torch.zeros(16, 37, dtype=torch.float64)
    for i in range(16):
        at = (i + 0.5) * 37 / 16.1 - 0.5
        for j in range(math.floor(at) - 1, math.floor(at) + 3):
            weight[i, min(max(j, 0), 36)] += cubic(at - j)
    grid = torch.einsum("ij,kl,jld->ikd", weight, weight, trained[0, 1:].reshape(37, 37, -1))
    return torch.cat((trained[:, :1], grid.reshape(1, 256, -1)), 1)


def test_it_has_the_published_number_of_parameters() -> None:
    assert sum(math.prod(shape) for shape in shapes(24, 1024).values()) == 304_368_640


def test_positions_are_interpolated_as_the_authors_do() -> None:
    trained = torch.randn(1, 1 + 37 * 37, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(positions(trained).double(), resized_positions(trained.double()), atol=1e-5)


def test_features_are_those_of_the_network_written_out() -> None:
    state, before = weights(depth=3, width=128), torch.get_rng_state()
    network = DINOv2Network(state, depth=3, width=128)
    assert torch.equal(before, torch.get_rng_state())
    assert not network.training
    source = torch.Generator().manual_seed(1)
    for size in ((224, 224), (32, 32), (300, 200)):
        pixels = torch.randint(0, 256, (2, 3, *size), generator=source, dtype=torch.uint8)
        want = class_token(state, torch.stack([as_in_dgm_eval(picture) for picture in pixels]), depth=3, heads=2)
        assert want.std() > 0.05
        with torch.no_grad():
            assert torch.allclose(network(pixels).double(), want, atol=1e-5)


def as_in_dgm_eval(pixels: Tensor) -> Tensor:
    """Stein et al. (2023): a picture is resized by Pillow, and normalised."""
    resize = transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC)
    picture = transforms.functional.to_tensor(resize(transforms.functional.to_pil_image(pixels)))
    return transforms.functional.normalize(picture, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Shallow(DINOv2):
    """One block of one head, so that it takes no time."""

    depth = 1
    num_features = 64


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "dinov2.pth"
    torch.save(weights(depth=1, width=64), path)
    return path


def test_fd_dinov2_tells_images_apart(file: Path, tmp_path: Path) -> None:
    """Grey is repeated to three channels."""
    data = digits(train=6, test=2)
    metric = FrechetDistance(features=Shallow(weights=str(file)), reference="train", cache=str(tmp_path))
    metric.prepare(data)
    pixels = data.pixels("train")
    grey, colour = (metric.features(images).features for images in (pixels, pixels.repeat(1, 3, 1, 1)))
    assert torch.equal(grey, colour)
    same, upside_down = (seen(metric, images, [torch.arange(6)])["fd_dinov2"] for images in (pixels, pixels.flip(-2)))
    assert abs(same) < 1e-6 < 1e-4 < upside_down
    assert metric.protocol()["features_key"].startswith("dinov2-")


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda state: without(state, "blocks.0.ls2.gamma"), "lacks blocks.0.ls2.gamma"),
        (lambda state: state | {"register_tokens": torch.zeros(1, 4, 64)}, "has register_tokens, which"),
        (lambda state: state | {"pos_embed": torch.zeros(1, 257, 64)}, r"pos_embed of shape \(1, 257, 64\)"),
        (lambda state: state | {"norm.bias": torch.full((64,), torch.nan)}, "norm.bias that are not finite"),
        (lambda state: weights(depth=2, width=64), "has blocks.1."),
        (lambda state: weights(depth=1, width=128), r"of shape \(1, 1, 128\), not \(1, 1, 64\)"),
        (lambda state: {"state_dict": state}, "no tensors by name"),
    ],
)
def test_another_networks_file_is_refused(
    spoil: Callable[[State], object], complaint: str, file: Path, tmp_path: Path
) -> None:
    torch.save(spoil(torch.load(file, weights_only=True)), tmp_path / "other.pth")
    with pytest.raises(Refused, match=f"other.pth .*{complaint}.*weights=PATH"):
        Shallow(weights=str(tmp_path / "other.pth")).prepare(digits(train=2))


def test_a_file_that_would_run_code_is_refused_and_runs_none(file: Path, tmp_path: Path) -> None:
    state: dict[str, Any] = dict(torch.load(file, weights_only=True))
    torch.save(state | {"norm.bias": Executed(tmp_path / "executed")}, tmp_path / "hostile.pth")
    with pytest.raises(Refused, match="holds more than tensors and was not opened"):
        Shallow(weights=str(tmp_path / "hostile.pth")).prepare(digits(train=2))
    assert not (tmp_path / "executed").exists()


def test_the_file_in_torch_hubs_cache_is_used_and_without_it_there_is_a_remedy(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(Refused, match=r"vitl14_pretrain.pth cannot be downloaded.*fd_dinov2.features.weights=PATH"):
        Shallow(weights=None).prepare(digits(train=2))
    (tmp_path / "hub" / "checkpoints" / Path(URL).name).write_bytes(file.read_bytes())
    features = Shallow(weights=None)
    features.prepare(digits(train=2))
    assert features.key.startswith("dinov2-")


def test_images_that_are_neither_grey_nor_rgb_are_refused() -> None:
    with pytest.raises(Refused, match=r"DINOv2 .* 2 channels of noise"):
        DINOv2(weights=None).prepare(noise((2, 8, 8)))
