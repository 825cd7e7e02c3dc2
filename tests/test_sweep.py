"""What a sweep is looked over for before its first job, and what it ends with."""

import csv
import subprocess
import sys

import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf
from yamls import CONF

from ddpm.errors import Failed, Refused
from ddpm.runs import note as note_run
from ddpm.sweep import REFUSED, Jobs, Table, finish, note, show, swept


@pytest.fixture(autouse=True)
def hydra():
    """Started, as it is in a sweep."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def config(folder, overrides=(), number=0, mode=RunMode.MULTIRUN, **keys):
    hydra = {"mode": mode, "sweep": {"dir": str(folder)}, "job": {"num": number}}
    hydra |= {"overrides": {"task": list(overrides)}, "runtime": {"choices": {"hydra/launcher": "basic"}}}
    return OmegaConf.create({"hydra": hydra} | keys)


def job(callback, folder, number, overrides, results=None, error=None):
    """A job of a sweep of evaluate.py, from its start to its end, if it lives to see that."""
    mine = config(folder, overrides, number)
    callback.on_job_start(mine)
    if results is not None:
        note(results, {"fid_classifier": 3.14159265})
    end = JobReturn(overrides=overrides, status=JobStatus.FAILED if error else JobStatus.COMPLETED)
    end.return_value = error
    callback.on_job_end(mine, end)


def rows(file):
    with file.open(newline="") as content:
        return list(csv.reader(content))


def test_a_sweep_of_evaluate_ends_with_what_differs_against_the_scores_whoever_ran_its_jobs(tmp_path, capsys):
    callback, here = Jobs(), tmp_path / "sweep"
    here.mkdir()
    callback.on_multirun_start(config(here))
    shared = ["checkpoint=run", "sigma=beta", "metric=[fid_classifier]"]
    job(Jobs(), here, 1, [*shared, "sampler.num_steps=50"], error=Refused("only 30\n steps"))
    job(Jobs(), here, 0, [*shared, "sampler.num_steps=10"], tmp_path / "results.jsonl")
    Jobs().on_job_start(config(here, [*shared, "sampler.num_steps=99"], 2))  # and it was killed
    finish()
    told = capsys.readouterr().out
    assert "all with checkpoint=run sigma=beta metric=[fid_classifier]" in told
    assert told.count("fid_classifier") == 2  # above the table, and the name of a column
    assert "evaluations.md" in "".join(told.split())
    assert rows(tmp_path / "evaluations.csv") == [
        ["checkpoint", "sigma", "metric", "sampler.num_steps", "state", "fid_classifier", "reason"],
        ["run", "beta", "[fid_classifier]", "10", "finished", "3.1416", ""],
        ["run", "beta", "[fid_classifier]", "50", "failed", "", "only 30 steps"],
        ["run", "beta", "[fid_classifier]", "99", "killed", "", ""],
    ]
    finish()
    assert not capsys.readouterr().out  # once


def test_a_single_evaluation_and_a_sweep_that_failed_leave_no_table(tmp_path, capsys):
    single = config(tmp_path / "none", ["sigma=beta"], mode=RunMode.RUN)
    Jobs().on_job_start(single)
    note(tmp_path / "results.jsonl", {"fid": 1.0})
    Jobs().on_job_end(single, JobReturn(status=JobStatus.COMPLETED))
    finish()
    assert not capsys.readouterr().out
    here = tmp_path / "sweep"
    here.mkdir()
    Jobs().on_multirun_start(config(here))
    job(Jobs(), here, 0, ["sigma=beta"], error=Refused("no"))
    finish()
    assert "no" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [here]


def test_a_sweep_over_names_has_a_table_for_each(tmp_path, capsys):
    assert swept(["name=a,b", "seed=1,2", "runs=x"]) == {"name": ["a", "b"]}
    asked = ["name='one',two", "seed=0,1"]
    for name in ("one", "two"):
        (tmp_path / name / "seed=0").mkdir(parents=True)
        note_run(tmp_path / name / "seed=0", state="finished", overrides=["seed=0"], scores={"fid": 2.0})
    Table().on_multirun_start(config(tmp_path, asked, runs=str(tmp_path), name="ddpm"))
    finish()
    for name in ("one", "two"):
        assert rows(tmp_path / name / "table.csv") == [
            ["run", "seed", "state", "fid"],
            ["seed=0", "0", "finished", "2"],
        ]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_a_table_tells_who_runs_from_who_was_killed(tmp_path, capsys):
    for seed in (0, 1):
        (tmp_path / "name" / f"seed={seed}").mkdir(parents=True)
        note_run(tmp_path / "name" / f"seed={seed}", state="running", overrides=[f"seed={seed}"])
    with FileLock(tmp_path / "name/seed=1/.lock"):
        Table().on_multirun_start(config(tmp_path, runs=str(tmp_path), name="name"))
        finish()
    assert [row[2] for row in rows(tmp_path / "name/table.csv")] == ["state", "killed", "running"]


@pytest.mark.parametrize("told", ["{}", '{"overrides": ["seed=0"]}'])
def test_a_run_that_does_not_say_how_it_ended_has_a_row_too(told, tmp_path, capsys):
    (tmp_path / "name/seed=0").mkdir(parents=True)
    (tmp_path / "name/seed=0/status.json").write_text(told)
    show(tmp_path / "name")
    header, row = rows(tmp_path / "name/table.csv")
    assert {"run": "seed=0", "state": "unknown"}.items() <= dict(zip(header, row, strict=True)).items()


def ended(folder, overrides, error, mode=RunMode.MULTIRUN):
    """The end of a job of train.py that has failed."""
    end = JobReturn(overrides=overrides, status=JobStatus.FAILED)
    end.return_value = error
    Table().on_job_end(config(folder, overrides, mode=mode, runs=str(folder), name="name"), end)


def test_a_job_that_was_refused_before_it_had_a_folder_has_a_row_until_the_next_sweep(tmp_path, capsys):
    asked = config(tmp_path, runs=str(tmp_path), name="name")
    Table().on_multirun_start(asked)
    refused = tmp_path / "name/seed=3"
    refused.mkdir(parents=True)
    note_run(refused, state="refused", overrides=["seed=3"], reason="no seed 3")
    ended(tmp_path, ["seed=1", "resume=a"], Refused("no run's\n folder"))
    ended(tmp_path, ["seed=1", "resume=b"], Refused(f"{tmp_path}/b is none"))
    ended(tmp_path, ["seed=3", "name=name"], Refused("no seed 3"))  # its run says so
    ended(tmp_path, ["seed=4"], Failed("was killed"))  # it was a run
    ended(tmp_path, ["seed=5"], Refused("no"), RunMode.RUN)
    finish()
    told = rows(tmp_path / "name/table.csv")
    assert [row[1:3] for row in told] == [["seed", "state"], ["3", "refused"], ["1", "refused"], ["1", "refused"]]
    assert [row[3] for row in told][:3] == ["reason", "no seed 3", "no run's folder"]
    assert told[3][3].endswith(" is none")
    assert str(tmp_path) not in "".join(map(str, told))
    Table().on_multirun_start(asked)
    finish()
    assert [row[0] for row in rows(tmp_path / "name/table.csv")] == ["run", "seed=3"]
    assert not (tmp_path / "name" / REFUSED).exists()


def rebuilt(cwd, *arguments):
    command = [sys.executable, "-m", "ddpm.sweep", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_table_is_built_again_from_the_folders_alone_and_of_nothing_else(tmp_path):
    (tmp_path / "runs/name/seed=0").mkdir(parents=True)
    note_run(tmp_path / "runs/name/seed=0", state="finished", overrides=["seed=0"], scores={"fid": 2.0})
    ended(tmp_path / "runs", ["seed=1"], Refused("no"))
    before = sorted(tmp_path.rglob("*"))
    for arguments in ([], ["runs/nmae"], ["runs"]):
        done = rebuilt(tmp_path, *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.endswith("is no folder of runs; give one, as in python -m ddpm.sweep runs/ddpm.\n")
    assert sorted(tmp_path.rglob("*")) == before
    assert rebuilt(tmp_path, "runs/name").returncode == 0
    assert [row[2] for row in rows(tmp_path / "runs/name/table.csv")] == ["state", "finished", "refused"]


@pytest.mark.parametrize("verb", ["train", "sample", "evaluate"])
def test_a_mistyped_choice_of_any_sweep_shows_before_its_first_job(verb, tmp_path):
    """Each verb has a callback that looks."""
    given = [] if verb == "train" else ["checkpoint=x"]
    composed = compose(verb, overrides=given, return_hydra_config=True)
    composed.hydra.overrides.task = [*given, "sampler=ddim,dim"]
    with pytest.raises(SystemExit, match="sampler=dim is not one of ancestral"):
        Callbacks(composed).on_multirun_start(config=composed, config_name=verb)
