"""What is measured on, as JSON: `python -m benchmarks.speed.machine`."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ddpm.precision import precision

PACKAGES = ("torch", "lightning", "ddpm", "diffusers", "denoising-diffusion-pytorch", "torch-fidelity", "triton")


def machine() -> dict[str, Any]:
    """The processor and, where there is one, the GPU."""
    gpu = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "native_bf16": {
            "cpu": precision("auto", "cpu") == "bf16-mixed",
            "cuda": gpu and precision("auto", "gpu") == "bf16-mixed",
        },
        "system": platform.platform(),
        **(_gpu() if gpu else {}),
    }


def versions() -> dict[str, str | None]:
    """Of Python and the packages that matter; None for one that is missing."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return str(version(name))
    except PackageNotFoundError:
        return None


def _gpu() -> dict[str, Any]:
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cudnn": cudnn}


def _processor() -> str:
    """Its name; on Linux as the kernel tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    print(json.dumps({"machine": machine(), "versions": versions()}))
