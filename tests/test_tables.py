"""The tables of the papers, from a smoke test's size to the paper's."""

import json
import os
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from compose import composed
from processes import SMALL, verb
from yamls import names

from ddpm.build import build_data, build_diffusion, build_metrics, build_sampler
from ddpm.errors import Refused
from ddpm.evaluation import Evaluation
from ddpm.instantiate import make
from ddpm.sampling import SamplingModule
from ddpm.schedule import NoiseSchedule
from ddpm.tables import grid, rows, writing
from ddpm.tables.__main__ import main
from ddpm.tables.published import GRIDS, TABLES
from ddpm.tables.running import Checkpoint, jobs, known, protocol

OF_NO_TABLE = {"ho2020_celebahq256", "ho2020_lsun256"}  # other data than those of the tables
ROWS = [row for table in TABLES.values() for row in table.rows]
TARGETS = {  # a word in the title of a row: what the experiment has
    "mu_tilde": ("prediction", "ddpm.prediction.Mean"),
    "eps": ("prediction", "ddpm.prediction.Epsilon"),
    "L": ("objective", "ddpm.objective.Bound"),
    "squared error": ("objective", "ddpm.objective.Simple"),
    "squared error (L_simple)": ("objective", "ddpm.objective.Simple"),
    "L_simple": ("objective", "ddpm.objective.Simple"),
    "L_hybrid": ("objective", "ddpm.objective.Hybrid"),
    "L_vlb": ("objective", "ddpm.objective.Bound"),
    "learned diagonal": ("sigma", "ddpm.sigma.Learned"),
    "fixed isotropic": ("sigma", "ddpm.sigma.Beta"),
    "fixed isotropic Sigma": ("sigma", "ddpm.sigma.Beta"),
    "linear": ("schedule", "ddpm.schedule.linear"),
    "cosine": ("schedule", "ddpm.schedule.cosine"),
}


@cache
def experiment(name):
    return composed(f"experiment={name}")


