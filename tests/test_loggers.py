"""W&B: online for who is logged in, else offline, and never a question."""

import pytest

from ddpm.loggers import _has_key, _offline

HOST = "api.wandb.ai"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Nobody is logged in."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def log_in(folder, host=HOST, key="key"):
    entries = f"machine other.org login me password x\nmachine {host} login user password {key}\n"
    (folder / "netrc").write_text(entries)


def test_without_a_key_it_is_offline(tmp_path):
    assert _offline()
    log_in(tmp_path, host="elsewhere.org")
    assert _offline()


def test_with_a_key_of_the_environment_it_is_online(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert _offline()
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert not _offline()


def test_with_a_key_of_netrc_it_is_online(tmp_path, monkeypatch):
    log_in(tmp_path)
    assert not _offline()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.here.org:8080")
    assert _offline()
    log_in(tmp_path, host="wandb.here.org:8080")
    assert not _offline()


def test_a_netrc_of_the_home_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not _has_key()
    log_in(tmp_path)
    (tmp_path / "netrc").rename(tmp_path / ".netrc")
    assert _has_key()


def test_a_netrc_that_holds_no_key_leaves_it_offline(tmp_path):
    for text in ("this is no netrc\n", f'machine {HOST} login user password ""\n'):
        (tmp_path / "netrc").write_text(text)
        assert _offline()
    (tmp_path / "netrc").unlink()
    (tmp_path / "netrc").mkdir()
    assert _offline()


@pytest.mark.parametrize("logged_in", [True, False])
def test_the_mode_that_was_asked_for_has_the_last_word(logged_in, tmp_path, monkeypatch):
    if logged_in:
        log_in(tmp_path)
    for mode in ("offline", "online", "disabled"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert _offline() == (mode == "offline")
