"""The kinds of values that settings take, and how each is read from text."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_core import PydanticCustomError

from simpleseg_server.fetch_rules import listed_host, target_of

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _split(value: Any) -> Any:
    """A comma-separated string, as variables hold lists, as its items."""
    return [item.strip() for item in value.split(",")] if isinstance(value, str) else value


def _split_words(value: Any) -> Any:
    """Items that may hold commas are separated by spaces."""
    return value.split() if isinstance(value, str) else value


def _split_all(value: Any) -> Any:
    """The items of comma-separated strings, one or several of them."""
    if isinstance(value, str):
        return _split(value)
    if isinstance(value, list | tuple):
        return [item for one in value for item in (_split(one) if isinstance(one, str) else [one])]
    return value


def _checked_key(key: SecretStr) -> SecretStr:
    """A key must survive the trip in a header as it is."""
    text = key.get_secret_value()
    if not re.fullmatch(r"[!-~]{1,512}", text):
        raise PydanticCustomError("key_invalid", "a key is 1 to 512 visible ASCII characters")
    return key


def _checked_base_url(text: str) -> str:
    try:
        is_base = target_of(text).url.path == "/"
    except ValueError:
        is_base = False
    if not is_base:
        message = "reads http://host:port or https://host, without a path"
        raise PydanticCustomError("base_url_invalid", message)
    return text.rstrip("/")


def _checked_host(text: str) -> str:
    try:
        listed_host(text)
    except ValueError:
        message = "a host reads host, host:port or [address]:port"
        raise PydanticCustomError("host_invalid", message) from None
    return text


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Words = Annotated[tuple[str, ...], BeforeValidator(_split_words)]
Hosts = Annotated[
    tuple[Annotated[str, AfterValidator(_checked_host)], ...], BeforeValidator(_split)
]
Tool = Literal["label-studio", "moondream", "roboflow", "x-anylabeling"]
Tools = Annotated[tuple[Tool, ...], BeforeValidator(_split_all)]
BaseUrl = Annotated[str, AfterValidator(_checked_base_url)]
Secret = Annotated[SecretStr, AfterValidator(_checked_key)]
Secrets = Annotated[tuple[Secret, ...], BeforeValidator(_split)]
