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

_told: list[Exception] = []
EXPECTED = (Refused, HydraException, OmegaConfBaseException, ImportError, OSError)


def verb(app: Callable[[], Any]) -> Callable[[], None]:
    """Run a Hydra application; what a user did wrong is told in one message, without a traceback.

    HYDRA_FULL_ERROR=1 shows the whole traceback.
    """

    @wraps(app)
    def run() -> None:
        wants_traceback = os.environ.get("HYDRA_FULL_ERROR") not in (None, "", "0")
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
            sys.exit(f"error: {sentence(error)}")
        except KeyboardInterrupt:
            sys.exit("interrupted; resume=auto goes on from the last checkpoint.")

    return run


@contextmanager
def alone() -> Iterator[None]:
    """In a single run an expected error goes past Hydra, which would print its overrides before it."""
    try:
        yield
    except EXPECTED as error:
        if in_sweep():
            raise
        _told.append(error)


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
