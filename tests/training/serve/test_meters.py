"""What Prometheus reads."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from training.model.answering.decoder import Decoder
from training.parts import Assembled
from training.serve.engine import Engine
from training.serve.meters import Meters


def values_of(meters: Meters) -> dict[str, float]:
    families = text_string_to_metric_families(meters.text().decode())
    return {
        one.name + "".join(map(str, one.labels.values())): one.value
        for family in families
        for one in family.samples
    }


def test_what_is_counted_is_told_and_each_server_counts_its_own(parts: Assembled) -> None:
    engine = Engine(Decoder(parts.model, parts.processor.tokenizer), batch_size=1, waiting=1)
    meters, other = Meters(engine), Meters(engine)
    meters.requests.labels("200").inc()
    meters.tokens.labels("prompt").inc(7)
    meters.seconds.observe(0.3)
    found: dict[str, Any] = values_of(meters)
    assert found["aligngpt_requests_total200"] == 1
    assert found["aligngpt_tokens_totalprompt"] == 7
    assert found["aligngpt_request_seconds_bucket0.25"] == 0
    assert found["aligngpt_request_seconds_bucket0.5"] == 1
    assert (found["aligngpt_waiting"], found["aligngpt_running"]) == (0, 0)
    assert "aligngpt_requests_total200" not in values_of(other)
