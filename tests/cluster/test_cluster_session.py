"""How a driver enters and leaves Ray, with Ray itself replaced."""

from __future__ import annotations

import os
import signal
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import ray

from genevolve_ray.cluster.config import ClusterConfig
from genevolve_ray.cluster.session import TASK_RECORDS, cluster_address, ray_session, set_defaults


class FakeInit:
    """Stands for `ray.init`: fails as often as told, and takes SIGTERM over as Ray does."""

    def __init__(self, failures: int, message: str) -> None:
        self.failures, self.message, self.calls = failures, message, 0

    def __call__(self, *arguments: Any, **options: Any) -> SimpleNamespace:
        self.calls += 1
        self.arguments, self.options = arguments, options
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.calls <= self.failures:
            raise Exception(self.message)
        return SimpleNamespace(dashboard_url="127.0.0.1:8265" if options.get("include_dashboard") else None)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)


@pytest.fixture(autouse=True)
def _sigterm() -> Any:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def replace_init(monkeypatch: pytest.MonkeyPatch, failures: int = 0, message: str = "") -> FakeInit:
    fake = FakeInit(failures, message)
    monkeypatch.setattr(ray, "init", fake)
    return fake


def test_without_an_address_the_cluster_is_private_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = replace_init(monkeypatch)
    with ray_session(ClusterConfig(object_store_mib=100), "run") as dashboard:
        assert dashboard == "" and fake.options["include_dashboard"] is False
        assert fake.arguments == ("local",)
        assert fake.options["object_store_memory"] == 100 << 20


def test_the_dashboard_is_a_switch_and_listens_on_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TASK_RECORDS, raising=False)
    fake = replace_init(monkeypatch)
    with ray_session(ClusterConfig(dashboard=True), "run") as dashboard:
        assert dashboard == "http://127.0.0.1:8265"
        assert fake.options["include_dashboard"] is True and fake.options["dashboard_host"] == "127.0.0.1"
    assert TASK_RECORDS not in os.environ, "the dashboard shows the records of calls"


def test_a_running_cluster_is_joined_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    fake = replace_init(monkeypatch)
    with ray_session(ClusterConfig(), "run"):
        assert fake.arguments == ("10.0.0.1:6379",)
        assert "object_store_memory" not in fake.options
    assert cluster_address(ClusterConfig(address="auto")) == "auto"


@pytest.mark.parametrize(
    "message",
    [
        "The current node timed out during startup. This could happen because the raylet failed to startup.",
        "Timed out waiting for file /tmp/ray/session_2026-11-28_08-38-51_904054_27139/gcs_server_port_c3380",
        "\nThe last 20 lines of /tmp/ray/session_2026-11-29_05-32-41_538933_10463/logs/dashboard.log (it contains the error "
        "message from the dashboard): ",
    ],
)
def test_a_private_cluster_that_is_slow_to_start_gets_another_try(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    fake = replace_init(monkeypatch, failures=2, message=message)
    with ray_session(ClusterConfig(), "run"):
        assert fake.calls == 3


def test_any_other_failure_of_ray_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = replace_init(monkeypatch, failures=1, message="no space left")
    with pytest.raises(Exception, match="no space left"), ray_session(ClusterConfig(), "run"):
        pytest.fail("the session began")
    assert fake.calls == 1


def test_a_drivers_own_way_with_sigterm_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(number: int, frame: FrameType | None) -> None:
        """Do nothing."""

    signal.signal(signal.SIGTERM, own)
    replace_init(monkeypatch)
    with ray_session(ClusterConfig(), "run"):
        assert signal.getsignal(signal.SIGTERM) is own


def test_calls_leave_no_records_in_the_control_service_unless_a_user_wants_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(TASK_RECORDS, raising=False)
    set_defaults()
    assert os.environ[TASK_RECORDS] == "0"
    monkeypatch.setenv(TASK_RECORDS, "1000")
    set_defaults()
    assert os.environ[TASK_RECORDS] == "1000"
