"""What the documents tell the users of clusters is possible: every script parses, every command composes."""

import os
import re
import shlex
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import yaml
from compose import composed
from forked import start as forked
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from processes import ROOT, SMALL
from yamls import CONF

from ddpm.cli import job as run_job
from ddpm.jobs import command, has_ranks, spoils_others

EXAMPLES = ROOT / "docs/examples"
SCRIPTS = sorted([*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.sbatch")])
TWO = [text for text in SMALL if not text.startswith(("callbacks", "trainer.accelerator"))]
TWO += ["callbacks=[checkpoint]", "callbacks.checkpoint.every_n_steps=3", "optimized_metric=null", "logger=[]"]
TWO += ["trainer=ddp_cpu"]


def words(script: Path) -> list[str]:
    """The words of a script's commands."""
    return shlex.split(script.read_text().replace("\\\n", " "), comments=True)


def asked(told: list[str]) -> list[str]:
    """The overrides for train.py, of a sweep those of its first job."""
    after = told[told.index("train.py") + 1 :]
    chosen = OverridesParser.create().parse_overrides([text for text in after if text != "-m"])
    return [
        f"{o.input_line.partition('=')[0]}={next(o.sweep_string_iterator())}" if o.is_sweep_override() else o.input_line
        for o in chosen
    ]


def hydra_of(overrides: list[str]) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=overrides, return_hydra_config=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_parses_and_its_command_composes(script):
    subprocess.run(["bash", "-n", script], check=True)
    config = hydra_of(asked(words(script)))
    assert (config.trainer.devices, config.resume) == (4, "auto")


def test_slurm_starts_the_ranks_that_the_trainer_expects():
    told = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", (EXAMPLES / "slurm.sbatch").read_text(), re.MULTILINE))
    trainer = hydra_of(asked(words(EXAMPLES / "slurm.sbatch"))).trainer
    assert (int(told["ntasks-per-node"]), int(told["nodes"])) == (trainer.devices, trainer.num_nodes)
    assert told["signal"].startswith("USR1@")


def test_torchrun_starts_the_ranks_that_the_trainer_expects():
    told = dict(re.findall(r"--(nnodes|nproc-per-node)=(\d+)", (EXAMPLES / "torchrun.sh").read_text()))
    trainer = hydra_of(asked(words(EXAMPLES / "torchrun.sh"))).trainer
    assert (int(told["nproc-per-node"]), int(told["nnodes"])) == (trainer.devices, trainer.num_nodes)


def test_the_manifest_of_kubernetes_starts_the_ranks_that_the_trainer_expects():
    spec = yaml.safe_load((EXAMPLES / "pytorchjob.yaml").read_text())["spec"]
    replicas = spec["pytorchReplicaSpecs"]
    for role in ("Master", "Worker"):
        (container,) = replicas[role]["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"  # the operator looks for it
        trainer = hydra_of(asked(container["args"])).trainer
        assert int(spec["nprocPerNode"]) == trainer.devices == container["resources"]["limits"]["nvidia.com/gpu"]
        assert sum(replica["replicas"] for replica in replicas.values()) == trainer.num_nodes


def test_submitit_hands_slurm_what_a_sweep_asks_for(tmp_path, monkeypatch):
    from submitit.slurm.slurm import _make_sbatch_string

    config = hydra_of(asked(words(EXAMPLES / "submitit.sh")))
    launcher = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    assert (launcher["tasks_per_node"], launcher["nodes"]) == (config.trainer.devices, config.trainer.num_nodes)
    known = ("nodes", "gpus_per_node", "cpus_per_task", "signal_delay_s", "array_parallelism")
    extra = {"ntasks_per_node": launcher["tasks_per_node"], "time": launcher["timeout_min"], "map_count": 6}
    script = _make_sbatch_string("x", tmp_path, **{key: launcher[key] for key in known}, **extra)
    for line in ("nodes=1", "ntasks-per-node=4", "gpus-per-node=4", "time=1440", "array=0-5%3"):
        assert f"#SBATCH --{line}\n" in script
    assert "submitit_local" in str(hydra_of(["hydra/launcher=submitit_local"]).hydra.runtime.choices)


@pytest.fixture
def job():
    """Has Hydra at a job of a sweep with these overrides."""
    before = HydraConfig.instance().cfg
    yield lambda *overrides: HydraConfig.instance().set_config(hydra_of(["hydra.mode=MULTIRUN", *overrides]))
    HydraConfig.instance().cfg = before


def test_a_job_of_a_sweep_goes_by_a_command_line_of_its_own(job):
    job("hydra.verbose=true", "schedule=cosine", "trainer=ddp_cpu")
    script, *arguments = command("/somewhere/train.py")
    assert script == "/somewhere/train.py"
    assert arguments == [
        f"--config-path={CONF}",
        "--config-name=train",
        "hydra.verbose=true",
        "schedule=cosine",
        "trainer=ddp_cpu",
    ]


def test_jobs_that_would_take_others_along_are_known(job, monkeypatch):
    for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    one, two, gap = composed("trainer=cpu"), composed("trainer=ddp_cpu"), {}
    assert [has_ranks({"devices": n}) for n in (1, "1", [3], 2, "auto", -1, [0, 1])] == [False] * 3 + [True] * 4
    for launcher, expected in (("basic", (False, True)), ("joblib", (True, True)), ("submitit_slurm", (False, False))):
        job(f"hydra/launcher={launcher}")
        assert (spoils_others(one), spoils_others(two), spoils_others(gap)) == (*expected, expected[0])
    job("hydra/launcher=joblib")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not spoils_others(two)


def test_a_failed_job_leaves_nothing_in_memory_while_its_error_is_kept(job):
    seen = []

    def work(config):
        model = torch.nn.Linear(1, 1)
        seen.append(weakref.ref(model))
        raise RuntimeError(config["name"])

    job("trainer=cpu")
    with pytest.raises(RuntimeError) as error:
        run_job(work, OmegaConf.create(composed("trainer=cpu")), __file__)
    assert error.value.args == ("ddpm",)
    assert seen[0]() is None


def agents(cwd: Path, *arguments: str) -> list[subprocess.Popen]:
    """Two agents of torchrun, a node each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    each = [*TWO, "trainer.devices=1", "trainer.num_nodes=2", "name=nodes", *arguments]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *nodes, f"--node-rank={k}", str(ROOT / "train.py"), *each],
            cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=told, stderr=told,
        )
        for k, told in enumerate((cwd / f"told_{k}").open("w") for k in range(2))
    ]  # fmt: skip


@pytest.mark.slow
def test_two_nodes_train_as_one_does(tmp_path):
    processes = agents(tmp_path)
    codes = [process.wait(400) for process in processes]
    assert codes == [0, 0], (tmp_path / "told_0").read_text() + (tmp_path / "told_1").read_text()
    forked(tmp_path, *TWO, "name=node", ranks=2).done()
    ours, theirs = (
        torch.load(next((tmp_path / f"runs/{name}").glob("*/checkpoints/last.ckpt")), weights_only=True)["state_dict"]
        for name in ("nodes", "node")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
