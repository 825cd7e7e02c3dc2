"""Rows are made rightly of what was measured, kept in files and shown in tables."""

import re
import subprocess
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.speed import report, results, rows
from benchmarks.speed.__main__ import chosen, left
from benchmarks.speed.plan import Contender, Options, Setting, cifar10, groups
from benchmarks.speed.race import Result, Timing, beaten
from benchmarks.speed.results import Book

ROOT = Path(__file__).parents[1]
OPTIONS = Options("cpu", ["float32"], compiled=False, quick=False, rounds=5, seconds=0.5, patience=60)
KEYS = {"row", "model", "device", "precision", "unit", "ours", "peers", "floor_ratio", "peak_memory_mb"}  # the least


def contender(label, name="eager", kind="ours"):
    return Contender(label, kind, Setting(name, "float32"))


def timing(who, *seconds, first=9.0, memory=100.4):
    return Timing(who, first, list(seconds), memory)


WHO = {
    "ours": contender("ours"),
    "slow": contender("diffusers best eager", "contiguous", "peer_diffusers"),
    "fast": contender("diffusers best eager", "channels_last", "peer_diffusers"),
    "other": contender("denoising-diffusion-pytorch default", "float32", "peer_denoising"),
    "floor": contender("floor", kind="floor"),
}
COMPILED = ("ours compiled", "diffusers compiled")
COUNTED = {"ours": 100, "slow": 100, "fast": 100, "other": 50}  # GFLOP of an image forward
STEPS = {"ours": (2, 2, 30), "slow": (16, 16), "fast": (8, 8, 60), "other": (4, 5, 60), "floor": (1, 1, 20)}


def result(task, **steps):
    """Of a group whose numbers are easy."""
    counts = {who: {"forward": c * 10**9, "training": 3 * c * 10**9} for who, c in COUNTED.items()}
    facts = {WHO[who].name: {"flops": counted} for who, counted in counts.items()}
    facts[WHO["floor"].name] = {"operations": {"matmul": 4 * 10**12, "conv3x3": 10**12}}
    timings = {WHO[who].name: timing(WHO[who], *seconds) for who, seconds in steps.items()}
    return Result(
        replace(groups(OPTIONS)[0], problem=cifar10(16, 16), contenders=list(WHO.values())), facts, task, timings
    )


def measured():
    """A step of 16 images takes 2 s ours, 8 s theirs, 1 s bare; in the third round all are slow."""
    told = [result("train_step", **STEPS), result("loader", ours=(0.25,)), result("matmul", floor=(1,))]
    return [*told, result("conv3x3", floor=(1,))]


FOUND = {
    "machine": {"processor": "A Processor (TM) 9", "cores": 2, "instructions": "AVX2", "load_before": 0.1},
    "versions": {"python": "3.11", "torch": "2.14.1", "ddpm": "0.1.0", "triton": None},
}


def book(path=None, *, resume=False):
    return Book(FOUND, ["A note."], path, resume=resume)


def filled(path=None):
    made = book(path)
    for told in measured():
        made.add(results.record(told), {"diffusers compiled (default)": "no compiler"})
    return made


@pytest.fixture
def content():
    return filled().content()


def test_a_row_is_a_median_beside_the_best_of_each_peer_and_the_floor(content):
    row = content["rows"][0]
    assert row["row"] == "train_step"
    assert (row["ours"], row["unit"]) == (8, "images/s")
    assert row["peers"] == {"diffusers best eager": 2, "denoising-diffusion-pytorch default": 3.2}
    assert row["settings"]["diffusers best eager"] == "channels_last"
    assert row["first_step_seconds"]["ours"] == 9
    assert row["share_of_peak"] == 8 * 300 / 4000
    assert content["peaks_gflops"] == {"float32": {"matmul": 4000, "conv3x3": 1000}}
    assert content["rows"][1]["times_training"] == 64 / 8


def test_a_ratio_is_the_median_of_those_of_each_round(content):
    """Not the ratio of two medians, which here would be 5 / 2 for the other."""
    ratios = content["rows"][0]["ratios"]
    assert ratios["diffusers best eager"] == {"median": 4, "quartiles": [3, 4]}  # of 4, 4, 2
    assert ratios["denoising-diffusion-pytorch default"] == {"median": 2, "quartiles": [2, 2.25]}  # of 2, 2.5, 2
    assert ratios["floor"] == {"median": 2, "quartiles": [1.75, 2]}  # of 2, 2, 1.5
    assert content["rows"][0]["floor_ratio"] == 2


