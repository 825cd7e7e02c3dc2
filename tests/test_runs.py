import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ddpm.errors import Refused
from ddpm.runs import finished, job, label, note, open_run, restarted, state, status


def opened(root, overrides=("a=1",), resume=None):
    run = open_run(root, list(overrides), resume)
    run.note(state="running")
    run.lock.release()
    return run


def test_the_folder_is_named_by_its_overrides_whatever_their_order():
    assert label([]) == "default"
    assert label(["b=2", "a=1"]) == label(["a=1", "b=2"]) == "a=1,b=2"
    assert label(["a.x=1", "b=2"]) == "b=2,a.x=1"


def test_long_or_odd_names_are_cut_and_told_apart():
    one, other = label(["x=" + "y" * 300]), label(["x=" + "y" * 301])
    assert one != other
    assert max(len(one), len(other)) < 140
    assert "/" not in label(["data.root=/a/b"])
    assert label(["data.root=/a/b"]) != label(["data.root=_a_b"])


def test_a_new_run_takes_the_next_number_and_auto_finds_the_newest(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    assert (first.folder.name, second.folder.name) == ("a=1", "a=1-2")
    assert opened(tmp_path, resume="auto").folder == second.folder
    assert opened(tmp_path, ["a=2"], "auto").folder.name == "a=2"
    assert opened(tmp_path, resume=str(first.folder)).folder == first.folder


def test_a_refused_run_leaves_its_name_free(tmp_path):
    run = open_run(tmp_path, ["a=1"], None)
    run.note(state="refused", reason="no")
    run.lock.release()
    assert opened(tmp_path).folder == run.folder


def test_a_folder_that_another_process_makes_in_between_is_not_taken(tmp_path, monkeypatch):
    made, theirs = Path.mkdir, [tmp_path / "a=1"]

    def beaten_to_it(folder, **options):
        if folder in theirs:
            made(theirs.pop())
        made(folder, **options)

    monkeypatch.setattr(Path, "mkdir", beaten_to_it)
    assert opened(tmp_path).folder == tmp_path / "a=1-2"
    assert not list((tmp_path / "a=1").iterdir())


def test_notes_add_up(tmp_path):
    run = open_run(tmp_path, [], None)
    run.note(state="running", overrides=[])
    run.note(state="finished", scores={"fid": 1.0})
    run.lock.release()
    assert status(run.folder) == {"state": "finished", "overrides": [], "scores": {"fid": 1.0}}
    assert json.loads((run.folder / "status.json").read_text())


def test_a_refused_run_that_has_checkpoints_keeps_its_folder(tmp_path):
    for _ in range(2):  # refused before it began: the folder is taken again
        first = open_run(tmp_path, ["a=1"], None)
        first.note(state="refused")
        first.lock.release()
        assert first.folder == tmp_path / "a=1"
    (first.folder / "checkpoints").mkdir()
    second = open_run(tmp_path, ["a=1"], None)
    second.lock.release()
    assert second.folder == tmp_path / "a=1-2"


def test_a_second_process_is_kept_out(tmp_path):
    run = open_run(tmp_path, [], None)
    code = f"from ddpm.runs import locked; from pathlib import Path; locked(Path({str(run.folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    run.lock.release()
    assert "another process is at work" in done.stderr


def test_a_resume_of_what_is_no_run_is_refused_and_leaves_nothing(tmp_path):
    folder = opened(tmp_path / "runs").folder
    (folder / "checkpoints/last.ckpt").mkdir(parents=True)  # as trainer=fsdp has it
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    inside = [folder / "checkpoints", folder / "checkpoints/last.ckpt", folder / "status.json"]
    for wrong in (tmp_path / "nowhere", tmp_path / "empty", folder.parent, *inside):
        with pytest.raises(Refused, match="no run's folder"):
            open_run(tmp_path, [], str(wrong))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("trace", ["status.json", "checkpoints/last.ckpt", "checkpoints/previous.ckpt"])
def test_a_run_goes_on_from_whatever_trace_it_left(tmp_path, trace):
    """One that died before its first checkpoint has its status alone."""
    (tmp_path / "run" / trace).parent.mkdir(parents=True)
    (tmp_path / "run" / trace).write_text("{}")
    run = open_run(tmp_path, [], str(tmp_path / "run"))
    run.lock.release()
    assert run.folder == tmp_path / "run"


def test_a_run_is_finished_where_it_has_ended_as_it_is_asked_for(tmp_path):
    config = {"name": "a", "resume": "auto", "optimizer": {"lr": 1e-5}, "trainer": {"max_steps": 4}}
    assert finished(tmp_path, config) is None
    note(tmp_path, state="finished", scores={"fid": 1.0})
    assert finished(tmp_path, config) is None
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config | {"resume": None}))
    assert finished(tmp_path, config) == {"fid": 1.0}
    assert finished(tmp_path, config | {"trainer": {"max_steps": 8}}) is None
    note(tmp_path, state="interrupted")
    assert finished(tmp_path, config) is None


@pytest.mark.parametrize("told", ["{}", None])
def test_a_run_that_does_not_say_how_it_ended_is_not_finished(told, tmp_path):
    config = {"name": "a", "resume": "auto"}
    folder = opened(tmp_path).folder
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    (folder / "status.json").unlink()
    if told is not None:
        (folder / "status.json").write_text(told)
    assert finished(folder, config) is None
    assert state(folder) == "unknown"
    assert opened(tmp_path, resume="auto").folder == folder


LAUNCHED = {
    "SLURM": ("SLURM_JOB_ID", {}),
    "TORCHELASTIC": ("TORCHELASTIC_RUN_ID", {"RANK": "0", "WORLD_SIZE": "1", "GROUP_RANK": "0", "LOCAL_RANK": "0"}),
}


@pytest.mark.parametrize("launcher", list(LAUNCHED))
def test_a_job_that_was_started_again_goes_on_with_its_own_run(launcher, tmp_path, monkeypatch):
    named, others = LAUNCHED[launcher]

    def launched(name, restarts=0, resume=None):
        for key, text in (others | {named: name, f"{launcher}_RESTART_COUNT": str(restarts)}).items():
            monkeypatch.setenv(key, text)
        run = open_run(tmp_path, ["a=1"], resume)
        run.note(state="running", job=job())  # as train.py does
        return run

    first, second = launched("job-1"), launched("job-2")
    assert (first.folder.name, second.folder.name) == ("a=1", "a=1-2")
    first.lock.release()
    again = launched("job-1", restarts=1)  # while the second runs
    assert again.folder == first.folder
    again.lock.release()
    second.note(state="finished")
    second.lock.release()
    again = launched("job-1", restarts=2, resume="auto")  # the newest is another's, and finished
    assert again.folder == first.folder
    again.lock.release()
    none = launched("job-3", restarts=1)  # it had none before
    assert none.folder.name == "a=1-3"
    none.lock.release()
    assert not any("job-" in path.read_text() for path in tmp_path.glob("*/status.json"))


@pytest.mark.parametrize("launcher", ["SLURM", "TORCHELASTIC"])
def test_a_job_that_was_started_again_knows(launcher, monkeypatch):
    for name in ("SLURM", "TORCHELASTIC"):
        monkeypatch.delenv(f"{name}_RESTART_COUNT", raising=False)
    assert not restarted()
    monkeypatch.setenv(f"{launcher}_RESTART_COUNT", "0")
    assert not restarted()
    monkeypatch.setenv(f"{launcher}_RESTART_COUNT", "2")
    assert restarted()
