"""How a job of a sweep runs: under a command line of its own, and in a process of its own where its end would be
the end of others."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, get_start_method, set_start_method
from types import ModuleType
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ddpm import parent, sweep
from ddpm.errors import Failed
from ddpm.submitted import tasks_are_ranks

T = TypeVar("T")

IN_SWEEP = "DDPM_IN_SWEEP"  # how the ranks that a job of a sweep starts know what they belong to


@contextmanager
def as_one_run(script: str) -> Iterator[None]:
    """Within it this process goes by the command line of its job alone: it is what Lightning starts further ranks
    with, and the sweep's own would start the sweep again."""
    before = sys.argv, sys.modules["__main__"]
    sys.argv, sys.modules["__main__"] = command(script), ModuleType("__main__")  # submitit and joblib have theirs there
    sys.modules["__main__"].__file__ = script
    os.environ[IN_SWEEP] = "1"
    parent.lead()
    tasks_are_ranks()
    try:
        yield
    finally:
        sys.argv, sys.modules["__main__"] = before
        del os.environ[IN_SWEEP]


def command(script: str) -> list[str]:
    """What a user would type for this job alone, without the interpreter."""
    hydra = HydraConfig.get()
    places = {source.provider: source.path for source in hydra.runtime.config_sources}
    flags = {"--config-path": places["main"], "--config-name": hydra.job.config_name}
    flags |= {"--config-dir": places["command-line"]} if "command-line" in places else {}
    ours = [text for text in hydra.overrides.hydra if not text.startswith("hydra.mode=")]
    return [script, *(f"{key}={value}" for key, value in flags.items()), *ours, *hydra.overrides.task]


def spoils_others(config: Mapping[str, Any]) -> bool:
    """Would a process that is killed at this job take other jobs with it?

    joblib ends all its workers when one is lost. Hydra's own launcher runs one job after the other in one process,
    which a job of several ranks can neither leave as it was nor survive: who starts ranks ends with them.
    """
    if {"LOCAL_RANK", "RANK"} & os.environ.keys():  # a rank that Lightning or torchrun has started
        return False
    launcher = HydraConfig.get().runtime.choices["hydra/launcher"]
    in_slurm = "SLURM_PROCID" in os.environ
    return launcher == "joblib" or (launcher == "basic" and not in_slurm and has_ranks(config.get("trainer") or {}))


def has_ranks(trainer: Mapping[str, Any]) -> bool:
    """May this trainer have several ranks?"""
    devices = trainer.get("devices", 1)  # a gap is for the job to refuse
    return devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1)


def in_own_process(work: Callable[[dict[str, Any]], T], config: dict[str, Any]) -> T:
    """What `work` makes of a config, in a new process. Raises what it raises, and Failed if the process is killed."""
    if get_start_method() == "loky":  # joblib's, which a new process would be told to go on with, and does not know
        set_start_method("spawn", force=True)
    enter = partial(_enter, OmegaConf.to_container(HydraConfig.instance().cfg), os.getpid())
    with ProcessPoolExecutor(1, get_context("spawn"), enter) as pool:
        try:
            result, noted = pool.submit(_noted, work, config).result()
        except BrokenProcessPool as error:
            raise Failed(
                "the process of this job was killed, by a signal or for want of memory; the same sweep with "
                "resume=auto goes on with it."
            ) from error
    for item in noted:
        sweep.note(*item)
    return result


def _enter(hydra: Any, pid: int) -> None:
    parent.end_with(pid)
    parent.lead()
    HydraConfig.instance().cfg = OmegaConf.create(hydra)


def _noted(work: Callable[[dict[str, Any]], T], config: dict[str, Any]) -> tuple[T, list[sweep.Noted]]:
    return work(config), sweep.noted()
