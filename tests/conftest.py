import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is trained or computed once for the digits, such as the classifier of their metrics."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def home(tmp_path: Path, cache: Path) -> Path:
    """A folder to run the verbs in, with that cache."""
    (tmp_path / ".cache").symlink_to(cache)
    return tmp_path


@pytest.fixture(scope="session")
def brief_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that left a model of 10 steps."""
    from running import UNSCORED, run  # when the types of our packages are watched

    return run(tmp_path_factory.mktemp("run"), *UNSCORED)
