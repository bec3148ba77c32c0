"""The metrics of the last committed step as gauges: names, units and descriptions for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_OF = "of the last committed step"


class StepGauge(NamedTuple):
    """Name a metric of `metrics.jsonl` for Prometheus: `genevolve_step_NAME`, with base units in the name."""

    name: str
    text: str


STEP_GAUGES: Mapping[str, StepGauge] = {
    "reward_mean": StepGauge("reward_mean", "Mean reward over scored trajectories and failures of the policy"),
    "reward_std": StepGauge("reward_stddev", "Mean over groups of the standard deviation of rewards in a group"),
    "reward_image": StepGauge("reward_image_mean", "Mean image part of the reward"),
    "reward_text": StepGauge("reward_text_mean", "Mean text part of the reward"),
    "reward_cost": StepGauge("reward_cost_mean", "Mean reward that tool calls cost"),
    "valid_fraction": StepGauge("valid_ratio", "Share of trajectories with a valid program, 0 to 1"),
    "zero_variance_groups": StepGauge("zero_variance_groups", "Groups whose rewards are all equal"),
    "short_groups": StepGauge("short_groups", "Groups with fewer than two rewards"),
    "policy_failures": StepGauge("policy_failures", "Trajectories without a valid program"),
    "infra_failures": StepGauge("infra_failures", "Trajectories that failed from outside and have no reward"),
    "tool_outages": StepGauge("tool_outages", "Tool calls that met an outage"),
    "judge_clipped_fraction": StepGauge(
        "judge_clipped_ratio", "Share of verdicts with a clipped grade or measure, 0 to 1"
    ),
    "gates_closed": StepGauge("gates_closed_ratio", "Share of trajectories with a reward of 0 for a gate, 0 to 1"),
    "tool_calls_mean": StepGauge("tool_calls_mean", "Mean tool calls of a trajectory"),
    "turns_mean": StepGauge("turns_mean", "Mean turns of a trajectory"),
    "response_tokens_mean": StepGauge("response_tokens_mean", "Mean tokens that the policy sampled in a trajectory"),
    "policy_tokens": StepGauge("policy_tokens", "Tokens that the policy sampled"),
    "tokens_per_second": StepGauge("policy_tokens_per_second", "Sampled tokens over the seconds of the rollouts"),
    "learner_tokens_per_second": StepGauge("learner_tokens_per_second", "Trained tokens over the learner's seconds"),
    "entropy": StepGauge("entropy_nats", "Mean entropy of the policy over its own tokens, in nats"),
    "parity": StepGauge("parity_nats", "Mean difference of the engine's and the learner's log-probs, in nats"),
    "parity_images": StepGauge("parity_images_nats", "The same over trajectories with pictures, in nats"),
    "probe_difference": StepGauge("probe_difference_nats", "Largest difference of log-probs after a weight update"),
    "approx_kl": StepGauge("approx_kl_nats", "Approximate KL divergence of behavior and learner policy, in nats"),
    "loss": StepGauge("loss", "Loss of the learner"),
    "grad_norm": StepGauge("gradient_norm", "Norm of the gradient before clipping"),
    "lr": StepGauge("learning_rate", "Learning rate"),
    "ved_gap_abs": StepGauge("teacher_gap_abs_nats", "Mean absolute difference of teacher's and student's log-probs"),
    "ved_loss": StepGauge("distillation_loss", "Distillation loss"),
    "taught_sequences": StepGauge("taught_sequences", "Sequences that a teacher with experience scored"),
    "experience_hit_rate": StepGauge("experience_hit_ratio", "Share of requests that recalled experience, 0 to 1"),
    "experience_memory": StepGauge("experience_bundles", "Bundles in the experience memory"),
    "experience_failures": StepGauge("experience_failures", "Pairs that summarizer or embedder failed on"),
    "staleness_mean": StepGauge("staleness_versions_mean", "Mean versions by which trained groups lag behind"),
    "staleness_max": StepGauge("staleness_versions_max", "Most versions by which a trained group lags behind"),
    "discarded_fraction": StepGauge("discarded_ratio", "Share of all samples that were discarded, 0 to 1"),
    "money": StepGauge("cost", "Cost of services, in the currency of the configured prices"),
    "gpu_memory_peak_bytes": StepGauge(
        "gpu_memory_peak_bytes", "Most GPU memory that PyTorch held in the learner's first process; 0 on a CPU"
    ),
    "seconds_step": StepGauge("seconds", "Seconds of the whole step"),
    "seconds_rollout": StepGauge("rollout_seconds", "Seconds of waiting for rollouts"),
    "seconds_experience": StepGauge("experience_seconds", "Seconds of the experience phase"),
    "seconds_learn": StepGauge("learn_seconds", "Seconds of the learner's step"),
    "seconds_teacher": StepGauge("teacher_seconds", "Seconds of the teacher's scoring, part of the learner's"),
    "seconds_sync": StepGauge("weight_sync_seconds", "Seconds from the learner's weights to verified engines"),
    "seconds_validation": StepGauge("validation_seconds", "Seconds of validation"),
    "seconds_commit": StepGauge("commit_seconds", "Seconds of checkpoint and commit"),
}
"""By their names in `metrics.jsonl`. Every other number of a step is `genevolve_step_value{metric="NAME"}`."""
_LABELED = {
    "component_": ("genevolve_step_component_mean", "component", f"Mean of a component of the reward {_OF}"),
    "alarm_": ("genevolve_alarm", "alarm", f"1 while an alarm of the run is on, as {_OF}"),
    "samples_": ("genevolve_samples", "state", "Samples since the run began, by their state"),
    "": ("genevolve_step_value", "metric", f"Any other number in metrics.jsonl {_OF}"),
}
"""By the beginning of the metric's name: name, label and description of the family; the rest of the name is the label."""


class StepCollector(Collector):
    """Return the metrics of the last committed step, and those of the last validation, when Prometheus reads them.

    The loop replaces whole mappings, which the thread that serves the metrics then reads: neither waits for the other.
    """

    def __init__(self) -> None:
        """Begin without a step."""
        self.metrics: Mapping[str, float] = {}
        self.validation: Mapping[str, float] = {}
        self.samples: Mapping[str, float] = {}
        """Samples by state since the last committed step; empty while those in `metrics` are the newest."""

    def collect(self) -> list[Metric]:
        """Return the families."""
        families: dict[str, GaugeMetricFamily] = {}
        samples = {f"samples_{state}": float(count) for state, count in self.samples.items()}
        for key, value in {**self.metrics, **samples}.items():
            if (known := STEP_GAUGES.get(key)) is not None:
                name = f"genevolve_step_{known.name}"
                families[name] = GaugeMetricFamily(name, f"{known.text}, {_OF}", value)
                continue
            start = next(start for start in _LABELED if key.startswith(start))
            _add(families, *_LABELED[start], key.removeprefix(start), value)
        for key, value in self.validation.items():
            _add(families, "genevolve_validation", "metric", "A metric of the last validation", key, value)
        return list(families.values())


def _add(families: dict[str, GaugeMetricFamily], name: str, label: str, text: str, labeled: str, value: float) -> None:
    if name not in families:
        families[name] = GaugeMetricFamily(name, text, labels=[label])
    families[name].add_metric([labeled], value)
