"""Prometheus metrics of one server, in a registry of its own, so that several servers can run in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mgpo.asking.grounded import Answer


class Metrics:
    """The metrics that `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("mgpo_requests", "Requests, by status code.", ["status"], registry=self.registry)
        self.boxes = Counter(
            "mgpo_boxes", "First turns, by the status of their box.", ["status"], registry=self.registry
        )
        self.seconds = Histogram("mgpo_answer_seconds", "Seconds from arrival to answer.", registry=self.registry)
        self.batches = Histogram(
            "mgpo_batch_size", "Questions per batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.waiting = Gauge("mgpo_waiting", "Requests in the queue or running.", registry=self.registry)

    def answered(self, answer: Answer, seconds: float) -> None:
        """Record an answer and the time that it took."""
        self.seconds.observe(seconds)
        if answer.turns[0].status is not None:
            self.boxes.labels(answer.turns[0].status).inc()

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
