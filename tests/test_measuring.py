"""What evaluate.py keeps of a measurement: one row a protocol, and no row for what cannot be."""

import csv
import errno
import os

import pytest
import torch
from processes import verb
from running import measured

from ddpm import measuring
from ddpm.drawn import Shards
from ddpm.errors import Failed, Refused
from ddpm.measuring import commit, rows_of
from ddpm.precision import precision


def other_precision() -> str:
    """Than that of this processor."""
    return "trainer.precision=" + ("bf16-mixed" if precision("auto", "cpu") == "32-true" else "32-true")


def test_a_repeated_protocol_replaces_its_row_and_another_one_adds_one(brief_run, tmp_path):
    results = tmp_path / "results.jsonl"
    variants = [[], ["weights=raw"], [other_precision()], ["seed=1"], ["sampler=ddim"], ["sigma=beta"]]
    for count, variant in enumerate(variants, 1):
        measured(brief_run, results, *variant)
        assert len(rows_of(results)) == count
    again = measured(brief_run, results)
    rows = rows_of(results)
    assert len(rows) == len(variants)
    assert rows[-1]["scores"]["fid_random"] == again
    keys = [row["protocol"]["weights_key"] for row in rows]
    assert len(set(keys)) == 2  # averaged and raw


def test_a_row_says_which_weights_were_scored(brief_run, tmp_path):
    """A run without EMA has raw ones, which stand where averages are asked for."""
    content = torch.load(brief_run / "checkpoints/last.ckpt", weights_only=True)
    del content["current_model_state"]
    torch.save(content, tmp_path / "plain.ckpt")
    for checkpoint, results in ((brief_run, "averaged.jsonl"), (tmp_path / "plain.ckpt", "plain.jsonl")):
        measured(checkpoint, tmp_path / results)
    kept = [rows_of(tmp_path / results)[0]["protocol"] for results in ("averaged.jsonl", "plain.jsonl")]
    assert [protocol["weights"] for protocol in kept] == ["ema", "raw"]


def test_a_bound_may_have_a_sigma_beside_a_sampler_that_has_its_own(brief_run, tmp_path):
    bound = "metric=[bits_per_dim]"
    asked = [bound, "sampler=ddim", "metric.bits_per_dim.num_images=10"]
    beta, tilde = (measured(brief_run, tmp_path / "r.jsonl", *asked, f"sigma={s}") for s in ("beta", "beta_tilde"))
    assert beta != tilde
    with pytest.raises(Refused, match="its own sigma"):
        measured(brief_run, tmp_path / "r.jsonl", "sampler=ddim", "sigma=beta")


def test_terms_that_another_code_has_kept_are_not_gone_on_with(brief_run, tmp_path, monkeypatch):
    asked = ["metric=[bits_per_dim]", "metric.bits_per_dim.num_images=4", "metric.bits_per_dim.batch_size=4"]
    for codes in (1, 1, 2):
        monkeypatch.setattr(measuring, "_CODE", measuring._CODE + codes - 1)
        measured(brief_run, tmp_path / "r.jsonl", *asked)
        assert len(list((tmp_path / "terms").glob("*/00000000-00000003.npz"))) == codes


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_without_room_ends_a_measurement_with_what_helps(brief_run, tmp_path, monkeypatch):
    """For the samples, and for the row."""
    told = r"no room left in .*\(No space left on device\): make some, .* or set results=FILE"
    (tmp_path / "row/results.jsonl.part").parent.mkdir()
    (tmp_path / "row/results.jsonl.part").symlink_to("/dev/full")
    with pytest.raises(Failed, match=told):
        measured(brief_run, tmp_path / "row/results.jsonl")
    monkeypatch.setattr(Shards, "write", full)
    with pytest.raises(Failed, match=told):
        measured(brief_run, tmp_path / "samples/results.jsonl")
    monkeypatch.setattr(Shards, "write", lambda *_: (tmp_path / "gone").read_text())
    with pytest.raises(FileNotFoundError):  # what is no lack of room is not taken for one
        measured(brief_run, tmp_path / "other/results.jsonl")


def test_terms_that_can_not_be_kept_are_refused_with_what_helps(brief_run, tmp_path):
    (tmp_path / "terms").write_text("in the way")
    with pytest.raises(Refused, match=r"cannot be written .*: set results=FILE"):
        measured(brief_run, tmp_path / "r.jsonl", "metric=[bits_per_dim]", "metric.bits_per_dim.num_images=4")


@pytest.mark.slow
def test_a_sweep_over_sigma_and_num_steps_has_a_row_and_a_score_for_each_pair(brief_run, tmp_path):
    results = tmp_path / "results.jsonl"
    crossed = ["sigma=beta,beta_tilde", "sampler.num_steps=4,5"]
    asked = [f"checkpoint={brief_run}", f"results={results}", "num_images=8", "metric=[fid_random]", "trainer=cpu"]
    verb("evaluate", tmp_path, "-m", *crossed, *asked)
    rows = {
        (row["protocol"]["sigma"]["_target_"], row["protocol"]["sampler"]["num_steps"]): row["scores"]["fid_random"]
        for row in rows_of(results)
    }
    assert rows.keys() == {(f"ddpm.sigma.{sigma}", n) for sigma in ("Beta", "BetaTilde") for n in (4, 5)}
    assert len(set(rows.values())) == 4
    with (tmp_path / "evaluations.csv").open(newline="") as file:
        told = {
            (f"ddpm.sigma.{sigma}", int(row["sampler.num_steps"])): float(row["fid_random"])
            for row in csv.DictReader(file)
            for sigma in ["Beta" if row["sigma"] == "beta" else "BetaTilde"]
        }
    assert told == pytest.approx(rows, rel=1e-4)


def test_the_commit_is_that_of_the_source_and_a_machine_without_git_has_none(monkeypatch, tmp_path):
    known = commit()
    assert known is None or len(known) == 40  # an archive of the source has none
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None


def test_what_is_not_trained_is_not_spread(tmp_path):
    with pytest.raises(Refused, match="take trainer=ddp"):
        measured(tmp_path, tmp_path / "results.jsonl", "trainer=fsdp")
