"""All sources of sound, under one roof: what a service imports."""

from __future__ import annotations

from services.audio_capture.chunks import CHUNK_SAMPLES, SAMPLE_RATE_HZ, Chunk, Hole, Source, SourceStatus
from services.audio_capture.devices import Device, DeviceError, list_devices
from services.audio_capture.live import LiveSource
from services.audio_capture.microphone import MicrophoneSource
from services.audio_capture.playback import DemoSource, FileSource, NetworkSource

__all__ = [
    "CHUNK_SAMPLES",
    "SAMPLE_RATE_HZ",
    "Chunk",
    "DemoSource",
    "Device",
    "DeviceError",
    "FileSource",
    "Hole",
    "LiveSource",
    "MicrophoneSource",
    "NetworkSource",
    "Source",
    "SourceStatus",
    "list_devices",
]
