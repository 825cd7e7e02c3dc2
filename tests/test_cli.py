"""What a user types, and what comes of it."""

import json
import signal

import numpy as np
import pytest
import torch
from forked import start, wait_for
from PIL import Image
from processes import SMALL, typed, verb
from wandb_file import groups

from ddpm.callbacks.run_log import read
from ddpm.runs import status


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """One small run, without W&B, and where it lies."""
    cwd = tmp_path_factory.mktemp("trained")
    (cwd / ".cache").symlink_to(cache)
    told = typed("train", cwd, *SMALL, "logger=[]", "name=try")
    (folder,) = (cwd / "runs/try").iterdir()
    return cwd, folder, told


def test_help_and_config_answer_and_leave_nothing(tmp_path):
    assert "schedule: constant, cosine" in " ".join(typed("train", tmp_path, "--help").split())
    assert "_target_: ddpm.schedule.cosine" in typed("train", tmp_path, "--cfg", "job", "schedule=cosine")
    assert not list(tmp_path.iterdir())


def test_a_run_leaves_everything_and_says_where(trained):
    _, folder, told = trained
    for name in (
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "samples/step_0000006.png",
        "loss.png",
        "metrics.csv",
    ):
        assert (folder / name).is_file()
        assert name.split("/")[-1] in told
    assert "precision 32-true" in told
    history = read(folder / "metrics.csv")
    assert {"train/loss", "val/loss", "train/gradient_norm", "score/fid_classifier/ancestral_5"} <= set(history)
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert not list(folder.rglob("*.part"))


def test_the_checkpoint_is_plain_data_without_the_metrics_networks(trained):
    content = torch.load(trained[1] / "checkpoints/last.ckpt", weights_only=True)
    assert all(key.startswith(("diffusion.", "timestep.")) for key in content["state_dict"])
    assert content["ddpm"]["config"]["data"]["batch_size"] == 16
    assert content["global_step"] == 6


def test_sampling_gives_pictures_a_grid_an_npz_and_the_way(trained):
    cwd, folder, _ = trained
    asked = [
        "sampler.num_steps=4",
        "sigma=beta_tilde",
        "num_images=5",
        "batch_size=2",
        "npz=true",
        "trajectory=true",
    ]
    verb("sample", cwd, f"checkpoint={folder}", "out=drawn", "trainer=cpu", *asked)
    names = {path.name for path in (cwd / "drawn").iterdir()}
    assert names == {f"{i:06d}.png" for i in range(5)} | {".lock", "drawing.json", "overview", "samples.npz"}
    assert {path.name for path in (cwd / "drawn/overview").iterdir()} == {
        "grid.png",
        "trajectory.png",
        "trajectory.webp",
    }
    images = np.load(cwd / "drawn/samples.npz", allow_pickle=False)["arr_0"]
    assert images.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8
    assert np.array_equal(np.asarray(Image.open(cwd / "drawn/000003.png")), images[3, ..., 0])
    verb("sample", cwd, f"checkpoint={folder}", "out=noised", "mode=forward", "num_images=3")
    assert (cwd / "noised/forward.png").is_file()


def test_a_sweep_over_checkpoints_draws_each_into_a_folder_of_its_own(brief_run, tmp_path):
    """Not told apart by anything else; one of them lies in the working directory, one elsewhere."""
    here = tmp_path / "runs/a"
    here.mkdir(parents=True)
    (here / "last.ckpt").write_bytes((brief_run / "checkpoints/previous.ckpt").read_bytes())
    asked = ["num_images=2", "sampler.num_steps=2", "trainer=cpu", "out=drawn"]
    verb("sample", tmp_path, "-m", f"checkpoint=runs/a/last.ckpt,{brief_run}/checkpoints/last.ckpt", *asked)
    folders = sorted((tmp_path / "drawn").iterdir())
    assert len(folders) == 2
    assert all("sampler.num_steps=2" in folder.name for folder in folders)
    assert not [folder for folder in folders if brief_run.parent.name in folder.name]
    assert len({(folder / "000000.png").read_bytes() for folder in folders}) == 2


