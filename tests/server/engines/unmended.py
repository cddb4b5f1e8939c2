"""The proposer of drafts without the mend of vLLM's sampling, for a test that must notice."""

from typing import Any

from simpleseg_server.engines import vllm_compat
from simpleseg_server.engines.drafter import ContourProposer


class UnmendedProposer(ContourProposer):
    def __init__(self, vllm_config: Any) -> None:
        vllm_compat.samples_drafts_rightly = lambda: True
        super().__init__(vllm_config)
