"""The end that a lost rank brings to the others comes whatever stands in its way."""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
from lightning.pytorch import Callback
from tiny import Tiny, fit, tiny_trainer

from ddpm.callbacks import lifeline
from ddpm.callbacks.lifeline import Lifeline, introduced
from ddpm.callbacks.stop import StopWhenAsked
from ddpm.signals import ASKING, Stopped
from ddpm.signals import ending as handled


def ending(folder: Path, closed: bool = False) -> int:
    """The exit status of a process of which a lifeline has ended, in a child."""
    if (child := os.fork()) == 0:
        try:
            if closed:
                sys.stderr.close()
            Lifeline(folder=folder)._end("rank 1 was lost", 0)
        finally:
            os._exit(7)  # it went on
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def damaged(folder: Path) -> Path:
    (folder / "status.json").write_text("{")
    return folder


@pytest.mark.parametrize("place", [lambda folder: folder / "nowhere", damaged])
def test_a_folder_that_can_not_be_written_does_not_keep_a_run_alive(place, tmp_path, capfd):
    assert ending(place(tmp_path)) == 1
    assert "error: rank 1 was lost" in capfd.readouterr().err


def test_nor_does_an_output_that_is_gone(tmp_path):
    assert ending(tmp_path, closed=True) == 1


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1"])
def test_a_stranger_who_connects_is_not_waited_for(said, monkeypatch):
    monkeypatch.setattr(lifeline, "_GREETING", 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        since = time.monotonic()
        assert introduced(ours, 20) in (b"", said)
        assert time.monotonic() - since < lifeline._PATIENCE


class Asked(Callback):
    """Asks the run to end while its checkpoint is restored, or in its second step."""

    def __init__(self, begun: bool) -> None:
        self.begun = begun

    def setup(self, trainer, pl_module, stage):
        if not self.begun:
            signal.raise_signal(signal.SIGTERM)

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def ranks(monkeypatch):
    """A lifeline of rank 0, and the end of it that rank 1 holds."""
    monkeypatch.setattr(lifeline, "_SETTLING", 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        here = Lifeline(folder=None)
        here._peers = {ours: 1}
        yield here, theirs


def stopped(here, folder, begun):
    """Train, and end by a signal."""
    with handled(*ASKING), pytest.raises(Stopped):
        fit(tiny_trainer(folder, 3, here, StopWhenAsked(), Asked(begun)), Tiny())


@pytest.mark.parametrize(("begun", "said"), [(False, b"stopped by SIGTERM"), (True, lifeline._BYE)])
def test_only_an_end_that_all_ranks_agree_on_is_a_farewell(begun, said, ranks, tmp_path):
    """Before the first step one rank may have been asked alone."""
    here, theirs = ranks
    stopped(here, tmp_path, begun)
    assert theirs.recv(100) == said


def waiting(peer):
    """The process of a rank 1 that waits for something which no other rank does."""
    if child := os.fork():
        return child
    try:
        there = Lifeline(folder=None)
        there._peers = {peer: 0}
        Thread(target=there._watch, args=(1,), daemon=True).start()
        time.sleep(20)
    finally:
        os._exit(7)  # it waited


def test_a_rank_that_is_asked_to_end_alone_leaves_no_other_one_waiting(ranks, tmp_path, capfd):
    here, theirs = ranks
    child = waiting(theirs)
    stopped(here, tmp_path, begun=False)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert "error: rank 0 failed (stopped by SIGTERM), so rank 1 ends too" in capfd.readouterr().err
