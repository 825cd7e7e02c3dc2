"""Train a diffusion model: `python train.py schedule=linear sigma=beta_tilde`.

Every group of conf/ can be chosen, every number overridden; `-m` sweeps over lists. See `--help`.
"""

from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from ddpm.cli import alone, in_sweep, overrides, plain, verb

if TYPE_CHECKING:
    from ddpm.runs import Run


@verb
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One run, or one job of a sweep; returns the optimized metric."""
    with alone():
        return run_in_folder(plain(cfg))
    return None


def run_in_folder(config: dict[str, Any]) -> float | None:
    """Find the run's folder, and keep other processes out of it while the run lasts."""
    from pathlib import Path

    from ddpm.loggers import finish_loggers
    from ddpm.runs import open_run
    from ddpm.training import check_place

    check_place(config)
    run = open_run(Path(config["runs"]) / config["name"], overrides(), config["resume"])
    try:
        return attempt(config, run)
    finally:
        finish_loggers()
        if run.lock is not None:
            run.lock.release()


def attempt(config: dict[str, Any], run: "Run") -> float | None:
    """Train, and leave in the run's folder how it ended."""
    from ddpm.errors import Diverged, Refused
    from ddpm.runs import status
    from ddpm.training import settings, train

    before = status(run.folder) if run.last_checkpoint.exists() else {}
    run.note(state="running", overrides=overrides(), reason=None)
    try:
        scores = train(settings(config), run, in_sweep())
    except Diverged as end:
        run.note(state="failed", reason=str(end))
        raise
    except Refused as refusal:
        run.note(**(before or {"state": "refused", "reason": str(refusal)}))  # a run that was there stays what it was
        if in_sweep():
            print(f"refused: {refusal}")
        raise
    except SystemExit as error:  # how Lightning ends a run that was interrupted
        run.note(state="interrupted", reason=None)
        raise KeyboardInterrupt from error
    except BaseException as error:
        run.note(state="failed", reason=f"{type(error).__name__}: {error}")
        raise
    run.note(state="finished", scores=scores)
    return scores.get(config["optimized_metric"])


if __name__ == "__main__":
    main()