def test_every_experiment_is_a_row_or_of_other_data():
    assert {row.experiment for row in ROWS} | OF_NO_TABLE == set(names("experiment"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.experiment}-{row.title}")
def test_a_row_is_what_its_title_says(row):
    config = experiment(row.experiment)
    for word in row.title.split(", "):
        if word in ("1K", "4K"):
            assert config["schedule"]["num_steps"] == 1000 * int(word[0])
        else:
            group, target = TARGETS[word]
            assert config[group]["_target_"] == target
    assert config["sampler"]["num_steps"] is None  # all T, as in the papers


def test_a_table_of_few_images_has_few_in_the_scores_during_training_too():
    of_the_papers = {experiment(row.experiment)["callbacks"]["evaluation"]["num_images"] for row in ROWS}
    assert of_the_papers == {rows.DURING_TRAINING}
    few, many = (rows.training("table1", TABLES["table1"].rows, None, images, []) for images in (20, 50_000))
    assert set(few) - set(many) == {"callbacks.evaluation.num_images=20"}


@pytest.mark.parametrize("name", TABLES)
def test_the_rows_of_a_table_differ_and_report_the_same(name):
    table = TABLES[name]
    assert len({json.dumps(experiment(row.experiment), sort_keys=True) for row in table.rows}) == len(table.rows)
    assert len({tuple(row.published) for row in table.rows}) == 1
    assert set(
        build_metrics(composed("checkpoint=none", f"metric=[{','.join(table.metrics)}]", verb="evaluate"))
    ) == set(table.metrics)


@pytest.mark.parametrize("row", TABLES["table_iddpm"].rows, ids=lambda row: row.experiment)
def test_the_recipe_of_nichol_and_dhariwal(row):
    config = experiment(row.experiment)
    assert config["trainer"]["gradient_clip_val"] is None
    assert config["trainer"]["max_steps"] == 500_000
    assert config["data"]["flip"] is False
    assert (config["optimizer"]["lr"], config["optimizer"]["weight_decay"]) == (1e-4, 0)
    assert config["model"]["dropout"] == (0.3 if "cosine" in row.title else 0.1)
    assert config["sigma"]["_target_"].endswith("Beta" if "L_simple" in row.title else "LearnedRange")
    last = torch.tensor([config["schedule"]["num_steps"]])
    alpha_bar = NoiseSchedule(make(config["schedule"], "schedule")).alpha_bar(last).item()
    golden = {"1K, linear": 4.035829765e-05, "4K, linear": 4.246652276e-05, "4K, cosine": 1.517980469e-10}
    assert alpha_bar == pytest.approx(golden[row.title.rpartition(",")[0]], rel=1e-9)


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_complete_and_more_steps_are_better(name):
    for line in GRIDS[name].lines:
        assert len(line.published) == len(GRIDS[name].steps)
        assert all(float(few) > float(many) for few, many in pairwise(line.published))


def test_every_cell_of_a_grid_is_a_job_that_builds():
    table = GRIDS["table_ddim"]
    for line in table.lines:
        (job,) = jobs(grid.arguments(table, line, [50], protocol(["fid"], 10, [])))
        config = composed("checkpoint=none", *job, verb="evaluate")
        assert make(config["sampler"], "sampler").times(1000)[-2:] == [1, 0]
        assert config["sampler"]["spacing"] == "quadratic"
        assert ("sigma" in config) == line.title.startswith("sigma-hat")


@pytest.mark.parametrize("scored", [0, 1, 3, 7, 24, 25])
def test_the_sweeps_of_a_grid_fill_the_cells_that_are_missing_and_no_others(scored):
    table, asked = GRIDS["table_ddim"], protocol(["fid"], 10, ["sampler.clip=true"])
    cells = {
        (line.title, n): frozenset(jobs(grid.arguments(table, line, [n], asked))[0])
        for line in table.lines
        for n in table.steps
    }
    order = torch.randperm(25, generator=torch.Generator().manual_seed(scored)).tolist()
    missing = [list(cells)[k] for k in (range(25) if scored == 0 else order[scored:])]
    sweeps = grid.sweeps(table, missing, asked)
    dealt = [frozenset(job) for one in sweeps for job in jobs(one)]
    assert sorted(map(sorted, dealt)) == sorted(sorted(cells[key]) for key in missing)
    if scored == 0:
        assert len(sweeps) == 2


def result(checkpoint, overrides, step, score=1.0):
    told = {
        "checkpoint": checkpoint.path.name,
        "step": step,
        "metrics": {"fid_classifier": {"reference_split": "train"}},
    }
    versions = {"versions": {"torch": "2"}, "commit": None}
    return {"overrides": overrides, "protocol": told, "scores": {"fid_classifier": score}} | versions


def test_a_score_is_taken_again_only_if_all_of_it_is_the_same(tmp_path):
    checkpoint, asked = Checkpoint(tmp_path / "last.ckpt", 6, 30), protocol(["fid"], 10, ["metric=[fid_classifier]"])
    assert known(checkpoint, asked) is None
    overrides = ["metric=[fid_classifier]", "num_images=10"]
    written = [
        result(checkpoint, overrides, 3),
        result(checkpoint, overrides, 6, 2.0),
        result(checkpoint, [*overrides, "seed=1"], 6),
        result(Checkpoint(tmp_path / "best.ckpt", 6, 30), overrides, 6),
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    assert known(checkpoint, asked)["scores"] == {"fid_classifier": 2.0}
    assert known(checkpoint, [*asked, "num_images=20"]) is None
    assert known(Checkpoint(tmp_path / "last.ckpt", 9, 30), asked) is None


def run(folder, overrides):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"state": "finished", "overrides": overrides}))
    return folder


