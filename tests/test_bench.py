"""The benchmark counts, records and reports rightly. How fast anything is, no test says."""

import io
import json
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import floor, ours, pace, report, results
from benchmarks.speed.pace import Over, Pace
from benchmarks.speed.plan import CIFAR10_32, Contender, Options, Setting, cifar10, digits, groups
from benchmarks.speed.race import Lost, Race, Result, Timing, Worker, turns
from benchmarks.speed.worker import Spec

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
OPTIONS = Options("cpu", ["float32", "bf16"], compiled=False, quick=False, rounds=5, seconds=0.5, patience=60)
KEYS = {"row", "model", "device", "precision", "unit", "ours", "peers", "floor_ratio", "peak_memory_mb"}  # the least


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
    attention_of_the_cpu = 2 * 2 * 4**4 * 16 * (3 if step == "training" else 1)  # which the counter does not see
    assert counter.get_total_flops() == 4 * (counted - attention_of_the_cpu)


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


@pytest.mark.parametrize(("shape", "stride"), [((2, 3, 4), (12, 1, 3)), ((5, 4), (0, 1)), ((3, 2), (1, 1)), ((), ())])
def test_a_layout_makes_such_a_tensor(shape, stride):
    made = floor.Layout(torch.Size(shape), stride, torch.bfloat16).filled(CPU)
    assert (made.shape, made.stride(), made.dtype) == (torch.Size(shape), stride, torch.bfloat16)
    assert floor.layout(made) == floor.Layout(torch.Size(shape), stride, torch.bfloat16)


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
    assert [answer.keys() for answer in answers] == [{"seconds", "peak_memory_mb"}] * 2
    with pytest.raises(Over):
        clock.begin()  # the other end is gone


@pytest.mark.parametrize("task", ["sample_step", "ddim50", "train_step", "loader"])
@pytest.mark.slow
def test_our_own_code_runs_in_rounds(task, monkeypatch):
    clock = Pace(io.StringIO('{"steps": 1}\n{"steps": 1}\n'), io.StringIO(), CPU)
    monkeypatch.setattr(pace, "CURRENT", clock)
    known = mine(digits("tiny", 16, 2))
    with suppress(Over):
        known.tasks()[task](clock)
    assert len(clock.answers.getvalue().splitlines()) == 2


def contender(label, name="eager", kind="ours"):
    return Contender(label, kind, Setting(name, "float32"))


def timing(who, *seconds, first=9.0, memory=100.4):
    return Timing(who, first, list(seconds), memory)


def measured():
    """A group whose numbers are easy: a step of 16 images takes 2 s ours, 8 s theirs, 1 s bare."""
    group = replace(groups(OPTIONS)[0], contenders=[])
    who = {
        "ours": contender("ours"),
        "slow": contender("diffusers best eager", "contiguous", "peer_diffusers"),
        "fast": contender("diffusers best eager", "channels_last", "peer_diffusers"),
        "other": contender("denoising-diffusion-pytorch default", "float32", "peer_denoising"),
        "floor": contender("floor", kind="floor"),
    }
    counted = {"ours": 100, "slow": 100, "fast": 100, "other": 50}
    known = {who[n].name: {"flops": {"forward": c * 10**9, "training": 3 * c * 10**9}} for n, c in counted.items()}
    known[who["floor"].name] = {"operations": {"matmul": 4 * 10**12, "conv3x3": 10**12}}
    steps = {"ours": (2, 2, 30), "slow": (16, 16, 16), "fast": (8, 8, 8), "other": (4, 5, 4), "floor": (1, 1, 1)}
    trained = [timing(who[name], *seconds) for name, seconds in steps.items()]
    peaks = {task: [timing(who["floor"], 1.0)] for task in ("matmul", "conv3x3")}
    loaded = {"loader": [timing(who["ours"], 0.25)]}
    failed = {"diffusers compiled (default)": "no compiler"}
    return Result(group, known, {"train_step": trained, **loaded, **peaks}, failed)


FOUND = {
    "machine": {"processor": "A Processor (TM) 9", "cores": 2, "instructions": "AVX2"},
    "versions": {"python": "3.11", "torch": "2.14.1", "ddpm": "0.1.0", "triton": None},
}


