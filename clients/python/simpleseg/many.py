"""Many images: what ``segment_many`` of both clients does, apart from asking."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sized,
)
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

from simpleseg.errors import InvalidInputError, SimpleSegError
from simpleseg.image_input import ImageInput
from simpleseg.progress import Advance, progress_bar
from simpleseg.protocol import Prompts
from simpleseg.results import Segmentation

Item = ImageInput | tuple[ImageInput, Prompts]
"""An image, or an image with its own prompt."""
Order = Literal["input", "completed"]
OnError = Literal["raise", "yield"]


@dataclass(frozen=True)
class Outcome:
    """What became of item number ``index``: its results, one for each prompt, or its error."""

    index: int
    image: ImageInput
    results: tuple[Segmentation, ...] = ()
    error: SimpleSegError | OSError | None = None

    @property
    def result(self) -> Segmentation:
        """The first result; raises the error where there is none."""
        if self.error is not None:
            raise self.error
        return self.results[0]


@dataclass(frozen=True)
class Plan:
    """How many at a time, in which order, what an error does, whether a bar is drawn."""

    concurrency: int
    order: Order
    on_error: OnError
    progress: bool

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise InvalidInputError("concurrency must be at least 1")

    @property
    def window(self) -> int:
        """Items asked about or waiting for their turn: in order, some may overtake a slow one."""
        return self.concurrency * (2 if self.order == "input" else 1)

    def bar(self, total: int | None) -> AbstractContextManager[Advance]:
        return progress_bar(total) if self.progress else nullcontext(lambda: None)

    def checked(self, outcome: Outcome) -> Outcome:
        """The outcome; raises its error where that is to end the iteration."""
        if outcome.error is not None and self.on_error == "raise":
            outcome.error.add_note(f"item {outcome.index}")
            raise outcome.error
        return outcome


@dataclass(frozen=True)
class Question:
    """An item with its number and its prompt."""

    index: int
    image: ImageInput
    prompt: Prompts


@dataclass(frozen=True)
class Questions:
    """Items as they are needed, and how many there are, where that is known."""

    items: Iterator[Question]
    total: int | None


def paired(items: Iterable[Item], prompt: Prompts | None) -> Questions:
    """Every image with the prompt that counts for it."""

    def question(index: int, item: Item) -> Question:
        image, own = item if isinstance(item, tuple) else (item, prompt)
        if own is None:
            raise InvalidInputError(f"item {index} has no prompt")
        return Question(index, image, own)

    total = len(items) if isinstance(items, Sized) else None
    return Questions((question(*numbered) for numbered in enumerate(items)), total)


def answered(
    ask: Callable[[ImageInput, Prompts], list[Segmentation]],
) -> Callable[[Question], Outcome]:
    """Asks, and makes an outcome of what happens."""

    def answer(question: Question) -> Outcome:
        try:
            results = ask(question.image, question.prompt)
        except (SimpleSegError, OSError) as error:
            return Outcome(question.index, question.image, error=error)
        return Outcome(question.index, question.image, tuple(results))

    return answer


def answered_async(
    ask: Callable[[ImageInput, Prompts], Awaitable[list[Segmentation]]],
) -> Callable[[Question], Awaitable[Outcome]]:
    """The same for asyncio."""

    async def answer(question: Question) -> Outcome:
        try:
            results = await ask(question.image, question.prompt)
        except (SimpleSegError, OSError) as error:
            return Outcome(question.index, question.image, error=error)
        return Outcome(question.index, question.image, tuple(results))

    return answer


def run_many(
    questions: Questions, answer: Callable[[Question], Outcome], plan: Plan
) -> Generator[Outcome]:
    """Outcomes from a pool of threads. Closing it waits for the answers that are under way."""

    def ready(waiting: list[Future[Outcome]]) -> list[Future[Outcome]]:
        if plan.order == "input":
            return waiting[:1]
        return list(wait(waiting, return_when=FIRST_COMPLETED).done)

    pool = ThreadPoolExecutor(plan.concurrency, thread_name_prefix="segment_many")
    with plan.bar(questions.total) as advance:
        try:
            waiting: list[Future[Outcome]] = []
            while True:
                for question in questions.items:
                    future = pool.submit(answer, question)
                    future.add_done_callback(lambda _: advance())
                    waiting.append(future)
                    if len(waiting) >= plan.window:
                        break
                if not waiting:
                    return
                for future in ready(waiting):
                    waiting.remove(future)
                    yield plan.checked(future.result())
        finally:
            pool.shutdown(cancel_futures=True)


async def run_many_async(
    questions: Questions, answer: Callable[[Question], Awaitable[Outcome]], plan: Plan
) -> AsyncGenerator[Outcome]:
    """Outcomes from tasks. Closing it cancels what is under way."""
    room = asyncio.Semaphore(plan.concurrency)

    async def run(question: Question) -> Outcome:
        async with room:
            return await answer(question)

    async def ready(waiting: list[asyncio.Task[Outcome]]) -> list[asyncio.Task[Outcome]]:
        if plan.order == "input":
            await asyncio.wait(waiting[:1])
            return waiting[:1]
        return list((await asyncio.wait(waiting, return_when=FIRST_COMPLETED))[0])

    waiting: list[asyncio.Task[Outcome]] = []
    with plan.bar(questions.total) as advance:
        try:
            while True:
                for question in questions.items:
                    task = asyncio.create_task(run(question))
                    task.add_done_callback(lambda _: advance())
                    waiting.append(task)
                    if len(waiting) >= plan.window:
                        break
                if not waiting:
                    return
                for task in await ready(waiting):
                    waiting.remove(task)
                    yield plan.checked(task.result())
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
