"""The sound devices that PortAudio knows, and which one a person means."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

__all__ = [
    "Device",
    "DeviceError",
    "NoDeviceError",
    "choose_device",
    "decode_devices",
    "encode_devices",
    "list_devices",
    "microphone_words",
    "recorder_command",
    "recorder_environment",
]

ROOT: Final = Path(__file__).resolve().parents[2]


class DeviceError(Exception):
    """No device can be used as asked; the text says why and what there is."""


class NoDeviceError(DeviceError):
    """The device is not there now; it may come."""


@dataclass(frozen=True)
class Device:
    """An input device."""

    index: int
    """PortAudio's number; it may change when devices come and go"""
    name: str
    """PortAudio's name"""
    rate_hz: int
    """its own default rate, Hz"""
    channels: int
    """most input channels"""
    default: bool
    """whether the system takes it when none is named"""


def choose_device(devices: Sequence[Device], wanted: str | None) -> Device:
    """Find the device that a person means.

    Args:
        devices: what there is.
        wanted: None or "" for the default, "3" for an index, otherwise a name or a part of one, case ignored.

    Raises:
        NoDeviceError: it is not there.
        DeviceError: several devices carry that part in their names.
    """
    if not devices:
        raise NoDeviceError(
            "No microphone is there. Plug one in (in a container: pass in /dev/snd or a PulseAudio socket), "
            "or choose the demo speech, a file or the browser as the source."
        )
    there = "; ".join(f"{device.index}: {device.name}" for device in devices)
    wanted = (wanted or "").strip()
    if not wanted:
        for device in devices:
            if device.default:
                return device
        return devices[0]
    if wanted.isascii() and wanted.isdigit():
        for device in devices:
            if device.index == int(wanted):
                return device
        raise NoDeviceError(f"No input device has the index {wanted}. There is {there}.")
    key = wanted.casefold()
    found = [device for device in devices if device.name.casefold() == key]
    found = found[:1] or [device for device in devices if key in device.name.casefold()]
    if not found:
        raise NoDeviceError(f"No input device has {wanted!r} in its name. There is {there}.")
    if len(found) > 1:
        names = "; ".join(f"{device.index}: {device.name}" for device in found)
        raise DeviceError(f"{wanted!r} fits several input devices ({names}). Give more of the name, or the index.")
    return found[0]


def encode_devices(devices: Sequence[Device]) -> str:
    """Write devices as one line of JSON."""
    return json.dumps([asdict(device) for device in devices])


def decode_devices(line: str) -> list[Device]:
    """Read what `encode_devices` wrote."""
    return [Device(**fields) for fields in json.loads(line)]


def recorder_command(*arguments: str) -> list[str]:
    """The command that runs the recorder, to be started in `ROOT`."""
    return [sys.executable, "-m", "services.audio_capture.recorder", *arguments]


def recorder_environment() -> dict[str, str]:
    """The environment of the recorder: low latency under PulseAudio, and no JACK server started in passing."""
    return {"PULSE_LATENCY_MSEC": "20", "JACK_NO_START_SERVER": "1"} | dict(os.environ)


def microphone_words() -> str:
    """Name the microphone that would be taken by default; without one `missing: ` and what to do."""
    try:
        devices = list_devices()
    except DeviceError as error:
        return f"missing: {error} Take the demo speech or your own sound file meanwhile."
    if not devices:
        return "missing: No microphone was found. Plug one in, or take the demo speech or your own sound file."
    return next((device.name for device in devices if device.default), devices[0].name)


def list_devices(timeout_s: float = 8.0) -> list[Device]:
    """List the input devices that are there now.

    PortAudio is asked in a process of its own: its list is fresh each time, what it and ALSA print goes nowhere,
    and if it hangs only that process does.

    Raises:
        DeviceError: PyAudio is missing, or PortAudio fails or does not answer in time; the text says what to do.
    """
    try:
        done = subprocess.run(
            recorder_command("--list"),
            cwd=ROOT,
            env=recorder_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
            text=True,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"PortAudio did not list its devices within {timeout_s:g} s; look at the ALSA, PulseAudio or JACK set-up."
        ) from error
    kind, _, rest = done.stdout.strip().partition(" ")
    if done.returncode == 0 and kind == "devices":
        return decode_devices(rest)
    if kind == "missing":
        raise DeviceError(rest)
    raise DeviceError(rest or f"PortAudio ended with code {done.returncode} while it listed its devices.")
