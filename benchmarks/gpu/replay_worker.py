"""What ``replay.py`` adds to the process that runs the model: vLLM loads it there by name.

vLLM refuses custom logits processors together with speculation. So the token to come is added to
the logits where vLLM's own processors have not yet seen them: after the grammar's mask, before its
sampler and its verification of drafts, whose code is untouched. Where the grammar forbids a forced
token it stays forbidden, and another text comes out, which ``replay.py`` notices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simpleseg_polygon.drafts import Drafter
from simpleseg_server.engines.drafter import ContourProposer
from simpleseg_server.engines.prompting import Prompter

FORCE = 1e4
"""Added to the logit of the token to come: more than any logit is above another."""
ID_END = "#"
"""Ends the name of an answer in a request id; engines append what they like."""


class StructureProposer(ContourProposer):
    """Drafts what stands between numbers, and no digit."""

    def __init__(self, vllm_config: Any) -> None:
        super().__init__(vllm_config)
        vocabulary = Prompter(vllm_config.model_config.model).vocabulary
        self._drafter = Drafter(vocabulary, self._max_draft, digits=0)


@dataclass
class Count:
    """Where in an answer passes began (the prefill's at 0), and how many tokens were drafted."""

    places: set[int] = field(default_factory=set)
    drafted: int = 0


class Forcer:
    """Stands in for a model runner's ``_sample``: the rows of a request get the tokens that follow
    in its answer, one row for each drafted token and one for the token after them."""

    def __init__(self, runner: Any, answers: Mapping[str, Sequence[int]]) -> None:
        self.sample: Callable[[Tensor | None, Any], Any] = runner._sample
        self.counts: dict[str, Count] = {}
        self.steps = 0
        self._runner = runner
        self._answers = answers

    def __call__(self, logits: Tensor | None, drafts: Any) -> Any:
        if logits is not None:
            self._force(logits, None if drafts is None else drafts.num_draft_tokens)
        return self.sample(logits, drafts)

    def _force(self, logits: Tensor, drafted: Sequence[int] | None) -> None:
        batch = self._runner.input_batch
        rows: list[int] = []
        tokens: list[int] = []
        row = 0
        for index, request_id in enumerate(batch.req_ids):
            width = 1 if drafted is None else drafted[index] + 1
            answer = self._answers.get(request_id.partition(ID_END)[0])
            if answer is not None:
                done = int(batch.num_tokens_no_spec[index] - batch.num_prompt_tokens[index])
                last = len(answer) - 1
                rows += range(row, row + width)
                tokens += [answer[min(done + ahead, last)] for ahead in range(width)]
                self._count(request_id, done, width - 1)
            row += width
        if rows:
            self.steps += 1
            places = torch.tensor([rows, tokens]).to(logits.device, non_blocking=True)
            logits[places[0], places[1]] += FORCE

    def _count(self, request_id: str, done: int, drafted: int) -> None:
        """A prompt that is read in several steps is at the same place in all of them."""
        count = self.counts.setdefault(request_id, Count())
        count.places.add(done)
        count.drafted += drafted


class ReplayExtension:
    """Methods that vLLM adds to its worker; called by ``collective_rpc``."""

    model_runner: Any

    def replay_answers(self, answers: dict[str, list[int]]) -> None:
        """Force these answers, by name, from now on."""
        self.model_runner._sample = Forcer(self.model_runner, answers)

    def replay_counts(self) -> dict[str, Any]:
        """Since the last call: steps, and by request id the passes and the drafted tokens."""
        forcer = self.model_runner._sample
        counts = {name: [len(c.places), c.drafted] for name, c in forcer.counts.items()}
        steps, forcer.steps, forcer.counts = forcer.steps, 0, {}
        return {"steps": steps, "counts": counts}
