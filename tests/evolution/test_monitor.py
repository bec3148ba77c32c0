"""The recorder passes steps on and tells the trackers."""

from genevolve_ray.evolution.monitor import NullMonitor, Recording
from genevolve_ray.evolution.trackers.opening import Trackers


class Thread:
    def __init__(self):
        self.steps = []

    def committed(self, step):
        self.steps.append(step)


class Screen(NullMonitor):
    def __init__(self):
        self.seen = []

    def step(self, step, metrics, validation=None):
        self.seen.append((step, metrics, validation))


def test_a_committed_step_reaches_screen_and_trackers():
    thread, screen = Thread(), Screen()
    Recording(screen, Trackers([thread], 1.0)).step(3, {"reward_mean": 0.5}, {"reward_mean": 0.25})
    assert screen.seen == [(3, {"reward_mean": 0.5}, {"reward_mean": 0.25})]
    assert thread.steps == [3]
