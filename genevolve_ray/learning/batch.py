"""Sequences as the learner sees them, and micro-batches that pad them, for models that cannot take packed rows.

Padding is on the right, without an attention mask. A causal model's real tokens never see later positions, so SDPA
keeps its causal fast path. Sorting by length keeps the padding small. Importing this module is cheap (no torch): every
rollout worker and every driver imports it, and few of them compute.

Shape legend: B rows of a micro-batch, T tokens, P policy tokens of its sequences (in order), N distinct ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genevolve_ray.learning.tree import TreeLayout

PAD = 0
"""Any valid id serves: nothing is ever read from a padded position."""


class MaskedTokens(Protocol):
    """Define token ids with a mask of the tokens that enter the loss."""

    @property
    def tokens(self) -> Sequence[int]:
        """Token ids [T]."""
        ...

    @property
    def policy_mask(self) -> Sequence[bool]:
        """True [T] where the token belongs to the policy."""
        ...


@dataclass(frozen=True)
class TeacherContext:
    """Hold a trajectory as the teacher reads it: experience in its prompt, then the student's own tokens verbatim.

    Attributes:
        tokens: token ids, longer than the student's by the inserted ones.
        policy_mask: True where the policy sampled the token: the same tokens in the same order as the student's.
        gate: for each POLICY token, whether its kind of span may be taught; empty means all.
        images: the student's own pictures.
    """

    tokens: Sequence[int]
    policy_mask: Sequence[bool]
    gate: Sequence[bool] = ()
    images: ImageInputs | None = None


class TowerPicture(Protocol):
    """Define one picture as a Qwen-VL vision tower reads it. Its patches may be computed each time they are read."""

    @property
    def patches(self) -> Tensor:
        """Its patches [t * h * w, patch size]."""
        ...

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of patches by time, height and width (t, h, w)."""
        ...

    @property
    def sha256(self) -> str:
        """A hash by which equal pictures are found, and the tower's features are kept for a step; empty: neither."""
        ...


@dataclass(frozen=True)
class PictureInput:
    """Hold one picture with its patches, as `TowerPicture` names them; sequences that show it share this object."""

    patches: Tensor
    grid: tuple[int, int, int]
    sha256: str = ""


@dataclass(frozen=True)
class ImageInputs:
    """Hold the pictures of sequences, at least one, in the order of their placeholder tokens."""

    pictures: tuple[TowerPicture, ...]

    @property
    def pixel_values(self) -> Tensor:
        """The patches of all pictures, one after the other: a new tensor [patches, patch size]."""
        import torch

        return torch.cat([p.patches for p in self.pictures])

    @property
    def grid_thw(self) -> Tensor:
        """Patches of each picture by time, height and width: int64 [pictures, 3]."""
        import torch

        return torch.tensor([p.grid for p in self.pictures])

    @staticmethod
    def join(parts: Sequence[ImageInputs]) -> ImageInputs | None:
        """Return the pictures of several sequences as one, None without any."""
        return ImageInputs(tuple(p for part in parts for p in part.pictures)) if parts else None


@dataclass(frozen=True)
class TrainSequence:
    """Hold one trajectory for the learner; columns are parallel to `tokens` (length T), as in the token ledger.

    Attributes:
        tokens: token ids.
        policy_mask: True where the policy sampled the token.
        logprobs: behavior log-probs at the sampling temperature, 0.0 on context tokens.
        advantage: one number for every policy token of the sequence.
        weight: factor on this sequence's loss; it does not enter the normalizer.
        versions: policy version behind each token; empty means the version that learns.
        teacher: the same trajectory as a teacher reads it, where experience was retrieved for its request.
        images: the pictures among the context, for a policy with vision; None while observations are text.
    """

    tokens: Sequence[int]
    policy_mask: Sequence[bool]
    logprobs: Sequence[float]
    advantage: float
    weight: float = 1.0
    versions: Sequence[int] = ()
    teacher: TeacherContext | None = None
    images: ImageInputs | None = None

    def __post_init__(self) -> None:
        """Check the columns. Raises ValueError naming the lengths."""
        if not len(self.tokens) == len(self.policy_mask) == len(self.logprobs):
            raise ValueError(
                f"sequence columns differ: {len(self.tokens)} tokens, {len(self.policy_mask)} mask entries, "
                f"{len(self.logprobs)} log-probs"
            )
        if len(self.versions) not in (0, len(self.tokens)):
            raise ValueError(f"{len(self.tokens)} tokens, {len(self.versions)} policy versions")
        if self.teacher is not None:
            self._check_teacher(self.teacher)

    def _check_teacher(self, teacher: TeacherContext) -> None:
        theirs, own = (
            [t for t, wanted in zip(s.tokens, s.policy_mask, strict=True) if wanted] for s in (teacher, self)
        )
        if teacher.images is not self.images:
            raise ValueError("the teacher must see the student's own images, or it would score other inputs")
        if theirs != own or len(teacher.gate) not in (0, len(own)):
            raise ValueError(
                f"the teacher must score the student's own tokens: {len(theirs)} and {len(own)} policy tokens, "
                f"{len(teacher.gate)} gate entries, and the tokens {'agree' if theirs == own else 'differ'}"
            )

    @property
    def policy_tokens(self) -> int:
        """Number of tokens that enter the loss."""
        return sum(self.policy_mask)


