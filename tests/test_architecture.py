"""The house: floors, sizes, and what may know whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py")]

LONGER = {("unet.py", "__init__"): 60}  # whose parameters alone are twenty lines


def test_imports_go_downstairs_only():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for item in ast.walk(ast.parse(text)):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            longest = LONGER.get((path.name, item.name), 40)
            assert item.end_lineno - item.lineno < longest, f"{item.name} is too long"


def test_every_word_of_the_sentence_has_its_rooms():
    for word in (
        "schedule",
        "sigma",
        "prediction",
        "objective",
        "timestep",
        "sampler",
        "data",
        "metric",
        "model",
    ):
        assert (ROOT / "src/ddpm" / f"{word}.py").exists() or (ROOT / "src/ddpm" / word).is_dir()
        assert (ROOT / "conf" / word).is_dir()
        assert (ROOT / "tests" / f"test_{word}.py").exists()


def test_the_verbs_show_their_config_and_help_without_waiting_for_what_is_heavy():
    done = subprocess.run([sys.executable, "-c", SHOWN], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "_target_: ddpm.model.UNet" in done.stdout
    assert done.stdout.count("_target_: ddpm.sampler.Ancestral") == 6  # the help ends with the config
    assert done.stdout.count("sampler: ancestral, ddim") == 3


SHOWN = """
import runpy, sys
from contextlib import suppress
from itertools import product
for name, flags in product(("train", "sample", "evaluate"), (["--cfg", "job"], ["--help"])):
    sys.argv = [f"{name}.py", *flags]
    with suppress(SystemExit):  # how --help ends; what it has said is looked at
        runpy.run_path(f"{name}.py", run_name="__main__")
heavy = {"torch", "lightning", "matplotlib", "wandb", "sklearn", "torchmetrics"} & sys.modules.keys()
sys.exit(f"imported: {sorted(heavy)}" if heavy else 0)
"""
