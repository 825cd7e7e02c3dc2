"""What the three verbs share: bad input ends in one sentence, and a sweep ends in a table.

Light on purpose: `--help` and `--cfg job` must not wait for torch.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm import sweep
from ddpm.errors import Refused

_FULL_ERROR = "DDPM_FULL_ERROR"  # what the user asked for, as HYDRA_FULL_ERROR is set for Hydra
_told: list[Exception] = []
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
        try:
            try:
                app()
            finally:
                sweep.finish()
            if _told:
                raise _told.pop()
        except EXPECTED as error:
            if wants_traceback:
                raise
            sys.exit(1 if speaks_for_another() else f"error: {sentence(error)}")
        except KeyboardInterrupt:
            sys.exit(
                "interrupted; what is finished is kept: train.py goes on with resume=auto, "
                "sample.py and evaluate.py with the same command."
            )

    return run


def speaks_for_another() -> bool:
    """Is this a rank whose rank 0 says the same?"""
    if not {"RANK", "LOCAL_RANK", "SLURM_PROCID"} & os.environ.keys():
        return False  # without waiting for torch
    from ddpm.runs import is_follower

    return is_follower()


@contextmanager
def alone() -> Iterator[None]:
    """In a single run an expected error goes past Hydra, which would print its overrides before it."""
    try:
        yield
    except EXPECTED as error:
        if in_sweep():
            raise
        _told.append(error)
    except SystemExit as end:  # how Lightning ends what was interrupted
        raise KeyboardInterrupt from end


def quoted(arguments: Sequence[str]) -> list[str]:
    """The arguments, with quotes for Hydra's grammar around values that are existing paths with = or comma in
    them, as the folders of runs have."""
    return [_quoted(argument) for argument in arguments]


def _quoted(argument: str) -> str:
    key, _, value = argument.partition("=")
    is_path = re.search("[=,]", value) and os.path.exists(value)  # noqa: PTH110 (no error for long values)
    return f'{key}="{value}"' if is_path else argument


def sentence(error: BaseException) -> str:
    """What an error says, on as few lines as it needs. Errors of Hydra keep their list of choices."""
    lines = [line.strip() for line in str(error).splitlines()]
    return "\n".join(line for line in lines if line and not line.startswith("Set the environment variable"))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every interpolation resolved; missing values are refused."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise Refused(f"{', '.join(missing)} must be given, as in {missing[0]}=VALUE.")
    resolved: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return resolved


def overrides() -> list[str]:
    """What this job changes of the defaults, apart from what only says where and how long it runs."""
    return without_place(HydraConfig.get().overrides.task)


def without_place(texts: Sequence[str]) -> list[str]:
    """The overrides that do not only say where a job reads and writes."""
    unnamed = ("name=", "resume=", "runs=", "checkpoint=", "results=")
    return [text for text in texts if not text.startswith(unnamed)]


def in_sweep() -> bool:
    """Is this job one of a multirun?"""
    return HydraConfig.get().mode == RunMode.MULTIRUN
