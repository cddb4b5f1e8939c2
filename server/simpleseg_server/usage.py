"""What answers cost, summed up."""

from collections.abc import Iterable, Sequence
from typing import Any

from simpleseg.schema import DraftUsage, Usage
from simpleseg_server.answers import Answer
from simpleseg_server.engines.base import Usage as EngineUsage


def usage_of(answers: Iterable[Answer]) -> Usage:
    """The sum over all answers."""
    usages = [answer.usage for answer in answers]
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    drafts = _drafts(usages)
    told: dict[str, Any] = {"drafts": drafts} if drafts else {}
    cached = [usage.cached_tokens for usage in usages]
    known = [count for count in cached if count is not None]
    if len(known) == len(cached):
        told["cached_tokens"] = sum(known)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        forward_passes=sum(usage.forward_passes for usage in usages),
        **told,
    )


def _drafts(usages: Sequence[EngineUsage]) -> dict[str, DraftUsage]:
    """Drafted tokens over all prompts, by kind."""
    counts = [count for usage in usages for count in usage.drafts]
    return {
        kind: DraftUsage(
            accepted=sum(count.accepted for count in counts if count.kind == kind),
            rejected=sum(count.rejected for count in counts if count.kind == kind),
        )
        for kind in sorted({count.kind for count in counts})
    }