def test_everything_in_a_row_can_be_made_again_from_the_rounds_that_are_kept(content):
    assert results.rounded(rows.rows(content["races"])) == content["rows"]
    kept = {name: told["seconds"] for name, told in content["races"][0]["contenders"].items()}
    assert kept == {WHO[who].name: list(seconds) for who, seconds in STEPS.items()}


def test_who_did_not_race_together_has_no_rounds_in_common():
    apart = book()
    apart.add(results.record(result("train_step", ours=(2, 2))), {})
    apart.add(results.record(result("train_step", other=(8, 8))), {})
    row = apart.content()["rows"][0]
    assert (row["ours"], row["peers"], row["ratios"]) == (8, {"denoising-diffusion-pytorch default": 2}, {})
    apart.add(results.record(result("train_step", ours=(4, 4), fast=(12, 12))), {})
    assert apart.content()["rows"][0]["ratios"] == {"diffusers best eager": {"median": 3, "quartiles": [3, 3]}}


def test_of_several_settings_the_fastest_goes_on():
    timings = [timing(WHO[who], *STEPS[who][:2]) for who in WHO]
    assert beaten(timings) == [WHO["slow"].name]
    other_way = [timing(WHO["slow"], 1, 9, 9), timing(WHO["fast"], 2, 2, 9)]  # one lucky round decides nothing
    assert beaten(other_way) == [WHO["slow"].name]


def test_a_file_has_the_keys_that_readers_rely_on(tmp_path):
    place = results.place(FOUND, "cpu")
    assert place.parent == ROOT / "benchmarks" / "results"
    file = tmp_path / "new" / place.name
    content = filled(file).content()
    kept = report.read(file)
    assert place.name == f"{kept['date'][:10]}-cpu-a-processor-tm-9-avx2-2-cores.json"
    assert kept | {"seconds": 0} == content | {"seconds": 0}
    assert {"machine", "versions", "commit", "rows", "seconds"} <= kept.keys()
    assert list(file.parent.iterdir()) == [file]  # nothing half written
    for row in kept["rows"]:
        assert row.keys() >= KEYS
        assert isinstance(row["peers"], dict)


def arguments(**changes):
    return Namespace(**({"row": None, "contender": None} | changes))


def plan(group, asked, known):
    return [([c.name for c in some.contenders], some.tasks) for some in left(group, asked, known)]


def test_a_run_goes_on_with_what_is_missing(tmp_path):
    file, group = tmp_path / "some.json", measured()[0].group
    everybody = [who.name for who in WHO.values()]
    assert plan(group, arguments(), book(file, resume=True)) == [(everybody, group.tasks)]
    first = book(file)
    first.add(results.record(measured()[0]), {})  # and there it was killed
    first.add(results.record(replace(measured()[1], group=replace(group, contenders=[WHO["ours"]]))), {})
    again = book(file, resume=True)
    assert plan(group, arguments(row=["train_step"]), again) == []
    assert plan(group, arguments(row=["train_step", "loader"]), again) == [(everybody, ["loader"])]
    again.add(results.record(result("matmul", floor=(1,))), {})
    assert [race["row"] for race in report.read(file)["races"]] == ["train_step", "loader", "matmul"]


def test_some_contenders_race_beside_our_own():
    group = measured()[0].group
    chosen = arguments(contender=["floor", "best"], row=["train_step"])
    assert plan(group, chosen, book()) == [
        ([WHO[who].name for who in ("ours", "slow", "fast", "floor")], ["train_step"])
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"commit": "0"},
        {"versions": {}},
        {"machine": FOUND["machine"] | {"processor": "B"}},
        {"machine": FOUND["machine"] | {"instructions": "AVX512"}},
    ],
)
def test_results_of_something_else_are_not_gone_on_with(tmp_path, other):
    file = tmp_path / "some.json"
    results.write(filled().content() | other, file)
    with pytest.raises(SystemExit, match="another commit, machine or version"):
        book(file, resume=True)


def test_another_machine_of_the_same_kind_goes_on(tmp_path):
    file = tmp_path / "some.json"
    results.write(filled().content() | {"machine": FOUND["machine"] | {"system": "Linux 9", "memory_gb": 1}}, file)
    assert book(file, resume=True).races == results.rounded(filled().races)