@dataclass(frozen=True)
class MicroBatch:
    """Hold sequences, padded or packed into a row, and the positions that predict their policy tokens.

    A policy token that several sequences share in one row is scored once.

    Attributes:
        indices: the sequences' places in the list that was split.
        ids_B_T: token ids: one sequence a row, padded on the right, or one row with all distinct tokens.
        rows_N: position in the flattened [B * T] states that predicts each scored token (the token before it).
        targets_N: the scored tokens.
        places_P: the scored token (0 to N - 1) that each policy token is.
        sequence_P: the sequence of the micro-batch (its place in `indices`) that each policy token belongs to.
        tokens: number of tokens of the sequences.
        distinct: number of tokens of `ids_B_T` that are not padding.
        images: the pictures of the rows, on the host until they are used.
        positions: positions of the tokens, [1, T] or [3, 1, T]; None: each row counts from 0.
        layout: which tokens of a packed row see which; None: each row is one sequence.
    """

    indices: tuple[int, ...]
    ids_B_T: Tensor
    rows_N: Tensor
    targets_N: Tensor
    places_P: Tensor
    sequence_P: Tensor
    tokens: int
    distinct: int
    images: ImageInputs | None = None
    positions: Tensor | None = None
    layout: TreeLayout | None = None


def empty_batch(device: torch.device) -> MicroBatch:
    """Return a micro-batch without sequences: its passes run every collective and add zero to every sum."""
    import torch

    none = torch.zeros(0, dtype=torch.long, device=device)
    return MicroBatch((), torch.full((1, 2), PAD, device=device), none, none, none, none, tokens=0, distinct=0)


def check_sequence(index: int, sequence: MaskedTokens) -> None:
    """Check the columns of a sequence, and that its first token is context, because nothing predicts it.

    Raises ValueError naming the sequence.
    """
    if not sequence.tokens or len(sequence.policy_mask) != len(sequence.tokens) or sequence.policy_mask[0]:
        raise ValueError(
            f"sequence {index}: {len(sequence.tokens)} tokens, {len(sequence.policy_mask)} mask entries; it needs "
            "equally many, at least one, and a context token first"
        )


def collate(
    sequences: Sequence[MaskedTokens], indices: Sequence[int], device: str | torch.device = "cpu"
) -> MicroBatch:
    """Pad the named sequences on the right and index their policy tokens.

    Raises:
        ValueError: for an empty sequence, or a policy token at position 0, which no position predicts.
    """
    import torch

    chosen = [sequences[i] for i in indices]
    lengths = [len(s.tokens) for s in chosen]
    ids = torch.full((len(chosen), max(lengths)), PAD, dtype=torch.long)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (index, sequence) in enumerate(zip(indices, chosen, strict=True)):
        check_sequence(index, sequence)
        ids[row, : lengths[row]] = torch.as_tensor(sequence.tokens, dtype=torch.long)
        mask[row, : lengths[row]] = torch.as_tensor(sequence.policy_mask, dtype=torch.bool)
    places = mask.flatten().nonzero().squeeze(1)
    return MicroBatch(
        indices=tuple(indices),
        ids_B_T=ids.to(device),
        rows_N=(places - 1).to(device),
        targets_N=ids.flatten()[places].to(device),
        places_P=torch.arange(len(places), device=device),
        sequence_P=places.div(ids.shape[1], rounding_mode="floor").to(device),
        tokens=sum(lengths),
        distinct=sum(lengths),
        images=ImageInputs.join([found for s in chosen if (found := getattr(s, "images", None)) is not None]),
    )


def split_by_budget(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Return groups of indices, longest first, with (longest length) * (size) within the budget.

    A sequence longer than the budget is a group of its own. The split depends on lengths and order alone.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= token_budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def rank_budget(lengths: Sequence[int], token_budget: int, ranks: int) -> int:
    """Return the token budget of padded micro-batches that leaves work for every rank."""
    return max(1, min(token_budget, -(-sum(lengths) // ranks))) if ranks > 1 else token_budget


def micro_batches(
    sequences: Sequence[MaskedTokens], token_budget: int, device: str | torch.device = "cpu"
) -> list[MicroBatch]:
    """Return micro-batches of at most `token_budget` padded tokens.

    Sequences without policy tokens are left out: they add nothing to any loss.

    Raises:
        ValueError: for a budget below 1 or a malformed sequence.
    """
    if token_budget < 1:
        raise ValueError(f"token budget must be at least 1, got {token_budget}")
    kept = [i for i, s in enumerate(sequences) if any(s.policy_mask)]
    groups = split_by_budget([len(sequences[i].tokens) for i in kept], token_budget)
    return [collate(sequences, [kept[j] for j in group], device) for group in groups]
