"""All beats and all viewers in the Prometheus text format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.streamer.health import Pulse

if TYPE_CHECKING:
    from services.streamer.mjpeg import FrameHub

__all__ = ["exposition"]

ENGINE: Final = ("engine", "device", "threads", "precision")
"""what of a worker's own words becomes labels"""


def exposition(pulses: Sequence[Pulse], hub: FrameHub, now_s: float) -> bytes:
    """Write everything that is counted.

    Args:
        pulses: the newest beat of every process.
        hub: the viewers.
        now_s: monotonic time.

    Returns:
        the Prometheus text format 0.0.4.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(pulses, hub, now_s))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, pulses: Sequence[Pulse], hub: FrameHub, now_s: float) -> None:
        self._pulses = pulses
        self._hub = hub
        self._now_s = now_s

    def collect(self) -> Iterator[Metric]:
        labels = ["service", "instance"]
        up = GaugeMetricFamily("mouthpiece_up", "1 while the beats of a process come", labels=labels)
        memory = GaugeMetricFamily("mouthpiece_memory_bytes", "Memory in use", labels=labels)
        cpu = CounterMetricFamily("mouthpiece_cpu_seconds", "Processor time used", labels=labels)
        uptime = GaugeMetricFamily("mouthpiece_uptime_seconds", "Time since the start", labels=labels)
        engine = GaugeMetricFamily("mouthpiece_engine_info", "What a worker computes with", labels=[*labels, *ENGINE])
        counters: dict[str, CounterMetricFamily] = {}
        gauges: dict[str, GaugeMetricFamily] = {}
        for pulse in self._pulses:
            beat = pulse.beat
            who = [beat.service, beat.instance]
            up.add_metric(who, float(pulse.alive(self._now_s)))
            memory.add_metric(who, float(beat.rss_bytes))
            cpu.add_metric(who, beat.cpu_s)
            uptime.add_metric(who, beat.uptime_s)
            if "engine" in beat.info:
                engine.add_metric([*who, *(beat.info.get(name, "") for name in ENGINE)], 1.0)
            for name, value in beat.counters.items():
                family = counters.setdefault(
                    name, CounterMetricFamily(f"mouthpiece_{_safe(name)}", f"Total of {name}", labels=labels)
                )
                family.add_metric(who, value)
            for name, value in beat.gauges.items():
                gauge = gauges.setdefault(
                    name, GaugeMetricFamily(f"mouthpiece_now_{_safe(name)}", f"Present {name}", labels=labels)
                )
                gauge.add_metric(who, value)
        viewers = GaugeMetricFamily("mouthpiece_viewer_rate_hz", "Frames a second of each viewer", labels=["viewer"])
        stats = self._hub.stats()
        for viewer in stats:
            viewers.add_metric([str(viewer.id)], viewer.rate_hz)
        yield from (up, memory, cpu, uptime, engine, viewers, *counters.values(), *gauges.values())
        yield GaugeMetricFamily("mouthpiece_viewers", "Open streams", value=float(len(stats)))
        yield CounterMetricFamily("mouthpiece_jpegs", "JPEGs encoded", value=float(self._hub.encodes))


def _safe(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)