def test_the_runs_that_are_given_are_told_apart_by_their_experiments(tmp_path):
    one = run(tmp_path / "one", ["experiment=ho2020_cifar10", "data=digits"])
    other = run(tmp_path / "two", ["experiment=nichol2021_cifar10_4k_cosine_vlb"])
    newer = run(tmp_path / "three", ["experiment=ho2020_cifar10", "seed=1"])
    os.utime(one / "status.json", (0, 0))
    assert rows.given(tmp_path, TABLES["table1"].rows) == {"ho2020_cifar10": newer}
    assert rows.given(one, TABLES["table1"].rows) == {"ho2020_cifar10": one}
    (one / "checkpoints/best.ckpt").touch()
    best = one / "checkpoints/best.ckpt"
    assert rows.given(best, TABLES["table2"].rows) == {"ho2020_cifar10": best}
    with pytest.raises(Refused, match="no run of this table's rows"):
        rows.given(other, TABLES["table1"].rows)


def test_a_row_of_a_sweep_is_the_run_with_its_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = rows.training("table1", TABLES["table1"].rows, 4, 50_000, ["data=digits", "metric=[fid, inception_score]"])
    same = ["data=digits", "metric=[fid,inception_score]"]
    run(tmp_path / "runs/table1/a", ["experiment=ho2020_cifar10", "trainer.max_steps=5", *same])
    mine = run(tmp_path / "runs/table1/b", ["experiment=ho2020_cifar10", *same, "trainer.max_steps=4"])
    assert {name: folder.resolve() for name, folder in rows.made(sweep).items()} == {"ho2020_cifar10": mine}


def test_a_table_has_the_published_numbers_and_says_what_is_missing():
    table = TABLES["table_iddpm"]
    columns, cells = writing.of_rows(table, {})
    assert columns == ["row", "NLL (published)", "FID (published)", "state"]
    assert cells[-1] == ["4K, cosine, L_vlb", "2.94", "11.47†", "not run"]
    text = writing.text(table.source, columns, cells, [], [])
    assert "† from memory" in text
    assert "nothing was measured" in text
    assert "†" not in writing.text("", *writing.of_rows(TABLES["table2"], {}), [], [])


def test_ours_stand_under_the_name_of_their_features_beside_the_published():
    checkpoint = Checkpoint(Path("last.ckpt"), 6, 30)
    ran = {"ho2020_cifar10": rows.Ran({"state": "finished"}, checkpoint, result(checkpoint, [], 6))}
    columns, cells = writing.of_rows(TABLES["table1"], ran)
    assert columns[-2:] == ["fid_classifier (ours)", "state"]
    assert cells[0][-2:] == ["", "not run"]
    assert cells[1][-2:] == ["1", "finished, step 6"]


def test_a_table_tells_of_averages_that_are_still_the_initial_weights():
    young, old = (rows.Ran({}, Checkpoint(Path("last.ckpt"), n, 30, 0.9999**n), None) for n in (2_000, 800_000))
    (told,) = writing.unripe([young, old])
    assert "still 82% the initial ones" in told
    assert writing.unripe([old]) == []


