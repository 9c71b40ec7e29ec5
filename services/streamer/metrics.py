"""All beats and all viewers in the Prometheus text format.

`FAMILIES` names what is measured, `SOURCES` says which counters and gauges of the beats it is made of. What a service
counts beyond that is told all the same, under its own name: `mouthpiece_NAME_total` and `mouthpiece_now_NAME`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.streamer.health import Pulse
from shared.clock import SAMPLE_RATE_HZ
from shared.service import BUCKETS_S

if TYPE_CHECKING:
    from services.streamer.mjpeg import FrameHub
    from services.streamer.sound import SoundHub

__all__ = ["FAMILIES", "Family", "Screen", "exposition"]

SESSION: Final = ("session",)
PROCESS: Final = ("service", "process")
"""Prometheus puts `instance` and `job` to it: which streamer told it"""
ENGINE: Final = ("engine", "device", "threads", "precision")
"""what of a worker's own words becomes labels"""


@dataclass(frozen=True)
class Family:
    """One metric."""

    name: str
    """as Prometheus shows it"""
    kind: Literal["counter", "gauge", "histogram"]
    words: str
    """what it is, for people"""
    labels: tuple[str, ...] = PROCESS


@dataclass(frozen=True)
class Source:
    """Where the values of a family stand in a beat."""

    told: str
    """name in the beat; one that ends with `*` is the beginning of many, and the rest becomes the last label"""
    family: str
    label: str = ""
    """value of the last label, when it is not the rest of the name"""
    scale: float = 1.0


