"""What one of many workers may ask of a host, so that all together keep to what it allows.

Workers know nothing of each other while they fetch, on one machine as on a cluster: each keeps to
its share, and the shares add up. A limit of requests at once that has less than one for each worker
is kept by resting: after each request, the worker leaves the host alone for so many times as long
as the request took that its share of the time is its share of the limit. So no clock and no message
is shared, and a slow host is asked less often by all.
"""

import random
from dataclasses import dataclass

from pipeline.config import FetchConfig

MAX_FIRST_WAIT_SECONDS = 30.0
"""How far apart workers that begin together ask a host for the first time, at most."""


@dataclass(frozen=True, slots=True)
class HostShare:
    """A worker's share of what a host may be asked."""

    workers: int
    """That fetch at once."""
    connections: int
    """Requests at once."""
    rest_ratio: float = 0.0
    """Times as long as a request took, for which the host is then left alone."""

    @classmethod
    def of(cls, config: FetchConfig) -> "HostShare":
        """Returns the share of each worker of those that fetch with a configuration."""
        workers, limit = max(1, config.sharing_workers), config.connections_per_host
        if workers <= limit:
            return cls(workers, limit // workers)
        return cls(workers, 1, workers / limit - 1)

    def seconds_between(self, seconds: float) -> float:
        """Returns what is between two requests of a worker where a host wants `seconds`."""
        return seconds * self.workers

    def first_wait(self) -> float:
        """Returns how long a host that this worker never asked waits for its first request.

        By chance, or all workers that begin together would ask it together: apart as requests of a
        second each would be.
        """
        return random.uniform(0.0, min(self.rest_ratio, MAX_FIRST_WAIT_SECONDS))

    def phase(self) -> float:
        """Returns the part of a first wait between two requests that is waited, by chance."""
        return random.random() if self.workers > 1 else 1.0
