"""The benchmark counts, records and reports rightly. How fast anything is, no test says."""

import io
import json
import time
from contextlib import suppress
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.shares import shares
from benchmarks.speed import floor, ours, pace
from benchmarks.speed.pace import Over, Pace
from benchmarks.speed.plan import CIFAR10_32, Contender, Options, Setting, cifar10, digits, groups
from benchmarks.speed.race import Lost, Race, Worker, turns
from benchmarks.speed.synthetic import Synthetic
from benchmarks.speed.worker import Spec
from ddpm.data.digits import Digits

CPU = torch.device("cpu")
OPTIONS = Options("cpu", ["float32", "bf16"], compiled=False, quick=False, rounds=5, seconds=0.5, patience=60)


LARGE, SMALL = cifar10(16, 16), digits()


def mine(problem):
    return ours.Contender(Spec(problem, Setting("eager", "float32"), CPU, "float32"))


@cache
def facts(model):
    return mine({problem.model: problem for problem in (LARGE, SMALL)}[model]).facts()


def conv(side, inputs, outputs, kernel=3):
    return 2 * kernel**2 * inputs * outputs * side**2


def block(side, inputs, outputs):
    """Two convolutions, time, and a 1x1 convolution where the width changes."""
    shortcut = conv(side, inputs, outputs, 1) if inputs != outputs else 0
    return conv(side, inputs, outputs) + conv(side, outputs, outputs) + 2 * 512 * outputs + shortcut


def attention(side, width):
    """q, k, v and the way out, q k and its product with v."""
    return 4 * conv(side, width, width, 1) + 2 * 2 * side**4 * width


def by_hand():
    """Ho et al. (2020), App. B: four levels of 128, 256, 256, 256 channels at 32, 16, 8, 4 pixels."""
    time, first, last = 2 * 128 * 512 + 2 * 512 * 512, conv(32, 3, 128), conv(32, 128, 3)
    down = [
        2 * block(32, 128, 128) + conv(16, 128, 128),
        block(16, 128, 256) + block(16, 256, 256) + 2 * attention(16, 256) + conv(8, 256, 256),
        2 * block(8, 256, 256) + conv(4, 256, 256),
        2 * block(4, 256, 256),
    ]
    middle = 2 * block(4, 256, 256) + attention(4, 256)
    up = [
        3 * block(4, 512, 256) + conv(8, 256, 256),
        3 * block(8, 512, 256) + conv(16, 256, 256),
        2 * block(16, 512, 256) + block(16, 384, 256) + 3 * attention(16, 256) + conv(32, 256, 256),
        block(32, 384, 128) + 2 * block(32, 256, 128),
    ]
    return time + first + sum(down) + middle + sum(up) + last


def test_the_operations_of_the_large_network_are_those_that_a_hand_counts():
    counted = facts("ddpm_cifar10")
    assert counted["parameters"] == 35_746_307
    assert counted["flops"]["forward"] == by_hand()
    without_gradient = conv(32, 3, 128) + 2 * 128 * 512  # of the image and of the sinusoids
    assert counted["flops"]["training"] == 3 * by_hand() - without_gradient


@pytest.mark.parametrize("problem", [LARGE, SMALL], ids=lambda problem: problem.model)
@pytest.mark.slow
def test_diffusers_has_the_same_network(problem):
    peer = pytest.importorskip("benchmarks.speed.peer_diffusers", exc_type=ImportError)
    theirs = peer.Contender(Spec(problem, Setting("default", "float32"), CPU, "float32")).facts()
    assert theirs["parameters"] == facts(problem.model)["parameters"]
    assert theirs["flops"] == pytest.approx(facts(problem.model)["flops"], rel=0.002)


@pytest.mark.slow
def test_denoising_diffusion_pytorch_has_the_network_that_its_name_says():
    peer = pytest.importorskip("benchmarks.speed.peer_denoising", exc_type=ImportError)
    known = peer.Contender(Spec(LARGE, Setting("default", "float32"), CPU, "float32"))
    assert known.facts()["parameters"] == 28_537_347


@pytest.mark.parametrize("step", ["sampling", "training"])
@pytest.mark.slow
def test_the_floor_is_the_convolutions_and_products_of_a_step(step):
    spec = Spec(digits("tiny", 4, 4), Setting("eager", "float32"), CPU, "float32")
    alone = getattr(floor.Contender(spec), step)()
    with FlopCounterMode(display=False) as counter:
        alone()
    counted = mine(spec.problem).facts()["flops"]["training" if step == "training" else "forward"]
    attention_of_the_cpu = 2 * 2 * 4**4 * 16  # which the counter does not see
    spared = conv(8, 16, 16) - conv(4, 16, 16, kernel=4)  # by upsampling as one transposed convolution
    ways = 3 if step == "training" else 1
    assert counter.get_total_flops() == 4 * (counted - ways * (attention_of_the_cpu + spared))


