"""The tables of the papers, from a smoke test's size to the paper's."""

import os
import subprocess
import sys

import pytest
from processes import SMALL
from yamls import names

from ddpm.tables import TABLES, main, table


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_row_is_an_experiment(name):
    assert {row.experiment for row in TABLES[name]} <= set(names("experiment"))


def test_a_table_without_runs_has_the_published_numbers(tmp_path):
    columns, cells = table(tmp_path, TABLES["table2"], [])
    assert columns[:3] == ["row", "IS (published)", "FID (published)"]
    assert cells[-1][1:3] == ["9.46±0.11", "3.17"]
    assert cells[0][-1] == "not run"


def test_sizes_must_be_possible():
    with pytest.raises(SystemExit):
        main(["table2", "--steps", "0", "--images", "10"])


@pytest.mark.slow
def test_table_2_runs_at_the_size_of_a_smoke_test(tmp_path):
    small = [text for text in SMALL if not text.startswith(("sampler", "trainer.max_steps", "callbacks.evaluation.n"))]
    small += [
        "data=digits",
        "schedule.num_steps=5",
        "metric=[fid_classifier]",
        "optimized_metric=fid_classifier",
        "logger=[]",
    ]
    for _ in range(2):  # the second time everything is there already
        done = subprocess.run(
            [sys.executable, "-m", "ddpm.tables", "table2", "--steps", "4", "--images", "20", "--", *small],
            cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "runs/table2/table2.md").read_text()
    assert text.count("finished") == 6
    assert "fid_classifier (ours)" in text
