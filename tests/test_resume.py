"""A run that is killed, whenever that is, and gone on with is the run that was never interrupted, bit for bit."""

import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from compose import composed
from forked import Job, Moment, start, wait_for
from hostile import within
from killing import (
    ONE,
    RICH,
    SHORT,
    WITHIN,
    assert_equal,
    content,
    finished,
    killed,
    killed_at,
    logged,
    only,
    rows,
    stopped_at,
    whole,
)
from wandb_file import histories

from ddpm.callbacks.checkpoint import LAST, NEW, PREVIOUS, SaveLast
from ddpm.callbacks.run_log import RunLog, read
from ddpm.checkpoint import Unreadable, resumable
from ddpm.checkpoint_io import AtomicCheckpointIO
from ddpm.loggers import kept_id
from ddpm.runs import Run, locked, status
from ddpm.training import Beginning, newest

CHOSEN = [*ONE, *RICH]
MOMENTS = {  # in this order, each later than the checkpoint before it
    "in the write of the first checkpoint": Moment(size=600_000),
    "in a step": Moment("ddpm.module.DiffusionModule.training_step", 9, after=True),
    "before the first file of a checkpoint has its name": Moment("ddpm.callbacks.checkpoint.SaveLast._rotate"),
    "in a validation": Moment("ddpm.module.DiffusionModule.validation_step", 2, after=True),
    "before a checkpoint has reached the disk": Moment("os.fsync", 6),
    "while the averages are shown to the metrics": Moment("ddpm.evaluation.Evaluation.run"),
    "once the best checkpoint is written": Moment("ddpm.callbacks.evaluation.Evaluate._keep_best", after=True),
    "between the last two names of a checkpoint": Moment("os.link", after=True),
    "after the last step": Moment("ddpm.training.training_report"),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(tmp_path_factory.mktemp("whole"), *CHOSEN)


@pytest.mark.slow
def test_kills_at_every_kind_of_moment_change_nothing(expected: Path, tmp_path: Path) -> None:
    for name, moment in MOMENTS.items():
        killed_at(tmp_path, moment, *CHOSEN)
        sizes = [path.stat().st_size for path in tmp_path.glob("runs/killed/*/checkpoints/*.part")]
        assert (600_000 in sizes) == bool(moment.size), (name, sizes)
    folder = finished(tmp_path, *CHOSEN)  # which it was, but could not say
    assert_equal(folder, expected)
    assert status(folder)["scores"] == status(expected)["scores"]


def test_three_random_kills_change_nothing(expected: Path, tmp_path: Path) -> None:
    more = [*CHOSEN, "data.num_workers=2"]
    killed(tmp_path, more, "three kills", kills=3, lines=len(rows(expected)))
    assert_equal(finished(tmp_path, *more), expected)


def last_words(job: Job) -> tuple[int, str]:
    (code,) = job.wait()
    return code, job.told.read_text()


def begun(cwd: Path, *arguments: str, **environment: str) -> Job:
    """A run that is in the midst of its steps."""
    job = start(cwd, *SHORT, *CHOSEN, "name=killed", *arguments, **environment)
    assert wait_for(lambda: logged(cwd) > 8, job), job.told.read_text()
    return job


def test_sigterm_saves_the_step_and_ends(expected: Path, tmp_path: Path) -> None:
    job = begun(tmp_path, "callbacks.checkpoint.every_n_steps=1000", "data.num_workers=2")
    job.kill(signal.SIGTERM)
    code, told = last_words(job)
    folder = only(tmp_path / "runs/killed")
    assert code == 128 + signal.SIGTERM, told
    assert "stopped by SIGTERM" in told
    assert "Traceback" not in told
    assert status(folder)["state"] == "interrupted"
    step = content(folder)["global_step"]
    assert 0 < step < 16  # of which no checkpoint was due
    assert rows(folder) == rows(expected)[: len(rows(folder))]
    assert {int(row.split()[0]) for row in rows(folder)[1:]} <= set(range(step + 1))


def scontrol(folder: Path) -> dict[str, str]:
    """A SLURM job of one task, whose `scontrol` only notes what it is asked for and what the run says then."""
    folder.mkdir()
    script = folder / "scontrol"
    told = f"cat runs/killed/*/status.json > {folder}/status || true"
    script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{told}\n')
    script.chmod(0o755)
    task = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    task |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
    return task | {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_preempted_job_saves_requeues_itself_and_goes_on(expected: Path, tmp_path: Path) -> None:
    slurm = scontrol(tmp_path / "bin")
    job = begun(tmp_path, "data.num_workers=2", **slurm)
    job.kill(signal.SIGUSR1)
    code, told = last_words(job)
    assert code == 128 + signal.SIGUSR1, told
    assert "SLURM job 1234 is queued again" in told
    assert (tmp_path / "bin/asked").read_text() == "requeue 1234\n"
    assert json.loads((tmp_path / "bin/status").read_text())["state"] == "interrupted"
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    again = slurm | {"SLURM_RESTART_COUNT": "1"}  # and the same command: no resume=auto
    start(tmp_path, *SHORT, *CHOSEN, "name=killed", "data.num_workers=2", **again).done()
    assert_equal(only(tmp_path / "runs/killed"), expected)
    assert (tmp_path / "bin/asked").read_text() == "requeue 1234\n"


START = Moment("ddpm.evaluation.Evaluation.prepare", number=signal.SIGUSR1)


def test_a_signal_ends_whatever_goes_on_and_its_step_is_made_again(expected: Path, tmp_path: Path) -> None:
    """At the start, and in all that may follow a step and last longer than there is time."""
    slurm, more = scontrol(tmp_path / "bin"), [*CHOSEN, "data.num_workers=2"]
    told = stopped_at(tmp_path, START, *more, **slurm)
    assert "SLURM job 1234 is queued again" in told
    folder = only(tmp_path / "runs/killed")
    assert status(folder)["state"] == "interrupted"
    assert not (folder / "checkpoints").exists()
    for name, (moment, step) in WITHIN.items():
        stopped_at(tmp_path, moment, *more, **slurm)
        assert content(folder)["global_step"] == step, name
    assert_equal(finished(tmp_path, *more), expected)
    assert (tmp_path / "bin/asked").read_text() == "requeue 1234\n" * (1 + len(WITHIN))


def test_a_stop_before_a_step_that_is_logged_repeats_no_row(tmp_path: Path) -> None:
    """The learning rate of a step is logged before its batch, which a run that ends there has not begun."""
    stopped_at(tmp_path, Moment("ddpm.module.DiffusionModule.training_step", 7, number=signal.SIGUSR1), *ONE)
    assert content(only(tmp_path / "runs/killed"))["global_step"] == 7
    found = rows(finished(tmp_path, *ONE))
    assert len(set(found)) == len(found)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_message_and_leaves_the_checkpoint(expected: Path, tmp_path: Path) -> None:
    full = Moment("ddpm.callbacks.checkpoint.SaveLast._rotate", after=True, room=600_000)
    code, told = last_words(start(tmp_path, *SHORT, *CHOSEN, "name=killed", moment=full))
    folder = only(tmp_path / "runs/killed")
    assert code == 1
    assert told.count("error: ") == 1
    assert "(File too large): make room, then go on" in told
    assert "Traceback" not in told
    assert status(folder)["state"] == "failed"
    assert content(folder)["global_step"] == 3
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    assert_equal(finished(tmp_path, *CHOSEN), expected)


ROOM = {  # when there is no more of it for a file than this, which what the run says, and its status, do not need
    "the log": Moment("ddpm.callbacks.checkpoint.SaveLast._rotate", 5, after=True, room=2_200),
    "a picture": Moment("ddpm.callbacks.samples.SampleGrid.draw", after=True, room=1_900),
    "the loss curve": Moment("ddpm.training.training_report", room=1_900),
}


@pytest.mark.parametrize("name", ["the log", *(pytest.param(name, marks=pytest.mark.slow) for name in [*ROOM][1:])])
def test_a_disk_without_room_for_anything_else_ends_the_run_likewise(name: str, expected: Path, tmp_path: Path) -> None:
    code, told = last_words(start(tmp_path, *SHORT, *CHOSEN, "name=killed", moment=ROOM[name]))
    folder = only(tmp_path / "runs/killed")
    assert code == 1, told
    assert told.count("error: ") == 1
    assert "error: there is no room left in runs/killed/" in told
    assert "Traceback" not in told
    assert status(folder)["state"] == "failed"
    assert content(folder)["global_step"] == {"the log": 9, "a picture": 7, "the loss curve": 16}[name]
    assert_equal(finished(tmp_path, *CHOSEN), expected)


def test_a_disk_without_room_keeps_the_file_that_is_there(tmp_path: Path) -> None:
    writer, file = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"weights": torch.zeros(3)}, file)
    before = file.read_bytes()
    (tmp_path / "last.ckpt.part").symlink_to("/dev/full")
    writer.save_checkpoint({"weights": torch.ones(100_000)}, file)
    assert writer.lacks_room == f"{file} cannot be written (No space left on device)"
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    writer.save_checkpoint({"weights": torch.ones(3)}, file)
    assert writer.lacks_room is None
    assert torch.load(file)["weights"].sum() == 3