def test_a_protocol_names_all_values_where_results_differ():
    nodes = [{"_target_": "ddpm.sampler.DDIM", "eta": eta} for eta in (0, 0.2)] + [{"_target_": "a.Ancestral"}]
    assert writing.differing(nodes) == "DDIM / Ancestral, eta=0 / 0.2"
    assert writing.differing([None, {"_target_": "ddpm.sigma.Beta"}, None]) == "Beta / null"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table2", "--steps", "0", "--images", "10"], "--steps must be at least 1"),
        (["table2", "--images", "1"], "--images at least 2"),
        (["table_ddim"], "give --checkpoint"),
        (["table1", "--checkpoint", "nowhere"], "nowhere has no run of this table's rows"),
        (["table_ddim", "--checkpoint", "nowhere"], "there is no checkpoint at nowhere"),
        (["table2", "--", "seed=0,1"], "a row of a table is one run"),
        (["table1", "--checkpoint", "x", "--", "seed=0,1"], "one protocol"),
        (["table1", "--checkpoint", "x", "--", "results=x"], "leave out"),
        (["table2", "--", "seed=[0"], "error: no viable alternative"),
    ],
)
def test_what_can_not_be_a_table_ends_in_one_message(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code not in (0, None)
    assert words in f"{ended.value.code} {capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())


def test_the_bound_of_the_training_images_has_a_name_of_its_own():
    config = composed("model=tiny", "schedule.num_steps=3", "metric=[bits_per_dim,bits_per_dim_train]")
    config["metric"]["bits_per_dim"] |= {"num_images": 5}
    config["metric"]["bits_per_dim_train"] |= {"num_images": 7}
    data = build_data(config)
    torch.manual_seed(0)
    diffusion = build_diffusion(config, data.facts).eval()
    evaluation = Evaluation(build_metrics(config), data, 20, 8)
    evaluation.prepare(torch.device("cpu"))
    sampler = build_sampler(config, diffusion)
    model = SamplingModule(diffusion, sampler, shape=data.facts.shape, seed=0, label=None, guidance=1.0)
    with torch.no_grad():
        scores = evaluation.run(model, 0, 1)
    images = {name: (told["split"], told["images"]) for name, told in evaluation.protocol().items()}
    assert images == {"bits_per_dim": ("test", 5), "bits_per_dim_train": ("train", 7)}
    assert 0 < scores["bits_per_dim"] != scores["bits_per_dim_train"] > 0
    assert {"rate", "rate_train", "L_T", "L_T_train"} <= scores.keys()


DIGITS = ["data=digits", "schedule.num_steps=25", "logger=[]", "metric=[fid_classifier]"]
DIGITS += ["optimized_metric=fid_classifier"]
TRAINED = [text for text in SMALL if not text.startswith(("sampler", "trainer.max_steps", "lr_s"))] + DIGITS


def make_table(cwd, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "ddpm.tables", *arguments],
        cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table2", "table_iddpm"])
def test_a_table_runs_at_the_size_of_a_smoke_test(name, tmp_path):
    make_table(tmp_path, name, "--steps", "4", "--images", "20", "--", *TRAINED)
    text = (tmp_path / f"runs/{name}/{name}.md").read_text()
    assert text.count("finished, step 4") == 6
    assert "still 100% the initial ones" in text
    assert "not scored" not in text
    assert "fid_classifier (ours)" in text


@pytest.mark.slow
def test_table_1_is_made_once_and_its_runs_serve_the_other_tables(tmp_path):
    asked = [*TRAINED, "metric=[fid_classifier,inception_score_classifier,bits_per_dim,bits_per_dim_train]"]
    for again in (False, True):  # the second time everything is there already
        told = make_table(tmp_path, "table1", "--steps", "4", "--images", "20", "--", *asked)
        assert ("results:" in told) != again
    text = (tmp_path / "runs/table1/table1.md").read_text()
    assert "| bits_per_dim (ours) | bits_per_dim_train (ours) |" in text
    assert text.count("finished, step 4") == 2

    scoring = ["--images", "20", "--", "metric=[fid_classifier]", "trainer=cpu"]
    make_table(tmp_path, "table2", "--checkpoint", "runs/table1", *scoring)
    text = (tmp_path / "runs/table1/table2.md").read_text()
    assert (text.count("finished, step 4"), text.count("not run")) == (2, 4)


@pytest.mark.slow
def test_the_grid_of_ddim_is_filled_once(tmp_path):
    small = [text for text in SMALL if not text.startswith("sampler")]
    verb("train", tmp_path, *small, "schedule.num_steps=20", "logger=[]", "name=try")
    (run,) = (tmp_path / "runs/try").iterdir()
    asked = ["--checkpoint", str(run), "--images", "20", "--", "metric=[fid_classifier]", "trainer=cpu"]
    for again in (False, True):
        told = make_table(tmp_path, "table_ddim", *asked)
        assert told.count("results:") == (0 if again else 10)
    text = (run / "table_ddim.md").read_text()
    assert "Left out: S = 50, 100, 1000, more than the T = 20" in text
    line = next(line for line in text.splitlines() if line.startswith("| sigma-hat"))
    assert [bool(cell.strip()) for cell in line.split("|")[2:-1]] == [True] * 4 + [True, False] * 3
