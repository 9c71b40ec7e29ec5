"""Settings: frozen, read from the environment (`MOUTHPIECE_*`), checked once at the start, printed redacted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

__all__ = ["LOOPBACK", "PREFIX", "Settings", "SettingsError", "load", "redacted"]

PREFIX: Final = "MOUTHPIECE_"
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]


class SettingsError(ValueError):
    """A setting is unknown or wrong; the text names it and says what it may be."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings. A field `x_y` is the environment variable `MOUTHPIECE_X_Y`."""

    host: str = "127.0.0.1"
    """address of the page; anything but loopback needs a token"""
    port: Port = 8080
    """port of the page"""
    published: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:-]*$", max_length=253)] = ""
    """address on which a container engine publishes the page; loopback: only this machine gets in, without a token"""
    token: Annotated[str, msgspec.Meta(max_length=256)] = ""
    """secret that opens the page when it is not bound to loopback, at least 16 characters"""
    tls_cert: str = ""
    """certificate of the page, PEM file with its chain; with MOUTHPIECE_TLS_KEY the page is served over HTTPS"""
    tls_key: str = ""
    """private key of that certificate, PEM file"""
    names: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.,:-]*$", max_length=1000)] = ""
    """further host names under which the page may be opened, with commas between"""
    source: Annotated[str, msgspec.Meta(pattern=r"^(mic|browser|demo|network|file:.+)$")] = "demo"
    """what is heard at the start: mic, browser, demo, network or file:PATH"""
    face: str = ""
    """a photo to start with, path; empty: the built-in demo face"""
    autostart: Literal["auto", "yes", "no"] = "auto"
    """whether the face talks at once; auto: yes for demo and file, no for mic"""
    loop: Literal["auto", "yes", "no"] = "auto"
    """whether a file begins again at its end; auto: yes for demo, no for file"""
    mic: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """microphone: its index or a part of its name; empty: the default"""
    engine: Literal["auto", "builtin", "wav2lip"] = "auto"
    """auto takes wav2lip where a converted model lies"""
    model: str = ""
    """the converted Wav2Lip model: its folder, or a plain network (.xml, .onnx); empty: models/wav2lip"""
    precision: Literal["auto", "f32", "bf16", "f16", "int8"] = "auto"
    """in which engine wav2lip computes; auto: the fastest that the processor has and that is near to the original"""
    alignment: Literal["training", "inference"] = "training"
    """mel window of engine wav2lip: as in its training, or as in its inference script (40 ms later)"""
    life: Literal["yes", "no"] = "yes"
    """whether faces of engine builtin blink and sway a little, in silence too; no: only the mouth moves"""
    detector: Literal["blazeface", "retinaface"] = "blazeface"
    """what finds faces; retinaface needs its converted weights (scripts/fetch_models mobilenet)"""
    device: Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9.,:_-]+$", max_length=64)] = "CPU"
    """OpenVINO device: CPU, GPU, NPU, AUTO"""
    threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    """threads of an inference worker; 0: as many as the processor has cores, at most 4"""
    max_side: Annotated[int, msgspec.Meta(ge=128, le=4096)] = 1280
    """longest side of the picture shown, px; larger photos are scaled down"""
    jpeg_quality: Annotated[int, msgspec.Meta(ge=30, le=100)] = 82
    """quality of the stream's pictures"""
    max_viewers: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 64
    """most viewers of a session at once"""
    max_sessions: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    """most sessions at once"""
    session_idle_s: Annotated[int, msgspec.Meta(ge=5, le=604_800)] = 900
    """a session that nobody watches, hears, records or speaks to is deleted after this time, s; `default` stays"""
    mark: Annotated[str, msgspec.Meta(max_length=60)] = ""
    """text burnt into every frame, such as "synthetic"; empty: none"""
    mark_corner: Literal["top-left", "top-right", "bottom-left", "bottom-right"] = "bottom-right"
    """where the mark stands"""
    state_dir: str = "var"
    """folder of faces and session state, made when missing"""
    models_dir: str = "models"
    """folder of the models"""
    bus_host: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:{}-]+$", max_length=253)] = "127.0.0.1"
    """host of the other services; `{service}` in it stands for the name of each; anything but loopback needs a key"""
    bus_bind: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:-]*$", max_length=253)] = ""
    """address on which this service binds its own topics; empty: loopback; anything else needs a key; where it is one
    address, the services call each other there too"""
    key: str = ""
    """key file of this process (scripts/gen_keys); with it everything on the bus is encrypted"""
    allowed: str = ""
    """list of the keys that may talk to this hub; empty: the file `allowed` beside the key file"""
    bus_port: Annotated[int, msgspec.Meta(ge=1, le=65_000)] = 17_800
    """first of the eight ports on which the services talk"""
    beat_file: str = ""
    """file to which a service writes its beat once a second, for health checks; empty: none"""
    trace: Literal["no", "yes"] = "no"
    """whether each stage logs when each frame passed it, for scripts/trace"""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """least level that is logged"""

    @property
    def autostarts(self) -> bool:
        """Whether the default session runs from the start."""
        return self.autostart == "yes" or (
            self.autostart == "auto" and self.source not in {"mic", "browser", "network"}
        )

    def loops(self, source: str) -> bool:
        """Whether a source begins again at its end."""
        return self.loop == "yes" or (self.loop == "auto" and source == "demo")

    @property
    def state_path(self) -> Path:
        """Folder of faces and session state."""
        return Path(self.state_dir)

    @property
    def models_path(self) -> Path:
        """Folder of the models."""
        return Path(self.models_dir)

    @property
    def bus_calls(self) -> str:
        """Host at which a service calls the others: where this hub listens, if nothing else is said."""
        bound = self.bus_bind not in {"", "0.0.0.0", "::", *LOOPBACK}  # noqa: S104
        return self.bus_bind if bound and self.bus_host in LOOPBACK else self.bus_host

    @property
    def worker_threads(self) -> int:
        """Threads of an inference worker."""
        return self.threads or min(4, os.cpu_count() or 1)

    @property
    def wav2lip_path(self) -> Path:
        """The converted Wav2Lip model: a folder or a file."""
        return Path(self.model) if self.model else self.models_path / "wav2lip"

    @property
    def has_wav2lip(self) -> bool:
        """Whether a converted Wav2Lip lies there."""
        path = self.wav2lip_path
        return path.is_file() or (path / "wav2lip.xml").is_file()


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Read and check the settings.

    Args:
        environment: variables; `os.environ` when None. An empty value counts as not set.

    Raises:
        SettingsError: a `MOUTHPIECE_*` variable is unknown, or a value is not allowed.
    """
    source = os.environ if environment is None else environment
    values = {key[len(PREFIX) :].lower(): value for key, value in source.items() if key.startswith(PREFIX) and value}
    unknown = sorted(values.keys() - set(Settings.__struct_fields__))
    if unknown:
        known = ", ".join(PREFIX + name.upper() for name in Settings.__struct_fields__)
        raise SettingsError(f"unknown setting {PREFIX}{unknown[0].upper()}; known are {known}")
    for name, value in values.items():
        try:
            msgspec.convert({name: value}, Settings, strict=False)
        except msgspec.ValidationError as error:
            shown = "***" if name == "token" else repr(value)
            raise SettingsError(f"{PREFIX}{name.upper()}={shown}: {str(error).partition(' - at')[0]}") from error
    settings = msgspec.convert(values, Settings, strict=False)
    for name in ("bus_host", "bus_bind"):
        if getattr(settings, name) not in {*LOOPBACK, ""} and not settings.key:
            raise SettingsError(
                f"{PREFIX}{name.upper()}={getattr(settings, name)!r}: between machines the services talk encrypted "
                f"only; make keys with scripts/gen_keys and name yours in {PREFIX}KEY"
            )
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise SettingsError(
            f"{PREFIX}TLS_CERT and {PREFIX}TLS_KEY belong together: name the certificate and its private key"
        )
    for name in ("key", "allowed", "tls_cert", "tls_key"):
        if getattr(settings, name) and not Path(getattr(settings, name)).is_file():
            raise SettingsError(f"{PREFIX}{name.upper()}={getattr(settings, name)!r}: there is no such file")
    if settings.host not in LOOPBACK and settings.published not in LOOPBACK and not settings.token:
        raise SettingsError(
            f"{PREFIX}HOST={settings.host!r} opens the page to other machines: set {PREFIX}TOKEN to a secret of at "
            f"least 16 characters too, or leave {PREFIX}HOST at 127.0.0.1"
        )
    if settings.token and len(settings.token) < 16:
        raise SettingsError(f"{PREFIX}TOKEN is shorter than 16 characters; `openssl rand -hex 16` makes one")
    if settings.face and not Path(settings.face).is_file():
        raise SettingsError(f"{PREFIX}FACE={settings.face!r}: there is no such file")
    if settings.source.startswith("file:") and not Path(settings.source[5:]).is_file():
        raise SettingsError(f"{PREFIX}SOURCE={settings.source!r}: there is no such file")
    if settings.engine == "wav2lip" and not settings.has_wav2lip:
        raise SettingsError(
            f"{PREFIX}ENGINE=wav2lip: no converted model at {settings.wav2lip_path}; "
            f"name it in {PREFIX}MODEL, or take the engine builtin"
        )
    return settings


def redacted(settings: Settings) -> str:
    """Say the settings that differ from the defaults, without secrets and without paths of a user's files."""
    shown = []
    for name in Settings.__struct_fields__:
        value = getattr(settings, name)
        if value == getattr(Settings(), name):
            continue
        if name == "token":
            value = "***"
        elif name in {"face", "key", "allowed", "beat_file", "tls_cert", "tls_key"} or (
            name == "source" and value.startswith("file:")
        ):
            value = "(a file)"
        shown.append(f"{name}={value}")
    return " ".join(shown) or "all settings at their defaults"
