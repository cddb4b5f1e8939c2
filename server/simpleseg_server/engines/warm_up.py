"""The requests that an engine answers before it says that it is ready."""

import numpy as np

from simpleseg_polygon.grammar import max_tokens_for
from simpleseg_polygon.prompts import Target, instruction
from simpleseg_server.engines.base import GenerationRequest


def warm_up_request(target: Target, input_hw: tuple[int, int] | None) -> GenerationRequest:
    """A short answer of a task about a black image: it builds the task's grammar and runs the
    vision tower. ``input_hw`` is the image's size."""
    height, width = input_hw or (224, 224)
    return GenerationRequest(
        request_id="warm-up",
        image_hw3=np.zeros((height, width, 3), np.uint8),
        image_key="warm-up",
        instruction=instruction(target, "the object"),
        target=target,
        max_tokens=8 if target == "text" else max_tokens_for(target, 3),
        constrained=target != "text",
    )