FAMILIES: Final = {
    family.name: family
    for family in (
        # processes
        Family("mouthpiece_processes", "gauge", "processes of a service whose beats come", ("service",)),
        Family(
            "mouthpiece_starts_total",
            "counter",
            "processes of a service that began to beat since the streamer did; its own since the state folder was made",
            ("service",),
        ),
        Family("mouthpiece_given_up", "gauge", "1 while a service is left down after too many ends", ("service",)),
        Family("mouthpiece_up", "gauge", "1 while the beats of a process come, 0 for a minute after that"),
        Family("mouthpiece_uptime_seconds", "gauge", "time since the start of a process"),
        Family("mouthpiece_cpu_seconds_total", "counter", "processor time used"),
        Family("mouthpiece_memory_bytes", "gauge", "memory in use (RSS)"),
        Family("mouthpiece_proportional_memory_bytes", "gauge", "the same with shared pages in equal parts (PSS)"),
        Family("mouthpiece_open_files", "gauge", "open file descriptors"),
        Family(
            "mouthpiece_engine_info",
            "gauge",
            "1; the labels say what a worker computes with (threads as set; builtin takes one)",
            (*PROCESS, *ENGINE),
        ),
        # sound
        Family("mouthpiece_audio_chunks_total", "counter", "pieces of 20 ms of sound that were published"),
        Family(
            "mouthpiece_audio_gaps_total",
            "counter",
            "gaps in the sound, by reason; at a pause nothing is missing",
            (*PROCESS, "reason"),
        ),
        Family("mouthpiece_audio_gap_seconds_total", "counter", "sound that was missing when it was to be heard"),
        Family("mouthpiece_audio_lost_seconds_total", "counter", "sound that mel_features missed"),
        # frames
        Family("mouthpiece_windows_total", "counter", "mel windows given to workers"),
        Family("mouthpiece_frames_total", "counter", "frames made by a worker"),
        Family("mouthpiece_frames_shown_total", "counter", "frames made that were shown"),
        Family(
            "mouthpiece_frames_held_total", "counter", "ticks at which no new frame was there while the mouth moved"
        ),
        Family("mouthpiece_frames_published_total", "counter", "pictures handed to the viewers, repeats included"),
        Family(
            "mouthpiece_frames_dropped_total",
            "counter",
            "windows and frames that were left out, by reason",
            (*PROCESS, "reason"),
        ),
        Family("mouthpiece_render_seconds_total", "counter", "time in the engine"),
        Family("mouthpiece_render_mean_seconds", "gauge", "what one window takes a worker, median of the last ones"),
        Family("mouthpiece_prepare_seconds_total", "counter", "time in which the engine prepared faces"),
        Family(
            "mouthpiece_frame_age_seconds",
            "histogram",
            "time since a frame's own sound was heard (at stage heard: since the end of the piece of sound)",
            (*PROCESS, "stage"),
        ),
        Family(
            "mouthpiece_stage_duration_seconds",
            "histogram",
            "time that a frame waited or was worked on",
            (*PROCESS, "stage"),
        ),
        # sharing
        Family("mouthpiece_workers", "gauge", "workers that joined"),
        Family("mouthpiece_worker_events_total", "counter", "what happened to workers and work", (*PROCESS, "event")),
        Family("mouthpiece_credit", "gauge", "windows that workers would take now"),
        Family(
            "mouthpiece_queue_depth", "gauge", "windows that wait: in mel_features for credit, in a worker its turn"
        ),
        Family("mouthpiece_windows_in_work", "gauge", "windows given out and not yet done"),
        Family("mouthpiece_shortage_ratio", "gauge", "share of the frames for which no worker had credit in time"),
        Family("mouthpiece_sessions", "gauge", "sessions that are followed"),
        Family(
            "mouthpiece_faces_held",
            "gauge",
            "faces that a process holds: a worker prepared ones, the streamer those on show",
        ),
        # the picture
        Family("mouthpiece_session_running", "gauge", "1 while sound is heard and frames are wanted", SESSION),
        Family("mouthpiece_frame_rate_hz", "gauge", "pictures handed to the viewers in the last second", SESSION),
        Family("mouthpiece_latency_seconds", "gauge", "sound heard to frame shown, smoothed", SESSION),
        Family("mouthpiece_playout_delay_seconds", "gauge", "age at which frames are due", SESSION),
        Family(
            "mouthpiece_av_skew_seconds", "gauge", "how late frames are shown against their sound, smoothed", SESSION
        ),
        Family("mouthpiece_av_skew_abs_seconds", "histogram", "how far from its sound each frame was shown"),
        Family("mouthpiece_listeners", "gauge", "open streams of sound", SESSION),
        Family("mouthpiece_pushed_waiting_seconds", "gauge", "sound that was pushed and not heard yet", SESSION),
        Family(
            "mouthpiece_sound_skew_abs_seconds", "histogram", "how far the streams of sound were from the picture shown"
        ),
        Family("mouthpiece_sound_missing_seconds_total", "counter", "sound that a stream of sound had to do without"),
        Family("mouthpiece_sound_dropped_seconds_total", "counter", "sound that players were too slow for"),
        Family("mouthpiece_player_skew_abs_seconds", "histogram", "how far from its sound a player drew its picture"),
        Family("mouthpiece_viewers", "gauge", "open streams", SESSION),
        Family("mouthpiece_viewer_rate_hz", "gauge", "frames a second of each viewer", ("session", "viewer")),
        Family("mouthpiece_jpegs_total", "counter", "JPEGs encoded", ()),
        Family("mouthpiece_jpeg_seconds_total", "counter", "processor time that encoding them took", ()),
        # messages
        Family("mouthpiece_messages_sent_total", "counter", "messages sent", (*PROCESS, "topic")),
        Family("mouthpiece_messages_received_total", "counter", "messages received", (*PROCESS, "topic")),
        Family("mouthpiece_messages_blocked_total", "counter", "messages that no queue took", (*PROCESS, "topic")),
        Family("mouthpiece_messages_corrupt_total", "counter", "messages that were none", (*PROCESS, "topic")),
        Family(
            "mouthpiece_messages_refused_total",
            "counter",
            "connections that were refused for their key",
            (*PROCESS, "topic"),
        ),
    )
}