@pytest.mark.parametrize(
    ("png", "by"),
    [("true", signal.SIGTERM), pytest.param("false", signal.SIGKILL, marks=pytest.mark.slow)],
)
def test_a_killed_drawing_makes_what_is_missing_and_the_same_bytes(trained, png, by):
    cwd, run, _ = trained
    killed, whole = cwd / f"killed_{png}", cwd / f"whole_{png}"
    asked = [f"checkpoint={run}", "trainer=cpu", "num_images=11", "batch_size=2", "sampler.num_steps=60"]
    asked += [f"png={png}", "npz=true"]
    drawing = start(cwd, *asked, f"out={killed.name}", verb="sample")
    assert wait_for(lambda: len(list(killed.rglob("0000*"))) >= 3, drawing), drawing.told.read_text()
    drawing.kill(by)
    assert drawing.wait() == [-by]
    assert not (killed / "samples.npz").exists()
    before = {path: path.stat().st_mtime_ns for path in killed.glob("0000*.png")}
    told = verb("sample", cwd, *asked, f"out={killed.name}")
    assert "of 11" not in told  # only what is missing
    kept = [path for path, made in before.items() if path.stat().st_mtime_ns == made]
    assert len(kept) >= len(before) - 1  # all but an image of a batch that was cut short
    verb("sample", cwd, *asked, f"out={whole.name}")
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.*") if path.suffix in (".png", ".npz"))
    assert len(files) == 2 + 11 * (png == "true")
    left = {str(path.relative_to(killed)) for path in killed.rglob("*") if path.is_file()}
    assert left == {".lock", "drawing.json", *map(str, files)}
    for path in files:
        assert (killed / path).read_bytes() == (whole / path).read_bytes()


def test_evaluation_keeps_one_row_a_protocol(trained):
    cwd, folder, _ = trained
    asked = [
        f"checkpoint={folder}",
        "num_images=20",
        "trainer=cpu",
        "metric.bits_per_dim.num_times=3",
        "batch_size=10",
    ]
    for steps in (4, 4, 5):
        told = verb("evaluate", cwd, *asked, f"sampler.num_steps={steps}")
        assert "bits_per_dim" in told
        assert "image 40 of 40 (100 %)" in told  # 20 samples, 20 images of the test split
    rows = [json.loads(line) for line in (folder / "checkpoints/results.jsonl").read_text().splitlines()]
    assert [row["protocol"]["sampler"]["num_steps"] for row in rows] == [4, 5]
    for row in rows:
        assert {"sampler", "sigma", "images", "seed", "weights", "metrics"} <= set(row["protocol"])
        assert {"fid_classifier", "inception_score_classifier", "bits_per_dim"} <= set(row["scores"])
        assert "torch" in row["versions"]


def test_resuming_goes_on_and_a_second_run_takes_the_next_number(trained):
    cwd, folder, _ = trained
    small = [text for text in SMALL if not text.startswith("trainer.max_steps")]
    told = verb("train", cwd, *small, "logger=[]", "name=try", f"resume={folder}", "trainer.max_steps=9")
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 9
    assert "step_0000009.png" in told
    assert max(read(folder / "metrics.csv")["train/loss"]) == 7  # rows count from 0, every second step
    assert "name: try" in (folder / "config.yaml").read_text()
    before = json.loads((folder / "status.json").read_text())
    told = verb(
        "train", cwd, *small, "logger=[]", "name=try", f"resume={folder}", "trainer.max_steps=9", "seed=1", ok=False
    )
    assert "another seed" in told
    assert json.loads((folder / "status.json").read_text()) == before


