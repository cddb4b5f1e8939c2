"""Keys and values of the requests under way: one row each, filled from the left, of any length."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SMALLEST_CAPACITY = 256


@dataclass(frozen=True, eq=False)
class RowStates:
    """A copy of the first slots of a row: keys and values, one (heads, slots, dim) a layer."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(states.nbytes for states in (*self.keys, *self.values))


class KeyValueRows:
    """A cache in which each row has its own length; the part of transformers' ``Cache`` that
    attention layers call.

    Before a forward pass ``place`` says which rows it is for and where each one's new tokens go;
    they see the slots up to their own. What a row holds beyond its length, such as drafts that were
    rejected, is never seen and is overwritten by the row's next tokens. Storage grows by doubling.
    """

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._capacity = (0, 0)
        self._first_row = 0
        self._slots = torch.empty(0, 0, dtype=torch.long)
        self._row_index = torch.empty(0, 1, dtype=torch.long)
        self._end = 0

    def place(self, first_row: int, slots: Tensor, end: int) -> Tensor:
        """Aim the next pass, of inputs (batch, width), at ``batch`` rows from ``first_row``.

        ``slots`` (batch, width) are consecutive in each row and all below ``end``. Returns the
        attention mask, bool (batch, 1, width, end).
        """
        self._first_row, self._slots, self._end = first_row, slots, end
        self._row_index = torch.arange(slots.shape[0], device=slots.device)[:, None]
        self._reserve(first_row + slots.shape[0], end)
        return torch.arange(end, device=slots.device) <= slots[:, None, :, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each layer: store (batch, heads, width, dim), return all that is seen."""
        if layer_idx == len(self._keys):
            self._keys.append(self._new_storage(key_states))
            self._values.append(self._new_storage(value_states))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        return self._store(keys, key_states), self._store(values, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._end

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` slots of a row over another row."""
        for storage in (*self._keys, *self._values):
            storage[target, :, :length] = storage[source, :, :length]

    def copy(self, row: int, length: int) -> RowStates:
        """The first ``length`` slots of a row."""
        keys = tuple(storage[row, :, :length].clone() for storage in self._keys)
        return RowStates(keys, tuple(storage[row, :, :length].clone() for storage in self._values))

    def paste(self, row: int, states: RowStates, length: int) -> None:
        """Fill the first ``length`` slots of a row from a copy that has as many."""
        self._reserve(row + 1, length)
        if not self._keys:
            self._keys += [self._new_storage(keys[None]) for keys in states.keys]
            self._values += [self._new_storage(values[None]) for values in states.values]
        copied = zip((*self._keys, *self._values), (*states.keys, *states.values), strict=True)
        for storage, copy in copied:
            storage[row, :, :length] = copy[:, :length]

    def clear(self) -> None:
        """Give the storage back."""
        self._keys.clear()
        self._values.clear()
        self._capacity = (0, 0)

    def wipe(self, row: int) -> None:
        """Zero a row. Hidden slots have weight 0, but 0 times a NaN left there would be NaN."""
        if row >= self._capacity[0]:
            return
        for storage in (*self._keys, *self._values):
            storage[row].zero_()

    def _store(self, storage: Tensor, states: Tensor) -> Tensor:
        batch, width = self._slots.shape
        rows = storage[self._first_row : self._first_row + batch]
        if batch == 1:
            rows[:, :, self._end - width : self._end] = states
        else:
            rows[self._row_index, :, self._slots] = states.transpose(1, 2)
        return rows[:, :, : self._end]

    def _new_storage(self, states: Tensor) -> Tensor:
        rows, slots = self._capacity
        return states.new_zeros((rows, states.shape[1], slots, states.shape[3]))

    def _reserve(self, rows: int, slots: int) -> None:
        had_rows, had_slots = self._capacity
        if rows <= had_rows and slots <= had_slots:
            return
        self._capacity = (_grown(had_rows, rows, 1), _grown(had_slots, slots, _SMALLEST_CAPACITY))
        for layers in (self._keys, self._values):
            for i, old in enumerate(layers):
                layers[i] = self._new_storage(old)
                layers[i][:had_rows, :, :had_slots] = old


def _grown(had: int, needed: int, least: int) -> int:
    size = max(had, least)
    while size < needed:
        size *= 2
    return size
