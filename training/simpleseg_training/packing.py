"""Examples -> token tensors: several question-answer branches share one image.

Each branch sees the image and itself only, at the positions it would have alone, so one packed
sequence computes exactly what the single-turn chats would, with the image encoded once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from simpleseg_training.auxiliary import cell_shares, visual_targets
from simpleseg_training.examples import Example
from simpleseg_training.model import MERGE, ModelSize
from simpleseg_training.numbers import NumberSpans, no_numbers
from simpleseg_training.scenes import Rendering
from simpleseg_training.tokenizer import END_OF_TURN, IMAGE_PAD, token_id

IGNORE = -100
MAX_BRANCHES = 8
_SHARED = 0  # segment of the tokens before the branches
_PADDING = -1


@dataclass(frozen=True)
class Packed:
    """One image and its branches; arrays over the sequence of length L.

    ``labels`` hold the token itself where it belongs to an answer, else IGNORE; ``positions`` has
    shape (3, L): time, height, width of the rotary position. ``starts`` (MAX_BRANCHES,) and
    ``shares`` (MAX_BRANCHES, cells) are what ``AuxiliaryHeads.pointer_loss`` asks for; branches
    that are not there have no shares.
    """

    image_hw3: NDArray[np.uint8]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]
    numbers: NumberSpans
    visual: NDArray[np.int64]
    starts: NDArray[np.int64]
    shares: NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """A batch of packed sequences, padded to one length; shapes (B, ...) as in Packed."""

    images: Tensor
    ids: Tensor
    labels: Tensor
    segments: Tensor
    positions: Tensor
    values: Tensor
    places: Tensor
    visual: Tensor
    starts: Tensor
    shares: Tensor

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return Batch(**moved)


class Packer:
    """Packs examples for one tokenizer and model size."""

    def __init__(self, tokenizer: Tokenizer, size: ModelSize) -> None:
        self._tokenizer = tokenizer
        self._size = size
        before = self._encode("<|im_start|>user\n<|vision_start|>")
        image = [token_id(tokenizer, IMAGE_PAD)] * size.visual_tokens
        self._shared = [*before, *image, *self._encode("<|vision_end|>")]
        self.image_start = len(before)
        side = size.grid // MERGE
        start = self.image_start
        cells = [(start, start + row, start + col) for row in range(side) for col in range(side)]
        after = start + side
        self._shared_positions = [(i, i, i) for i in range(start)] + cells + [(after,) * 3]
        self._branch_start = after + 1
        self._spans = NumberSpans.finder(tokenizer)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(self, instruction: str) -> list[int]:
        """Token ids of the whole chat prompt for one instruction."""
        return [*self._shared, *self._question(instruction)]

    def _question(self, instruction: str) -> list[int]:
        return self._encode(f"{instruction}{END_OF_TURN}\n<|im_start|>assistant\n")

    def pack(self, rendering: Rendering, examples: Sequence[Example], max_length: int) -> Packed:
        """As many of the examples as fit into ``max_length`` tokens, in order."""
        ids = list(self._shared)
        labels = [IGNORE] * len(ids)
        segments = [_SHARED] * len(ids)
        positions = list(self._shared_positions)
        numbers = [no_numbers(len(ids))]
        branches = 0
        starts = np.zeros(MAX_BRANCHES, np.int64)
        shares = np.zeros((MAX_BRANCHES, self._size.visual_tokens), np.float32)
        for example in examples[:MAX_BRANCHES]:
            question = self._question(example.instruction)
            answer = self._encode(example.answer + END_OF_TURN)
            if len(ids) + len(question) + len(answer) > max_length:
                continue
            starts[branches] = len(ids) + len(question) - 1
            shares[branches] = cell_shares(example.mask_hw, self._size)
            branches += 1
            length = len(question) + len(answer)
            ids += question + answer
            labels += [IGNORE] * len(question) + answer
            segments += [branches] * length
            positions += [(self._branch_start + i,) * 3 for i in range(length)]
            numbers += [no_numbers(len(question)), self._spans(answer)]
        return Packed(
            rendering.image_hw3,
            np.array(ids),
            np.array(labels),
            np.array(segments),
            np.array(positions).T,
            NumberSpans.concatenated(numbers),
            visual_targets(rendering, self._size),
            starts,
            shares,
        )


def collate(packs: Sequence[Packed], length: int) -> Batch:
    """Pad to ``length`` tokens and stack."""

    def padded(arrays: Sequence[NDArray[np.int64]], fill: int) -> Tensor:
        shape = (len(arrays), *arrays[0].shape[:-1], length)
        out = np.full(shape, fill, np.int64)
        for row, array in zip(out, arrays, strict=True):
            row[..., : array.shape[-1]] = array
        return torch.from_numpy(out)

    return Batch(
        torch.from_numpy(np.stack([p.image_hw3 for p in packs])),
        padded([p.ids for p in packs], 0),
        padded([p.labels for p in packs], IGNORE),
        padded([p.segments for p in packs], _PADDING),
        padded([p.positions for p in packs], 0).transpose(0, 1),
        padded([p.numbers.values for p in packs], 0),
        padded([p.numbers.places for p in packs], 0),
        torch.from_numpy(np.stack([p.visual for p in packs])),
        torch.from_numpy(np.stack([p.starts for p in packs])),
        torch.from_numpy(np.stack([p.shares for p in packs])),
    )
