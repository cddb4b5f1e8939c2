"""Settings of the server: every limit with its unit in the name.

A setting's description, type and default are stated here once; ``options.py`` makes the options of
``simpleseg serve`` and the table in ``docs/settings.md`` from them, ``sources.py`` reads them from
the command line, the environment and a file.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from simpleseg_server.engines.choose import EngineKind, Supervision
from simpleseg_server.engines.dialects import Dialect
from simpleseg_server.engines.picture import ImageFormat
from simpleseg_server.fetch_rules import WEB_PORTS, Rules, target_of
from simpleseg_server.setting_kinds import (
    BaseUrl,
    Hosts,
    Names,
    Port,
    Positive,
    Seconds,
    Secret,
    Secrets,
    Tools,
    Words,
)
from simpleseg_server.supervision.vitals import Patience

KIB, MIB = 2**10, 2**20

_ORDERED = (
    ("default_max_points", "max_points"),
    ("default_max_tokens", "max_tokens"),
    ("max_fetches_per_host", "max_fetches"),
    ("image_url_connect_timeout_s", "image_url_timeout_s"),
)
"""Limits of which the first lies within the second."""


class ConfigError(ValueError):
    """A setting is unknown or out of range; the message names it and never its value."""


class Settings(BaseModel):
    """What the operator decides, fixed when the server starts.

    The string below a field says what it is, for people who read ``simpleseg serve --help``.

    >>> Settings(max_prompts=2).max_image_pixels
    50000000
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Port = 8000
    """The port to listen on; 0 takes a free one."""
    ops_host: str = "127.0.0.1"
    """The address of the listener for operations."""
    ops_port: Port | None = None
    """A second listener, for probes, /version and /metrics only, which asks for no API key; 0 takes
    a free port. Without it these routes are on the main listener alone."""
    shutdown_timeout_s: Seconds = 30.0
    """Time that requests under way get to finish when the server is stopped."""
    drain_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Time in which a server that is stopped still takes requests, as those that sent them do not
    know yet; it is not ready from the start. Later ones are answered 503 until it is gone."""
    playground: bool = True
    """Serve a page at / on which people can try the model. It opens without an API key; what it
    asks for needs one."""

    engine: EngineKind = "auto"
    """What runs the model; auto is vLLM where it is installed and a GPU is there, else embedded.
    remote is other servers, the upstreams."""
    model: str | None = None
    """A checkpoint's folder or Hugging Face id; without it, the demo model. remote: only its name,
    its image size and its limit of pixels are read, and it may be left out."""
    max_batch: Positive | None = None
    """Answers decoded together; without it, 8, or 32 with vLLM and with upstreams."""
    draft: bool = True
    """Verify drafted tokens: fewer steps, the same answers."""
    supervise: bool = True
    """Restart an engine that dies or hangs, and ask it again what was not answered; the embedded
    engine then has a process of its own. Not with upstreams, which are tried again anyway."""
    spare: bool = False
    """embedded: a second process with the model loaded, which takes over when the first one dies;
    it takes as much memory again."""
    engine_stall_timeout_s: Seconds = 60.0
    """Time in which a supervised engine that computes must write a token of any answer; one that
    computes nothing is restarted after 2 s."""
    dtype: str | None = None
    """vLLM: auto, bfloat16, float16 or float32."""
    quantization: str | None = None
    """vLLM: its name of a quantization, such as fp8."""
    tensor_parallel_size: Positive | None = None
    """vLLM: GPUs that share the model."""
    max_model_len: Positive | None = None
    """vLLM: tokens of prompt and answer together."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """vLLM: the share of a GPU's memory that it takes; without it, 0.9."""
    max_model_pixels: Positive | None = None
    """vLLM: the area, width times height, to which larger images are scaled down for the model;
    without it, what the checkpoint's processor and profile say."""
    lora: Words = ()
    """vLLM: an adapter, NAME=PATH, served as a model of that name beside the checkpoint. Several in
    one variable are separated by spaces."""
    trust_remote_code: bool = False
    """vLLM: run the checkpoint's own code."""

    upstreams: Words = ()
    """remote: the URL of a server that runs the model, and after a comma its share of the requests,
    such as http://gpu-1:8000,2. Several in one variable are separated by spaces."""
    upstream_model: str | None = None
    """remote: the model's id there; without it, the first that they list."""
    upstream_api_key: Secrets = ()
    """remote: one key for all upstreams, or one for each. Better kept in a variable."""
    dialect: Dialect = "vllm"
    """remote: whose words tell the upstreams the grammar; with none, answers may be malformed."""
    upstream_image_format: ImageFormat = "png"
    """remote: how images are sent; jpeg is smaller, and not quite the same pixels."""
    upstream_logprobs: bool = True
    """remote: ask for the probability of every token; without them answers have no score."""
    upstream_first_token_timeout_s: Seconds = 120.0
    """remote: how long an upstream may take to begin an answer."""
    upstream_idle_timeout_s: Seconds = 30.0
    """remote: how long an upstream may fall silent within an answer."""
    upstream_hedge_after_s: Seconds | None = None
    """remote: ask a second upstream too where the first one has not begun an answer by then, for
    one request in ten at most; the first to begin is listened to. Best what 95 in 100 answers begin
    within."""

    api_keys: Secrets = ()
    """Keys that may use the server. Better kept in a file or a variable: other users of the machine
    see a command line. Without any key every client is served."""
    api_keys_file: Path | None = None
    """A TOML file of keys with names, limits of their own and, if wanted, hashes instead of keys;
    read again when it changes."""
    open_paths: Names = ()
    """Paths that need no key, such as /metrics, /docs and /openapi.json; probes never need one."""
    requests_per_minute: Positive | None = None
    """Requests that each key may make in a minute, probes and other GET requests not counted."""
    max_concurrent_requests: Positive | None = None
    """Requests that each key may have under way."""

    log_format: Literal["auto", "json", "text"] = "auto"
    """How log lines look; auto is text on a terminal, else JSON."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages that are logged; the lines of requests are info."""
    otlp_endpoint: str | None = None
    """The URL, such as http://127.0.0.1:4318/v1/traces, to which traces are sent (extra otel)."""
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of traces, of those that no caller decided on, that are recorded."""

    max_connections: Positive | None = None
    """Connections at a time; without it, what the limit of open files allows. More are answered
    503."""
    header_timeout_s: Seconds = 5.0
    """Time in which a request's head must have come in, counted from its first byte, or from the
    connection."""
    idle_timeout_s: Seconds = 5.0
    """Time after which a connection without a request is closed."""
    write_timeout_s: Seconds = 30.0
    """Time in which a client must take what waits for it."""
    max_body_bytes: Positive = 34 * MIB
    """The largest request body."""
    body_timeout_s: Seconds = 20.0
    """Time in which a body must have come in; after 5 s, at 16 KiB/s or more on average."""
    max_image_bytes: Positive = 24 * MIB
    """The largest image file."""
    max_image_pixels: Positive = 50_000_000
    """The largest image, width times height."""
    max_image_side_px: Positive = 32_768
    """The longest side of an image."""
    max_image_aspect: Annotated[float, Field(ge=1)] = 200.0
    """The longer side of an image over the shorter."""
    max_image_metadata_bytes: Positive = 256 * KIB
    """The most of an image file that is no picture: EXIF, texts, what programs add. Colour profiles
    do not count."""
    max_pixels_in_flight: Positive = 200_000_000
    """Pixels of the images that are being decoded, together; more wait."""
    image_decoding: Literal["process", "thread"] = "process"
    """Where images are decoded: in processes that have little memory, time and no secrets, and that
    can be killed; or in threads of the server, which is for images that you trust."""
    max_decode_cpu_s: Seconds = 2.0
    """CPU time for decoding one image, if in a process."""
    max_decoder_bytes: Positive = 1024 * MIB
    """Address space of a process that decodes."""

    image_urls: Literal["off", "listed", "public"] = "off"
    """Images that requests name by http(s) URL: off refuses them, listed fetches from the hosts of
    `image_url_hosts` only, public also from all hosts whose addresses are all public, at ports 80
    and 443."""
    image_url_hosts: Hosts = ()
    """Hosts that images are fetched from wherever they are, such as store.internal:9000; without a
    port, 80 and 443. Who may ask this server may ask it for whatever they serve."""
    image_url_timeout_s: Seconds = 5.0
    """Time to fetch an image, redirects and all."""
    image_url_connect_timeout_s: Seconds = 1.0
    """Time to connect to one address."""
    max_image_url_redirects: Annotated[int, Field(ge=0)] = 3
    """Redirects that are followed; each is judged like the first URL."""
    max_fetches: Positive = 32
    """Images fetched at once; more are answered 503."""
    max_fetches_per_host: Positive = 8
    """Images fetched at once from one host; as many may wait, more are answered 503."""

    enable: Tools = ()
    """Tools whose own requests are answered too; API keys also count in the way in which they send
    them. Not in vLLM's own server."""
    label_studio_url: BaseUrl | None = None
    """Where Label Studio is, such as http://127.0.0.1:8080: the images that it stores itself are
    fetched there. Its host must be one of `image_url_hosts`."""
    label_studio_token: Secret | None = None
    """A legacy token of Label Studio, sent to `label_studio_url` and nowhere else. Better kept in a
    variable."""

    max_decoded_image_bytes: Annotated[int, Field(ge=0)] = 16 * MIB
    """Room for the pixels of images decoded before, so that a file that comes again is not decoded
    again; 0 keeps none."""
    max_kept_image_bytes: Positive = 256 * MIB
    """Room for uploaded images, files and pixels together; what was used least recently goes."""
    kept_image_ttl_s: Seconds = 3600.0
    """Time after which an uploaded image is forgotten."""

    max_batch_requests: Positive = 64
    """Requests in a batch."""
    max_prompts: Positive = 8
    """Prompts in a request."""
    max_prompt_bytes: Positive = 8192
    """The longest text of a prompt."""
    client_grammars: bool = False
    """Let chat clients bring grammars (json_schema, structured_outputs), if the engine takes them.
    Each is first compiled in a child process, in 1 s (extra grammars)."""
    max_chat_bytes: Positive = 65_536
    """The longest conversation, all texts together."""
    default_max_points: Annotated[int, Field(ge=3)] | None = None
    """Vertices of a region where the request says nothing."""
    max_points: Annotated[int, Field(ge=3)] = 1024
    """Vertices of a region that a request may ask for."""
    default_max_tokens: Positive = 1024
    """Tokens of an answer where the request says nothing."""
    max_tokens: Positive = 8192
    """Tokens of an answer that a request may ask for."""
    max_deadline_ms: Positive = 300_000
    """The longest `deadline_ms` of a request, and that of requests without one. At the deadline the
    answer is what is finished by then; it is 503 where the request has none and nothing is."""

    max_running_prompts: Positive | None = None
    """Prompts that the engine works on at once; without it, what the engine can take."""
    max_queued_requests: Annotated[int, Field(ge=0)] = 32
    """Requests that may wait beyond those that fill the engine; more are answered 503."""
    max_queue_s: Seconds = 60.0
    """Time that a prompt may wait for the engine; then its request is answered 503."""
    retry_after_s: Seconds = 1.0
    """How long refused clients are told to wait."""
    keep_alive_s: Seconds = 10.0
    """Silence after which a stream gets a comment, so that nobody takes it for dead."""
    worker_threads: Positive = 2
    """Threads that rasterise, and have images decoded by as many processes."""

    @model_validator(mode="after")
    def _ordered(self) -> "Settings":
        """No limit that the operator gave is beyond another one that was given."""
        given = self.model_fields_set
        for name, bound in _ORDERED:
            value = getattr(self, name)
            counts = bound in given or name == "default_max_points"
            if name in given and counts and value is not None and value > getattr(self, bound):
                message = "{name} is beyond {bound}"
                raise PydanticCustomError("limits", message, {"name": name, "bound": bound})
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        for name in ("requests_per_minute", "max_concurrent_requests"):
            if getattr(self, name) is not None and not self.has_keys:
                message = "{name} counts by API key, and there is none"
                raise PydanticCustomError("needs_keys", message, {"name": name})
        if self.spare and not (self.supervise and self.engine in ("auto", "embedded")):
            message = "spare is for the embedded engine, supervised"
            raise PydanticCustomError("spare_needs_embedded", message)
        if self.max_pixels_in_flight < self.max_image_pixels:
            message = "max_pixels_in_flight is less than max_image_pixels"
            raise PydanticCustomError("pixels_in_flight_too_few", message)
        if self.image_urls == "off" and self.image_url_hosts:
            message = "image_url_hosts lists hosts, and image_urls is off"
            raise PydanticCustomError("needs_image_urls", message)
        if self.image_urls == "listed" and not self.image_url_hosts:
            message = "image_urls is listed, and image_url_hosts lists none"
            raise PydanticCustomError("needs_image_url_hosts", message)
        if self.label_studio_url is not None and not self._lists(self.label_studio_url):
            message = "the host of label_studio_url must be one of image_url_hosts"
            raise PydanticCustomError("label_studio_host_unlisted", message)
        if self.label_studio_token is not None and self.label_studio_url is None:
            message = "label_studio_token is for label_studio_url, and there is none"
            raise PydanticCustomError("needs_label_studio_url", message)
        return self

    def _lists(self, url: str) -> bool:
        return Rules(self.image_url_hosts, WEB_PORTS, only_listed=True).allows(target_of(url))

    @property
    def has_keys(self) -> bool:
        """Whether clients need a key."""
        return bool(self.api_keys) or self.api_keys_file is not None

    def vllm_options(self) -> dict[str, Any]:
        """What was said to vLLM, as fields of ``VllmOptions``."""
        values = {
            "dtype": self.dtype,
            "quantization": self.quantization,
            "tensor_parallel_size": self.tensor_parallel_size,
            "max_model_len": self.max_model_len,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_pixels": self.max_model_pixels,
            "adapters": self.lora or None,
            "trust_remote_code": self.trust_remote_code or None,
        }
        return {name: value for name, value in values.items() if value is not None}

    def remote_options(self) -> dict[str, Any]:
        """What was said to the remote engine, as arguments of ``choose.remote_options``."""
        return {
            "upstreams": self.upstreams,
            "model": self.upstream_model,
            "api_keys": tuple(key.get_secret_value() for key in self.upstream_api_key),
            "dialect": self.dialect,
            "image_format": self.upstream_image_format,
            "logprobs": self.upstream_logprobs,
            "first_token_s": self.upstream_first_token_timeout_s,
            "idle_s": self.upstream_idle_timeout_s,
            "hedge_after_s": self.upstream_hedge_after_s,
        }

    def supervision(self) -> Supervision | None:
        """How a local engine is kept running; None where it is not."""
        if not self.supervise:
            return None
        return Supervision(Patience(stall_s=self.engine_stall_timeout_s), self.spare)

    def without_access(self) -> "Settings":
        """The same for a server inside this process, where keys would guard nothing, whose images
        are its user's own, and which an engine may end."""
        nothing = dict.fromkeys(("requests_per_minute", "max_concurrent_requests", "api_keys_file"))
        own = {"api_keys": (), "image_decoding": "thread", "supervise": False, "spare": False}
        return self.model_copy(update={**nothing, **own})
