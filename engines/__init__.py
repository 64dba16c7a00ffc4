"""Engines: published models, the runtimes that run them, and measurements of both on this machine."""

import sys

# Importing OpenVINO would report usage to its makers, from a forked process; in a process with Locust the fork comes
# back into the main code, which then runs twice. OpenVINO reports nothing where its telemetry cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
