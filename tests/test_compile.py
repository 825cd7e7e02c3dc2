import subprocess
import sys
from contextlib import nullcontext
from typing import get_args

import pytest
import torch
from compose import composed
from torch._inductor.cudagraph_trees import MarkStepBox
from yamls import names, node

from ddpm.build import build_diffusion, compile_network
from ddpm.compile import Kernels
from ddpm.data.facts import Facts
from ddpm.errors import Refused
from ddpm.instantiate import make
from ddpm.model import UNet
from ddpm.model.layers import Attention, ResidualBlock
from ddpm.trainer import build_trainer, refuse_replays


def tiny() -> UNet:
    return make(node("model", "tiny"), "model", shape=(1, 8, 8), num_classes=0, learned=False)


@pytest.mark.parametrize("name", names("compile"))
def test_a_compiled_network_keeps_the_names_of_its_weights(name):
    network = tiny()
    before = network.state_dict()
    make(node("compile", name), "compile", network=network)
    assert list(network.state_dict()) == list(before)
    compiled = [part for part in network.modules() if part._compiled_call_impl is not None]
    blocks = [part for part in network.modules() if isinstance(part, ResidualBlock | Attention)]
    assert compiled == ([network] if name == "whole" else blocks)


@pytest.mark.parametrize("name", names("compile"))
def test_without_a_compiler_it_is_refused(name):
    config = composed(f"compile={name}", "model=tiny", "trainer=cpu")
    diffusion = build_diffusion(config, Facts("noise", (1, 8, 8), 17, (), ""))
    with torch._inductor.config.patch("cpp.cxx", ("no_such_compiler",)), pytest.raises(Refused, match=r"install g\+\+"):
        compile_network(config, diffusion)


@pytest.mark.parametrize("mode", get_args(Kernels))
def test_graphs_that_would_write_over_gradients_are_refused(mode):
    asked = composed("compile=blocks", f"compile.mode={mode}", "trainer=cpu", "trainer.accumulate_grad_batches=2")
    graphs = mode in ("max-autotune", "reduce-overhead")
    with pytest.raises(Refused, match="no-cudagraphs") if graphs else nullcontext():
        refuse_replays(asked, build_trainer(asked))
    refuse_replays(asked, build_trainer(composed("trainer=cpu")))


def test_a_step_begins_once_a_forward_pass_where_blocks_are_compiled():
    """Without this a replayed graph of one block may overwrite what another has returned."""
    network = tiny()
    make(node("compile", "blocks", mode="reduce-overhead"), "compile", network=network)
    begun = MarkStepBox.mark_step_counter  # counts down
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        for _ in range(3):
            network(torch.zeros(2, 1, 8, 8), torch.zeros(2))
    assert begun - MarkStepBox.mark_step_counter == 3


SAME = """
import torch
from yamls import node
from ddpm.instantiate import make

torch.manual_seed(0)
tiny = node("model", "tiny", zero_init_scale=1.0, dropout=0.0)
network = make(tiny, "model", shape=(1, 8, 8), num_classes=0, learned=False)
x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 5, 10, 999])
for mode in (True, False):
    network.train(mode)
    expected = network(x, t)
    slope, = torch.autograd.grad(expected.square().sum(), network.conv_in.weight)
    make(node("compile", "NAME"), "compile", network=network)
    out = network(x, t)
    assert torch.allclose(out, expected, rtol=1e-4, atol=1e-5), (out - expected).abs().max()
    compiled, = torch.autograd.grad(out.square().sum(), network.conv_in.weight)
    assert torch.allclose(compiled, slope, rtol=1e-3, atol=1e-4)
    for part in network.modules():
        part._compiled_call_impl = None
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", names("compile"))
def test_compiled_numbers_are_the_eager_ones(name):
    """In a process of its own: the compiler cannot see through the checks that the tests put around us."""
    code = "import sys; sys.path.insert(0, 'tests')\n" + SAME.replace("NAME", name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0  # something was compiled
