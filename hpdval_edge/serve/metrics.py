"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.info = Info("hpedge", "The server.", registry=registry)
        self.requests = Counter(
            "hpedge_requests", "Requests answered.", ["method", "path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "hpedge_request_seconds",
            "From a request's head to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.pictures = Counter("hpedge_pictures", "Pictures classified.", registry=registry)
        self.batch = Histogram(
            "hpedge_batch_pictures", "Pictures an engine call took.", buckets=BATCHES, registry=registry
        )
        self.engine = Histogram("hpedge_engine_seconds", "Time of an engine call.", buckets=SECONDS, registry=registry)
        self.queue = Gauge("hpedge_queue_pictures", "Pictures admitted and not yet answered.", registry=registry)
        self.held = Gauge("hpedge_held_bytes", "Bodies of requests in memory.", registry=registry)
        self.labels = Gauge("hpedge_labels", "Labels of the bundle.", registry=registry)
        self.reloads = Counter("hpedge_reloads", "Times a changed bundle was taken over.", registry=registry)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
