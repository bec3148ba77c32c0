"""Images, Slurm, `ray up` and workers outside: what they start, as whom, and with which token."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from deploy_files import DEPLOY, FILES, IMAGES, ROOT, commands, parse

from genevolve_ray import __version__
from genevolve_ray.config import load_config

LINES = [(path, command) for path in FILES for command in commands(path)]
EVERY_IMAGE = pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
SCRIPTS = ("slurm.sh", "worker-docker.sh")


# --- every command line ----------------------------------------------------------------------------------------------


def test_the_files_hold_command_lines() -> None:
    assert {path.name for path, _ in LINES} >= {
        "rayjob-atlas.yaml", "rayjob-paper.yaml", "raycluster.yaml", "ray-up.yaml", "slurm.sh", "worker-docker.sh",
        "genevolve-worker.service",
    }  # fmt: skip


@pytest.mark.parametrize(("path", "command"), LINES, ids=[f"{path.name}-{command[0]}" for path, command in LINES])
def test_a_command_line_is_one(path: Path, command: Sequence[str]) -> None:
    parsed = parse(command).params
    if "settings" in parsed:
        preset = parsed["preset"] if "preset" in parsed and "$" not in parsed["preset"] else "atlas"
        load_config(preset, parsed["settings"])  # ConfigError names a key that does not exist


@pytest.mark.parametrize("command", [["evolve", "atlas", "--sett", "a=1"], ["evlove", "atlas"], ["evolve"]])
def test_the_check_notices_a_wrong_command_line(command: Sequence[str]) -> None:
    with pytest.raises(Exception, match=r"No such|Missing"):
        parse(command)


# --- images ----------------------------------------------------------------------------------------------------------


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile in order, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_there_is_an_image_for_each_backend() -> None:
    assert [path.suffix for path in IMAGES] == [".cpu", ".cuda"]


@EVERY_IMAGE
def test_the_base_is_pinned(path: Path) -> None:
    bases = [rest for word, rest in instructions(path) if word == "FROM"]
    assert bases
    assert all(re.fullmatch(r"[\w./-]+:\d[\w.-]*", base) for base in bases)


@EVERY_IMAGE
def test_an_image_runs_as_a_user_who_cannot_change_it(path: Path) -> None:
    steps = instructions(path)
    users = [i for i, (word, _) in enumerate(steps) if word == "USER"]
    assert [steps[i][1] for i in users] == ["1000:1000"]
    assert not [rest for word, rest in steps[users[0] :] if word in ("RUN", "COPY", "ADD")]
    assert not [rest for word, rest in steps if word == "COPY" and "--chown" in rest]


@EVERY_IMAGE
def test_an_image_downloads_from_no_address_of_its_own(path: Path) -> None:
    steps = instructions(path)
    assert "ADD" not in {word for word, _ in steps}
    assert not [rest for _, rest in steps if "://" in rest or re.search(r"\b(curl|wget) -", rest) or "pip " in rest]
    installs = [rest for word, rest in steps if word == "RUN" and "make setup" in rest]
    assert len(installs) == 1  # from the pinned requirement files
    assert f"BACKEND={path.suffix.removeprefix('.')}" in installs[0]


@EVERY_IMAGE
def test_an_image_copies_only_what_it_needs(path: Path) -> None:
    copied = {word for kind, rest in instructions(path) if kind == "COPY" for word in rest.split()[:-1]}
    kept = path.with_name(path.name + ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in kept if line.startswith("!")}
    assert "*" in kept  # everything else stays out of the build's context
    assert {word.split("/")[0] for word in copied} == allowed
    assert all((ROOT / word).exists() for word in copied)


@EVERY_IMAGE
def test_ray_in_an_image_asks_for_a_token(path: Path) -> None:
    (settings,) = [rest.split() for word, rest in instructions(path) if word == "ENV"]
    assert "RAY_AUTH_MODE=token" in settings
    assert not [setting for setting in settings if re.search("TOKEN=|KEY=|PASSWORD=", setting)]


# --- shell scripts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one(name: str) -> None:
    shell = "bash" if (DEPLOY / name).read_text().startswith("#!/bin/bash") else "sh"
    subprocess.run([shell, "-n", DEPLOY / name], check=True, timeout=20)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, DEPLOY / name], check=True, timeout=60)


FAKES = {
    # Ray's daemons: say how they were started, run until told.
    "srun": 'echo "$* mode=$RAY_AUTH_MODE path=$RAY_AUTH_TOKEN_PATH token=${RAY_AUTH_TOKEN-}" >>"$LOG/srun"; '
    "trap 'exit 0' TERM; while :; do sleep 0.05; done",
    "scontrol": 'echo "$*" >>"$LOG/scontrol"',
    "hostname": "echo 10.0.0.1 10.0.0.2",
    # Only the wait for the nodes reads its program from a pipe.
    "python": f'[ "$1" = - ] && exit "${{NODES_STATUS:-0}}"; exec {sys.executable} "$@"',
    "genevolve": 'echo "$* address=$RAY_ADDRESS" >>"$LOG/genevolve"; trap \'echo told >>"$LOG/genevolve"; exit 143\' TERM; '
    '[ -n "$DRIVER_STATUS" ] && { for _ in $(seq 500); do [ "$(cat "$LOG/srun" | wc -l)" -ge "${STARTS:-0}" ] && break; '
    'sleep 0.02; done; exit "$DRIVER_STATUS"; }; touch "$LOG/running"; while :; do sleep 0.05; done',
}


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the batch script among fakes of what a cluster offers."""
    fakes = tmp_path / "bin"
    fakes.mkdir()
    for name, script in FAKES.items():
        (fakes / name).write_text(f"#!/bin/bash\n{script}\n")
        (fakes / name).chmod(0o755)

    def start(*arguments: str, nodes: int = 2, **environment: str) -> subprocess.Popen[str]:
        variables = {
            "PATH": f"{fakes}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "LOG": str(tmp_path),
            "GENEVOLVE_BIN": str(fakes),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_CPUS_ON_NODE": "64",
            "SLURMD_NODENAME": "node1",
            "DRIVER_STATUS": "",
        }
        return subprocess.Popen(
            ["bash", DEPLOY / "slurm.sh", *arguments], env=variables | environment, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return start


def said(folder: Path, name: str) -> list[str]:
    """Return what a fake was called with."""
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


def ended(job: subprocess.Popen[str]) -> int:
    """Wait for a job and return its status."""
    job.communicate(timeout=60)
    return job.returncode


def test_slurm_starts_a_head_and_workers_that_ask_for_a_token(
    slurm: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert ended(slurm("atlas", "/runs/a", "--set", "loop.steps=4", DRIVER_STATUS="0", STARTS="2")) == 0
    starts = sorted(said(tmp_path, "srun"), key=lambda line: "--head" not in line)
    assert len(starts) == 2
    assert "--nodelist=node1 ray start --head --node-ip-address=10.0.0.1 --port=24711" in starts[0]
    assert "--nodes=1 --exclude=node1 ray start --address=10.0.0.1:24711" in starts[1]
    assert all(f"mode=token path={tmp_path}/.ray/auth_token token=" in start for start in starts)
    assert all("--cpus-per-task=64" in start and "--num-cpus=64" in start for start in starts)
    (run,) = said(tmp_path, "genevolve")
    assert run == "evolve atlas --run /runs/a --set cluster.address=auto --set loop.steps=4 address=10.0.0.1:24711"


def test_slurm_makes_a_token_that_only_its_user_reads(
    slurm: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    job = slurm("atlas", "/runs/a", nodes=1, DRIVER_STATUS="0")
    output, _ = job.communicate(timeout=60)
    file = tmp_path / ".ray" / "auth_token"
    assert re.fullmatch(r"[0-9a-f]{64}", file.read_text())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() not in output + "".join(said(tmp_path, "srun") + said(tmp_path, "genevolve"))


def test_slurm_keeps_a_token_that_is_there(slurm: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("x" * 64)
    assert ended(slurm("atlas", "/runs/a", DRIVER_STATUS="0", RAY_AUTH_TOKEN_PATH=str(mine))) == 0
    assert mine.read_text() == "x" * 64
    assert all(f"path={mine}" in line for line in said(tmp_path, "srun"))


@pytest.mark.parametrize(
    ("environment", "status", "requeued"),
    [
        pytest.param({"DRIVER_STATUS": "0"}, 0, False, id="done"),
        pytest.param({"DRIVER_STATUS": "2"}, 2, False, id="for a user to mend"),
        pytest.param({"DRIVER_STATUS": "1"}, 0, True, id="driver lost"),
        pytest.param({"DRIVER_STATUS": "0", "NODES_STATUS": "1"}, 0, True, id="node missing"),
        pytest.param({"DRIVER_STATUS": "1", "SLURM_RESTART_COUNT": "20"}, 1, False, id="too often"),
    ],
)
def test_slurm_requeues_what_another_start_may_mend(
    slurm: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    environment: dict[str, str],
    status: int,
    requeued: bool,
) -> None:
    assert ended(slurm("atlas", "/runs/a", **environment)) == status
    assert said(tmp_path, "scontrol") == (["requeue 4711"] if requeued else [])


def test_slurm_passes_a_preemption_on_and_requeues(slurm: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    job = slurm("atlas", "/runs/a")
    while not (tmp_path / "running").exists():
        assert job.poll() is None
        os.sched_yield()
    job.send_signal(signal.SIGTERM)
    assert ended(job) == 0
    assert said(tmp_path, "genevolve")[-1] == "told"
    assert said(tmp_path, "scontrol") == ["requeue 4711"]


# --- ray up ----------------------------------------------------------------------------------------------------------


def test_ray_up_is_valid_for_ray_and_asks_for_a_token() -> None:
    cluster = yaml.safe_load((DEPLOY / "ray-up.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [line for line in cluster[key] if "ray start" in line]
        assert len(starts) == 1
        assert starts[0].startswith("RAY_AUTH_MODE=token ")
    assert cluster["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


# --- workers outside -------------------------------------------------------------------------------------------------


def test_the_unit_is_one(tmp_path: Path) -> None:
    checker = shutil.which("systemd-analyze")
    if checker is None:
        pytest.skip("systemd is not on this machine")
    unit = tmp_path / "genevolve-worker.service"
    text = (DEPLOY / unit.name).read_text()
    unit.write_text(text.replace("/opt/genevolve-ray/.venv/bin/genevolve", "/bin/true"))
    answer = subprocess.run([checker, "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in answer.stderr.splitlines() if unit.name in line] == []


def test_a_worker_outside_has_no_rights_and_no_token_in_sight() -> None:
    unit, container = ((DEPLOY / name).read_text() for name in ("genevolve-worker.service", "worker-docker.sh"))
    assert re.search(r"^DynamicUser=yes$", unit, re.MULTILINE)
    assert re.search(r"^NoNewPrivileges=yes$", unit, re.MULTILINE)
    assert re.search(r"^EnvironmentFile=", unit, re.MULTILINE)
    for option in ("--read-only", "--cap-drop ALL", "no-new-privileges", "--env GENEVOLVE_TOKEN \\\n"):
        assert option in container
    assert f"genevolve-ray:{__version__}-cuda" in container
    for text in (unit, container):
        assert not re.search(r"^[^#]*GENEVOLVE_TOKEN=", text, re.MULTILINE)
