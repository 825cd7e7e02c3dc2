"""What a run leaves behind tells neither the environment nor, in the files that are handed on, where it ran."""

import json
import os
import pickle
import zipfile
from dataclasses import replace

import hostile
import pytest
import torch
from compose import composed
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError
from processes import ROOT, SMALL, typed, verb
from running import run_as

from ddpm import sweep
from ddpm.checkpoint import load
from ddpm.cli import plain
from ddpm.errors import Refused
from ddpm.opening import data_of
from ddpm.privacy import public, without_paths
from ddpm.runs import label, note, status, without_place
from ddpm.training import refuse_change
from ddpm.wording import sentence

CANARY = "canary-of-the-environment"
PROGRAM = str(ROOT / "train.py").encode()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, beside a folder of data that is elsewhere."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DDPM_TEST_SECRET", CANARY)
    return tmp_path / "here"


def test_absolute_paths_are_told_from_here_or_by_their_last_part(here):
    elsewhere = here.parent / "elsewhere"
    assert without_paths(f"data.root={here}/a/b") == "data.root=a/b"
    assert without_paths(f"data.root={here}") == "data.root=."
    short = without_paths(f"{elsewhere}/images cannot be read, nor [{elsewhere}/b.png]: see there")
    assert str(elsewhere) not in short
    assert short.startswith("images-")
    assert "nor [b.png-" in short
    for slashes in ("/", "//", "file://", "file:", "x=///", "a:"):
        text = f"{slashes}{elsewhere}/images"
        assert str(here.parent) not in without_paths(text), text
        assert public({"seed": 0, "data": {"root": text}}) == {"seed": 0, "data": {}}
    assert without_paths(f"file://{here}/a") == "file:a"
    assert without_paths(f"/{here}/a") == "a"
    assert without_paths(f"x={elsewhere}") != without_paths(f"x={elsewhere.parent}/other/elsewhere")
    for text in (
        "a/b",
        "./a",
        "../a",
        "x=1/2",
        "https://a.b/c",
        "s3://a/b",
        "a//b",
        "model=tiny",
        "~/a",
        "/",
        "//",
        "a-/b",
    ):
        assert without_paths(text) == text


def test_a_config_is_told_without_places_of_this_machine(here):
    elsewhere = str(here.parent / "elsewhere")
    config = {"runs": "runs", "resume": elsewhere, "seed": 0, "data": {"root": elsewhere, "flip": True, "path": None}}
    config["metric"] = {"fid": {"reference": f"{here}/a", "features": {"weights": elsewhere}, "list": [elsewhere, 1]}}
    assert public(config) == {
        "seed": 0,
        "data": {"flip": True, "path": None},
        "metric": {"fid": {"reference": "a", "features": {}, "list": [1]}},
    }


def test_a_run_is_named_and_listed_without_absolute_paths(here, capsys):
    root = f"data.root={here.parent}/elsewhere"
    (named,) = without_place([root, f"checkpoint={here}/x", "runs=/r"])
    assert named == without_paths(root)
    assert "elsewhere-" in label([named])
    folder = here / "a"
    folder.mkdir()
    (folder / "status.json").write_text(
        f'{{"state": "failed", "overrides": ["{root}", "metric=[fid]"], "reason": "no {here.parent}/x"}}'
    )
    sweep.show(here)
    written = (here / "table.csv").read_text() + (here / "table.md").read_text()
    assert str(here.parent) not in written
    assert "[fid]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:DDPM_TEST_SECRET}",
        "a ${oc.decode:${oc.env:DDPM_TEST_SECRET}}",
        [1, "${oc.env:HOME}"],
        "${oc.${name}:HOME}",
        "${oc.${name}:DDPM_TEST_SECRET,default}",
        "${oc.env:DDPM_TEST_NO_SUCH,default}",
        "${${whole}:DDPM_TEST_SECRET}",
    ],
)
def test_no_environment_variable_enters_a_config(value, here):
    names = {"name": "env", "whole": "oc.env"}
    with pytest.raises(Refused, match=r"data.x(\[1\])? reads an environment variable") as caught:
        plain(OmegaConf.create(names | {"seed": 0, "data": {"x": value, "y": "${seed}"}}))
    assert CANARY not in str(caught.value)
    assert OmegaConf.create({"x": "${oc.env:DDPM_TEST_SECRET}"}).x == CANARY  # elsewhere it is what it was
    with pytest.raises(InterpolationKeyError, match="no_such"):
        plain(OmegaConf.create({"x": "${no_such}"}))


