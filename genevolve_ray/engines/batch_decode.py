"""One wave of the reference engine: a batch is prefilled together and decoded step by step until every row has ended.

Legend: B rows, P longest prompt, T slots in the key-value cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicLayer

from genevolve_ray.engines.protocol import FinishReason, Generation, SamplingParams
from genevolve_ray.learning.batch import ImageInputs
from genevolve_ray.learning.policy import hidden_states

_GREEDY_BELOW = 1e-5
_SLOTS_AT_ONCE = 64
_COMPACT_BELOW = 0.75
_SCORE_CHUNK = 1024


@dataclass
class DecodeRequest:
    """Represent one request of a wave; `limit` is the number of tokens it may sample."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    limit: int
    images: ImageInputs | None = None
    on_token: Callable[[int], None] | None = None
    """Hears each sampled token, in the thread of the wave."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason = FinishReason.LENGTH

    def take(self, token: int, logprob: float) -> bool:
        """Append a sampled token; return whether the job has ended."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.on_token is not None:
            self.on_token(token)
        if token in self.sampling.stop_token_ids:
            self.finish = FinishReason.STOP
            return True
        return len(self.tokens) >= self.limit


class GrowingLayer(DynamicLayer):
    """Extend a cache layer by blocks of slots: DynamicLayer would copy the whole cache for each decoded token."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Start with empty buffers of the right shape."""
        super().lazy_initialization(key_states, value_states)
        self._buffers = tuple(s.new_empty(*s.shape[:2], 0, s.shape[3]) for s in (key_states, value_states))
        self._used = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new states [B, heads, new, head_dim] behind the old ones and return views of all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._used + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            grow = (0, 0, 0, end - self._used + _SLOTS_AT_ONCE)
            self._buffers = tuple(F.pad(b[:, :, : self._used], grow) for b in self._buffers)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._used : end] = states
        self._used = end
        self.keys, self.values = (b[:, :, :end] for b in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only the given rows."""
        self._buffers = tuple(b[indices] for b in self._buffers)
        self.keys, self.values = (b[:, :, : self._used] for b in self._buffers)


def processed_logprobs(
    logits_B_V: torch.Tensor, temperature_B: torch.Tensor, top_p_B: torch.Tensor, banned_V: torch.Tensor
) -> torch.Tensor:
    """Return float32 [B, V]: log-softmax of the logits after temperature, ban mask and top-p (renormalized).

    Greedy rows (temperature 0) are computed at temperature 1 and never truncated.
    """
    greedy_B = temperature_B < _GREEDY_BELOW
    scale_B = torch.where(greedy_B, torch.ones_like(temperature_B), temperature_B)
    logits_B_V = (logits_B_V.float() / scale_B[:, None]).masked_fill(banned_V, float("-inf"))
    truncated_B = (top_p_B < 1) & ~greedy_B
    if bool(truncated_B.any()):
        probs_B_V, order_B_V = logits_B_V.softmax(-1).sort(-1, descending=True)
        # A token is dropped when the tokens before it already hold top_p of the mass: the first one always stays.
        outside_B_V = (probs_B_V.cumsum(-1) - probs_B_V >= top_p_B[:, None]) & truncated_B[:, None]
        dropped_B_V = torch.zeros_like(outside_B_V).scatter(1, order_B_V, outside_B_V)
        logits_B_V = logits_B_V.masked_fill(dropped_B_V, float("-inf"))
    return logits_B_V.log_softmax(-1)


def draw(logprobs_B_V: torch.Tensor, uniform_B: torch.Tensor, greedy_B: torch.Tensor) -> torch.Tensor:
    """Return int64 [B]: the token where the cumulative probability passes the row's uniform number, or the argmax."""
    cumulative_B_V = logprobs_B_V.double().exp().cumsum(-1)
    target_B = uniform_B * cumulative_B_V[:, -1]
    # right=True: the first token whose cumulative mass EXCEEDS the target, so that a token without mass is never drawn.
    drawn_B = torch.searchsorted(cumulative_B_V, target_B[:, None], right=True)[:, 0]
    return torch.where(greedy_B, logprobs_B_V.argmax(-1), drawn_B)


class _Rows:
    """Hold the per-row tensors of a wave, which shrink as rows end."""

    def __init__(self, jobs: Sequence[DecodeRequest], device: torch.device) -> None:
        self.jobs = list(jobs)
        self.temperature_B = torch.tensor([j.sampling.temperature for j in jobs], device=device)
        self.top_p_B = torch.tensor([j.sampling.top_p for j in jobs], device=device)
        self.length_B = torch.tensor([len(j.prompt) for j in jobs], device=device)
        # All uniform numbers of a request come from its own generator, so its draws do not depend on the other rows.
        self.uniform_B_N = torch.zeros(len(jobs), max(j.limit for j in jobs), dtype=torch.float64)
        for row, job in enumerate(jobs):
            generator = torch.Generator().manual_seed(job.seed)
            self.uniform_B_N[row, : job.limit] = torch.rand(job.limit, generator=generator, dtype=torch.float64)
        self.uniform_B_N = self.uniform_B_N.to(device)
        self.next_B = self.length_B
        """The position of each row's first sampled token: behind a picture fewer positions than tokens have passed."""
        prompt = int(self.length_B.max())
        slots = prompt + self.uniform_B_N.shape[1]
        slot_T = torch.arange(slots, device=device)
        # Prompts are padded on the right: a causal prefill needs no mask, and decoding masks the padding slots.
        self.visible_B_T = (slot_T < self.length_B[:, None]) | (slot_T >= prompt)
        self.position_B_T = torch.where(slot_T < prompt, slot_T, slot_T + self.length_B[:, None] - prompt)

    def keep(self, rows: torch.Tensor) -> None:
        self.jobs = [self.jobs[row] for row in rows.tolist()]
        for name in ("temperature_B", "top_p_B", "length_B", "next_B", "uniform_B_N", "visible_B_T", "position_B_T"):
            setattr(self, name, getattr(self, name)[rows])

    def masks(self, windows: Windows, slots: int, step: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return which of the first `slots` slots a step's token sees: bool [B, 1, 1, slots], by kind where they mix."""
        full = self.visible_B_T[:, None, None, :slots]
        if windows.size is None:
            return full
        # A window counts positions: padding slots between prompt and decoded tokens take no place in it.
        first_B = self.length_B + step - windows.size
        near_B_T = self.position_B_T[:, :slots] > first_B[:, None]
        sliding = full & near_B_T[:, None, None]
        return {"full_attention": full, "sliding_attention": sliding} if windows.mixed else sliding


@dataclass(frozen=True)
class Windows:
    """Describe which layers see only the last `size` positions: none (None), all, or some (`mixed`)."""

    size: int | None = None
    mixed: bool = False


def attention_windows(config: Any) -> Windows:
    """Return the sliding windows of a text decoder's configuration."""
    kinds, size = set(getattr(config, "layer_types", None) or ()), getattr(config, "sliding_window", None)
    if not size or (kinds and "sliding_attention" not in kinds):
        return Windows()
    return Windows(int(size), "full_attention" in kinds)


@torch.inference_mode()
def run_wave(model: Any, banned_V: torch.Tensor, jobs: Sequence[DecodeRequest], version: int) -> list[Generation]:
    """Sample every job to its end and return the generations in the order of `jobs`.

    Args:
        model: A Hugging Face model in eval mode: a causal language model, or a vision-language model (its text decoder
            samples).
        banned_V: bool [V], True for tokens that must not be sampled.
        jobs: The requests; each prompt is non-empty.
        version: The policy version, recorded for each token.
    """
    device = banned_V.device
    rows = _Rows(jobs, device)
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    longest = int(rows.length_B.max())
    ids_B_P = torch.zeros(len(jobs), longest, dtype=torch.long)
    for row, job in enumerate(jobs):
        ids_B_P[row, : len(job.prompt)] = torch.tensor(job.prompt)
    decoder, windows = model.get_decoder(), attention_windows(model.config.get_text_config())
    ids_B_P = ids_B_P.to(device)
    images = ImageInputs.join([job.images for job in jobs if job.images is not None])
    hidden_B_P_H = hidden_states(model, ids_B_P, images, cache)
    if images is not None:
        rows.next_B = _after_images(model, ids_B_P, rows.length_B, images)
    hidden_B_H = hidden_B_P_H[torch.arange(len(jobs), device=device), rows.length_B - 1]
    ended = [False] * len(jobs)
    for step in range(rows.uniform_B_N.shape[1]):
        logits_B_V = model.get_output_embeddings()(hidden_B_H)
        logprobs_B_V = processed_logprobs(logits_B_V, rows.temperature_B, rows.top_p_B, banned_V)
        token_B = draw(logprobs_B_V, rows.uniform_B_N[:, step], rows.temperature_B < _GREEDY_BELOW)
        taken_B = logprobs_B_V.gather(1, token_B[:, None])[:, 0]
        for row, (token, logprob) in enumerate(zip(token_B.tolist(), taken_B.tolist(), strict=True)):
            ended[row] = ended[row] or rows.jobs[row].take(token, logprob)
        running = [row for row, end in enumerate(ended) if not end]
        if not running:
            break
        if len(running) <= _COMPACT_BELOW * len(ended):
            kept = torch.tensor(running, device=device)
            rows.keep(kept)
            cache.batch_select_indices(kept)
            token_B = token_B[kept]
            ended = [False] * len(running)
        hidden_B_H = decoder(
            input_ids=token_B[:, None],
            attention_mask=rows.masks(windows, longest + step + 1, step),
            position_ids=(rows.next_B + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        )[0][:, -1]
    return [
        Generation(
            tokens=tuple(job.tokens),
            logprobs=tuple(job.logprobs),
            versions=(version,) * len(job.tokens),
            finish=job.finish,
        )
        for job in jobs
    ]


def _after_images(model: Any, ids_B_P: torch.Tensor, length_B: torch.Tensor, images: ImageInputs) -> torch.Tensor:
    """Return int64 [B]: the position that follows each row's prompt, by the model's own rule (M-RoPE)."""
    kinds_B_P = (ids_B_P == model.config.image_token_id).int()
    grids = images.grid_thw.to(ids_B_P.device)
    position_3_B_P = model.base_model.get_rope_index(ids_B_P, mm_token_type_ids=kinds_B_P, image_grid_thw=grids)[0]
    real_B_P = torch.arange(ids_B_P.shape[1], device=ids_B_P.device) < length_B[:, None]
    following: torch.Tensor = position_3_B_P.amax(0).masked_fill(~real_B_P, -1).amax(1) + 1
    return following


@torch.inference_mode()
def score_tokens(model: Any, token_ids: Sequence[int], device: str, images: ImageInputs | None = None) -> list[float]:
    """Return log p(token_ids[i + 1] | token_ids[: i + 1]) at temperature 1 without ban mask, float32."""
    ids_T = torch.tensor(token_ids, device=device)
    hidden_T_H = hidden_states(model, ids_T[None], images)[0, :-1]
    scored: list[float] = []
    for start in range(0, len(token_ids) - 1, _SCORE_CHUNK):
        logits_T_V = model.get_output_embeddings()(hidden_T_H[start : start + _SCORE_CHUNK]).float()
        targets_T = ids_T[1:][start : start + _SCORE_CHUNK]
        scored += (-F.cross_entropy(logits_T_V, targets_T, reduction="none")).tolist()
    return scored
