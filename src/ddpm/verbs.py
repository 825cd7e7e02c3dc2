"""What the three verbs do with a config. Light on purpose: torch is imported when it is due, in the process that
does the work."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGUSR1
from typing import TYPE_CHECKING, Any

from ddpm.cli import drawing, in_sweep, overrides
from ddpm.errors import Failed, Refused
from ddpm.signals import ASKING, Stopped, ending, farewell

if TYPE_CHECKING:
    from ddpm.runs import Run


def train(config: dict[str, Any]) -> float | None:
    """Train, and heed the signals that ask a run to end; returns the optimized metric."""
    with ending(*ASKING):
        try:
            return train_in_folder(config)
        except Stopped as end:
            from ddpm import meeting

            if not meeting.met():
                meeting.ended(f"stopped by {end.by.name}.")
            kept = "what is finished is saved, and the run goes on from it with resume=auto"
            farewell(end, first=not meeting.is_follower(), kept=kept)
            raise


def train_in_folder(config: dict[str, Any]) -> float | None:
    """Find the run's folder, and keep other processes out of it while the run lasts."""
    from ddpm.loggers import finish_loggers
    from ddpm.runs import finished, open_run, restarted
    from ddpm.training import check_place

    check_place(config)
    run = open_run(Path(config["runs"]) / config["name"], overrides(), config["resume"])
    try:
        scores = finished(run.folder, config) if config["resume"] or restarted() else None
        if scores is None:
            scores = attempt(config, run)
        else:
            print(f"finished already: {run.folder}")
        return scores.get(config["optimized_metric"])
    finally:
        finish_loggers()
        if run.lock is not None:
            run.lock.release()


def attempt(config: dict[str, Any], run: "Run") -> dict[str, float]:
    """Train, and leave in the run's folder how it ended."""
    from ddpm.runs import job, status
    from ddpm.training import settings
    from ddpm.training import train as trained

    before = status(run.folder) if run.last_checkpoint.exists() else {}
    run.note(state="running", overrides=overrides(), reason=None, job=job())
    try:
        scores = trained(settings(config), run)
    except Failed as end:
        with suppress(OSError):  # where the disk is full
            run.note(state="failed", reason=str(end))
        raise
    except Refused as refusal:
        run.note(**(before or {"state": "refused", "reason": str(refusal)}))  # a run that was there stays what it was
        if in_sweep():
            print(f"refused: {refusal}")
        raise
    except Stopped:
        run.note(state="interrupted", reason=None)
        raise
    except SystemExit as error:  # how Lightning ends a run that was interrupted
        run.note(state="interrupted", reason=None)
        raise KeyboardInterrupt from error
    except BaseException as error:
        run.note(state="failed", reason=f"{type(error).__name__}: {error}")
        raise
    run.note(state="finished", scores=scores)
    return scores


def sample(config: dict[str, Any]) -> None:
    """Draw; in a sweep each job has a folder of its own, since a folder holds one drawing."""
    from ddpm.drawing import draw_images
    from ddpm.runs import label

    out = f"{config['out']}/{label(drawing())}" if in_sweep() else config["out"]
    with ended():
        draw_images(config | {"out": out})


def evaluate(config: dict[str, Any]) -> float | None:
    """Measure; returns the optimized metric."""
    from ddpm.measuring import measure

    with ended():
        return measure(config, overrides())


@contextmanager
def ended() -> Iterator[None]:
    """A drawing or a measurement ends at once when it is asked to, and a SLURM job whose time is up is queued again."""
    from lightning.pytorch.utilities import rank_zero_only

    with ending(SIGUSR1):
        try:
            yield
        except Stopped as end:
            first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # Lightning sets it
            farewell(end, first, kept="what is finished is kept: the same command goes on")
            raise
