"""Settings of the server: every limit with its unit in the name."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

ENV_PREFIX = "SIMPLESEG_"
CLIENT_VARIABLES = frozenset({"SIMPLESEG_BASE_URL", "SIMPLESEG_API_KEY"})
"""Variables of the client library, which may be set on the same machine."""

MIB = 2**20

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ConfigError(ValueError):
    """A setting is unknown or out of range; the message names it and never its value."""


class Settings(BaseModel):
    """Limits and addresses, fixed when the server starts.

    >>> Settings(max_prompts=2).max_image_pixels
    50000000
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000

    max_body_bytes: Positive = 34 * MIB
    body_timeout_s: Seconds = 20.0
    max_image_bytes: Positive = 24 * MIB
    max_image_pixels: Positive = 50_000_000
    max_image_side_px: Positive = 32_768
    max_image_aspect: Annotated[float, Field(ge=1)] = 200.0

    max_prompts: Positive = 8
    max_prompt_bytes: Positive = 8192
    default_max_points: Annotated[int, Field(ge=3)] | None = None
    max_points: Annotated[int, Field(ge=3)] = 1024
    default_max_tokens: Positive = 1024
    max_tokens: Positive = 8192

    max_running_prompts: Positive | None = None
    """Prompts that the engine works on at once; None: what the engine says it can take."""
    max_queued_requests: Annotated[int, Field(ge=0)] = 32
    """Requests that may wait beyond those that fill the engine; more are answered 503."""
    retry_after_s: Seconds = 1.0
    worker_threads: Positive = 2
    """Threads that decode images and rasterise; they bound the decoded pixels in memory."""

    @classmethod
    def load(cls, environ: Mapping[str, str], **overrides: Any) -> "Settings":
        """Settings from variables ``SIMPLESEG_<NAME>``; overrides that are not None come first.

        Raises ConfigError for an unknown name or a value out of range.

        >>> Settings.load({"SIMPLESEG_MAX_PROMPTS": "3"}, port=9000).max_prompts
        3
        """
        values: dict[str, Any] = {
            name.removeprefix(ENV_PREFIX).lower(): value
            for name, value in environ.items()
            if name.startswith(ENV_PREFIX) and name not in CLIENT_VARIABLES
        }
        values |= {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_describe(error)) from None


def _describe(error: ValidationError) -> str:
    """The names at fault and what is wrong with them, without the values."""
    parts = []
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        name = ".".join(map(str, fault["loc"][:1]))
        known = fault["type"] != "extra_forbidden"
        parts.append(f"{name}: {fault['msg']}" if known else f"unknown setting: {name}")
    return "; ".join(parts)
