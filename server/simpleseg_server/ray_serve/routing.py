"""Ray Serve's router of requests: an image goes to the replica that has cached it."""

from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from simpleseg_server.affinity import affinity, fair_share


class ImageAffinityRouter(RequestRouter):  # type: ignore[misc]
    """Ranks an image's own replica first while its load is fair, and the others by load.

    The first argument of a call says by ``image_key`` what it belongs to; calls without one go to
    whichever is least loaded.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        image_key = _image_key(pending_request)
        if image_key is None or not candidate_replicas:
            return [candidate_replicas]
        own = max(candidate_replicas, key=lambda one: affinity(_name(one), image_key))
        loads = {_name(one): self._load(one) for one in candidate_replicas}
        share = fair_share(sum(loads.values()), 1 / len(candidate_replicas))
        if loads[_name(own)] >= min(share, own.max_ongoing_requests):
            return [candidate_replicas]
        return [[own], [one for one in candidate_replicas if one is not own]]

    def _load(self, replica: RunningReplica) -> int:
        """What this process last heard or sent; nothing where it knows nothing."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def _name(replica: RunningReplica) -> str:
    return str(replica.replica_id.unique_id)


def _image_key(pending: PendingRequest | None) -> str | None:
    arguments: Sequence[Any] = pending.args if pending is not None else ()
    key = getattr(arguments[0], "image_key", None) if arguments else None
    return key if isinstance(key, str) else None