def test_the_floor_keeps_precision_layout_and_attention():
    spec = Spec(digits("digits", 2, 2), Setting("eager", "bf16"), CPU, "bf16")
    contender = floor.Contender(spec)
    network, (x, time) = contender.network(), contender.batch(2)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            network(x, time).float().sum().backward()

    calls = floor.recorded(step)
    names = {call.operation.overloadpacket.__name__ for call in calls}
    assert {"convolution", "convolution_backward", "addmm", "mm"} <= names
    assert {f"_scaled_dot_product_flash_attention_for_cpu{end}" for end in ("", "_backward")} <= names
    layouts = [value for call in calls for value in call.arguments if isinstance(value, floor.Layout)]
    assert {value.dtype for value in layouts if len(value.shape) == 4} == {torch.bfloat16}
    maps = [call.arguments[0] for call in calls if call.operation.overloadpacket.__name__ == "convolution"]
    assert all(value.stride[1] == 1 for value in maps[1:])  # channels_last
    floor.repeatable(calls, CPU)()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_floor_makes_no_copy_to_the_layout_of_the_weights(memory_format):
    """Where the network runs in channels_last its images come in another order, and are copied on a GPU."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 8, 1)).to(memory_format=memory_format)
    calls = floor.recorded(lambda: network(torch.zeros(2, 3, 9, 9)).sum().backward())
    assert len(calls) == 4
    layouts = [value for call in calls for value in call.arguments if isinstance(value, floor.Layout)]
    maps = [value for value in layouts if len(value.shape) == 4]
    assert all(value.channels_last for value in maps) == (memory_format == torch.channels_last)
    assert [len(call.arguments) for call in calls] == [9, 9, 11, 11]
    floor.repeatable(calls, CPU)()


@pytest.mark.parametrize(("shape", "stride"), [((2, 3, 4), (12, 1, 3)), ((5, 4), (0, 1)), ((3, 2), (1, 1)), ((), ())])
def test_a_layout_makes_such_a_tensor(shape, stride):
    made = floor.Layout(torch.Size(shape), stride, torch.bfloat16).filled(CPU)
    assert (made.shape, made.stride(), made.dtype) == (torch.Size(shape), stride, torch.bfloat16)
    assert floor.layout(made) == floor.Layout(torch.Size(shape), stride, torch.bfloat16)


def test_the_shares_of_a_step_are_those_of_all_of_it():
    found = shares(digits("tiny", 16, 4, width=8), "train_step", "float32", CPU, steps=2)
    assert sum(found.values()) == pytest.approx(1)
    parts = (
        "convolutions",
        "matrix products",
        "GroupNorm",
        "SiLU",
        "padding",
        "random numbers",
        "optimiser, clipping, average",
    )
    assert all(found[part] > 0 for part in parts)
    assert found["the rest"] < 0.5


def test_contenders_take_turns():
    assert "".join(turns("ABC", 3)) == "ABCABCABC"


def test_a_clock_answers_each_round_and_ends_with_the_last():
    requests = io.StringIO('{"steps": 2}\n{"steps": 3}\n{"steps": 0}\n')
    clock, steps = Pace(requests, io.StringIO(), CPU), 0
    clock.begin()
    clock.begin()  # of the next trajectory, in the middle of a round
    with pytest.raises(Over):
        while True:
            steps += 1
            clock.tick()
    answers = [json.loads(line) for line in clock.answers.getvalue().splitlines()]
    assert steps == 5
    assert [answer.keys() for answer in answers] == [{"seconds", "steps", "settling", "peak_memory_mb"}] * 2
    assert [(answer["steps"], answer["settling"]) for answer in answers] == [(2, 0), (3, 0)]
    with pytest.raises(Over):
        clock.begin()  # the other end is gone


def test_the_step_that_a_gpu_settles_with_is_timed_apart():
    clock = Pace(io.StringIO('{"steps": 1}\n'), io.StringIO(), CPU)
    clock._settling = 1
    clock.begin()
    time.sleep(0.05)  # compiles
    clock.tick()
    with pytest.raises(Over):
        clock.tick()
    answer = json.loads(clock.answers.getvalue())
    assert answer["steps"] == 1
    assert answer["settling"] >= 0.05


def test_a_short_batch_counts_as_what_it_is():
    """A pass of a peer over 1,500 digits in batches of 64 is 23 batches and 28 images."""
    peer = pytest.importorskip("benchmarks.speed.peer", exc_type=ImportError)
    spec = Spec(SMALL, Setting("default", "float32"), CPU, "float32")
    clock = Pace(io.StringIO(f'{{"steps": {SMALL.pass_steps}}}\n{{"steps": 0}}\n'), io.StringIO(), CPU)
    clock.begin()
    with suppress(Over):
        for images in peer.epochs(spec):
            peer.tick(clock, images, spec)
    answer = json.loads(clock.answers.getvalue().splitlines()[0])
    assert answer["steps"] * SMALL.images("epoch") == pytest.approx(1500)


def test_peers_see_the_images_that_ours_are():
    peer = pytest.importorskip("benchmarks.speed.peer", exc_type=ImportError)
    for problem, kind in ((LARGE, Synthetic), (SMALL, Digits)):
        data = kind(root=None, batch_size=1, num_workers=0, flip=False, seed=0)
        seen = next(peer.one_batch(Spec(problem, Setting("default", "float32"), CPU, "float32")))
        assert torch.allclose(seen, data.batch("train", range(problem.train_batch)).images, atol=1e-6)


@pytest.mark.parametrize(("name", "expected"), [("best", [1, 2 ** (-2 / 3)]), ("default", [1, 0])])
def test_denoising_diffusion_pytorch_averages_each_step_at_its_best(name, expected):
    """The share of new weights after the first and the second step; the first one copies."""
    peer = pytest.importorskip("benchmarks.speed.peer_denoising", exc_type=ImportError)
    known = peer.Contender(Spec(SMALL, Setting(name, "float32", best=name == "best"), CPU, "float32"))
    network = torch.nn.Linear(2, 2)
    average, shares = known.average(network), []
    assert average.use_foreach == (name == "best")
    for _ in expected:
        before = average.ema_model.weight.clone()
        with torch.no_grad():
            network.weight += 1
        average.update()
        shares.append(((average.ema_model.weight - before) / (network.weight - before)).mean().item())
    assert shares == pytest.approx(expected)


@pytest.mark.parametrize("task", ["sample_step", "ddim50", "train_step", "loader"])
@pytest.mark.slow
def test_our_own_code_runs_in_rounds(task, monkeypatch):
    clock = Pace(io.StringIO('{"steps": 1}\n{"steps": 1}\n'), io.StringIO(), CPU)
    monkeypatch.setattr(pace, "CURRENT", clock)
    known = mine(digits("tiny", 16, 2))
    with suppress(Over):
        known.tasks()[task](clock)
    assert len(clock.answers.getvalue().splitlines()) == 2


def test_everybody_computes_the_same_batch_in_the_precision_of_the_row():
    for group in groups(OPTIONS):
        asked = {c.setting.precision for c in group.contenders if "default" not in c.label}
        assert asked == {group.precision}
        assert {json.dumps(group.spec(c)["problem"]) for c in group.contenders} == {
            json.dumps(group.spec(group.contenders[0])["problem"])
        }
        assert len({c.name for c in group.contenders}) == len(group.contenders)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiled_contenders_are_there_when_they_are_asked_for(device):
    (group, *_) = groups(replace(OPTIONS, device=device, compiled=True))
    compiled = [c for c in group.contenders if c.setting.compiled]
    assert {c.label.split()[0] for c in compiled} == {"ours", "diffusers", "denoising-diffusion-pytorch"}
    assert group.problem.train_batch == (128 if device == "cuda" else 8)
    assert group.problem.unet2d is CIFAR10_32


@pytest.mark.parametrize(("compiled", "precisions"), [(False, ["float32"]), (True, ["float32", "bf16"])])
def test_the_digits_are_measured_in_every_precision_where_there_is_time(compiled, precisions):
    every = groups(replace(OPTIONS, compiled=compiled))
    assert [group.precision for group in every if "epoch" in group.tasks] == precisions


@pytest.mark.slow
def test_a_contender_that_fails_is_told_and_the_others_go_on():
    group = replace(groups(OPTIONS)[0], tasks=["conv3x3"])
    broken = Contender("nobody", "no_such_kind", Setting("eager", "float32"))
    group = replace(group, contenders=[broken, *(c for c in group.contenders if c.kind == "floor")])
    (result,) = Race(group, replace(OPTIONS, rounds=2, seconds=0.01)).run()
    assert list(result.failures) == ["nobody (eager)"]
    assert "no_such_kind" in result.failures["nobody (eager)"]
    (timing,) = result.timings.values()
    assert len(timing.seconds) == 2
    worker = Worker(broken, group.spec(broken), patience=0.01)
    with pytest.raises(Lost, match=r"no answer in 0\.01 s"):
        worker.hear()
    worker.close()