MACHINE = FOUND["machine"] | {"native_bf16": {"cpu": False, "cuda": True}}


def asked(**changes):
    usual = {"device": None, "precision": None, "rounds": None, "quick": False, "full": False, "force_bf16": False}
    return arguments(**(usual | changes))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"device": "cuda"}, "PyTorch finds no GPU"),
        ({"precision": ["tf32"]}, "tf32 is of GPUs"),
        ({"rounds": 4}, "fewer than 5 is not kept"),
        ({"precision": ["bf16"]}, "does not multiply it natively"),
        ({"row": ["train_step", "train"]}, "--row train: there are .*start_up"),
        ({"contender": ["best", "nobody"]}, "--contender nobody: it is in no name"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_a_sentence(wrong, sentence):
    with pytest.raises(SystemExit, match=sentence):
        chosen(asked(**wrong), MACHINE)


def test_a_gpu_plays_no_part_where_the_cpu_is_measured():
    gpu = {"gpu": "A GPU", "cuda": "13.0", "cudnn": 9, "native_bf16": {"cpu": False, "cuda": True}}
    other = MACHINE | {"native_bf16": {"cpu": False, "cuda": False}}
    assert results.without_gpu(MACHINE | gpu) == results.without_gpu(other)


def test_what_is_measured_follows_the_machine():
    options, notes, every = chosen(asked(), MACHINE)
    assert (options.device, options.precisions) == ("cpu", ["float32"])
    assert "No rows in bf16" in notes[0]
    assert {group.device for group in every} == {"cpu"}
    gpu = MACHINE | {"gpu": "A GPU"}
    assert chosen(asked(), gpu)[0].precisions == ["tf32", "bf16"]
    assert chosen(asked(device="cpu", force_bf16=True), gpu)[0].precisions == ["float32", "bf16"]


def test_results_do_not_change_what_was_measured(tmp_path, monkeypatch):
    """A run that goes on finds the file of the one before, which may be tracked."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.commit() is None
    kept, code = tmp_path / "benchmarks" / "results" / "some.json", tmp_path / "code.py"
    kept.parent.mkdir(parents=True)
    for file in (kept, code):
        file.write_text("1")
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for asked in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "m"]):
        subprocess.run(["git", *asked], cwd=tmp_path, check=True)
    clean = results.commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    kept.write_text("2")
    assert results.commit() == clean
    code.write_text("2")
    assert results.commit() == f"{clean}-dirty"


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
        "| train_step | ddpm_cifar10 | float32 | 8 images/s | 4.00 [3.00, 4.00] | 2.00 [2.00, 2.25] (4.00 per FLOP) "
        "| 2.00 [1.75, 2.00] | 60% | 100 |"
    )
    assert "(8 × training)" in loader
    assert "matmul 4,000 GFLOP/s" in text
    assert "diffusers best eager, train_step in float32: channels_last" in text
    assert "A note." in text
    assert "diffusers compiled (default) failed: no compiler" in text
    assert report.made_from(document) == ([file.name], report.markdown([file]))


def test_a_changed_checkout_is_told(content):
    assert "commit 0123456789ab with changes;" in report.heading(content | {"commit": "0123456789abcdef-dirty"})
    assert "commit 0123456789ab;" in report.heading(content | {"commit": "0123456789abcdef"})


def test_what_compiling_took_stands_below_the_table():
    who = [replace(contender(label), setting=Setting("default", "bf16", compiled=["default"])) for label in COMPILED]
    told = result("train_step", ours=(2,))
    told.timings |= {one.name: timing(one, 1, first=40.0 + k) for k, one in enumerate(who)}
    told.facts |= {one.name: {} for one in who}
    made = book()
    made.add(results.record(told), {})
    assert report.compile_times(made.content()) == (
        "First steps, with compiling: ours, train_step in float32 (default): 40 s; "
        "diffusers compiled, train_step in float32 (default): 41 s."
    )
    assert report.compile_times(filled().content()) == ""


def test_a_document_without_marks_is_left_alone(tmp_path):
    document = tmp_path / "page.md"
    document.write_text("No marks.\n")
    with pytest.raises(SystemExit, match="no lines"):
        report.into(document, [])
    assert document.read_text() == "No marks.\n"


def test_the_page_of_performance_says_what_the_files_say():
    files, made = report.made_from(ROOT / "docs" / "performance.md")
    assert made == report.markdown([results.FOLDER / name for name in files])
