"""What the routes share: one object for each server, kept on the application."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from fastapi import Request

from simpleseg_server.admission import Admission
from simpleseg_server.config import ConfigError, Settings
from simpleseg_server.fetch import Fetcher, Network
from simpleseg_server.grammar_judge import GrammarJudge
from simpleseg_server.image_intake import ImageIntake
from simpleseg_server.image_store import ImageStore
from simpleseg_server.keeper import EngineKeeper
from simpleseg_server.pipeline import Segmenter
from simpleseg_server.telemetry import Metrics


@dataclass(frozen=True)
class Services:
    """Settings, the engine's keeper, metrics, the threads that rasterise and have images decoded,
    and the network that images are fetched from, None for the world's."""

    settings: Settings
    keeper: EngineKeeper
    metrics: Metrics
    workers: ThreadPoolExecutor
    network: Network | None = None

    @cached_property
    def grammars(self) -> GrammarJudge:
        """Judges the grammars that clients bring. Raises ConfigError."""
        return GrammarJudge(self.settings)

    @cached_property
    def images(self) -> ImageStore:
        """The images that clients have uploaded."""
        return ImageStore(
            self.settings.max_kept_image_bytes,
            self.settings.kept_image_ttl_s,
            on_look=lambda look: self.metrics.image_cache.labels(look).inc(),
        )

    @cached_property
    def fetcher(self) -> Fetcher:
        """Fetches the images that clients name by URL."""
        return Fetcher(
            self.settings,
            self.network,
            on_outcome=lambda outcome: self.metrics.fetches.labels(outcome).inc(),
        )

    @property
    def admission(self) -> Admission | None:
        """Who is in the house; None before anybody has asked for anything."""
        return self.segmenter.admission if "segmenter" in self.__dict__ else None

    @cached_property
    def intake(self) -> ImageIntake:
        """Decodes images."""
        return ImageIntake(self.settings, self.workers, self.metrics)

    def start_workers(self) -> None:
        """Start all threads: one that there is no room for later would fail a request. Raises
        ConfigError."""
        count = self.settings.worker_threads
        all_here = threading.Barrier(count)
        try:
            for _ in range(count):
                self.workers.submit(all_here.wait)
        except RuntimeError:
            all_here.abort()
            message = f"worker_threads: the system has no room for {count} threads"
            raise ConfigError(message) from None

    def close_workers(self) -> None:
        """End the threads, and then the processes that work for them."""
        self.workers.shutdown(wait=True, cancel_futures=True)
        self.intake.close()

    @cached_property
    def segmenter(self) -> Segmenter:
        """Made when first used: an engine knows its capabilities once it has started."""
        engine, settings = self.keeper.engine, self.settings
        admission = Admission(
            slots=settings.max_running_prompts or engine.capabilities.max_concurrency,
            max_queued_requests=settings.max_queued_requests,
            retry_after_s=settings.retry_after_s,
            max_queue_s=settings.max_queue_s,
        )
        self.metrics.watch(lambda: admission.requests, lambda: admission.waiting_prompts)
        return Segmenter(
            engine,
            settings,
            admission,
            self.workers,
            self.images,
            self.fetcher,
            self.intake,
            self.metrics,
        )


def owner_of(request: Request) -> str:
    """The name of the API key that a request came with; "" where none is needed."""
    return str(getattr(request.state, "key_name", ""))


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)
