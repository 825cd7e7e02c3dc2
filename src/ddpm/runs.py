"""The folder of a run: `runs/<name>/<overrides>`, without a clock, so that the same command finds it again.

Without `resume=auto` a command that has a folder already takes the next number, and a lock keeps two
processes out of one folder. Rank 0 chooses; the other ranks learn the folder from it.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ddpm import texts
from ddpm.errors import Refused
from ddpm.meeting import CHOSEN, agreed, is_follower
from ddpm.privacy import without_paths
from ddpm.whole import whole

_LONGEST = 120
_TRACES = ("status.json", "checkpoints/last.ckpt", "checkpoints/previous.ckpt")  # a run leaves the first at its start


def label(overrides: Sequence[str]) -> str:
    """The name of a folder for these overrides, choices of groups before single values: what is too long is
    cut and told apart by a hash."""
    text = ",".join(sorted(overrides, key=lambda override: ("." in override.partition("=")[0], override))) or "default"
    name = re.sub(r"[^\w.,=+~@\-\[\]]", "_", text)
    if len(name) <= _LONGEST and name == text:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def without_place(
    texts: Sequence[str], unnamed: tuple[str, ...] = ("name=", "resume=", "runs=", "checkpoint=", "results=")
) -> list[str]:
    """The overrides that do not only say where a job reads and writes, without absolute paths."""
    return [without_paths(text) for text in texts if not text.startswith(unnamed)]


@dataclass(frozen=True)
class Run:
    """A folder that this process may write to."""

    folder: Path
    lock: FileLock | None  # rank 0 holds it

    @property
    def last_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def note(self, **facts: Any) -> None:
        """Add to the run's `status.json`, atomically; only rank 0 does."""
        if self.lock is not None:
            note(self.folder, **facts)


def note(folder: Path, **facts: Any) -> None:
    """Add to the `status.json` of a run, atomically; a reason without absolute paths."""
    facts |= {key: without_paths(text) for key, text in facts.items() if key == "reason" and text}
    file = folder / "status.json"
    text = json.dumps(status(folder) | facts, indent=2) + "\n"
    with whole(file) as part:
        part.write_text(text)


def status(folder: Path) -> dict[str, Any]:
    """What `status.json` of a run tells: overrides, state, reason, scores."""
    file = folder / "status.json"
    try:
        told = texts.told(file) if file.is_file() else {}
    except ValueError as fault:
        raise Refused(f"{file} is damaged ({fault}); delete it.") from fault
    if not _is_status(told):
        raise Refused(f"{file} holds other things than the state of a run; delete it.")
    return dict(told)


def _is_status(told: Any) -> bool:
    if not isinstance(told, dict):
        return False
    overrides, scores = told.get("overrides", []), told.get("scores", {})
    words = [told.get("state", ""), told.get("reason") or "", *(overrides if isinstance(overrides, list) else [None])]
    numbers = scores.values() if isinstance(scores, dict) else [None]
    return all(isinstance(word, str) for word in words) and all(isinstance(n, int | float) for n in numbers)


def state(folder: Path) -> str:
    """How a run ended, or that it runs. One that says so itself may have been killed: then nobody holds its lock."""
    told: str = status(folder).get("state", "unknown")
    if told != "running":
        return told
    try:
        with FileLock(folder / ".lock", timeout=0):
            return "killed"
    except Timeout:
        return told


def finished(folder: Path, config: Mapping[str, Any]) -> dict[str, float] | None:
    """The scores of a run that has ended as this very config asks; None if there is anything left to do."""
    before = texts.settings(folder / "config.yaml")  # read first: a rank 0 that goes on rewrites it after the state
    told = status(folder)
    return (
        told.get("scores")
        if before | {"resume": config["resume"]} == config and told.get("state") == "finished"
        else None
    )


def restarted() -> bool:
    """Has SLURM or torchrun started this job again, after an end that was not its own?"""
    return any(int(os.environ.get(f"{by}_RESTART_COUNT", 0)) > 0 for by in ("SLURM", "TORCHELASTIC"))


def job() -> str | None:
    """A hash of what SLURM or torchrun call this job, each time that they start it; None where neither does."""
    name = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")
    return hashlib.sha256(name.encode()).hexdigest()[:16] if name else None


def open_run(root: Path, overrides: Sequence[str], resume: str | None) -> Run:
    """The folder for a run: that of a job which was started again, the newest of its name if it resumes (`auto`),
    the one named by `resume`, or a new one.

    Raises Refused if `resume` names no run, if it cannot be written, or if another process is at work in it.
    """
    if is_follower():
        return Run(Path(agreed(lambda: os.environ[CHOSEN])), None)
    try:
        run = locked(_folder(root, label(overrides), resume))
    except OSError as error:
        raise Refused(
            f"the run's folder under {root} cannot be written ({error.strerror}); set runs=FOLDER."
        ) from error
    os.environ[CHOSEN] = agreed(lambda: str(run.folder))
    return run


def _folder(root: Path, name: str, resume: str | None) -> Path:
    if resume not in (None, "auto"):
        folder = Path(str(resume))
        if not any((folder / trace).exists() for trace in _TRACES):
            raise Refused(
                f"resume={resume} is no run's folder, which has a status.json or a checkpoint; give one, such as "
                "runs/ddpm/default, or resume=auto."
            )
        return folder
    taken = list(takewhile(lambda folder: not _is_free(folder), _numbered(root, name)))
    own = [folder for folder in taken if status(folder).get("job", "") == job()] if restarted() else []
    if found := own or (taken if resume == "auto" else []):
        return found[-1]
    return _claimed(islice(_numbered(root, name), len(taken), None))


def _numbered(root: Path, name: str) -> Iterator[Path]:
    """The folders that runs of one name may have."""
    return (root / (f"{name}-{k}" if k > 1 else name) for k in range(1, 100_000))


def _is_free(folder: Path) -> bool:
    """Nothing is there, or only the note that such a run was refused before it began."""
    return not folder.exists() or _was_refused(folder)


def _was_refused(folder: Path) -> bool:
    """Is the note of such a run all there is?"""
    return status(folder).get("state") == "refused" and not (folder / "checkpoints").exists()


def _claimed(candidates: Iterable[Path]) -> Path:
    """The first candidate that this process could make, so that two that start together get two folders; or one of
    a run that was refused, which its lock keeps to one of them."""
    for folder in candidates:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir(exist_ok=_was_refused(folder))
        except FileExistsError:
            continue
        return folder
    raise Refused("this run's name has no free number left; delete old runs or set name=NAME.")


def locked(folder: Path) -> Run:
    """The run, with its lock held until this process ends."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Refused(f"another process is at work in {folder}; wait for it, or set name=NAME.") from error
    return Run(folder, lock)
