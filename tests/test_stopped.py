"""A drawing or a measurement whose time is up: what is finished is kept, and its job is queued again and goes on."""

import signal
from pathlib import Path

import pytest
from filelock import FileLock
from forked import start, wait_for
from test_resume import scontrol

DRAWING = ["trainer=cpu", "num_images=100", "batch_size=2", "out=out"]
MEASUREMENT = ["trainer=cpu", "metric=[bits_per_dim]", "num_images=100", "metric.bits_per_dim.batch_size=2"]
MEASUREMENT += ["results=out/results.jsonl"]


@pytest.mark.parametrize(
    ("verb", "asked", "parts", "made"),
    [
        ("sample", DRAWING, "0*.png", "overview/grid.png"),
        pytest.param("evaluate", MEASUREMENT, "terms/*/*.npz", "terms/*.csv", marks=pytest.mark.slow),
    ],
)
def test_a_slurm_job_ends_queues_itself_again_and_goes_on(
    verb: str, asked: list[str], parts: str, made: str, brief_run: Path, tmp_path: Path
) -> None:
    slurm, out = scontrol(tmp_path / "bin"), tmp_path / "out"
    out.mkdir()
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("of another program, which Lightning would take")
    job = start(tmp_path, f"checkpoint={brief_run}", *asked, verb=verb, **slurm)
    assert wait_for(lambda: len(list(out.glob(parts))) > 3, job), job.told.read_text()
    job.kill(signal.SIGUSR1)
    assert job.wait() == [128 + signal.SIGUSR1], job.told.read_text()
    told = job.told.read_text()
    assert "stopped by SIGUSR1; what is finished is kept: the same command goes on. SLURM job 1234 is queued" in told
    assert "Traceback" not in told
    assert (tmp_path / "bin/asked").read_text() == "requeue 1234\n"
    finished = {path: path.stat().st_mtime_ns for path in out.glob(parts)}
    assert not list(out.glob(made))
    start(tmp_path, f"checkpoint={brief_run}", *asked, verb=verb, **slurm | {"SLURM_RESTART_COUNT": "1"}).done()
    assert list(out.glob(made))
    again = [path for path, written in finished.items() if path.stat().st_mtime_ns != written]
    assert len(again) <= 1  # of a batch that was cut short
    assert [path.name for path in tmp_path.rglob("hpc_ckpt*")] == ["hpc_ckpt_1.ckpt"]


def test_while_it_draws_nobody_else_draws_into_its_folder(brief_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = start(tmp_path, f"checkpoint={brief_run}", *DRAWING, "npz=true", verb="sample")
    assert wait_for(lambda: len(list(out.glob("0*.png"))) > 3, job), job.told.read_text()
    lock = FileLock(out / ".lock", timeout=0)
    with pytest.raises(TimeoutError), lock:
        pass
    job.kill()
    job.wait()
    with lock:
        refused = start(tmp_path, f"checkpoint={brief_run}", *DRAWING, "npz=true", verb="sample")
        assert refused.wait() == [1]
        told = refused.told.read_text()
    assert told == "error: another process draws into out; wait for it, or take another out=FOLDER.\n"
