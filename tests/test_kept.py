"""A measurement that was killed draws no sample twice."""

from pathlib import Path

import pytest
from filelock import FileLock
from running import measured

from ddpm.measuring import rows_of
from ddpm.sampling import SamplingModule

MANY = ["num_images=20", "batch_size=4"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first index of each batch that is drawn; the power goes before the fourth one."""
    drawn: list[int] = []
    draw = SamplingModule.predict_step

    def watched(module: SamplingModule, indices, batch_idx=0):  # type: ignore[no-untyped-def]
        drawn.append(int(indices[0]))
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(module, indices, batch_idx)

    monkeypatch.setattr(SamplingModule, "predict_step", watched)
    return drawn


def test_what_was_drawn_is_not_drawn_again_and_goes_when_all_is_measured(
    brief_run: Path, tmp_path: Path, calls: list[int]
) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        measured(brief_run, tmp_path / "cut/results.jsonl", *MANY)
    assert rows_of(tmp_path / "cut/results.jsonl") == []
    assert len(list(tmp_path.glob("cut/drawn/*/shards/*.npz"))) == 3
    score = measured(brief_run, tmp_path / "cut/results.jsonl", *MANY)
    assert calls == [0, 4, 8, 12, 12, 16]
    assert not list(tmp_path.glob("cut/drawn/[!.]*"))
    assert measured(brief_run, tmp_path / "whole/results.jsonl", *MANY) == score
    assert len(calls) == 11
    assert len(rows_of(tmp_path / "cut/results.jsonl")) == 1


@pytest.mark.slow
def test_samples_of_another_seed_or_sampler_are_others(brief_run: Path, tmp_path: Path, calls: list[int]) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        measured(brief_run, tmp_path / "results.jsonl", *MANY)
    for other in ("seed=1", "sampler.clip=false", "sigma=beta", "weights=raw"):
        del calls[:]
        calls += [-1] * 4  # the power stays
        measured(brief_run, tmp_path / "results.jsonl", *MANY, other)
        assert calls[4:] == [0, 4, 8, 12, 16]
    assert len(list(tmp_path.glob("drawn/*/shards/*.npz"))) == 3


def test_beside_another_process_nothing_is_kept(brief_run: Path, tmp_path: Path, calls: list[int]) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        measured(brief_run, tmp_path / "results.jsonl", *MANY)
    (lock,) = tmp_path.glob("drawn/.*.lock")
    with FileLock(lock):
        measured(brief_run, tmp_path / "results.jsonl", *MANY)
        assert calls[4:] == [0, 4, 8, 12, 16]
    assert len(list(tmp_path.glob("drawn/*/shards/*.npz"))) == 3
