"""All ranks end when one is lost: none waits for hours for a process that is no more.

Each rank holds a connection to rank 0 while they work together. The system closes it when a process ends, whatever
ended it and on whichever machine, so that the others learn of it at once, also where no collective would tell them
(a long drawing) or where one would wait (NCCL).
"""

import contextlib
import os
import secrets
import selectors
import socket
import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any
from weakref import WeakSet

from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm import parent
from ddpm.errors import Failed, Refused
from ddpm.runs import note
from ddpm.signals import Stopped

_BYE = b"\0"
_PATIENCE = 60.0  # seconds for the ranks to connect
_GREETING = 5.0  # seconds in which one that is connected says who it is
_open: "WeakSet[socket.socket]" = WeakSet()
_SETTLING = 2.0  # seconds in which an error turns out to be everybody's, or the loss of another rank


def _close() -> None:
    """A loader worker that held a rank's connections would keep them open after its end."""
    for connection in _open:
        connection.close()


os.register_at_fork(after_in_child=_close)


class Lifeline(Callback):
    """Watches the other ranks, from the moment that they are connected to the end of their common work.

    folder  of the run, where rank 0 notes that it failed and why; None for a drawing or a measurement
    """

    def __init__(self, *, folder: Path | None) -> None:
        self.folder = folder
        self._peers: dict[socket.socket, int] = {}
        self._left = Event()
        self._together = False  # would all ranks end where one is asked to?

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or self._peers:
            return
        self._peers = connected(trainer)
        parent.hold()
        Thread(target=self._watch, args=(trainer.global_rank,), daemon=True, name="lifeline").start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._together = True  # StopWhenAsked, which stands behind, sees to it

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave()
        self._tell(_BYE)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An end that all ranks were asked for is no loss. An error is one, and so is an end before the first step,
        which may be asked of one rank, unless they are everybody's; and an error may itself come of a loss, which is
        then what is told."""
        alone = isinstance(exception, Exception) or (isinstance(exception, Stopped) and not self._together)
        if alone and self._peers:
            self._tell(reason(exception).encode())
            time.sleep(_SETTLING)
            self._leave()
        else:
            self.teardown(trainer, pl_module, "")

    def _tell(self, message: bytes) -> None:
        for peer in self._peers:
            with contextlib.suppress(OSError):  # it has gone before
                peer.sendall(message)

    def _leave(self) -> None:
        """From now on this rank ends by itself, and minds no other's end."""
        self._left.set()
        parent.let_go()

    def _watch(self, rank: int) -> None:
        with selectors.DefaultSelector() as peers:
            for peer, its_rank in self._peers.items():
                peers.register(peer, selectors.EVENT_READ, its_rank)
            while peers.get_map() and not self._left.is_set():
                for key, _ in peers.select(timeout=1):
                    peers.unregister(key.fileobj)
                    self._heard(key.fileobj, key.data, rank)  # type: ignore[arg-type]

    def _heard(self, peer: socket.socket, its_rank: int, rank: int) -> None:
        told = said(peer)
        if told.startswith(_BYE) or self._left.wait(1.5 * _SETTLING if told else 0):
            return
        why = (
            f"failed ({told.decode(errors='replace')})" if told else "was lost (killed, out of memory, or its machine)"
        )
        self._end(
            f"rank {its_rank} {why}, so rank {rank} ends too; resume=auto goes on from the last checkpoint.", rank
        )

    def _end(self, message: str, rank: int) -> None:
        """At once: there is nothing to wait for, and all that is on the disk is whole."""
        try:
            if rank == 0 and self.folder is not None:
                with contextlib.suppress(OSError, Refused):  # a full disk, a file that is damaged
                    note(self.folder, state="failed", reason=message)
            print(f"error: {message}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(1)


def reason(exception: BaseException) -> str:
    """What the others are told of the end of a rank."""
    if isinstance(exception, Stopped):
        return f"stopped by {exception.by.name}"
    return f"{type(exception).__name__}: {exception}"


def said(peer: socket.socket) -> bytes:
    """What a rank says at its end; nothing if it was lost."""
    try:
        return peer.recv(4096)
    except OSError:
        return b""


def connected(trainer: Trainer) -> dict[socket.socket, int]:
    """Connections to the other ranks: from rank 0 to each, from each to rank 0."""
    return as_hub(trainer) if trainer.is_global_zero else as_spoke(trainer)


def as_hub(trainer: Trainer) -> dict[socket.socket, int]:
    """Rank 0: lets in who knows the word. Raises Failed if some rank does not come."""
    word = secrets.token_bytes(16)
    peers: dict[socket.socket, int] = {}
    with socket.create_server(("", 0)) as server:
        trainer.strategy.broadcast((trainer.strategy.cluster_environment.main_address, server.getsockname()[1], word))  # type: ignore[attr-defined]
        end = time.monotonic() + _PATIENCE
        while len(peers) < trainer.world_size - 1:
            try:
                server.settimeout(max(0.1, end - time.monotonic()))
                peer, _ = server.accept()
            except OSError as error:
                raise Failed("some ranks did not connect to rank 0; see what they say, and start again.") from error
            if (told := introduced(peer, len(word) + 4))[: len(word)] == word:
                peers[kept_alive(peer)] = int.from_bytes(told[len(word) :])
    return peers


def introduced(peer: socket.socket, length: int) -> bytes:
    """What somebody says first, who may be a stranger to whom nobody should listen for long."""
    peer.settimeout(_GREETING)
    try:
        return peer.recv(length, socket.MSG_WAITALL)
    except OSError:
        return b""


def as_spoke(trainer: Trainer) -> dict[socket.socket, int]:
    """Another rank: connects to rank 0."""
    hub_at: Any = None
    address, port, word = trainer.strategy.broadcast(hub_at)
    try:
        hub = socket.create_connection((address, port), timeout=_PATIENCE)
        hub.sendall(word + trainer.global_rank.to_bytes(4))
    except OSError as error:
        raise Failed(f"rank {trainer.global_rank} cannot connect to rank 0 at {address}:{port} ({error}).") from error
    return {kept_alive(hub): 0}


def kept_alive(connection: socket.socket) -> socket.socket:
    """Without a time limit, but asked for signs of life: a machine that is gone closes nothing."""
    _open.add(connection)
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 4)):  # 11 seconds in all
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection
