"""Exports the numbers of a run as OpenTelemetry metrics, by OTLP over HTTP.

The standard variables say where they go, e.g. OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318, and how often
(OTEL_METRIC_EXPORT_INTERVAL, in ms). Each number is a gauge `megascratch.train.loss`; the run is the resource.
"""

from typing import Any

from megascratch.training.sinks.sink import RunIdentity
from megascratch.training.words.interface import Row

SERVICE = "megascratch"


class OpenTelemetry:
    """Gauges with the newest number of each tag, and the step as a gauge of its own."""

    def __init__(self, run: RunIdentity):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
            OTLPMetricExporter,  # extra
        )
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource

        attributes = {
            "service.name": SERVICE,
            "service.namespace": run.project,
            "service.instance.id": run.id,
            "megascratch.run": run.name,
        }
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        self._provider = MeterProvider([reader], resource=Resource.create(attributes))
        self._meter = self._provider.get_meter(SERVICE)
        self._points = run.words.points
        self._gauges: dict[str, Any] = {}

    def add(self, row: Row) -> None:
        """Sets the gauges to the numbers of a row."""
        values = dict(self._points(row).by_step)
        if "event" not in row:
            values["step"] = row["step"]
        for tag, value in values.items():
            name = f"{SERVICE}.{tag.replace('/', '.').replace(' ', '_')}"
            if name not in self._gauges:
                self._gauges[name] = self._meter.create_gauge(name)
            self._gauges[name].set(value)

    def close(self, exit_code: int) -> str:
        """Exports the newest numbers, and ends."""
        self._provider.shutdown()
        return ""
