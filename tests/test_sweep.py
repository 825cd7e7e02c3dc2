"""What a sweep of evaluate.py ends with."""

import csv

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from ddpm.errors import Refused
from ddpm.sweep import Jobs, finish, note


def end(overrides, mode=RunMode.MULTIRUN, error=None):
    status = JobStatus.FAILED if error else JobStatus.COMPLETED
    job = JobReturn(overrides=overrides, status=status)
    job.return_value = error
    Jobs().on_job_end(OmegaConf.create({"hydra": {"mode": mode}}), job)


def test_a_sweep_of_evaluate_ends_with_what_differs_against_the_scores(tmp_path, capsys):
    results = tmp_path / "results.jsonl"
    note(results, {"fid_classifier": 3.14159265})
    end(["checkpoint=run", "sigma=beta", "sampler.num_steps=10", "metric=[fid_classifier]"])
    end(
        ["checkpoint=run", "sigma=beta", "sampler.num_steps=50", "metric=[fid_classifier]"],
        error=Refused("only 30\n steps"),
    )
    finish()
    told = capsys.readouterr().out
    assert "all with checkpoint=run sigma=beta metric=[fid_classifier]" in told
    assert "evaluations.md" in "".join(told.split())
    with (tmp_path / "evaluations.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["sampler.num_steps", "state", "fid_classifier", "reason"],
            ["10", "finished", "3.1416", ""],
            ["50", "failed", "", "only 30 steps"],
        ]
    finish()
    assert not capsys.readouterr().out  # once


def test_a_single_evaluation_and_a_sweep_that_failed_leave_no_file(tmp_path, capsys):
    note(tmp_path / "results.jsonl", {"fid": 1.0})
    end(["sigma=beta"], mode=RunMode.RUN)
    finish()
    assert not capsys.readouterr().out
    end(["sigma=beta"], error=Refused("no"))
    finish()
    assert "no" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
