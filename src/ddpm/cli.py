"""What the three verbs share: bad input ends in one sentence, and a sweep ends in a table.

Light on purpose: `--help` and `--cfg job` must not wait for torch.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from threading import Event
from traceback import clear_frames
from typing import Any, NoReturn, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from omegaconf.resolvers.oc import env

from ddpm import parent, sweep
from ddpm.errors import Diverged, Failed, Refused
from ddpm.jobs import IN_SWEEP, as_one_run, in_own_process, spoils_others
from ddpm.runs import without_place
from ddpm.signals import Stopped
from ddpm.wording import sentence

T = TypeVar("T")
_FULL_ERROR = "DDPM_FULL_ERROR"  # what the user asked for, as HYDRA_FULL_ERROR is set for Hydra
_told: list[Exception] = []
_begun = Event()  # some job; before that only Hydra was at work, on what a user has typed
EXPECTED = (Refused, HydraException, OmegaConfBaseException, ImportError, OSError)


def verb(app: Callable[[], Any]) -> Callable[[], None]:
    """Run a Hydra application; what a user did wrong is told in one message, without a traceback.

    HYDRA_FULL_ERROR=1 shows the whole traceback.
    """

    @wraps(app)
    def run() -> None:
        asked = os.environ.setdefault(_FULL_ERROR, os.environ.get("HYDRA_FULL_ERROR", ""))  # ranks inherit both
        wants_traceback = asked not in ("", "0")
        os.environ["HYDRA_FULL_ERROR"] = "1"  # have Hydra hand errors on instead of printing them
        sys.argv[1:] = quoted(sys.argv[1:])
        parent.follow() if "LOCAL_RANK" in os.environ else parent.lead()
        try:
            try:
                app()
            finally:
                sweep.finish()
            if _told:
                raise _told.pop()
        except Exception as error:
            told = last_words(error)
            if wants_traceback or (_begun.is_set() and not isinstance(error, EXPECTED)):
                raise
            end_with(told)
        except KeyboardInterrupt:
            sys.exit(
                "interrupted; what is finished is kept: train.py goes on with resume=auto, "
                "sample.py and evaluate.py with the same command."
            )

    return run


def last_words(error: Exception) -> str:
    """What this process says of an error that ends it, of which the ranks that wait for it learn; nothing where rank 0
    says the same."""
    told = sentence(error)
    if not is_rank():
        return f"error: {told}"
    from ddpm import meeting

    if not meeting.met():
        return "" if meeting.ended(told) else f"error: {meeting.name()}{told}"
    known_to_all = not isinstance(error, Failed) or isinstance(error, Diverged)
    return "" if known_to_all and meeting.is_follower() else f"error: {told}"


def end_with(told: str) -> NoReturn:
    """Say it, if it is anything, and end."""
    if told:
        print(told, file=sys.stderr, flush=True)
    if is_rank():
        from ddpm import meeting

        meeting.linger()
    sys.exit(1)


def is_rank() -> bool:
    """May this be one of several ranks? Asked of the environment, without waiting for torch."""
    return bool({"RANK", "LOCAL_RANK", "SLURM_PROCID"} & os.environ.keys())


def job(work: Callable[[dict[str, Any]], T], cfg: DictConfig, script: str) -> T | None:
    """What a verb does with a composed config: the one run that was asked for, or one job of a sweep."""
    _begun.set()
    with alone():
        config = plain(cfg)
        if not in_sweep():
            return work(config)
        with as_one_run(script):
            return in_own_process(work, config) if spoils_others(config) else work(config)
    return None


@contextmanager
def alone() -> Iterator[None]:
    """In a single run an expected error goes past Hydra, which would print its overrides before it. In a sweep Hydra
    keeps it to the end: without what its frames hold, so that the next job has the memory."""
    try:
        yield
    except Exception as error:
        if in_sweep():
            last_words(error)
            clear_frames(error.__traceback__)
            raise
        if not isinstance(error, EXPECTED):
            raise
        _told.append(error)
    except Stopped:
        raise
    except SystemExit as end:  # how Lightning ends what was interrupted
        raise KeyboardInterrupt from end
    finally:
        if in_sweep() and is_rank():
            from ddpm import meeting

            meeting.next_job()


def quoted(arguments: Sequence[str]) -> list[str]:
    """The arguments, with quotes for Hydra's grammar around values that are paths with = or comma in them, as the
    folders of runs have. A bare = never means anything else; a comma may separate the jobs of a sweep."""
    return [text if text.startswith("-") else _quoted(text) for text in arguments]


def _quoted(argument: str) -> str:
    key, _, value = argument.partition("=")
    bare = "=" in value and not re.search(r"""[][{}()'"]""", value)
    is_path = "," in value and os.path.exists(value)  # noqa: PTH110 (no error for long values)
    return f'{key}="{value}"' if bare or is_path else argument


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every interpolation resolved; missing values are refused."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise Refused(f"{', '.join(missing)} must be given, as in {missing[0]}=VALUE.")
    with without_environment():
        resolved: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return resolved


@contextmanager
def without_environment() -> Iterator[None]:
    """Raises Refused for an interpolation that reads the environment, however it is written: the config is kept beside
    the run and in its checkpoints, where no environment variable belongs."""
    asked = Event()

    def refuse(*_: Any) -> NoReturn:
        asked.set()
        raise InterpolationResolutionError("reads the environment")

    OmegaConf.register_new_resolver("oc.env", refuse, replace=True)
    try:
        yield
    except InterpolationResolutionError as error:
        if not asked.is_set():
            raise
        raise Refused(
            f"{error.full_key} reads an environment variable, which would be kept with the run; give its value."
        ) from error
    finally:
        OmegaConf.register_new_resolver("oc.env", env, replace=True)


def overrides() -> list[str]:
    """What this job changes of the defaults, apart from what only says where and how long it runs."""
    return without_place(HydraConfig.get().overrides.task)


def drawing() -> list[str]:
    """What tells the drawings of one sweep apart: all that a job asks for, its checkpoint too, but for its folder."""
    return without_place(HydraConfig.get().overrides.task, ("out=",))


def in_sweep() -> bool:
    """Is this job one of a multirun, or a rank of such a job?"""
    return HydraConfig.get().mode == RunMode.MULTIRUN or IN_SWEEP in os.environ
