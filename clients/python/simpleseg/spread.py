"""Blocks of records worked on by several processes, on one machine or many: what `--ray` does."""

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, TypeVar

from simpleseg.shards import Block, Line, Shards

Item = TypeVar("Item")
Work = Callable[[Sequence[Any]], Sequence[Line]]
"""Does some records, and returns a line for each."""

TRIES = 3


class WorkerError(Exception):
    """Why a worker could not go on, in words."""


def spread(
    blocks: Sequence[Block[Item]],
    shards: Shards,
    make: Callable[[], Work],
    died: Callable[[Item], Line],
    *,
    workers: int,
    gpus: float = 0,
) -> Iterator[Block[Item]]:
    """Each block when its shard is written, in any order.

    ``make`` is called in each of the ``workers``, and pickled by Ray, which goes on with the block
    of a worker that is killed in another. The records of a block that ended workers ``TRIES`` times
    are tried one by one; what ends workers alone, too, gets the line of ``died``. Each worker has
    ``gpus`` GPUs of its own; with 0, all of a machine see all that it has. Uses the cluster that
    ``RAY_ADDRESS`` names, else processes of this machine. Raises WorkerError where ``Work`` raises
    anything, and where no record of several lives.
    """
    ray: Any = import_module("ray")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    there = ray.cluster_resources().get("GPU", 0)
    if gpus > there and "RAY_ADDRESS" not in os.environ:  # a cluster may grow; Ray would wait
        raise WorkerError(f"{gpus:g} GPUs for each worker: this machine has {there:g}")
    left = {block.name: block for block in blocks}
    for name, _ in _pass(blocks, make, shards, workers, gpus):
        yield left.pop(name)
    for block in left.values():
        alone = [Block(str(number), [item]) for number, item in enumerate(block.items)]
        done = dict(_pass(alone, make, None, workers, gpus))
        if not done and len(alone) > 1:  # no fault of theirs
            raise WorkerError("workers die of whatever they are given: is there memory enough?")
        lines = [done.get(one.name) or [died(one.items[0])] for one in alone]
        shards.write(block.name, [*block.kept, *(line for (line,) in lines)])
        yield block
    shards.tidy()


def _pass(
    blocks: Sequence[Block[Any]],
    make: Callable[[], Work],
    shards: Shards | None,
    workers: int,
    gpus: float,
) -> Iterator[tuple[str, Sequence[Line]]]:
    """The name of each block that is done, with its lines where there are no shards to write them
    to. One whose worker died ``TRIES`` times is left out."""
    if not blocks:
        return
    data: Any = import_module("ray.data")  # without types that a strict check could use
    context = data.DataContext.get_current()
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    rows = [{"block": pickle.dumps(block)} for block in blocks]
    answers = data.from_items(rows, override_num_blocks=len(rows)).map(
        _Worker,
        fn_constructor_args=(make, shards, list(sys.path)),
        # One at a time: a block that waits behind one that ends the worker would lose its tries.
        compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_gpus=gpus,
        max_restarts=-1,
        max_task_retries=TRIES - 1,
    )
    for row in answers.iter_rows():
        if row["error"]:
            raise WorkerError(row["error"])
        yield row["name"], pickle.loads(row["lines"])


class _Worker:
    """Finds the modules that the command finds; loads what it works with when work comes, so that
    what goes wrong with that is told."""

    def __init__(self, make: Callable[[], Work], shards: Shards | None, path: list[str]) -> None:
        sys.path.extend(one for one in path if one not in sys.path)
        self._make = make
        self._shards = shards
        self._work: Work | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        block: Block[Any] = pickle.loads(row["block"])
        try:
            lines, error = self._lines(block), ""
        except WorkerError as stopped:
            lines, error = (), str(stopped)
        except Exception as fault:  # one of the program must end the run, not leave records out
            lines, error = (), f"{type(fault).__name__}: {fault}"
        return {"name": block.name, "lines": pickle.dumps(lines), "error": error}

    def _lines(self, block: Block[Any]) -> Sequence[Line]:
        self._work = self._work or self._make()
        lines = self._work(block.items)
        if self._shards is None:
            return lines
        self._shards.write(block.name, [*block.kept, *lines])
        return ()
