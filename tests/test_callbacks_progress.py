"""Progress is counted in optimizer steps, and short where nobody watches it live."""

from pathlib import Path

import pytest
from tiny import Tiny, fit, tiny_trainer

from ddpm.callbacks.progress import Progress


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_pipe_gets_a_line_each_tenth_of_the_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], accumulate: int
) -> None:
    options = {"enable_progress_bar": True, "accumulate_grad_batches": accumulate}
    fit(tiny_trainer(tmp_path, 40, Progress(), **options), Tiny())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == [f"step {k} of 40" for k in range(4, 41, 4)]
    assert all(word in line for line in lines for word in ("gone", "left", "steps/s", "loss"))


def test_a_resumed_run_counts_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tiny_trainer(tmp_path, 35)
    fit(first, Tiny())
    first.save_checkpoint(tmp_path / "35.ckpt")
    fit(tiny_trainer(tmp_path, 40, Progress(), enable_progress_bar=True), Tiny(), tmp_path / "35.ckpt")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 36 of 40 (90 %)", "step 40 of 40 (100 %)"]
