"""Twenty kills at random moments, on one and two ranks, with and without processes that read images; and runs that
are killed as real commands."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import forked
import processes
import pytest
from forked import Moment, start, wait_for
from killing import (
    ONE,
    RICH,
    SHORT,
    TWO,
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
from test_meeting import nodes
from test_resume import scontrol

from ddpm.callbacks.run_log import read
from ddpm.runs import status

pytestmark = pytest.mark.slow

KILLS = 5
VARIANTS = {
    "one rank": (1, [*ONE, "data.num_workers=0"]),
    "one rank, rich, with workers": (1, [*ONE, *RICH, "data.num_workers=2"]),
    "two ranks, rich": (2, [*TWO, *RICH, "data.num_workers=0"]),
    "two ranks, rich, with workers": (2, [*TWO, *RICH, "data.num_workers=2"]),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_kills_change_nothing(variant: str, tmp_path: Path) -> None:
    ranks, chosen = VARIANTS[variant]
    expected = whole(tmp_path, *chosen, ranks=ranks)
    killed(tmp_path, chosen, variant, KILLS, len(rows(expected)), ranks)
    assert_equal(finished(tmp_path, *chosen, ranks=ranks), expected)


@pytest.mark.parametrize(
    "moment",
    [
        Moment("ddpm.module.DiffusionModule.training_step", 14, after=True),
        Moment("ddpm.module.DiffusionModule.validation_step", 2, after=True),
        Moment("ddpm.evaluation.Evaluation.run", after=True),
        Moment("os.fsync", 6),
    ],
)
def test_two_ranks_of_which_one_is_killed_go_on(moment: Moment, tmp_path: Path) -> None:
    chosen = [*TWO, *RICH]
    expected = whole(tmp_path, *chosen, ranks=2)
    killed_at(tmp_path, moment, *chosen, ranks=2)
    assert_equal(finished(tmp_path, *chosen, ranks=2), expected)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_ends_both_at_the_same_step(rank: int, tmp_path: Path) -> None:
    chosen = [*TWO, *RICH, "data.num_workers=2"]
    job = start(tmp_path, *SHORT, *chosen, "name=killed", ranks=2)
    assert wait_for(lambda: logged(tmp_path) > 8, job)
    os.kill(job.ranks[rank].pid, signal.SIGTERM)
    assert job.wait() == [128 + signal.SIGTERM, 0], job.told.read_text()
    folder = only(tmp_path / "runs/killed")
    assert status(folder)["state"] == "interrupted"
    assert "Traceback" not in job.told.read_text()
    assert_equal(finished(tmp_path, *chosen, ranks=2), whole(tmp_path, *chosen, ranks=2))


def test_a_signal_to_rank_0_in_all_that_follows_a_step_ends_both(tmp_path: Path) -> None:
    chosen = [*TWO, *RICH]
    for name, (moment, step) in WITHIN.items():
        once = replace(moment, n=2 if name == "a measurement" else moment.n)  # of two batches each rank has one
        stopped_at(tmp_path, once, *chosen, ranks=2)
        assert content(only(tmp_path / "runs/killed"))["global_step"] == step, name
    assert_equal(finished(tmp_path, *chosen, ranks=2), whole(tmp_path, *chosen, ranks=2))


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5])
def test_a_signal_to_two_ranks_that_start_ends_both(seconds: float, tmp_path: Path) -> None:
    chosen = [*TWO, *RICH]
    job = start(tmp_path, *SHORT, *chosen, "name=killed", ranks=2)
    assert wait_for(lambda: bool(list(tmp_path.glob("runs/killed/*/status.json"))), job), job.told.read_text()
    sleep(seconds)
    job.kill(signal.SIGUSR1)
    assert job.wait(30) == [128 + signal.SIGUSR1, 0], job.told.read_text()
    assert status(only(tmp_path / "runs/killed"))["state"] == "interrupted"
    assert "Traceback" not in job.told.read_text()
    assert_equal(finished(tmp_path, *chosen, ranks=2), whole(tmp_path, *chosen, ranks=2))


def test_two_slurm_tasks_whose_time_is_up_are_queued_again_once(tmp_path: Path) -> None:
    """They meet at rank 0's own store, and the first of them alone asks."""
    slurm, chosen = scontrol(tmp_path / "bin"), [*SHORT, *TWO, *RICH, "name=killed"]
    slurm |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    slurm |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": forked._launched(2)[0]["MASTER_PORT"]}
    tasks = [slurm | {"SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)} for k in range(2)]
    job = nodes(tmp_path / "told", [tmp_path] * 2, "train", *chosen, by=tasks)
    assert wait_for(lambda: logged(tmp_path) > 8, job), job.told.read_text()
    job.kill(signal.SIGUSR1)
    assert job.wait() == [128 + signal.SIGUSR1, 0], job.told.read_text()
    assert (tmp_path / "bin/asked").read_text() == "requeue 1234\n"
    assert job.told.read_text().count("SLURM job 1234 is queued again") == 1
    assert_equal(finished(tmp_path, *TWO, *RICH, ranks=2), whole(tmp_path, *TWO, *RICH, ranks=2))


def test_two_ranks_without_room_on_the_disk_end_together(tmp_path: Path) -> None:
    chosen = [*TWO, *RICH]
    full = Moment("ddpm.callbacks.checkpoint.SaveLast._rotate", after=True, room=600_000)
    job = start(tmp_path, *SHORT, *chosen, "name=killed", ranks=2, moment=full)
    assert job.wait() == [1, 1]
    assert "make room" in job.told.read_text()
    assert "Traceback" not in job.told.read_text()
    assert_equal(finished(tmp_path, *chosen, ranks=2), whole(tmp_path, *chosen, ranks=2))


def test_a_run_of_two_ranks_goes_on_with_one(tmp_path: Path) -> None:
    still = ["model.dropout=0.0", "optimizer.eps=0.01"]  # no signs of rounding
    killed_at(tmp_path, Moment("ddpm.module.DiffusionModule.training_step", 8), *TWO, *still, ranks=2)
    folder = only(tmp_path / "runs/killed")
    start(tmp_path, *SHORT, *ONE, *still, f"resume={folder}").done()
    ours, theirs = (read(run / "metrics.csv") for run in (folder, whole(tmp_path, *ONE, *still)))
    for name in ("train/loss", "val/loss"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


@pytest.mark.parametrize("chosen", [ONE, TWO], ids=["one rank", "two ranks that Lightning starts"])
def test_real_commands_that_are_killed_change_nothing(chosen: list[str], tmp_path: Path) -> None:
    asked = [*SHORT, *chosen, "data.num_workers=2"]
    processes.verb("train", tmp_path, *asked, "name=whole")
    for lines in (4, 30):
        process = processes.start("train", tmp_path, *asked, "name=killed", "resume=auto", own_group=True)
        end = monotonic() + 300
        while logged(tmp_path) < lines:
            assert process.poll() is None, process.communicate()
            assert monotonic() < end
            sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    processes.verb("train", tmp_path, *asked, "name=killed", "resume=auto")
    assert_equal(only(tmp_path / "runs/killed"), only(tmp_path / "runs/whole"))
