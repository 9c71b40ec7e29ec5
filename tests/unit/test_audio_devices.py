"""Which device a person means."""

from __future__ import annotations

import pytest

from services.audio_capture.devices import (
    Device,
    DeviceError,
    NoDeviceError,
    choose_device,
    decode_devices,
    encode_devices,
)

DEVICES = [
    Device(0, "HDA Intel PCH: ALC295 Analog (hw:0,0)", 44_100, 2, default=False),
    Device(3, "Blue Yeti: USB Audio (hw:1,0)", 48_000, 2, default=False),
    Device(5, "default", 44_100, 32, default=True),
    Device(6, "Webcam: USB Audio (hw:2,0) \N{LATIN SMALL LETTER U WITH DIAERESIS}", 16_000, 1, default=False),
]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [(None, 5), ("", 5), ("3", 3), (" 0 ", 0), ("yeti", 3), ("DEFAULT", 5), ("hw:2", 6), ("\xdc", 6)],
)
def test_a_device_is_found(wanted: str | None, index: int) -> None:
    assert choose_device(DEVICES, wanted).index == index


@pytest.mark.parametrize("wanted", ["7", "nowhere", "\N{SUPERSCRIPT TWO}"])
def test_an_unknown_device_is_answered_by_what_there_is(wanted: str) -> None:
    with pytest.raises(NoDeviceError) as caught:
        choose_device(DEVICES, wanted)
    assert all(device.name in str(caught.value) for device in DEVICES)


def test_an_ambiguous_name_is_answered_by_those_that_fit() -> None:
    with pytest.raises(DeviceError, match=r"3: Blue Yeti.*6: Webcam.*index") as caught:
        choose_device(DEVICES, "usb audio")
    assert not isinstance(caught.value, NoDeviceError)
    assert "default" not in str(caught.value)


@pytest.mark.parametrize("wanted", [None, "3", "yeti"])
def test_no_device_at_all_says_what_to_do(wanted: str | None) -> None:
    with pytest.raises(NoDeviceError, match="No microphone is there"):
        choose_device([], wanted)


def test_without_a_default_the_first_is_taken() -> None:
    assert choose_device(DEVICES[:2], None).index == 0


def test_devices_survive_the_way_between_processes() -> None:
    assert decode_devices(encode_devices(DEVICES)) == DEVICES
