"""The recorder passes steps on and writes them."""

from genevolve_ray.evolution.metric_writers import MetricWriters
from genevolve_ray.evolution.monitor import NullMonitor, Recording


class Rows:
    def __init__(self):
        self.rows = []

    def write(self, step, metrics):
        self.rows.append((step, dict(metrics)))

    def close(self):
        pass


class Screen(NullMonitor):
    def __init__(self):
        self.seen = []

    def step(self, step, metrics, validation=None):
        self.seen.append((step, metrics, validation))


def test_a_committed_step_reaches_screen_and_writers():
    rows, screen = Rows(), Screen()
    Recording(screen, MetricWriters([rows])).step(3, {"reward_mean": 0.5}, {"reward_mean": 0.25})
    assert screen.seen == [(3, {"reward_mean": 0.5}, {"reward_mean": 0.25})]
    assert rows.rows == [(3, {"reward_mean": 0.5, "validation/reward_mean": 0.25})]
