"""What submitit's jobs need to fit in: a lost one is a failed one, and its tasks are ranks."""

import os
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from ddpm.errors import Failed


def lost_jobs_fail() -> None:
    """Have a sweep wait for all its jobs: one that was killed counts as failed, where submitit would raise at once
    and leave the others alone."""
    from submitit.core.core import Job
    from submitit.core.utils import FailedJobError, UncompletedJobError

    plain = Job.results

    def results(self: Any) -> list[Any]:
        try:
            return plain(self)
        except (FailedJobError, UncompletedJobError):
            return [lost(self)]

    Job.results = results  # type: ignore[method-assign]


def lost(job: Any) -> JobReturn:
    """The end of a job that has not told it itself."""
    end = JobReturn(status=JobStatus.FAILED)
    end.return_value = Failed(
        f"job {job.job_id} was killed, or ran out of time or memory ({job.paths.stderr} may say more); "
        "the same sweep with resume=auto goes on with it."
    )
    return end


def tasks_are_ranks() -> None:
    """Let the tasks of a submitit_local job find each other, as if torchrun had started them. SLURM's do already."""
    if int(os.environ.get("SUBMITIT_LOCAL_NTASKS", 1)) > 1:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ["TORCHELASTIC_RUN_ID"] = os.environ["SUBMITIT_LOCAL_JOB_ID"]