COUNTED: Final = (
    Source("chunks", "mouthpiece_audio_chunks_total"),
    Source("gap_samples", "mouthpiece_audio_gap_seconds_total", scale=1 / SAMPLE_RATE_HZ),
    Source("gap_*", "mouthpiece_audio_gaps_total"),
    Source("lost_samples", "mouthpiece_audio_lost_seconds_total", scale=1 / SAMPLE_RATE_HZ),
    Source("windows", "mouthpiece_windows_total"),
    Source("frames", "mouthpiece_frames_total"),
    Source("published", "mouthpiece_frames_published_total"),
    Source("dropped_*", "mouthpiece_frames_dropped_total"),
    Source("patch_epoch", "mouthpiece_frames_dropped_total", "epoch"),
    Source("patch_face", "mouthpiece_frames_dropped_total", "face"),
    Source("patch_base", "mouthpiece_frames_dropped_total", "base"),
    Source("playout.shown", "mouthpiece_frames_shown_total"),
    Source("playout.held", "mouthpiece_frames_held_total"),
    Source("playout.late", "mouthpiece_frames_dropped_total", "late"),
    Source("playout.skipped", "mouthpiece_frames_dropped_total", "skipped"),
    Source("playout.twice", "mouthpiece_frames_dropped_total", "twice"),
    Source("playout.overflow", "mouthpiece_frames_dropped_total", "overflow"),
    Source("render_seconds", "mouthpiece_render_seconds_total"),
    Source("prepare_seconds", "mouthpiece_prepare_seconds_total"),
    Source("sent.*", "mouthpiece_messages_sent_total"),
    Source("received.*", "mouthpiece_messages_received_total"),
    Source("send_blocked.*", "mouthpiece_messages_blocked_total"),
    Source("corrupt.*", "mouthpiece_messages_corrupt_total"),
    Source("refused.*", "mouthpiece_messages_refused_total"),
    Source("hist.age_*", "mouthpiece_frame_age_seconds"),
    Source("hist.took_*", "mouthpiece_stage_duration_seconds"),
    Source("hist.sound_skew*", "mouthpiece_sound_skew_abs_seconds"),
    Source("sound.missing_samples", "mouthpiece_sound_missing_seconds_total", scale=1 / SAMPLE_RATE_HZ),
    Source("sound.tap_dropped_samples", "mouthpiece_sound_dropped_seconds_total", scale=1 / SAMPLE_RATE_HZ),
    Source("hist.player_skew*", "mouthpiece_player_skew_abs_seconds"),
    Source("hist.skew*", "mouthpiece_av_skew_abs_seconds"),
)
PRESENT: Final = (
    Source("workers", "mouthpiece_workers"),
    Source("pool_*", "mouthpiece_worker_events_total"),
    Source("credit", "mouthpiece_credit"),
    Source("queue", "mouthpiece_queue_depth"),
    Source("in_work", "mouthpiece_windows_in_work"),
    Source("short", "mouthpiece_shortage_ratio"),
    Source("sessions", "mouthpiece_sessions"),
    Source("faces", "mouthpiece_faces_held"),
    Source("render_ms", "mouthpiece_render_mean_seconds", scale=1e-3),
    Source("pss_bytes", "mouthpiece_proportional_memory_bytes"),
    Source("open_files", "mouthpiece_open_files"),
)
"""of the gauges; `COUNTED` of the counters"""


@dataclass(frozen=True)
class Screen:
    """What is seen and heard of one session."""

    hub: FrameHub
    sound: SoundHub
    running: bool
    frame_rate_hz: float
    latency_s: float | None
    """None before the first frame"""
    delay_s: float
    skew_s: float
    waiting_s: float


def exposition(
    pulses: Sequence[Pulse],
    starts: Mapping[str, int],
    given_up: Mapping[str, str],
    screens: Mapping[str, Screen],
    now_s: float,
) -> bytes:
    """Write everything that is counted.

    Args:
        pulses: the newest beat of every process.
        starts: by service, how many processes began to beat.
        given_up: by service, why it is left down; empty words while it is not.
        screens: by session, its viewers and what they see.
        now_s: monotonic time.

    Returns:
        the Prometheus text format 0.0.4.
    """
    table = _Table()
    for service, words in given_up.items():
        alive = sum(pulse.alive(now_s) for pulse in pulses if pulse.beat.service == service)
        table.add("mouthpiece_processes", (service,), alive)
        table.add("mouthpiece_starts_total", (service,), starts.get(service, 0))
        table.add("mouthpiece_given_up", (service,), bool(words))
    for pulse in pulses:
        _tell_process(table, pulse, now_s)
    table.add("mouthpiece_jpegs_total", (), 0)
    table.add("mouthpiece_jpeg_seconds_total", (), 0)
    for name, screen in screens.items():
        _tell_screen(table, name, screen)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(table)
    return generate_latest(registry)


def _tell_screen(table: _Table, name: str, screen: Screen) -> None:
    stats = screen.hub.stats()
    for viewer in stats:
        table.add("mouthpiece_viewer_rate_hz", (name, str(viewer.id)), viewer.rate_hz)
    table.add("mouthpiece_viewers", (name,), len(stats))
    table.add("mouthpiece_listeners", (name,), screen.sound.listeners)
    table.add("mouthpiece_jpegs_total", (), screen.hub.encodes)
    table.add("mouthpiece_jpeg_seconds_total", (), screen.hub.encode_s)
    table.add("mouthpiece_session_running", (name,), screen.running)
    table.add("mouthpiece_frame_rate_hz", (name,), screen.frame_rate_hz)
    table.add("mouthpiece_playout_delay_seconds", (name,), screen.delay_s)
    table.add("mouthpiece_av_skew_seconds", (name,), screen.skew_s)
    table.add("mouthpiece_pushed_waiting_seconds", (name,), screen.waiting_s)
    if screen.latency_s is not None:
        table.add("mouthpiece_latency_seconds", (name,), screen.latency_s)