@pytest.fixture
def content():
    return results.rounded(results.kept([measured()], [], FOUND, ["A note."]))


def test_a_row_is_a_median_beside_the_best_of_each_peer_and_the_floor(content):
    row = content["rows"][0]
    assert row["row"] == "train_step"
    assert (row["ours"], row["unit"], row["floor_ratio"]) == (8, "images/s", 2)
    assert row["peers"] == {"diffusers best eager": 2, "denoising-diffusion-pytorch default": 4}
    assert row["settings"]["diffusers best eager"] == "channels_last"
    assert row["first_step_seconds"]["ours"] == 9
    assert row["share_of_peak"] == 8 * 300 / 4000
    assert row["rounds"]["ours"] == [8, 8, 0.53333]
    assert content["peaks_gflops"] == {"float32": {"matmul": 4000, "conv3x3": 1000}}
    assert content["rows"][1]["times_training"] == 64 / 8


def test_a_file_has_the_keys_that_readers_rely_on(content, tmp_path):
    place = results.place(content, "cpu")
    assert place.parent == ROOT / "benchmarks" / "results"
    assert place.name == f"{content['date'][:10]}-cpu-a-processor-tm-9-2-cores.json"
    results.write(content, tmp_path / "new" / place.name)
    kept = report.read(tmp_path / "new" / place.name)
    assert kept == content
    assert {"machine", "versions", "commit", "rows"} <= kept.keys()
    for row in kept["rows"]:
        assert row.keys() >= KEYS
        assert isinstance(row["peers"], dict)


def test_a_document_gets_its_table_from_files_alone(content, tmp_path):
    file, document = tmp_path / "2026-01-31-cpu.json", tmp_path / "page.md"
    results.write(content, file)
    document.write_text(f"Before.\n\n{report.BEGIN}\n\nOld.\n\n{report.END}\n\nBehind.\n")
    for _ in range(2):
        report.into(document, [file])
    text = document.read_text()
    assert text.startswith("Before.")
    assert text.endswith("Behind.\n")
    assert "Old." not in text
    head, _, first, loader = (line for line in text.splitlines() if line.startswith("|"))
    assert head == (
        "| row | model | precision | ours | ÷ diffusers best eager | ÷ d-d-p default | time ÷ floor | of peak | MB |"
    )
    assert first == (
        "| train_step | ddpm_cifar10 | float32 | 8 images/s | 4.00 | 2.00 (4.00 per FLOP) | 2.00 | 60% | 100 |"
    )
    assert "(8 × training)" in loader
    assert "matmul 4,000 GFLOP/s" in text
    assert "diffusers best eager, train_step in float32: channels_last" in text
    assert "A note." in text
    assert "diffusers compiled (default) failed: no compiler" in text
    assert report.made_from(document) == ([file.name], report.markdown([file]))


def test_a_document_without_marks_is_left_alone(tmp_path):
    document = tmp_path / "page.md"
    document.write_text("No marks.\n")
    with pytest.raises(SystemExit, match="no lines"):
        report.into(document, [])
    assert document.read_text() == "No marks.\n"


def test_the_page_of_performance_says_what_the_files_say():
    files, made = report.made_from(ROOT / "docs" / "performance.md")
    assert made == report.markdown([results.FOLDER / name for name in files])


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
    assert group.problem.train_batch == (128 if device == "cuda" else 16)
    assert group.problem.unet2d is CIFAR10_32


@pytest.mark.slow
def test_a_contender_that_fails_is_told_and_the_others_go_on():
    group = replace(groups(OPTIONS)[0], tasks=["conv3x3"])
    broken = Contender("nobody", "no_such_kind", Setting("eager", "float32"))
    group = replace(group, contenders=[broken, *(c for c in group.contenders if c.kind == "floor")])
    result = Race(group, replace(OPTIONS, rounds=2, seconds=0.01)).run()
    assert list(result.failures) == ["nobody (eager)"]
    assert "no_such_kind" in result.failures["nobody (eager)"]
    (timing,) = result.timings["conv3x3"]
    assert len(timing.seconds) == 2
    worker = Worker(broken, group.spec(broken), patience=0.01)
    with pytest.raises(Lost, match=r"no answer in 0\.01 s"):
        worker.hear()
    worker.close()
