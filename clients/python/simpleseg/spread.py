"""Records worked on by several processes, on one machine or many: what `--ray` does."""

import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, TypeVar

Item = TypeVar("Item")
Work = Callable[[Sequence[Any]], Sequence[Any]]
"""Does some records, and returns as many results; both are pickled."""

TOGETHER = 16
TRIES = 3


class WorkerError(Exception):
    """What a worker raised, in words."""


class Died:
    """What a record comes to that ended the process of its worker ``TRIES`` times."""


def spread(
    items: Sequence[Item], make: Callable[[], Work], *, workers: int
) -> Iterator[tuple[Item, Any]]:
    """Each item with its result, as they come, in any order, each once.

    ``make`` is called in each of the ``workers``; it and what it makes are pickled by Ray, which
    goes on with the records of a worker that is killed in another. Records that ended workers in
    company are tried alone, and then come to ``Died``. Uses the cluster that ``RAY_ADDRESS`` names,
    else processes of this machine. Raises WorkerError where ``Work`` raises.
    """
    ray: Any = import_module("ray")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    left = dict(enumerate(items))
    for together in (TOGETHER, 1):
        for number, result in _pass(left, make, workers, together):
            if "error" in result:
                raise WorkerError(result["error"])
            yield left.pop(number), result["done"]
    for item in left.values():
        yield item, Died()


def _pass(
    left: dict[int, Any], make: Callable[[], Work], workers: int, together: int
) -> Iterator[tuple[int, Any]]:
    """The results of what lived; a batch whose worker died ``TRIES`` times is left out."""
    if not left:
        return
    data: Any = import_module("ray.data")  # without types that a strict check could use
    context = data.DataContext.get_current()
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in left.items()]
    blocks = -(-len(rows) // together)
    answers = data.from_items(rows, override_num_blocks=blocks).map_batches(
        _Worker,
        batch_size=together,
        batch_format="numpy",
        fn_constructor_args=(make, list(sys.path)),
        concurrency=workers,
        max_restarts=-1,
        max_task_retries=TRIES - 1,
    )
    for row in answers.iter_rows():
        yield int(row["number"]), pickle.loads(row["result"])


class _Worker:
    """Finds the modules that the command finds; loads what it works with when work comes, so that
    what goes wrong with that is told."""

    def __init__(self, make: Callable[[], Work], path: list[str]) -> None:
        sys.path.extend(one for one in path if one not in sys.path)
        self._make = make
        self._work: Work | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        items = [pickle.loads(item) for item in batch["item"]]
        try:
            self._work = self._work or self._make()
            results = [{"done": one} for one in self._work(items)]
        except Exception as error:  # a fault of the program must end the run, not leave records out
            results = [{"error": f"{type(error).__name__}: {error}"}] * len(items)
        return {"number": batch["number"], "result": [pickle.dumps(one) for one in results]}
