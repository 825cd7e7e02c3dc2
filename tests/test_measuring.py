"""What evaluate.py keeps of a measurement: one row a protocol, and no row for what can not be."""

from pathlib import Path

import pytest
from compose import composed
from processes import SMALL

from ddpm.errors import Refused
from ddpm.measuring import measure, rows_of
from ddpm.runs import locked
from ddpm.training import settings, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of 10 steps, trained for a moment."""
    folder = tmp_path_factory.mktemp("run")
    off = ["logger=[]", "metric=[]", "optimized_metric=null", "~callbacks.evaluation", "~callbacks.samples"]
    small = [text for text in SMALL if not text.startswith(("callbacks.samples", "callbacks.evaluation"))]
    run = locked(folder)
    try:
        train(settings(composed(*small, *off, "schedule.num_steps=10")), run)
    finally:
        run.lock.release()
    return folder


def measured(trained: Path, results: Path, *overrides: str) -> float | None:
    asked = [f"checkpoint={trained}", f"results={results}", "num_images=8", "sampler.num_steps=4", "trainer=cpu"]
    asked += overrides if any(text.startswith("metric=") for text in overrides) else ["metric=[fid_random]", *overrides]
    return measure(composed(*asked, verb="evaluate"), asked)


def test_a_repeated_protocol_replaces_its_row_and_another_one_adds_one(trained, tmp_path):
    results = tmp_path / "results.jsonl"
    variants = [[], ["weights=raw"], ["trainer.precision=bf16-mixed"], ["seed=1"], ["sampler=ddim"], ["sigma=beta"]]
    for count, variant in enumerate(variants, 1):
        measured(trained, results, *variant)
        assert len(rows_of(results)) == count
    again = measured(trained, results)
    rows = rows_of(results)
    assert len(rows) == len(variants)
    assert rows[-1]["scores"]["fid_random"] == again
    keys = [row["protocol"]["weights_key"] for row in rows]
    assert len(set(keys)) == 2  # averaged and raw


def test_a_bound_may_have_a_sigma_beside_a_sampler_that_has_its_own(trained, tmp_path):
    bound = "metric=[bits_per_dim]"
    asked = [bound, "sampler=ddim", "metric.bits_per_dim.num_images=10"]
    beta, tilde = (measured(trained, tmp_path / "r.jsonl", *asked, f"sigma={s}") for s in ("beta", "beta_tilde"))
    assert beta != tilde
    with pytest.raises(Refused, match="its own sigma"):
        measured(trained, tmp_path / "r.jsonl", "sampler=ddim", "sigma=beta")
