"""Ranks that are not connected yet: one that ends alone says why, and the others end with it."""

import json
from pathlib import Path

import forked
import pytest
from forked import Job
from processes import ROOT, SMALL
from test_data_folder import grey

from ddpm.runs import locked

SECONDS = 15
TWO = [*(text for text in SMALL if not text.startswith(("trainer.accelerator", "callbacks"))), "trainer=ddp_cpu"]
TWO += ["callbacks=[checkpoint]", "optimized_metric=null", "metric=[]", "logger=[]"]
FOLDER = ["data=image_folder", "data.root=images", "data.image_size=8", "data.channels=1"]


Environments = list[dict[str, str]]


def nodes(told: Path, places: list[Path], verb: str, *arguments: str, by: Environments | None = None) -> Job:
    """Two ranks, each in a folder of its own, as on two machines; as torchrun starts them, or with what is in `by`."""
    told.touch()
    command = [str(ROOT / f"{verb}.py"), *arguments]
    processes = [
        forked._context.Process(target=forked._run, args=(place, told, command, {"OMP_NUM_THREADS": "1"} | its, None))
        for place, its in zip(places, by or forked._launched(2), strict=True)
    ]
    for process in processes:
        process.start()
    return Job(processes, told)


def ended(job: Job) -> list[str]:
    """The lines of the errors that both ranks ended with, in time."""
    assert job.wait(SECONDS) == [1, 1], job.told.read_text()
    told = job.told.read_text()
    assert "Traceback" not in told, told
    return [line for line in told.splitlines() if line.startswith("error: ")]


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """Two machines, of which the first alone has the images."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    for i in range(4):
        grey(folders[0] / "images" / f"{i}.png", 20 * i, (8, 8))
    return folders


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the processes import takes long; so what follows has its seconds for itself."""
    forked.start(tmp_path_factory.mktemp("imported"), "--version").wait()


@pytest.mark.parametrize("lacking", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_machine_without_the_data_says_so_and_ends_the_other(
    lacking: int, tmp_path: Path, places: list[Path]
) -> None:
    there = places if lacking == 1 else places[::-1]
    told = ended(nodes(tmp_path / "told", there, "train", *TWO, *FOLDER, f"runs={tmp_path}/runs"))
    assert len(told) == 1, told
    assert told[0].startswith(f"error: {'rank 1: ' * lacking}there is no folder images"), told
    (file,) = tmp_path.glob("runs/ddpm/*/status.json")
    status = json.loads(file.read_text())
    assert status["state"] == "refused"
    assert "there is no folder images" in status["reason"]


def test_what_all_ranks_meet_with_is_said_once(tmp_path: Path, places: list[Path]) -> None:
    told = ended(nodes(tmp_path / "told", places, "train", *TWO, "optimizer.lr=-1", f"runs={tmp_path}/runs"))
    assert len(told) == 1, told
    assert told[0].startswith("error: optimizer"), told


def test_rank_0_that_may_not_write_ends_the_others(tmp_path: Path, places: list[Path]) -> None:
    (tmp_path / "run").mkdir()
    run = locked(tmp_path / "run")
    run.note(state="running")
    told = ended(nodes(tmp_path / "told", places, "train", *TWO, f"resume={tmp_path}/run"))
    run.lock.release()
    assert len(told) == 1, told
    assert told[0].startswith("error: another process is at work in"), told


def test_a_measurement_of_which_one_rank_has_no_checkpoint_ends(
    brief_run: Path, tmp_path: Path, places: list[Path]
) -> None:
    (places[0] / "run").symlink_to(brief_run)
    asked = ["checkpoint=run", "trainer=ddp_cpu", "num_images=4", "sampler.num_steps=2", "metric=[fid_random]"]
    for verb, extra in (("evaluate", [f"results={tmp_path}/results.jsonl"]), ("sample", [f"out={tmp_path}/out"])):
        told = ended(
            nodes(
                tmp_path / verb,
                places,
                verb,
                *(text for text in asked if verb == "evaluate" or "metric" not in text),
                *extra,
            )
        )
        assert told == [
            "error: rank 1: there is no checkpoint at run; give a .ckpt file or the folder of a run that has one."
        ]
