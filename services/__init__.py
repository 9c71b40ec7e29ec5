"""The services. Nothing of what they do is told to anybody."""

import sys

# OpenVINO's package would report its use to its makers over the network.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
