"""Times of vLLM's vision tower, measured in the process that runs the model."""

import time
from typing import Any


class VisionClock:
    """Methods that vLLM adds to its worker; called by ``collective_rpc``."""

    model_runner: Any

    def start_vision_clock(self) -> None:
        self._vision_ms: list[float] = []
        visual = self.model_runner.model.visual
        visual.register_forward_pre_hook(self._began)
        visual.register_forward_hook(self._ended)

    def vision_ms(self) -> list[float]:
        """Milliseconds of each run since the last call."""
        found, self._vision_ms = self._vision_ms, []
        return found

    def _began(self, *_: Any) -> None:
        self._vision_began = time.perf_counter()

    def _ended(self, *_: Any) -> None:
        self._vision_ms.append((time.perf_counter() - self._vision_began) * 1e3)