def test_a_file_that_holds_no_results_is_left_alone(tmp_path):
    from ddpm.errors import Refused
    from ddpm.measuring import keep, rows_of

    good, notes = tmp_path / "results.jsonl", tmp_path / "notes.txt"
    good.write_text('{"protocol": {"a": 1}, "scores": {}}\n\n')
    keep(good, {"protocol": {"a": 1}, "scores": {"fid": 2.0}})
    assert rows_of(good) == [{"protocol": {"a": 1}, "scores": {"fid": 2.0}}]
    for text in ("not json\n", "[1]\n", '{"other": 1}\n'):
        notes.write_text(text)
        with pytest.raises(Refused, match="holds other things"):
            rows_of(notes)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train", ["schedule=liner"], "schedule=liner is not one of constant, cosine"),
        ("train", ["trainer.max_step=5"], "max_step"),
        ("train", ["trainer.max_steps=abc"], "trainer.max_steps=abc is not possible"),
        ("train", ["data=cifar10", "data.root=nowhere", "model=tiny"], "data.download=true"),
        ("train", ["runs=/proc/nothing"], "cannot be written"),
        ("sample", ["checkpoint=nothing.ckpt"], "there is no checkpoint at nothing.ckpt"),
        ("sample", [], "checkpoint must be given"),
        ("sample", ["checkpoint=x", "mode=null"], "Config group override must be a string or a list"),
        ("evaluate", ["checkpoint=nothing.ckpt", "metric=[beauty]"], "no beauty in conf/metric/"),
    ],
)
def test_bad_input_ends_in_one_message(name, arguments, words, tmp_path):
    told = verb(name, tmp_path, *arguments, ok=False)
    assert words in told
    assert "Traceback" not in told
    assert "Error executing" not in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sampler=ddim", "sigma=beta"], "its own sigma"),
        (["sigma=learned_range"], "not trained with"),
        (["label=3"], "takes no label"),
        (["guidance=3"], "guidance=3.0 has no use without a label; leave it out, or add label=NUMBER"),
        (["guidance=nan"], "guidance=nan is not possible: Input should be a finite number"),
        (["guidance=-inf"], "finite number"),
        (["mode=inpainting", "mode.mask=nothing.png"], "no image at nothing.png"),
        (["weights=best"], "ema, raw"),
        (["num_images=0"], "at least 1"),
    ],
)
def test_what_a_checkpoint_can_not_do_is_refused(trained, arguments, words, monkeypatch):
    from compose import composed

    from ddpm.drawing import draw_images
    from ddpm.errors import Refused

    monkeypatch.chdir(trained[0])
    with pytest.raises(Refused, match=words):
        draw_images(composed(f"checkpoint={trained[1]}", "trainer=cpu", *arguments, verb="sample"))
    assert not (trained[0] / "samples").exists()


def test_an_interrupted_run_says_so_and_can_go_on(tmp_path):
    endless = [*SMALL, "logger=[]", "metric=[]", "optimized_metric=null", "~callbacks.evaluation"]
    endless = [text for text in endless if not text.startswith("callbacks.evaluation")]
    job = start(tmp_path, *endless, "trainer.max_steps=100000")
    assert wait_for(lambda: list(tmp_path.glob("runs/ddpm/*/checkpoints/last.ckpt")), job), job.told.read_text()
    job.kill(signal.SIGINT)
    (code,), told = job.wait(60), job.told.read_text()
    assert code == 1
    assert "interrupted; what is finished is kept" in told
    assert "Traceback" not in told
    (folder,) = (tmp_path / "runs/ddpm").iterdir()
    assert status(folder)["state"] == "interrupted"
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] >= 2


def test_a_mistyped_choice_of_a_sweep_shows_before_its_first_job(tmp_path):
    told = verb("train", tmp_path, "-m", "schedule=linear,liner", *SMALL, ok=False)
    assert "schedule=liner is not one of constant, cosine" in told
    assert not list(tmp_path.iterdir())


def test_a_sweep_gives_a_folder_a_job_one_wandb_group_and_a_table(home):
    small = [*SMALL, "name=sweep"]
    told = verb("train", home, "-m", "schedule=linear,cosine", "sigma=beta,beta_tilde", *small)
    runs = [path for path in (home / "runs/sweep").iterdir() if path.is_dir()]
    assert len(runs) == 4
    for schedule in ("linear", "cosine"):
        for sigma in ("beta", "beta_tilde"):
            (run,) = [r for r in runs if f"schedule={schedule},sigma={sigma}," in r.name]
            (file,) = run.glob("wandb/offline-run-*/*.wandb")
            assert groups(file) == {((run / "wandb_id").read_text().strip(), "sweep")}
    assert len({(run / "wandb_id").read_text() for run in runs}) == 4
    table = (home / "runs/sweep/table.csv").read_text()
    assert table.count("finished") == 4
    assert "fid_classifier" in table
    assert "table.md" in told


def test_a_job_that_was_refused_before_it_had_a_folder_is_in_the_table(tmp_path):
    asked = [*SMALL, "resume=runs/nothing", "name=early"]
    told = verb("train", tmp_path, "-m", "seed=0,???", *asked, ok=False)
    for text in (told, (tmp_path / "runs/early/table.csv").read_text()):
        assert "resume=runs/nothing is no run's folder" in text
        assert "seed must be given" in text
    assert not list((tmp_path / "runs/early").glob("*/status.json"))


def test_a_refused_job_does_not_stop_a_sweep(home):
    small = [*SMALL, "name=sweep", "logger=[]"]
    told = verb("train", home, "-m", "sigma=learned_range,beta", "label_dropout=0.1,x", *small, ok=False)
    table = (home / "runs/sweep/table.csv").read_text()
    assert "objective=hybrid or vlb" in table
    assert "label_dropout=x is not possible" in table
    assert table.count("refused") == 3
    assert "finished" in table
    assert "Traceback" not in told
