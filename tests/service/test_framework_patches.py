"""Tests of the changes to private parts of the frameworks, and of the error when such a part is gone."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from service import framework_patches


@pytest.mark.parametrize(
    ("library", "module", "attribute", "apply"),
    [
        ("bentoml", "bentoml._internal.server.http.traffic", "TimeoutMiddleware", "leave_out_timeouts"),
        ("uvicorn", "uvicorn.protocols.http.httptools_impl", "STATUS_LINE", "check_http_protocol"),
        ("kantoku", "circus.sockets", "CircusSocket", "check_address"),
        ("pillow", "PIL.Image", "core.set_blocks_max", "keep_pillows_memory"),
        ("prometheus_client", "prometheus_client.values", "ValueClass", "keep_metrics_in_memory"),
    ],
)
def test_a_part_that_is_gone_ends_the_server_with_one_line(
    monkeypatch: pytest.MonkeyPatch, library: str, module: str, attribute: str, apply: str
) -> None:
    monkeypatch.delattr(f"{module}.{attribute}")
    with pytest.raises(SystemExit) as end:
        getattr(framework_patches, apply)()
    message = str(end.value)
    assert f"{library} {version(library)} has no {module}.{attribute}" in message
    assert "\n" not in message


def test_a_module_that_is_gone_ends_the_server_too() -> None:
    with pytest.raises(SystemExit, match=r"^error: uvicorn .* has no uvicorn\.gone\.name"):
        framework_patches.private("uvicorn", "0.54.0", "uvicorn.gone", "name")
