"""Where the numbers of a run go, beside its own log."""

import os
import re
import secrets
import sys
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger

from ddpm.errors import Refused
from ddpm.meeting import is_follower
from ddpm.whole import whole


def wandb(*, project: str, folder: Path) -> WandbLogger:
    """Weights & Biases: online when logged in, else offline in the run's folder; never a prompt.

    The runs of one `name` form a group. The id of a run is in its folder before its first step, so that
    all parts of a resumed run are one run.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_X_DISABLE_META", "true")  # which holds the host, its paths and SLURM's environment
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")  # seconds of which a kill takes the rows
    return WandbLogger(
        project=project,
        name=folder.name,
        save_dir=folder,
        id=None if is_follower() else _run_id(folder),
        offline=_offline(),
        group=folder.parent.name,
        settings=_settings(),
    )


def finish_loggers() -> None:
    """End the W&B run of a job, so that the next job of a sweep begins its own."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


def kept_id(folder: Path) -> str | None:
    """The id under which W&B knows a run, if it has one. Raises Refused for anything else."""
    file = folder / "wandb_id"
    if not file.is_file():
        return None
    name = file.read_text().strip()
    if not is_id(name):
        raise Refused(f"{file} holds no name of a run; delete it.")
    return name


def is_id(name: Any) -> bool:
    """Could this be the id of a run?"""
    return isinstance(name, str) and re.fullmatch(r"[\w-]{1,64}", name, re.ASCII) is not None


def keep_id(folder: Path, run_id: str) -> None:
    """Note the id of a run in its folder, at once or not at all."""
    with whole(folder / "wandb_id") as part:
        part.write_text(run_id + "\n")


def _run_id(folder: Path) -> str:
    run_id = kept_id(folder) or secrets.token_hex(4)
    keep_id(folder, run_id)
    return run_id


def _offline() -> bool:
    """As WANDB_MODE says, or whether there is no key, in the environment or in netrc, to log in with."""
    mode = os.environ.get("WANDB_MODE")
    return mode == "offline" if mode else not _has_key()


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        found = netrc(file).authenticators(server)
    except (NetrcParseError, OSError):  # W&B finds nothing there either
        return False
    return found is not None and bool(found[2])


def _settings() -> Any:
    import wandb as library

    settings = library.Settings(silent=True, console="off")
    library.termsetup(settings, None)  # before W&B warns of a setting of its own that Lightning always hands to it
    return settings
