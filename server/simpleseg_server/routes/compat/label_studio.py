"""Label Studio's protocol of an ML backend: ``/setup``, ``/predict`` and ``/webhook``; its
``/health`` is ours.

The token that ``/setup`` brings is not used: who may call us may send any, with any host. The
operator names Label Studio and its token, and that token goes there alone.
"""

import asyncio
import re
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from simpleseg.formats.label_studio import LabelStudioResult, label_studio_results
from simpleseg.results import region_of
from simpleseg.schema import SegmentResponse
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.unite import TooComplexError
from simpleseg_server.config import Settings
from simpleseg_server.errors import ApiError, error_body
from simpleseg_server.fetch_rules import target_of
from simpleseg_server.routes.compat.asking import Part, Question, admitted, answer, checked
from simpleseg_server.routes.compat.label_config import (
    Context,
    Interface,
    Loose,
    Wish,
    read_interface,
    wishes,
)
from simpleseg_server.routes.segment import unless_disconnected
from simpleseg_server.services import services_of

router = APIRouter(include_in_schema=False)
_STORED = re.compile(r"/(data|tasks/[0-9]+/(resolve|presign))/(?!.*(\.\.|%2e|\\))", re.IGNORECASE)
"""The paths of images that Label Studio gives out; its token opens more than those."""


class Task(Loose):
    data: dict[str, Any]


class Params(Loose):
    context: Context | None = None


class PredictRequest(Loose):
    tasks: list[Task] = Field(min_length=1)
    label_config: str
    params: Params = Params()


@router.post("/setup")
async def setup(request: Request) -> dict[str, str]:
    async with admitted(request):
        return {"model_version": _version(request)}


@router.post("/webhook")
async def webhook(request: Request) -> dict[str, str]:
    """Label Studio tells of annotations, for models that learn from them while they serve."""
    async with admitted(request):
        return {"status": "ignored"}


@router.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    """Of several tasks, one that fails has an ``error`` in place of its ``result``, which Label
    Studio logs and passes over."""
    async with admitted(request) as fields:
        services = services_of(request)
        asked = await services.segmenter.work(_asked, fields, services.settings)
        return {"results": await unless_disconnected(request, _all_predicted(request, *asked))}


def _asked(fields: dict[str, Any], settings: Settings) -> tuple[list[Task], Interface, list[Wish]]:
    """Raises ApiError. Long texts take their time."""
    asked = checked(PredictRequest, fields)
    if len(asked.tasks) > settings.max_batch_requests:
        message = f"at most {settings.max_batch_requests} tasks at once"
        raise ApiError(422, "too_many_requests", message, param="tasks")
    interface = read_interface(asked.label_config)
    return asked.tasks, interface, wishes(interface, asked.params.context)


async def _all_predicted(
    request: Request, tasks: list[Task], interface: Interface, wanted: list[Wish]
) -> list[dict[str, Any]]:
    services, request_id = services_of(request), request.state.request_id
    if len(tasks) == 1:
        part = Part(request_id, request.state.times)
        return [await _predicted(request, tasks[0], interface, wanted, part)]
    room = asyncio.Semaphore(services.segmenter.admission.slots)
    turns = asyncio.Semaphore(services.settings.max_fetches_per_host)

    async def one(index: int, task: Task) -> dict[str, Any]:
        async with room:  # images are decoded when their turn has come
            times = request.state.times.part("item", index)
            part = Part(f"{request_id}-{index}", times, turns)
            try:
                return await _predicted(request, task, interface, wanted, part)
            except ApiError as error:
                services.metrics.rejections.labels(error.code).inc()
                return {"error": error_body(error, part.request_id).error.model_dump()}

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(one(*item)) for item in enumerate(tasks)]
    return [task.result() for task in running]


async def _predicted(
    request: Request, task: Task, interface: Interface, wanted: list[Wish], part: Part
) -> dict[str, Any]:
    """A prediction. Raises ApiError."""
    services = services_of(request)
    question = _question(task, interface, wanted, services.settings)
    response = await answer(request, question, part)
    results = await services.segmenter.work(_results, response, interface, wanted)
    scores = [result["score"] for result in results if "score" in result]
    return {
        "result": results,
        "score": sum(scores) / len(scores) if scores else 0.0,
        "model_version": _version(request),
    }


def _question(task: Task, interface: Interface, wanted: list[Wish], settings: Settings) -> Question:
    name = f"tasks.data.{interface.image_field}"
    image = task.data.get(interface.image_field)
    if not isinstance(image, str):
        raise ApiError(422, "image_missing", "the task has no image there", param=name)
    url = _absolute(image, settings, name)
    fields = {"image": {"url": url}, "prompts": [wish.prompt for wish in wanted]}
    names = {"image": name, "prompts": "params.context", "prompt": "params.context"}
    return Question(fields, names, _authorization(url, settings))


def _absolute(image: str, settings: Settings, name: str) -> str:
    if not image.startswith("/"):
        return image
    if settings.label_studio_url is None:
        message = "Label Studio stores the image: set label_studio_url and label_studio_token"
        raise ApiError(422, "image_url_invalid", message, param=name)
    return settings.label_studio_url + image


def _authorization(url: str, settings: Settings) -> str | None:
    """Label Studio's token, where the URL is that of an image it stores."""
    home, token = settings.label_studio_url, settings.label_studio_token
    if home is None or token is None or url[:5].lower() == "data:":
        return None
    try:
        target = target_of(url)
    except ValueError:
        return None  # which the fetcher refuses
    is_home = target.origin == target_of(home).origin
    if not is_home or not _STORED.match(target.url.raw_path.decode("ascii")):
        return None
    return f"Token {token.get_secret_value()}"


def _results(
    response: SegmentResponse, interface: Interface, wanted: list[Wish]
) -> list[LabelStudioResult]:
    size = ImageSize(response.image.height, response.image.width)
    found: list[LabelStudioResult] = []
    try:
        for result, wish in zip(response.results, wanted, strict=True):
            found += label_studio_results(
                region_of(result),
                size,
                wish.label,
                score=result.score,
                from_name=interface.from_name,
                to_name=interface.to_name,
                # Ids of what is already drawn in a task must not come again.
                id_prefix=f"{response.id}-{result.index}",
            )
    except TooComplexError:
        message = "the outlines cross too often for Label Studio"
        raise ApiError(422, "region_too_complex", message) from None
    return found


def _version(request: Request) -> str:
    return services_of(request).keeper.engine.capabilities.model
