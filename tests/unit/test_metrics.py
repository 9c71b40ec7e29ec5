"""/metrics: every family, as Prometheus reads it; and the alerts and the dashboard that are made of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.streamer import metrics
from services.streamer.health import GivenUp, Health, Pulse, note_start
from services.streamer.metrics import FAMILIES, Screen, exposition
from services.streamer.mjpeg import FrameHub
from services.streamer.sound import SoundHub
from shared.messages import Beat, pack, unpack
from shared.service import BUCKETS_S
from shared.topics import SERVICES
from tests.rig.stack import ROOT

DEPLOY: Final = ROOT / "deploy"
PROMTOOL: Final = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="promtool is missing; install it to check what is written for Prometheus: apt-get install prometheus",
)
OWN: Final = {"up"}
"""metrics that Prometheus itself makes"""


def beat(service: str, instance: str, **fields: Any) -> Beat:
    whole: dict[str, Any] = {
        "pid": 1, "uptime_s": 10.0, "cpu_s": 2.0, "rss_bytes": 1000, "counters": {}, "gauges": {}, "info": {},
        "last_error": "",
    }  # fmt: skip
    return Beat(service=service, instance=instance, **(whole | fields))


def everything() -> list[Pulse]:
    """Beats with all that `FAMILIES` are made of."""
    parts = [*map(str, range(len(BUCKETS_S) + 1)), "sum"]
    counters: dict[str, float] = {}
    for number, source in enumerate(metrics.COUNTED):
        if source.told.startswith("hist."):
            stage = "" if source.told.endswith("skew*") else "shown"
            counters |= {f"{source.told[:-1]}{stage}.{part}": 1.0 for part in parts}
        else:
            counters[source.told.replace("*", "one")] = float(number)
    gauges = {source.told.replace("*", "one"): float(number) for number, source in enumerate(metrics.PRESENT)}
    whole = beat("inference", "abc", counters=counters, gauges=gauges, info={"engine": "builtin"})
    unpack([bytes(frame) for frame in pack(whole)], [Beat])
    return [Pulse(whole, 100.0)]


def screen(**fields: Any) -> Screen:
    whole: dict[str, Any] = {
        "hub": FrameHub(), "sound": SoundHub(), "running": True, "frame_rate_hz": 25.0, "latency_s": 0.18,
        "delay_s": 0.1, "skew_s": 0.001, "waiting_s": 0.0,
    }  # fmt: skip
    return Screen(**(whole | fields))


Found = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(pulses: list[Pulse], given_up: dict[str, str] | None = None, now_s: float = 100.5) -> Found:
    """What a scrape finds: value by name and labels."""
    down = dict.fromkeys(SERVICES, "") | (given_up or {})
    screens = {"default": screen(), "b": screen(running=False, latency_s=None)}
    text = exposition(pulses, {"inference": 2}, down, screens, now_s).decode()
    found: Found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert (sample.name, labels) not in found, f"{sample.name} {labels} stands there twice"
            found[sample.name, labels] = sample.value
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)), "a family begins twice"
    return found


def value(found: Found, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    (number,) = [v for (which, told), v in found.items() if which == name and wanted <= set(told)]
    return number


def test_every_family_is_made_of_something():
    hub = FrameHub()
    with hub.viewer():
        text = exposition(everything(), {}, dict.fromkeys(SERVICES, ""), {"default": screen(hub=hub)}, 100.5).decode()
    samples = {line.split("{")[0].split()[0] for line in text.splitlines() if not line.startswith("#")}
    for family in FAMILIES.values():
        name = f"{family.name}_bucket" if family.kind == "histogram" else family.name
        assert name in samples, f"nothing is ever told as {family.name}"
    assert {source.family for source in (*metrics.COUNTED, *metrics.PRESENT)} <= FAMILIES.keys()


def test_names_keep_the_conventions():
    for family in FAMILIES.values():
        assert re.fullmatch(r"mouthpiece_[a-z_]+", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert not re.search(r"_(ms|sec|millis|percent|mb|kb)(_|$)", family.name), "base units"
        assert not {"instance", "job"} & set(family.labels), "those are Prometheus' own"


def test_values_units_and_labels():
    counters = {"dropped_late": 3.0, "gap_overflow": 2.0, "gap_samples": 8000.0, "sent.beat": 9.0, "playout.late": 4.0}
    pulses = [
        Pulse(beat("streamer", "s", counters=counters, gauges={"sessions": 2.0}), 100.0),
        Pulse(beat("inference", "a", rss_bytes=7, info={"engine": "builtin", "device": "CPU"}), 100.0),
        Pulse(beat("inference", "b", gauges={"queue": 5.0}, counters={"frames": 5.0}), 90.0),
    ]
    found = read(pulses, {"inference": "inference ended 5 times within 60 s"})
    # Two sources of the same reason are added up.
    assert value(found, "mouthpiece_frames_dropped_total", reason="late") == 7.0
    assert value(found, "mouthpiece_audio_gaps_total", reason="overflow", service="streamer", process="s") == 2.0
    assert value(found, "mouthpiece_audio_gap_seconds_total") == 0.5
    assert value(found, "mouthpiece_latency_seconds", session="default") == pytest.approx(0.18)
    assert value(found, "mouthpiece_session_running", session="b") == 0.0
    assert not [labels for name, labels in found if name == "mouthpiece_latency_seconds" and ("session", "b") in labels]
    assert value(found, "mouthpiece_messages_sent_total", topic="beat") == 9.0
    assert value(found, "mouthpiece_given_up", service="inference") == 1.0
    assert value(found, "mouthpiece_given_up", service="streamer") == 0.0
    assert value(found, "mouthpiece_starts_total", service="inference") == 2.0
    assert value(found, "mouthpiece_processes", service="inference") == 1.0
    assert value(found, "mouthpiece_processes", service="face_prep") == 0.0, "a service that never beat is told too"
    assert value(found, "mouthpiece_up", process="a") == 1.0
    assert value(found, "mouthpiece_engine_info", process="a", device="CPU", precision="") == 1.0
    # Of one that is gone: that it is, and what it counted, but nothing present.
    assert value(found, "mouthpiece_up", process="b") == 0.0
    assert value(found, "mouthpiece_frames_total", process="b") == 5.0
    assert not [name for name, labels in found if ("process", "b") in labels and "queue" in name]


def test_histograms_are_cumulative_with_all_their_bounds():
    counters = {"hist.age_shown.0": 2.0, "hist.age_shown.3": 1.0, f"hist.age_shown.{len(BUCKETS_S)}": 4.0}
    found = read([Pulse(beat("streamer", "s", counters=counters | {"hist.age_shown.sum": 9.5}), 100.0)])
    by_bound = {
        dict(labels)["le"]: number
        for (name, labels), number in found.items()
        if name == "mouthpiece_frame_age_seconds_bucket"
    }
    assert len(by_bound) == len(BUCKETS_S) + 1
    assert [by_bound[str(bound)] for bound in BUCKETS_S[:5]] == [2, 2, 2, 3, 3]
    assert by_bound[str(BUCKETS_S[-1])] == 3
    assert by_bound["+Inf"] == value(found, "mouthpiece_frame_age_seconds_count", stage="shown") == 7
    assert value(found, "mouthpiece_frame_age_seconds_sum") == 9.5


def test_what_has_no_family_is_told_and_takes_nobodys_name():
    counters = {"faces_told": 2.0, "a.b": 1.0, "a_b": 2.0, "frames_dropped": 5.0, "hist.age_.x.y": 1.0, "hist.": 1.0}
    found = read([Pulse(beat("face_prep", "f", counters=counters, gauges={"playout_shown": 3.0}), 100.0)])
    assert value(found, "mouthpiece_faces_told_total") == 2.0
    assert value(found, "mouthpiece_now_playout_shown") == 3.0
    assert value(found, "mouthpiece_a_b_total") == 3.0
    assert value(found, "mouthpiece_other_frames_dropped_total") == 5.0


def test_health_counts_starts_and_reads_what_was_given_up(tmp_path: Path):
    health = Health()
    for instance in ("a", "a", "b"):
        health.beat(beat("inference", instance), 1.0)
    assert health.starts == {"inference": 2}
    path = tmp_path / "given_up.json"
    given_up = GivenUp(path)
    assert given_up.of("inference", 0.0) == ""
    path.write_text('{"inference": "ended 5 times within 60 s", "inference-01": "could not be started"}')
    words = given_up.of("inference", 1.0)
    assert words == "inference ended 5 times within 60 s; inference-01 could not be started"
    assert given_up.of("streamer", 1.0) == ""
    path.write_text('{"inference": ')
    assert given_up.of("inference", 2.0) == "", "half a file is none"
    path.unlink()
    path.mkdir()
    assert given_up.of("inference", 3.0) == ""


def test_starts_of_the_streamer_are_counted_over_its_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "var" / "starts"
    assert [note_start(path) for _ in range(3)] == [0, 1, 2]
    assert not caplog.records
    path.write_text("half")
    assert [note_start(path) for _ in range(2)] == [0, 1]
    path.unlink()
    path.mkdir()
    assert note_start(path) == 0, "a disk that does not take it ends nothing"
    assert len(caplog.records) == 3


# ---- what is written for Prometheus and Grafana


def promtool(*words: str, given: str = "") -> str:
    assert PROMTOOL is not None
    result = subprocess.run([PROMTOOL, *words], input=given, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def alerts() -> list[str]:
    return re.findall(r"^ +- alert: (\w+)$", (DEPLOY / "alerts.yml").read_text(), re.MULTILINE)


def expressions() -> list[str]:
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def known() -> set[str]:
    names = set(OWN)
    for family in FAMILIES.values():
        parts = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        names |= {family.name + part for part in parts}
    return names


@needs_promtool
def test_the_exposition_is_as_prometheus_wants_it():
    screens = {"default": screen(), "b": screen()}
    text = exposition(everything(), {}, dict.fromkeys(SERVICES, ""), screens, 100.5).decode()
    assert promtool("check", "metrics", given=text) == ""


@needs_promtool
def test_the_example_and_the_alerts_are_sound():
    promtool("check", "config", str(DEPLOY / "prometheus.yml"))
    promtool("check", "rules", str(DEPLOY / "alerts.yml"))
    promtool("test", "rules", str(DEPLOY / "alerts_test.yml"))


@needs_promtool
def test_every_expression_of_the_dashboard_is_one(tmp_path: Path):
    rules = [{"record": f"test:number:{number}", "expr": expression} for number, expression in enumerate(expressions())]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


def test_every_alert_is_shown_to_fire_and_to_keep_quiet():
    tests = (DEPLOY / "alerts_test.yml").read_text()
    names = alerts()
    assert len(names) == len(set(names)) > 10
    for name in names:
        for word in ("fires", "keeps quiet"):
            assert len(re.findall(rf"^  - name: {name} {word}$", tests, re.MULTILINE)) == 1, f"{name} {word}"


def test_alerts_and_dashboard_ask_for_what_there_is():
    texts = [*expressions(), (DEPLOY / "alerts.yml").read_text()]
    asked = {name for text in texts for name in re.findall(r"\bmouthpiece_\w+", text)}
    assert asked <= known()


def test_the_dashboard_has_a_place_and_a_unit_for_everything():
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["fieldConfig"]["defaults"]["unit"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_page_for_operators_tells_every_metric_and_every_alert():
    page = (ROOT / "docs" / "operations.md").read_text()
    for family in FAMILIES.values():
        labels = ", ".join(f"`{label}`" for label in family.labels) or "none"
        assert f"| `{family.name}` | {family.kind} | {labels} | {family.words} |" in page, family.name
    told = set(re.findall(r"^\| `(mouthpiece_\w+)` \|", page, re.MULTILINE))
    assert told == FAMILIES.keys()
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == alerts()
    for name in alerts():
        assert f"runbook: docs/operations.md#{name.lower()}" in (DEPLOY / "alerts.yml").read_text()
