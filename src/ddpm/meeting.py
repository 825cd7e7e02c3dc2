"""The ranks that a launcher has started, until they are connected: what rank 0 chooses reaches all of them, and so does
the reason why one ends.

Through the store of torchrun, or of SLURM's rank 0. Ranks that Lightning starts find the choice in their environment:
before they begin, rank 0 has come to where they are connected.
"""

import os
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from ddpm.errors import Refused

CHOSEN = "DDPM_RUN_FOLDER"  # how the ranks that Lightning launches learn of a run's folder
_LONGEST = 1800.0  # seconds until all have met, of which some may list a large folder
_LAST_WORDS = 5.0  # seconds in which rank 0 says what several ranks end of
_LINGER = 10.0  # seconds in which the others learn why rank 0 ends


@dataclass
class _Job:
    """Which one of a sweep this is, and how often its ranks have met."""

    number: int = 0
    meetings: int = 0


_job = _Job()


def next_job() -> None:
    """What the ranks tell each other from now on belongs to the next job of a sweep."""
    _job.number, _job.meetings = _job.number + 1, 0


def is_follower() -> bool:
    """Is this process a rank other than 0?"""
    if (here := _launched()) is not None:
        return int(here.global_rank()) > 0
    return CHOSEN in os.environ and int(os.environ.get("LOCAL_RANK", 0)) > 0


def name() -> str:
    """What a rank other than 0 puts before its words."""
    rank = next((os.environ[key] for key in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if key in os.environ), "0")
    return "" if rank == "0" else f"rank {rank}: "


def agreed(choose: Callable[[], str]) -> str:
    """What rank 0 chooses, on every rank. Raises Refused with the reason where one has ended instead."""
    if (shared := _shared()) is None:
        return choose()
    (rank, _), store, key = *shared, _key("chosen")
    if rank == 0:
        store.set(key, choose())
    _await(store, lambda: bool(store.check([key])))
    told: bytes = store.get(key)
    return told.decode()


def meet() -> None:
    """Wait until every rank has come to where they are connected. Raises Refused with the reason where one has ended
    instead."""
    if (shared := _shared()) is not None:
        (_, ranks), store = shared
        key = _key(f"met/{_job.meetings}")
        store.add(key, 1)
        _await(store, lambda: bool(store.add(key, 0) >= ranks))
    _job.meetings += 1


def met() -> bool:
    """Have the ranks met, so that from now on each learns of another's end by their connection?"""
    return _job.meetings > 0


def ended(told: str) -> bool:
    """Tell the ranks that wait for this one why it ends. Does rank 0 say the same, so that this one need not?"""
    try:
        if (shared := _shared()) is None:
            return False
        (rank, _), store = shared
        store.compare_set(_key("end"), "", f"rank {rank}: {told}" if rank else told)
        if rank == 0:
            store.set(_key("said"), told)
            return False
        said = _within(_LAST_WORDS, lambda: bool(store.check([_key("said")])))
        known = said and told in store.get(_key("said")).decode()
        store.add(_key("gone"), 1)
    except (RuntimeError, Refused):  # rank 0 has gone, and the store with it
        return False
    return known


def linger() -> None:
    """Where rank 0 itself holds the store, it stays until the others have learnt why it ends."""
    with suppress(RuntimeError, Refused):  # there is no store
        shared = None if met() or _is_hosted() else _shared()
        if shared is not None and shared[0][0] == 0:
            (_, ranks), store = shared
            _within(_LINGER, lambda: bool(store.add(_key("gone"), 0) >= ranks - 1))


def _await(store: Any, done: Callable[[], bool]) -> None:
    try:
        told_in_time = _within(_LONGEST, lambda: done() or bool(store.check([_key("end")])))
        if done():
            return
        told = store.get(_key("end")).decode() if told_in_time else "some ranks did not come to where all meet."
    except RuntimeError as error:
        raise Refused("rank 0, where all ranks meet, has ended; see what it says.") from error
    raise Refused(told)


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    """Wait until it is so; False if the time is up before."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _key(name: str) -> str:
    return f"ddpm/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{_job.number}/{name}"


def _launched() -> Any:
    """Lightning's view of a launcher that started every rank itself, if one did."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    try:
        return SLURMEnvironment() if SLURMEnvironment.detect() else None
    except RuntimeError as error:  # --ntasks, where it wants --ntasks-per-node
        raise Refused(str(error)) from error


def _shared() -> tuple[tuple[int, int], Any] | None:
    """This rank, how many there are, and their store; None where this process is alone, or Lightning starts ranks."""
    here = _launched()
    if here is None or here.world_size() == 1:
        return None
    return (here.global_rank(), here.world_size()), _store(here.__class__)


def _is_hosted() -> bool:
    """Does torchrun hold the store?"""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@cache
def _store(environment: Hashable) -> Any:
    """A key-value store that all ranks reach, for as long as the process lives. The server is the launcher's
    own, or rank 0's. Raises Refused where there is none."""
    from torch.distributed import TCPStore

    here: Any = environment()  # type: ignore[operator]
    serves = here.global_rank() == 0 and not _is_hosted()
    address = here.main_address, here.main_port
    try:
        return TCPStore(*address, is_master=serves, multi_tenant=True, wait_for_workers=False)
    except RuntimeError as error:
        raise Refused(f"the ranks cannot meet at {address[0]}:{address[1]} ({str(error).splitlines()[0]}).") from error
