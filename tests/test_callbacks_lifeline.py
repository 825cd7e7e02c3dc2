"""The end that a lost rank brings to the others comes whatever stands in its way."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from ddpm.callbacks import lifeline
from ddpm.callbacks.lifeline import Lifeline, introduced


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