def test_errors_leave_the_terminal_alone():
    told = sentence(Refused("names \x1b]0;title\x07 and \x9b2J,\na \u202e b"))
    assert told == "names \\x1b]0;title\\x07 and \\x9b2J,\\na \\u202e b"


def read(path):
    """The bytes of a file, with those of the records in it if it is an archive."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return b"".join(archive.read(name) for name in archive.namelist())
    return path.read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose data are elsewhere, its config, and where it ran."""
    cwd = tmp_path_factory.mktemp("trained") / "here"
    cwd.mkdir()
    off = ["logger=[csv]", "metric=[fid_random]", "optimized_metric=fid_random", "metric.fid_random.cache=../cache"]
    config = composed(*SMALL, *off, f"data.root={cwd.parent}/elsewhere", f"runs={cwd}/runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setenv("DDPM_TEST_SECRET", CANARY)
        run_as(cwd, config)
    return cwd, config


def test_a_run_and_its_checkpoints_tell_neither_the_environment_nor_the_machine(trained, monkeypatch):
    cwd, config = trained
    monkeypatch.chdir(cwd)
    files = [path for path in cwd.rglob("*") if path.is_file()]
    assert {"last.ckpt", "best.ckpt", "metrics.csv", "config.yaml", "hparams.yaml"} <= {path.name for path in files}
    for path in files:
        assert CANARY.encode() not in read(path), path
        if path.name != "config.yaml":  # it is the run's own, and says where its data are
            assert str(cwd.parent).encode() not in read(path), path
    loaded = load(cwd)
    assert "root" not in loaded.config["data"]
    refuse_change(loaded.config, config | {"runs": "other"})
    assert data_of(loaded, {}).root == str(cwd.parent / "elsewhere")  # of config.yaml
    moved = replace(loaded, path=cwd / "last.ckpt")
    with pytest.raises(Refused, match=r"add \+data.root=FOLDER"):
        data_of(moved, {})
    assert data_of(moved, {"root": "x"}).root == "x"


def test_a_reason_is_noted_without_absolute_paths(here):
    note(here, state="failed", reason=f"{here.parent}/elsewhere/a.png cannot be read, nor {here}/b")
    assert str(here.parent) not in (here / "status.json").read_text()
    assert status(here)["reason"].startswith("a.png-")
    assert status(here)["reason"].endswith(" cannot be read, nor b")
    note(here, state="running", reason=None)
    assert status(here) == {"state": "running", "reason": None}


@pytest.mark.slow
def test_what_the_verbs_write_tells_no_absolute_path(tmp_path):
    cwd, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    cwd.mkdir()
    random = ["metric=[fid_random,bits_per_dim]", f"metric.fid_random.cache={elsewhere}/cache"]
    trained = [
        *SMALL,
        *random,
        "optimized_metric=fid_random",
        "schedule.num_steps=10",
        "metric.bits_per_dim.num_images=4",
    ]
    verb("train", cwd, *trained, "logger=[csv]", f"data.root={elsewhere}", f"runs={cwd}/runs")
    images = ["logger=[]", "data=image_folder", f"data.root={elsewhere}/images", "data.image_size=8", "name=refused"]
    verb("train", cwd, *SMALL, *images, f"runs={cwd}/runs", ok=False)
    (folder,) = (path for path in (cwd / "runs/ddpm").iterdir() if path.is_dir())
    asked = [f"checkpoint={folder}", "num_images=4", "batch_size=2", "sampler.num_steps=2", "trainer=cpu"]
    verb("sample", cwd, *asked, "npz=true", f"out={elsewhere}/out")
    (elsewhere / "results").mkdir()
    few = ["metric.bits_per_dim.num_images=4", f"results={elsewhere}/results/results.jsonl"]
    verb("evaluate", cwd, *asked, *random, *few)
    roots = (cwd / "runs", elsewhere / "out", elsewhere / "results")
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    expected = {"last.ckpt", "best.ckpt", "metrics.csv", "loss.png", "hparams.yaml", "config.yaml", "status.json"}
    expected |= {"000003.png", "grid.png", "samples.npz", "drawing.json", "results.jsonl"}
    assert expected <= {path.name for path in files}
    assert {json.loads(path.read_text())["state"] for path in files if path.name == "status.json"} == {
        "finished",
        "refused",
    }
    for path in files:
        assert path.name == "config.yaml" or str(tmp_path).encode() not in read(path), path


BAD_STATES = {
    "optimizer_states": [{"state": {}, "param_groups": 5}],
    "callbacks": {"SaveLast": {"log_bytes": 0}, "Evaluate": {"best": 1.0}},
    "loops": {"fit_loop": {"x": 1}},
    "lr_schedulers": [{"lr_lambdas": 5}],
    "state_dict": {},
}


@pytest.mark.parametrize(
    "key", [*list(BAD_STATES)[:1], *(pytest.param(k, marks=pytest.mark.slow) for k in list(BAD_STATES)[1:])]
)
def test_training_does_not_go_on_from_a_state_of_another_kind(key, trained, tmp_path, monkeypatch):
    cwd, config = trained
    monkeypatch.chdir(cwd)
    (tmp_path / "checkpoints").mkdir()
    content = torch.load(cwd / "checkpoints/last.ckpt", weights_only=True)
    torch.save(content | {key: BAD_STATES[key]}, tmp_path / "checkpoints/last.ckpt")
    with pytest.raises(Refused, match=r"does not fit this run|lr_lambdas in .*last\.ckpt=\[5\] is not possible"):
        run_as(tmp_path, config)


@pytest.mark.slow
def test_wandb_keeps_neither_the_environment_nor_the_machine(tmp_path):
    (tmp_path / "here").mkdir()
    cwd, host = tmp_path / "here", os.uname().nodename
    secrets = {"DDPM_TEST_SECRET": CANARY, "SLURM_TEST_SECRET": CANARY, "SLURM_JOB_NAME": "bash"}
    secrets |= {"WANDB_API_KEY": CANARY.ljust(40, "0")}
    verb("train", cwd, *SMALL, "name=try", f"data.root={tmp_path}/elsewhere", **secrets)
    (folder,) = cwd.glob("runs/try/*/wandb")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "debug-core.log"]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert CANARY.encode() not in read(path), path
        assert str(tmp_path).encode() not in read(path), path
        assert PROGRAM not in read(path), path
        assert host.encode() not in read(path) or len(host) < 4, path
    typed("train", cwd, *SMALL, "name=told", "logger=wandb", WANDB_X_DISABLE_META="false", **secrets)
    file, *_ = cwd.glob("runs/told/*/wandb/*/*.wandb")  # also by a link to the latest
    assert PROGRAM in file.read_bytes()  # the switch that docs/privacy.md names


