"""Micro-batches of a batch for one model: packed rows of its prefix tree, or padded ones where the model needs them.

Shape legend: T tokens of a row, P policy tokens of its sequences, N distinct ones.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from genevolve_ray.learning.attention import use_trees
from genevolve_ray.learning.balance import divide
from genevolve_ray.learning.batch import (
    ImageInputs,
    MaskedTokens,
    MicroBatch,
    TowerPicture,
    check_sequence,
    collate,
    empty_batch,
    micro_batches,
    rank_budget,
)
from genevolve_ray.learning.tree import PrefixOrder, lay_out

_LOG = logging.getLogger(__name__)


class Packer:
    """Divide sequences into micro-batches, in which each token of a common prefix is computed once."""

    def __init__(self, model: PreTrainedModel, device: torch.device, packs: bool = True) -> None:
        """Prepare the model's attention; a model that cannot attend over trees gets padded micro-batches.

        Args:
            model: the policy.
            device: the device that computes.
            packs: False pads in any case.
        """
        self._model: Any = model
        self._device = device
        self.packs = packs and use_trees(model, device)
        """Whether micro-batches are packed rows."""
        self._attention_depth = attention_depth(model)
        if packs and not self.packs:
            _LOG.info("%s does not attend over trees: its micro-batches are padded", type(model).__name__)

    def batches(self, sequences: Sequence[MaskedTokens], token_budget: int, ranks: int = 1) -> list[MicroBatch]:
        """Return the micro-batches of all ranks, in the order in which they are dealt to them.

        Sequences without policy tokens are left out: they add nothing to any loss.

        Raises:
            ValueError: for a budget below 1 or a malformed sequence.
        """
        kept = [i for i, s in enumerate(sequences) if any(s.policy_mask)]
        if not self.packs:
            budget = rank_budget([len(sequences[i].tokens) for i in kept], token_budget, ranks)
            return micro_batches(sequences, budget, self._device)
        for index in kept:
            check_sequence(index, sequences[index])
        order = PrefixOrder(self._keys([sequences[i] for i in kept]), self._attention_depth)
        order.indices = [kept[i] for i in order.indices]
        parts = divide(order, token_budget, ranks)
        return [self._row(sequences, order, part) if part else empty_batch(self._device) for part in parts]

    def together(self, sequences: Sequence[MaskedTokens]) -> MicroBatch:
        """Return all sequences as one micro-batch, however long; empty without any.

        Raises:
            ValueError: for a malformed sequence.
        """
        if not sequences:
            return empty_batch(self._device)
        if not self.packs:
            return collate(sequences, range(len(sequences)), self._device)
        for index, sequence in enumerate(sequences):
            check_sequence(index, sequence)
        order = PrefixOrder(self._keys(sequences), self._attention_depth)
        return self._row(sequences, order, range(len(sequences)))

    def _row(self, sequences: Sequence[MaskedTokens], order: PrefixOrder, places: Sequence[int]) -> MicroBatch:
        """Return the sequences of some places as one row."""
        pairs = order.pairs(places)
        layout, rows = lay_out(pairs)
        indices = [order.indices[place] for place in places]
        chosen = [sequences[i] for i in indices]
        ids: list[int] = []
        parents: list[int] = []
        nodes: list[int] = []
        owners: list[int] = []
        for number, (sequence, row, (_, common)) in enumerate(zip(chosen, rows, pairs, strict=True)):
            ids += sequence.tokens[common:]
            parents += [0, *row[:-1]][common:]  # nothing is predicted from before a first token
            scored = [node for node, wanted in zip(row, sequence.policy_mask, strict=True) if wanted]
            nodes += scored
            owners += [number] * len(scored)
        ids_T = torch.tensor(ids, dtype=torch.long)
        nodes_N, places_P = torch.tensor(nodes).unique(return_inverse=True)
        device = self._device
        return MicroBatch(
            indices=tuple(indices),
            ids_B_T=ids_T[None].to(device),
            rows_N=torch.tensor(parents)[nodes_N].to(device),
            targets_N=ids_T[nodes_N].to(device),
            places_P=places_P.to(device),
            sequence_P=torch.tensor(owners).to(device),
            tokens=sum(length for length, _ in pairs),
            distinct=layout.length,
            images=self._pictures(chosen, pairs),
            positions=self._positions(chosen, pairs).to(device),
            layout=layout,
        )

    # --- pictures ----------------------------------------------------------------------------------------------------

    def _keys(self, sequences: Sequence[MaskedTokens]) -> list[Sequence[int]]:
        """Return one number per token of each sequence: its id, or below zero one for each picture."""
        numbers: dict[Any, int] = {}
        fresh = count(start=-1, step=-1)
        keys: list[Sequence[int]] = []
        for sequence in sequences:
            if (images := _images(sequence)) is None:
                keys.append(sequence.tokens)
                continue
            column = list(sequence.tokens)
            for picture, places in zip(images.pictures, self._places(sequence, images), strict=True):
                identity = (picture.sha256, picture.grid) if picture.sha256 else id(picture)
                number = numbers[identity] if identity in numbers else numbers.setdefault(identity, next(fresh))
                for place in places:
                    column[place] = number
            keys.append(column)
        return keys

    def _places(self, sequence: MaskedTokens, images: ImageInputs) -> list[list[int]]:
        """Return the places of the tokens of each picture."""
        token, merged = self._model.config.image_token_id, self._model.config.vision_config.spatial_merge_size**2
        left = iter([place for place, found in enumerate(sequence.tokens) if found == token])
        sizes = [time * height * width // merged for time, height, width in (p.grid for p in images.pictures)]
        return [list(islice(left, size)) for size in sizes]

    def _pictures(self, sequences: Sequence[MaskedTokens], pairs: Sequence[tuple[int, int]]) -> ImageInputs | None:
        """Return the pictures of a row, each once, in the order of its tokens."""
        shown: list[TowerPicture] = []
        for sequence, (_, common) in zip(sequences, pairs, strict=True):
            if (images := _images(sequence)) is not None:
                found = zip(images.pictures, self._places(sequence, images), strict=True)
                shown += [picture for picture, places in found if places and places[0] >= common]
        return ImageInputs(tuple(shown)) if shown else None

    def _positions(self, sequences: Sequence[MaskedTokens], pairs: Sequence[tuple[int, int]]) -> Tensor:
        """Return the positions of a row's tokens: [1, T], or [3, 1, T] for time, height and width of pictures."""
        columns = []
        for sequence, (length, common) in zip(sequences, pairs, strict=True):
            images = _images(sequence)
            if images is None:
                columns.append(torch.arange(common, length)[None])
            elif common < length:
                ids_1_T = torch.tensor(sequence.tokens)[None]
                kinds_1_T = (ids_1_T == self._model.config.image_token_id).int()
                places_3_1_T, _ = self._model.base_model.get_rope_index(
                    input_ids=ids_1_T, mm_token_type_ids=kinds_1_T, image_grid_thw=images.grid_thw
                )
                columns.append(places_3_1_T[:, 0, common:])
        axes = max(len(column) for column in columns)
        positions = torch.cat([column.expand(axes, -1) for column in columns], dim=1)
        return positions if axes == 1 else positions[:, None]


def _images(sequence: MaskedTokens) -> ImageInputs | None:
    """Return the pictures of a sequence, None for one without."""
    images: ImageInputs | None = getattr(sequence, "images", None)
    return images


def attention_depth(model: PreTrainedModel) -> float:
    """Return the number of earlier tokens at which a token's attention costs as much as the decoder's weights on it."""
    decoder: Any = model.get_decoder()
    config = decoder.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    weights = sum(p.numel() for p in decoder.parameters())
    return float(weights / (2 * config.num_hidden_layers * config.num_attention_heads * size))
