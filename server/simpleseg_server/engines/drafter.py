"""Contour drafts inside vLLM: a custom proposer on ``simpleseg_polygon.drafts``.

vLLM imports this in the process that runs the model, by the name in its speculative configuration,
and verifies what is proposed there, under the grammar. No answer depends on it.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.drafts import Drafter
from simpleseg_server.engines.profiles import Profile
from simpleseg_server.engines.prompting import Prompter

logger = logging.getLogger("simpleseg")


class ContourProposer:
    """vLLM's interface of a custom proposer (``speculative_config`` method ``custom_class``).

    Drafts nothing where this vLLM would sample wrongly from drafts.
    """

    def __init__(self, vllm_config: Any) -> None:
        from simpleseg_server.engines.vllm_compat import samples_drafts_rightly

        model = vllm_config.model_config
        profile = Profile.load(model.model)
        prompter = Prompter(model.model, profile, trust_remote_code=model.trust_remote_code)
        self._is_on = samples_drafts_rightly()
        if not self._is_on:
            logger.warning("drafting is off: this vLLM samples wrongly from drafts on a CPU")
        self._prompt_end = np.array(prompter.prompt_end)
        self._max_model_len = int(model.max_model_len)
        self._max_draft = int(vllm_config.speculative_config.num_speculative_tokens)
        self._drafter = contour_drafter(prompter, profile, self._max_draft)

    def load_model(self, *_: Any, **__: Any) -> None:
        """There is no draft model."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[np.int32],
        token_ids_cpu: NDArray[np.int32],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """A draft, perhaps empty, for each request of the batch.

        ``sampled_token_ids`` are the tokens of the last step, none for a prompt still being read;
        row i of ``token_ids_cpu`` begins with ``num_tokens_no_spec[i]`` tokens, prompt and answer.
        """
        return [
            self._draft(token_ids_cpu[i, : num_tokens_no_spec[i]]) if sampled else []
            for i, sampled in enumerate(sampled_token_ids)
        ]

    def _draft(self, tokens: NDArray[np.int32]) -> list[int]:
        room = min(self._max_draft, self._max_model_len - len(tokens) - 1)
        start = answer_start(tokens, self._prompt_end) if self._is_on else None
        if start is None or room <= 0:
            return []
        return self._drafter.draft(tokens[start:].tolist())[:room]


def contour_drafter(prompter: Prompter, profile: Profile, max_draft: int) -> Drafter:
    """What the proposer drafts with; equal arguments make it draft the same tokens anywhere."""
    return Drafter(
        prompter.vocabulary,
        max_draft,
        grid_hw=profile.input_hw,
        final_dot=profile.final_dot,
        end_token_id=prompter.end_token_id,
    )


def answer_start(tokens: NDArray[np.int32], prompt_end: NDArray[np.int64]) -> int | None:
    """Where the answer begins: after the last place where the prompt's end stands.

    >>> answer_start(np.array([7, 8, 5, 7, 8, 9, 9]), np.array([7, 8]))
    5
    """
    places = np.flatnonzero(tokens == prompt_end[0])
    for place in places[::-1].tolist():
        end = place + len(prompt_end)
        if end <= len(tokens) and (tokens[place:end] == prompt_end).all():
            return int(end)
    return None
