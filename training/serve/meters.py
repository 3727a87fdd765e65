"""What is counted while serving, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from training.serve.engine import Engine

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Meters:
    """The counters of one server."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "aligngpt_requests", "Requests for answers, by status", ["status"], registry=registry
        )
        self.tokens = Counter(
            "aligngpt_tokens", "Tokens read and said", ["kind"], registry=registry
        )
        self.images = Counter("aligngpt_images", "Pictures looked at", registry=registry)
        self.gone = Counter(
            "aligngpt_gone", "Requests whose client left before the end", registry=registry
        )
        self.first_seconds = Histogram(
            "aligngpt_first_token_seconds",
            "From the request to the first word",
            buckets=SECONDS,
            registry=registry,
        )
        self.seconds = Histogram(
            "aligngpt_request_seconds",
            "From the request to the end of its answer",
            buckets=SECONDS,
            registry=registry,
        )
        waiting = Gauge("aligngpt_waiting", "Requests that wait their turn", registry=registry)
        waiting.set_function(lambda: engine.load.waiting)
        running = Gauge("aligngpt_running", "Answers that are being made", registry=registry)
        running.set_function(lambda: engine.load.running)

    def text(self) -> bytes:
        """Returns all of it in Prometheus's form."""
        return generate_latest(self._registry)
