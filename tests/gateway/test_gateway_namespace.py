"""A worker in a network namespace of its own, with an address of its own, completes a real atlas run over TLS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.gateway.auth import Scope, TokenFile
from genevolve_ray.records.trajectory import Outcome

INSIDE, OUTSIDE, PORT = "10.213.77.1", "10.213.77.2", 8471
SPACE, HERE, THERE = f"gv{os.getpid() % 99999}", f"gva{os.getpid() % 99999}", f"gvb{os.getpid() % 99999}"
STEPS = 2


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace joined to this one by a veth pair; needs root (or CAP_NET_ADMIN)."""
    if shutil.which("ip") is None or shutil.which("openssl") is None:
        pytest.skip("needs the commands ip and openssl")
    try:
        _ip("netns", "add", SPACE)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    try:
        _ip("link", "add", HERE, "type", "veth", "peer", "name", THERE)
        _ip("link", "set", THERE, "netns", SPACE)
        _ip("addr", "add", f"{INSIDE}/30", "dev", HERE)
        _ip("link", "set", HERE, "up")
        _ip("-n", SPACE, "addr", "add", f"{OUTSIDE}/30", "dev", THERE)
        for link in ("lo", THERE):
            _ip("-n", SPACE, "link", "set", link, "up")
        yield SPACE
    except subprocess.CalledProcessError as error:
        pytest.skip(f"veth pairs are not permitted here: {error.stderr.decode().strip()}")
    finally:
        subprocess.run(["ip", "link", "del", HERE], capture_output=True)
        subprocess.run(["ip", "netns", "del", SPACE], capture_output=True)


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for the address inside."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=gateway"]
        + ["-addext", f"subjectAltName=IP:{INSIDE}", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_worker_with_its_own_address_completes_an_atlas_run(engine: str, namespace: str, tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    token = TokenFile(tmp_path / "tokens.json").new("remote", [Scope.ROLLOUT, Scope.STATUS])
    command = [sys.executable, "-c", "from genevolve_ray.cli import main; main()"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GENEVOLVE_TOKEN": token}
    settings = [
        f"gateway.host={INSIDE}",
        f"gateway.tokens={tmp_path / 'tokens.json'}",
        f"gateway.tls_certificate={certificate}",
        f"gateway.tls_key={key}",
        "gateway.trust.spot_check=1.0",
        f"engine.kind={engine}",
        f"loop.steps={STEPS}",
        "loop.requests_per_step=2",
        "loop.group_size=3",
        "loop.validate_every=0",
        "heldout.requests=0",
        "learner.threads=1",
    ]
    run = tmp_path / "run"
    sets = [part for setting in settings for part in ("--set", setting)]
    logs = [open(tmp_path / f"{name}.log", "w+") for name in ("gateway", "worker")]  # noqa: SIM115
    gateway = subprocess.Popen(
        [*command, "gateway", "serve", "atlas", "--run", str(run), "--port", str(PORT), *sets],
        env=environment,
        stdout=logs[0],
        stderr=logs[0],
    )
    url = f"https://{INSIDE}:{PORT}"
    worker = subprocess.Popen(
        ["ip", "netns", "exec", namespace, *command, "worker", "--gateway", url, "--engine", engine]
        + ["--ca-file", str(certificate), "--folder", str(tmp_path / "worker"), "--concurrent", "6"],
        env=environment,
        stdout=logs[1],
        stderr=logs[1],
    )
    try:
        gateway.wait(timeout=500)
        worker.wait(timeout=60)  # It ends by itself, because the run is finished.
    finally:
        for process in (gateway, worker):
            if process.poll() is None:
                process.kill()
                process.wait()
        told = "\n".join(_text(tmp_path / f"{name}.log") for name in ("gateway", "worker"))
        for log in logs:
            log.close()
    assert gateway.returncode == 0, told
    assert worker.returncode == 0, told
    assert _imports() == []
    store = RunStore.read(str(run))
    assert store.committed_steps() == list(range(1, STEPS + 1)), told
    for step in store.committed_steps():
        for group in store.groups(step):
            for trajectory in group.trajectories:
                assert trajectory.provenance.engine == "gateway:remote"
                assert trajectory.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE), trajectory.reason
        assert store.metrics()[step - 1]["parity"] <= 1e-4


def _imports() -> list[str]:
    """What a worker's modules import, in a process of its own."""
    code = "import sys, genevolve_ray.gateway.console; print('ray' if 'ray' in sys.modules else '')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