def _tell_process(table: _Table, pulse: Pulse, now_s: float) -> None:
    beat = pulse.beat
    who = (beat.service, beat.instance)
    alive = pulse.alive(now_s)
    table.add("mouthpiece_up", who, alive)
    table.add("mouthpiece_cpu_seconds_total", who, beat.cpu_s)
    if alive:
        table.add("mouthpiece_memory_bytes", who, beat.rss_bytes)
        table.add("mouthpiece_uptime_seconds", who, beat.uptime_s)
        if beat.service == "inference":
            table.add("mouthpiece_engine_info", (*who, *(beat.info.get(name, "") for name in ENGINE)), 1.0)
    # What a process that is gone said last is no present value of anything; what it counted was counted.
    gauges = beat.gauges if alive else {}
    for told, sources, own in ((beat.counters, COUNTED, "mouthpiece_{}_total"), (gauges, PRESENT, "mouthpiece_now_{}")):
        for name, value in told.items():
            source, rest = _source(name, sources)
            if name.startswith(("sent.", "received.")):
                for bad in ("blocked", "corrupt", "refused"):  # 0 from the start, so that a first time shows as a rise
                    table.add(f"mouthpiece_messages_{bad}_total", (*who, name.partition(".")[2]), 0.0)
            if source is None:
                table.add_own(own.format(re.sub(r"[^a-zA-Z0-9_]", "_", name)), name, who, value)
                continue
            family = FAMILIES[source.family]
            if family.kind == "histogram":
                stage, _, part = rest.rpartition(".")
                table.observe(family.name, (*who, *([stage] if stage else [])), part, value)
            elif family.labels == PROCESS:
                table.add(family.name, who, value * source.scale)
            else:
                table.add(family.name, (*who, source.label or rest), value * source.scale)


def _source(name: str, sources: Iterable[Source]) -> tuple[Source | None, str]:
    """Where a name of a beat belongs, and what of the name becomes a label."""
    for source in sources:
        if source.told == name:
            return source, ""
        if source.told.endswith("*") and name.startswith(source.told[:-1]):
            return source, name[len(source.told) - 1 :]
    return None, ""


Labels = tuple[str, ...]


class _Table(Collector):
    """Values by family and labels; what comes twice is added up."""

    def __init__(self) -> None:
        self._values: defaultdict[str, defaultdict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._buckets: defaultdict[str, defaultdict[Labels, defaultdict[str, float]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(float))
        )
        self._own: dict[str, Family] = {}

    def add(self, family: str, labels: Labels, value: float) -> None:
        self._values[family][labels] += value

    def add_own(self, family: str, name: str, labels: Labels, value: float) -> None:
        """Add what has no family of its own; a worker cannot put anything under a name that has one."""
        if family in FAMILIES:
            family = family.replace("mouthpiece_", "mouthpiece_other_", 1)
        counter = family.endswith("_total")
        words = f"total of {name}" if counter else f"present {name}"
        self._own.setdefault(family, Family(family, "counter" if counter else "gauge", words))
        self._values[family][labels] += value

    def observe(self, family: str, labels: Labels, part: str, value: float) -> None:
        """Add to a class, named by its number, or to the sum."""
        self._buckets[family][labels][part] += value

    def collect(self) -> Iterator[Metric]:
        """Give what was put in, family by family."""
        for family in (*FAMILIES.values(), *self._own.values()):
            if family.kind == "histogram":
                yield self._histogram(family)
                continue
            make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = make(family.name.removesuffix("_total"), _sentence(family), labels=family.labels)
            for labels, value in self._values[family.name].items():
                metric.add_metric(labels, value)
            yield metric

    def _histogram(self, family: Family) -> HistogramMetricFamily:
        metric = HistogramMetricFamily(family.name, _sentence(family), labels=family.labels)
        for labels, parts in self._buckets[family.name].items():
            below, classes = 0.0, []
            for number, bound in enumerate((*BUCKETS_S, float("inf"))):
                below += parts[str(number)]
                classes.append(("+Inf" if bound == float("inf") else str(bound), below))
            metric.add_metric(labels, classes, parts["sum"])
        return metric


def _sentence(family: Family) -> str:
    return family.words[0].upper() + family.words[1:]
