"""The requests of tools that people already work with, put to the same pipeline.

Each module translates: a tool's request into the fields of ``POST /segment``, and the answer into
what the tool reads. Admission, limits, keys, metrics and errors are those of every route.
"""

from collections.abc import Iterable, Iterator, Mapping

from fastapi import APIRouter

from simpleseg_server.routes.compat import label_studio, moondream, roboflow, x_anylabeling
from simpleseg_server.setting_kinds import Tool

_ROUTERS: Mapping[Tool, APIRouter] = {
    "label-studio": label_studio.router,
    "moondream": moondream.router,
    "roboflow": roboflow.router,
    "x-anylabeling": x_anylabeling.router,
}


def routers(tools: Iterable[Tool]) -> Iterator[APIRouter]:
    """The routes of these tools, to stand before our own: they pass on what is not theirs."""
    return (_ROUTERS[tool] for tool in dict.fromkeys(tools))
