#!/usr/bin/env python3
"""Stands in for SLURM on one machine: as `sbatch` it starts the jobs of a script, as `srun` the tasks of a job."""

import os
import re
import subprocess
import sys
from pathlib import Path

JOB = 4242


def install(folder: Path) -> str:
    """Make both commands in a folder; PATH with them in front."""
    folder.mkdir()
    for name in ("sbatch", "srun"):
        (folder / name).symlink_to(Path(__file__).resolve())
    return f"{folder}:{os.environ['PATH']}"


def sbatch(script: Path) -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", script.read_text(), re.MULTILINE))
    first, last = map(int, asked.get("array", "0-0").partition("%")[0].split("-"))
    tasks, nodes = asked["ntasks-per-node"], asked["nodes"]
    shared = {"SLURM_JOB_NAME": asked["job-name"], "SLURM_NTASKS": str(int(tasks) * int(nodes)), "SLURM_NNODES": nodes}
    shared |= {"SLURM_NTASKS_PER_NODE": tasks, "SLURM_JOB_NUM_NODES": nodes, "SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    for k in range(first, last + 1):
        mine = {"SLURM_JOB_ID": str(JOB + k)} | shared
        if "array" in asked:
            mine |= {"SLURM_ARRAY_JOB_ID": str(JOB), "SLURM_ARRAY_TASK_ID": str(k)}
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(["bash", str(script)], env=os.environ | mine, start_new_session=True, **quiet)
    print(f"Submitted batch job {JOB}")


def srun(arguments: list[str]) -> None:
    command = arguments[arguments.index("--error") + 2 :]
    output = arguments[arguments.index("--output") + 1].replace("%A", str(JOB))
    output = output.replace("%a", os.environ.get("SLURM_ARRAY_TASK_ID", "")).replace("%j", os.environ["SLURM_JOB_ID"])
    tasks = []
    for k in range(int(os.environ["SLURM_NTASKS"])):
        mine = {"SLURM_PROCID": str(k), "SLURM_LOCALID": str(k), "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1"}
        with Path(output.replace("%t", str(k))).open("w") as told:
            tasks.append(subprocess.Popen(command, env=os.environ | mine, stdout=told, stderr=subprocess.STDOUT))
    sys.exit(max(abs(task.wait()) for task in tasks))


if __name__ == "__main__":
    if Path(sys.argv[0]).name == "sbatch":
        sbatch(Path(sys.argv[-1]))
    else:
        srun(sys.argv[1:])
