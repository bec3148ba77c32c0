"""Scores of sampled tokens under published weights, with the statistics that verify the sampling distribution.

Shape legend: T tokens, P policy tokens, C tokens of one chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from genevolve_ray.learning.batch import ImageInputs
from genevolve_ray.learning.logprobs import default_chunk
from genevolve_ray.learning.policy import head_weight, hidden_states, load_policy
from genevolve_ray.models.adapters import copy_tensors, is_adapter, published_tensors

_FEWEST = 16
"""Fewest tokens of a chunk: about ten arrays [C, V] in float64 are held at a time, where the learner holds two in float32."""


class TokenScores(NamedTuple):
    """Hold the scores of policy tokens, in nats.

    Attributes:
        logprobs: log pi of the token at the sampling temperature under the ban mask.
        masses: log of the mass of the top-p nucleus (0 for top-p 1): log mu = log pi - mass for tokens inside.
        entropies: entropy of mu, the truncated distribution.
        variances: variance of log mu under mu.
    """

    logprobs: list[float]
    masses: list[float]
    entropies: list[float]
    variances: list[float]


class Rescorer:
    """Hold one copy of the policy that loads the weights of any version. Not thread-safe."""

    def __init__(
        self,
        model_dir: str | Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        banned: Sequence[int] = (),
        threads: int = 0,
    ) -> None:
        """Load the policy.

        Args:
            model_dir: folder in HF layout.
            dtype: of weights and compute.
            device: a torch device.
            banned: token ids of probability 0.
            threads: of torch in this thread; 0 keeps torch's setting.
        """
        if threads:
            torch.set_num_threads(threads)
        self._model_dir = Path(model_dir)
        self._model = load_policy(model_dir, dtype, device).requires_grad_(False)
        self._device = torch.device(device)
        self._banned = list(banned)

    def load(self, folder: str | Path) -> None:
        """Load the weights of a folder, or merge its adapter into the policy's.

        Raises ValueError when they do not fit.
        """
        tensors = published_tensors(folder, self._model_dir, self._device)
        missing, unexpected = copy_tensors(self._model.state_dict(), tensors)
        missing = [name for name in missing if name not in self._model.all_tied_weights_keys]
        if missing or (unexpected and not is_adapter(folder)):
            raise ValueError(f"the weights in {folder} do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}")

    @torch.no_grad()
    def score(
        self,
        tokens: Sequence[int],
        policy_mask: Sequence[bool],
        temperature: float,
        top_p: float = 1.0,
        images: ImageInputs | None = None,
    ) -> TokenScores:
        """Score the P policy tokens of a sequence of T, none of them the first, with the pictures that it shows."""
        places = [i for i, policy in enumerate(policy_mask) if policy]
        ids_T = torch.tensor(tokens, device=self._device)
        rows_P = torch.tensor([i - 1 for i in places], device=self._device)
        states_P_H = hidden_states(self._model, ids_T[None], images).squeeze(0)[rows_P]
        targets_P, weight_V_H = ids_T[rows_P + 1], head_weight(self._model)
        columns: list[Tensor] = []
        chunk = default_chunk(weight_V_H.shape[0], self._device, _FEWEST)
        for start in range(0, len(places), chunk):
            part = slice(start, start + chunk)
            logits_C_V = (states_P_H[part] @ weight_V_H.T).double() / (temperature or 1.0)
            logits_C_V[:, self._banned] = -torch.inf
            columns.append(_moments(logits_C_V.log_softmax(-1), targets_P[part], top_p))
        found = torch.cat(columns, dim=1) if columns else torch.zeros(4, 0)
        return TokenScores(*found.tolist())


def _moments(logpi_C_V: Tensor, targets_C: Tensor, top_p: float) -> Tensor:
    """Return log pi of the targets, log mass of the nucleus, entropy and variance of log mu: float64 [4, C]."""
    chosen_C = logpi_C_V.gather(1, targets_C[:, None]).squeeze(1)
    mass_C = torch.zeros_like(chosen_C)
    logmu_C_V = logpi_C_V
    if top_p < 1:
        sorted_C_V, order_C_V = logpi_C_V.sort(dim=-1, descending=True)
        before_C_V = sorted_C_V.exp().cumsum(-1) - sorted_C_V.exp()
        kept_C_V = torch.zeros_like(logpi_C_V, dtype=torch.bool).scatter(1, order_C_V, before_C_V < top_p)
        logmu_C_V = logpi_C_V.masked_fill(~kept_C_V, -torch.inf)
        mass_C = logmu_C_V.logsumexp(-1)
        logmu_C_V = logmu_C_V - mass_C[:, None]
    mu_C_V = logmu_C_V.exp()
    finite_C_V = logmu_C_V.masked_fill(torch.isneginf(logmu_C_V), 0.0)
    entropy_C = -(mu_C_V * finite_C_V).sum(-1)
    variance_C = (mu_C_V * finite_C_V.square()).sum(-1) - entropy_C.square()
    return torch.stack([chosen_C, mass_C, entropy_C, variance_C.clamp_min(0.0)])