def test_one_wrong_bit_of_the_last_checkpoint_gives_way_to_the_one_before_it(expected: Path, tmp_path: Path) -> None:
    """PyTorch itself would go on with the wrong weight."""
    run = locked(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for name in (LAST, PREVIOUS):
        (tmp_path / "checkpoints" / name).write_bytes((expected / "checkpoints" / name).read_bytes())
    last, previous = run.last_checkpoint, run.last_checkpoint.with_name(PREVIOUS)
    assert newest(run).path == last
    good = last.read_bytes()
    for at in range(1000, len(good), len(good) // 4):
        wrong = bytearray(good)
        wrong[at] ^= 16
        last.write_bytes(wrong)
        assert newest(run).path == previous, at
    last.unlink()
    assert newest(run).path == previous
    run.lock.release()


def test_a_checkpoint_that_can_not_be_read_now_is_not_taken_for_a_damaged_one(expected: Path, tmp_path: Path) -> None:
    """Of a disk with an error, or in too little memory."""
    run = locked(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    last, previous = run.last_checkpoint, run.last_checkpoint.with_name(PREVIOUS)
    previous.write_bytes((expected / "checkpoints" / LAST).read_bytes())
    last.symlink_to("/proc/self/mem")  # whose first bytes no process may read
    with pytest.raises(Unreadable, match=r"last.ckpt cannot be read \(Input/output error\)"):
        newest(run)
    last.unlink()
    torch.save({"weights": torch.zeros(50_000_000)}, last)
    within(0.05, 60, lacks_memory, run)
    assert last.exists()
    run.lock.release()


def lacks_memory(run: Run) -> None:
    with pytest.raises(Unreadable, match=r"last.ckpt cannot be read \(Cannot allocate memory\)"):
        newest(run)


def test_a_config_that_finds_no_room_leaves_the_one_that_is_there(tmp_path: Path) -> None:
    run = locked(tmp_path)
    config = composed()
    Beginning(run, config, RunLog(tmp_path), None).begin()
    before = (tmp_path / "config.yaml").read_bytes()
    assert len(before) > 1000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            Beginning(run, config | {"seed": 1}, RunLog(tmp_path), None).begin()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        run.lock.release()
    assert (tmp_path / "config.yaml").read_bytes() == before


@pytest.mark.slow
def test_a_kill_right_after_a_fall_back_loses_nothing(expected: Path, tmp_path: Path) -> None:
    killed_at(tmp_path, Moment("ddpm.module.DiffusionModule.training_step", 13), *CHOSEN)
    last = only(tmp_path / "runs/killed") / "checkpoints/last.ckpt"
    assert last.with_name(PREVIOUS).exists()
    last.write_bytes(last.read_bytes()[:5000])
    killed_at(tmp_path, Moment("os.link", after=True), *CHOSEN)
    assert resumable(last)["global_step"] == resumable(last.with_name(PREVIOUS))["global_step"] == 4
    assert_equal(finished(tmp_path, *CHOSEN), expected)


def test_two_are_kept_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Path) -> None:
        raise PermissionError(1, "no hard links")

    monkeypatch.setattr("os.link", refuse)
    saver = SaveLast(every_n_steps=1, folder=tmp_path)
    saver.folder.mkdir()
    for text in ("a", "b", "c"):
        (saver.folder / NEW).write_text(text)
        saver._rotate()
    assert {path.name: path.read_text() for path in saver.folder.iterdir()} == {LAST: "c", PREVIOUS: "b"}


AT_ONCE = {"WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "0.02"}


@pytest.mark.slow
def test_all_parts_of_a_run_are_one_run_at_wandb_and_repeat_their_rows(tmp_path: Path) -> None:
    chosen = [*ONE, "logger=[wandb]"]
    job = start(tmp_path, *SHORT, *chosen, "name=killed", moment=Moment("os.fsync", 12), **AT_ONCE)
    assert job.ranks[0].join(60) or job.ranks[0].exitcode == -9
    folder = only(tmp_path / "runs/killed")
    run_id = kept_id(folder)
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert saved["callbacks"]["SaveLast"]["wandb_id"] == run_id
    first = seen(folder)  # once W&B's own process has noticed
    (folder / "wandb_id").unlink()
    finished(tmp_path, *chosen)
    assert kept_id(folder) == run_id
    parts = sorted(folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert len(parts) == len(list(folder.rglob("*.wandb"))) == 2
    second = table(parts[1])
    repeated = first.keys() & second.keys()
    assert repeated
    assert min(step for _, step in second) >= saved["global_step"]
    assert all(first[key] == second[key] for key in repeated)
    log = read(folder / "metrics.csv")
    assert {(name, step): value for name in log for step, value in log[name].items() if "speed" not in name} == {
        key: value for key, value in (first | second).items() if "samples" not in key[0]
    }


@pytest.mark.slow
def test_a_run_that_is_killed_before_its_first_checkpoint_stays_one_run_at_wandb(tmp_path: Path) -> None:
    chosen = [*ONE, "logger=[wandb]"]
    killed_at(tmp_path, Moment("ddpm.module.DiffusionModule.training_step", 3), *chosen)
    folder = only(tmp_path / "runs/killed")
    assert not (folder / "checkpoints").exists()
    run_id = kept_id(folder)
    assert run_id is not None
    assert kept_id(finished(tmp_path, *chosen)) == run_id
    assert content(folder)["global_step"] == 16
    assert {path.name for path in folder.rglob("*.wandb")} == {f"run-{run_id}.wandb"}
    assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 2


def table(file: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> value, of what does not tell the time; of a grid, its hash."""
    found = {}
    for row in histories(file):
        step = row.pop("trainer/global_step")
        found |= {(name, step): value for name, value in row.items() if name != "epoch" and name[0] != "_"}
    return {key: value for key, value in found.items() if "speed" not in key[0] and "/filenames" not in key[0]}


def seen(folder: Path) -> dict[tuple[str, int], float]:
    (file,) = folder.rglob("*.wandb")
    end = time.monotonic() + 30
    while not (rows := table(file)):
        assert time.monotonic() < end
        time.sleep(0.1)
    return rows


@pytest.mark.slow
def test_a_run_goes_on_with_other_parts_of_its_steps(tmp_path: Path) -> None:
    """From one micro-batch a step, after an odd number of them, to four: steps, validations and rows are the same."""
    still = [*ONE, "model.dropout=0.0", "optimizer.eps=0.01"]  # no signs of rounding
    still.append("trainer.limit_val_batches=1.0")  # 3 batches would be fewer images
    killed_at(tmp_path, Moment("ddpm.module.DiffusionModule.training_step", 4), *still)
    folder = only(tmp_path / "runs/killed")
    assert content(folder)["global_step"] == 3
    start(tmp_path, *SHORT, *still, f"resume={folder}", "trainer.accumulate_grad_batches=4").done()
    in_parts, at_once = (read(run / "metrics.csv") for run in (folder, whole(tmp_path, *still)))
    for name in ("train/loss", "val/loss"):
        assert in_parts[name] == pytest.approx(at_once[name], rel=1e-3)
