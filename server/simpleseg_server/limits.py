"""What a call may ask of this server and its model."""

from simpleseg.schema import Task
from simpleseg_polygon.grammar import max_tokens_for
from simpleseg_server.calls import Call
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import Capabilities
from simpleseg_server.errors import ApiError, model_not_found


def check_limits(call: Call, settings: Settings, capabilities: Capabilities) -> None:
    """Refuse what this server or its model does not serve, before any costly work.

    Raises ApiError with the field at fault.
    """
    request = call.request
    if request.model not in (None, *capabilities.models):
        raise model_not_found("model")
    if request.task not in capabilities.targets:
        raise ApiError(422, "task_unsupported", "the model has no such task", param="task")
    _check_at_most(request.max_points, settings.max_points, "max_points")
    if request.coordinates == "normalized":
        _check_at_most(request.simplify, 1, "simplify")
    most_tokens = min(settings.max_tokens, capabilities.max_tokens)
    _check_at_most(request.max_tokens, most_tokens, "max_tokens")
    least_tokens = _least_tokens(request.task)
    if request.max_tokens is not None and request.max_tokens < least_tokens:
        message = f"must be at least {least_tokens}, which hold the shortest answer"
        raise ApiError(422, "value_out_of_range", message, param="max_tokens")
    _check_at_most(request.deadline_ms, settings.max_deadline_ms, "deadline_ms")


def _least_tokens(task: Task) -> int:
    """The tokens in which the shortest answer under the grammar closes, however it is spelled."""
    return 1 if task == "text" else max_tokens_for(task, 3 if task == "region" else 1)


def _check_at_most(value: float | None, limit: int, param: str) -> None:
    if value is not None and value > limit:
        raise ApiError(422, "value_out_of_range", f"must be at most {limit}", param=param)
