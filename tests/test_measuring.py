"""What evaluate.py keeps of a measurement: one row a protocol, and no row for what can not be."""

import pytest
from running import measured

from ddpm.errors import Refused
from ddpm.measuring import commit, rows_of


def test_a_repeated_protocol_replaces_its_row_and_another_one_adds_one(brief_run, tmp_path):
    results = tmp_path / "results.jsonl"
    variants = [[], ["weights=raw"], ["trainer.precision=bf16-mixed"], ["seed=1"], ["sampler=ddim"], ["sigma=beta"]]
    for count, variant in enumerate(variants, 1):
        measured(brief_run, results, *variant)
        assert len(rows_of(results)) == count
    again = measured(brief_run, results)
    rows = rows_of(results)
    assert len(rows) == len(variants)
    assert rows[-1]["scores"]["fid_random"] == again
    keys = [row["protocol"]["weights_key"] for row in rows]
    assert len(set(keys)) == 2  # averaged and raw


def test_a_bound_may_have_a_sigma_beside_a_sampler_that_has_its_own(brief_run, tmp_path):
    bound = "metric=[bits_per_dim]"
    asked = [bound, "sampler=ddim", "metric.bits_per_dim.num_images=10"]
    beta, tilde = (measured(brief_run, tmp_path / "r.jsonl", *asked, f"sigma={s}") for s in ("beta", "beta_tilde"))
    assert beta != tilde
    with pytest.raises(Refused, match="its own sigma"):
        measured(brief_run, tmp_path / "r.jsonl", "sampler=ddim", "sigma=beta")


def test_the_commit_is_that_of_the_source_and_a_machine_without_git_has_none(monkeypatch, tmp_path):
    known = commit()
    assert known is None or len(known) == 40  # an archive of the source has none
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