@pytest.mark.slow
def test_the_verbs_end_in_one_sentence_on_files_of_strangers(tmp_path):
    evil, canary = tmp_path / "evil.ckpt", tmp_path / "canary"
    evil.write_bytes(hostile.around(pickle.dumps({"ddpm": hostile.Runs(os.system, f"touch {canary}")}, 2)))
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last.ckpt").write_bytes(evil.read_bytes())
    (tmp_path / "good.ckpt").write_bytes(hostile.zipped(hostile.whole()))
    (tmp_path / "weights.pth").write_bytes(hostile.legacy({"x": hostile.Runs(os.system, f"touch {canary}")}))
    (tmp_path / "bomb.png").write_bytes(hostile.bomb(20_000))
    (tmp_path / "place").mkdir()
    image = ["mode=image_to_image", f"images={tmp_path}/bomb.png", "trainer=cpu"]
    weights = ["metric=[fid]", f"metric.fid.features.weights={tmp_path}/weights.pth", "trainer=cpu"]
    commands = [
        ("sample", [f"checkpoint={evil}"]),
        ("evaluate", [f"checkpoint={evil}"]),
        ("train", [*SMALL, "logger=[]", f"resume={tmp_path}/run"]),
        ("sample", [f"checkpoint={tmp_path}/good.ckpt", *image]),
        ("evaluate", [f"checkpoint={tmp_path}/good.ckpt", f"results={tmp_path}/results.jsonl", *weights]),
    ]
    for name, arguments in commands:
        told = verb(name, tmp_path / "place", *arguments, ok=False)
        assert "Traceback" not in told
        assert len([line for line in told.splitlines() if line.startswith("error: ")]) == 1, told
        assert not canary.exists()
    assert not [path for path in (tmp_path / "place").rglob("*") if path.is_file() and path.parent.name != ".cache"]
