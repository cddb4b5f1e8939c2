"""Auxiliary losses that only training has: thrown away on export.

The visual head asks of every visual token what lies in its cell; the number heads ask of the
hidden states which number comes next and which was just written; the pointer asks of the state
after a question which cells hold the object that the question means.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from simpleseg_training.model import CELL, ModelSize
from simpleseg_training.numbers import FIRST, INTEGER, SCALE, THIRD
from simpleseg_training.recombine import box_of
from simpleseg_training.scenes import COLOURS, KINDS, TEXTURES, Rendering

BOX_BINS = 32
OCCUPANCY = 8  # samples along one side of a cell
NUMBER_BINS = 65
POINTER_WIDTH = 64
_MIN_SHARE = 0.12  # of a cell that an object must fill to be the cell's object
_CLASSES = (len(COLOURS) + 1, len(KINDS) + 1, len(TEXTURES) + 1, 3, *([BOX_BINS] * 4))
_NONE = -100


def visual_targets(rendering: Rendering, size: ModelSize) -> NDArray[np.int64]:
    """For each cell: colour, kind, texture, size (0 = nothing there), the object's box in bins
    (-100 = nothing there), then OCCUPANCY x OCCUPANCY samples of what any object covers.

    Shape (visual tokens, 8 + OCCUPANCY**2).
    """
    side = size.image_px // CELL
    masks = np.stack(rendering.masks_hw)
    by_cell = masks.reshape(len(masks), side, CELL, side, CELL).transpose(1, 3, 0, 2, 4)
    by_cell = by_cell.reshape(side * side, len(masks), CELL, CELL)
    area = by_cell.sum(axis=(2, 3))
    dominant = area.argmax(axis=1)
    described = np.array([_describe(rendering, i) for i in range(len(masks))])
    labels = described[dominant]
    labels[area.max(axis=1) < _MIN_SHARE * CELL * CELL] = (0, 0, 0, 0, *([_NONE] * 4))
    step = CELL // OCCUPANCY
    samples = np.asarray(by_cell.any(axis=1))[:, step // 2 :: step, step // 2 :: step]
    joined: NDArray[np.int64] = np.concatenate(
        [labels, samples.reshape(side * side, -1)], axis=1
    ).astype(np.int64)
    return joined


def cell_shares(mask_hw: NDArray[np.bool_], size: ModelSize) -> NDArray[np.float32]:
    """How an object's pixels are spread over the cells: shape (visual tokens,), sum 1; all zero for
    an empty mask or one of another size."""
    if not mask_hw.any() or mask_hw.shape != (size.image_px, size.image_px):
        return np.zeros(size.visual_tokens, np.float32)
    side = size.image_px // CELL
    area = mask_hw.reshape(side, CELL, side, CELL).sum(axis=(1, 3)).reshape(-1)
    return np.asarray(area / area.sum(), np.float32)


def _describe(rendering: Rendering, i: int) -> list[int]:
    item = rendering.scene.objects[i]
    box = box_of(rendering.masks_hw[i])
    return [
        1 + list(COLOURS).index(item.colour),
        1 + KINDS.index(item.kind),
        1 + TEXTURES.index(item.texture),
        1 + int(item.is_large),
        *(min(int(v * BOX_BINS), BOX_BINS - 1) for v in box),
    ]


class AuxiliaryHeads(nn.Module):
    """Linear probes that are trained along; ``width`` is the text model's hidden size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.visual = nn.Linear(width, sum(_CLASSES) + OCCUPANCY**2)
        self.next_number = nn.Linear(width, NUMBER_BINS)
        self.last_number = nn.Linear(width, NUMBER_BINS)
        self.pointer_query = nn.Linear(width, POINTER_WIDTH)
        self.pointer_key = nn.Linear(width, POINTER_WIDTH)

    def visual_loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """``features`` (B, cells, width) against ``visual_targets`` of shape (B, cells, ...)."""
        *parts, occupancy = self.visual(features).float().split([*_CLASSES, OCCUPANCY**2], dim=-1)
        losses = [
            F.cross_entropy(part.flatten(0, 1), targets[..., i].flatten(), ignore_index=_NONE)
            for i, part in enumerate(parts)
        ]
        covered = F.binary_cross_entropy_with_logits(occupancy, targets[..., len(parts) :].float())
        return 0.15 * sum(losses[:4], covered.new_zeros(())) + 0.25 * sum(losses[4:]) + covered

    def pointer_loss(
        self, middle: Tensor, image_start: int, starts: Tensor, shares: Tensor
    ) -> Tensor:
        """How far the states before the answers are from pointing at the cells meant.

        ``middle`` (B, L, width) are the text model's states at half its depth, so that the layers
        after it can use what they point at; ``starts`` (B, K) are the places of the last token
        before each answer, ``shares`` (B, K, cells) those of ``cell_shares``.
        """
        cells = middle[:, image_start : image_start + shares.shape[-1]]
        asked = middle.gather(1, starts[..., None].expand(-1, -1, middle.shape[-1]))
        scores = self.pointer_query(asked) @ self.pointer_key(cells).transpose(1, 2)
        log_probs = (scores.float() / POINTER_WIDTH**0.5).log_softmax(dim=-1)
        loss: Tensor = -(shares * log_probs).sum() / shares.sum().clamp(min=1)
        return loss

    def number_losses(
        self, hidden: Tensor, places: Tensor, values: Tensor, sigma: float
    ) -> tuple[Tensor, Tensor]:
        """Losses of naming the number that is being written and the number just written.

        ``hidden`` (B, L, width) are the states that predict the *next* token; ``places`` and
        ``values`` (B, L) belong to the tokens themselves. ``sigma`` is in thousandths.
        """
        following = places[:, 1:]
        coming = (following >= INTEGER) & (following <= THIRD)
        ending = (places[:, :-1] > FIRST) & (following <= INTEGER)
        next_loss = self._bin_loss(
            self.next_number(hidden[:, :-1][coming]), values[:, 1:][coming], sigma
        )
        last_loss = self._bin_loss(
            self.last_number(hidden[:, :-1][ending]), values[:, :-1][ending], sigma
        )
        return next_loss, last_loss

    @staticmethod
    def _bin_loss(logits: Tensor, values: Tensor, sigma: float) -> Tensor:
        centres = torch.arange(NUMBER_BINS, device=logits.device) * (SCALE / (NUMBER_BINS - 1))
        width = max(sigma, SCALE / NUMBER_BINS)
        target = torch.softmax(-((values[:, None] - centres) ** 2) / (2 * width**2), dim=-1)
        return -(target * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()
