"""The house: floors, sizes, and what may know whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py")]


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
        if isinstance(item, ast.FunctionDef):
            assert item.end_lineno - item.lineno <= 60, f"{item.name} is too long"


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


def test_the_light_modules_do_not_wait_for_torch():
    code = "import sys, ddpm.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
