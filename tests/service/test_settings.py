"""Tests of settings: forms that are taken, and the line that names each wrong one and no secret."""

from __future__ import annotations

import os

import pytest

from engines.measured.select_engine import explain
from engines.runtimes import registry
from engines.runtimes.tensorrt import gpu
from service import processes
from service.settings import Settings, check_runtime, read_settings, unknown
from tests.conftest import Run

TAG = "lenet5:mnist5k-5c93254d"
OTHER = "resnet18:imagenet-0123abcd"
HASH = "0" * 64


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CONVSERVE_"):
            monkeypatch.delenv(name)


def read(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"CONVSERVE_{name}", value)
    return read_settings()


def lines(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    """Return the lines with which the start ends."""
    with pytest.raises(SystemExit) as end:
        check_runtime(read(monkeypatch, **variables))
    return str(end.value).splitlines()


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ("secret", {"secret"}),
        ("a,b", {"a", "b"}),
        (" a , b,\n", {"a", "b"}),
        ('["a", "b"]', {"a", "b"}),
        ('["a,b"]', {"a,b"}),
        ("[]", set()),
        ("k=v;{x}", {"k=v;{x}"}),
    ],
)
def test_keys_are_a_list_by_commas_or_json(monkeypatch: pytest.MonkeyPatch, value: str, keys: set[str]) -> None:
    assert {key.get_secret_value() for key in read(monkeypatch, API_KEYS=value).api_keys} == keys


@pytest.mark.parametrize(
    ("value", "pins"),
    [
        (f"lenet5={TAG}", {"lenet5": TAG}),
        (f"lenet5={TAG}, resnet18@imagenet={OTHER},", {"lenet5": TAG, "resnet18@imagenet": OTHER}),
        (f'{{"lenet5": "{TAG}"}}', {"lenet5": TAG}),
        ("{}", {}),
    ],
)
def test_pins_are_pairs_by_commas_or_json(monkeypatch: pytest.MonkeyPatch, value: str, pins: dict[str, str]) -> None:
    assert read(monkeypatch, PINS=value).pins == pins


def test_a_token_from_a_file_may_end_in_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    token = read(monkeypatch, ADMIN_TOKEN="root\n").admin_token
    assert token
    assert token.get_secret_value() == "root"


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("API_KEYS", "", "the value is empty"),
        ("API_KEYS", " , ", "the value is empty"),
        ("API_KEYS", '["s3cret"', "not JSON: Expecting ',' delimiter at character 10"),
        ("API_KEYS", '{"s3cret": 1}', 'the form is a,b or ["a", "b"]'),
        ("API_KEYS", '[["s3cret"]]', 'the form is a,b or ["a", "b"]'),
        ("API_KEYS", '["s3cret", " "]', "a key or token is empty"),
        ("API_KEYS", "s3cretключ", "printable ASCII"),
        ("ADMIN_TOKEN", "", "a key or token is empty"),
        ("ADMIN_TOKEN", "s3cret\nx", "printable ASCII"),
        ("PINS", "lenet5", "the form is lenet5=lenet5:mnist5k-5c93254d,… or {"),
        ("PINS", "", "the form is lenet5=lenet5:"),
        ("PINS", '{"lenet5": 1}', "the form is lenet5=lenet5:"),
        ("PINS", '{"lenet5"', "not JSON"),
        ("PINS", f"lenet={TAG}", "there is no architecture 'lenet'; did you mean lenet5?"),
        ("PINS", f"lenet5={OTHER}", f"'{OTHER}' is no tag of lenet5; the form is lenet5=lenet5:DATASET-XXXXXXXX"),
        ("PINS", f"lenet5@imagenet={TAG}", f"'{TAG}' is no tag of lenet5@imagenet"),
        ("PINS", "lenet5=lenet5:latest", "'lenet5:latest' is no tag of lenet5"),
        ("PRECISION", "int4", "Input should be 'auto', 'fp32', 'bf16', 'fp16' or 'int8'"),
        ("RUNTIME", "openvno", "Input should be 'openvino', 'onnxruntime'"),
        ("TIMEOUT_S", "nan", "Input should be"),
        ("TIMEOUT_S", "inf", "Input should be"),
        ("TIMEOUT_S", "-1", "Input should be greater than 0"),
        ("TIMEOUT_S", "1e300", "Input should be less than or equal to 86400"),
        ("SCAN_S", "inf", "Input should be"),
        ("DRAIN_S", "nan", "Input should be"),
        ("MEMORY_MB", "inf", "Input should be a finite number"),
        ("MEMORY_MB", "", "Input should be a valid number"),
        ("MODELS", "models", "the form is s3://BUCKET/FOLDER"),
        ("MODELS", "gs://models", "gs:// needs gcsfs, which is not installed: pip install '.[gcs]'"),
        ("ROUTES", '{"lenet5": {"share": 0.5}}', "lenet5: name either a model that answers"),
        (
            "ROUTES",
            f'{{"lenet5": {{"to": "{TAG}", "share": 2}}}}',
            "lenet5.share: Input should be less than or equal to 1",
        ),
        ("ROUTES", '{"lenet5": {"to": "resnet18", "share": 0.5}}', "lenet5.to: String should match pattern"),
        (
            "ROUTES",
            f'{{"lnet5@mnist5k": {{"to": "{TAG}", "share": 0.5}}}}',
            "there is no architecture 'lnet5'; did you mean lenet5",
        ),
        ("ROUTES", f'{{"auto": {{"to": "{TAG}", "share": 0.5}}}}', "there is no architecture 'auto'"),
        ("CLIENTS", "shop", "not JSON"),
        ("CLIENTS", "[]", "Input should be a valid dictionary"),
        ("CLIENTS", '{"shop": {"key_sha256": "s3cret"}}', "shop.key_sha256: String should match pattern"),
        ("CLIENTS", '{"shop": {}}', "shop.key_sha256: Field required"),
        (
            "CLIENTS",
            f'{{"shop": {{"key_sha256": "{HASH}", "weight": 0}}}}',
            "shop.weight: Input should be greater than or equal to 0.001",
        ),
        ("CLIENTS", f'{{"Shop": {{"key_sha256": "{HASH}"}}}}', "Shop.[key]: String should match pattern"),
        (
            "CLIENTS",
            f'{{"a": {{"key_sha256": "{HASH}"}}, "b": {{"key_sha256": "{HASH}"}}}}',
            "two clients have the same",
        ),
        ("MAX_BATCH", "1000000000", "Input should be less than or equal to"),
        ("MAX_BATCH", "1.5", "Input should be a valid integer"),
        ("DECODERS", "-1", "Input should be greater than or equal to 1"),
        ("GRPC_PORT", "0", "Input should be greater than or equal to 1"),
        ("GRPC_PORT", "grpc", "Input should be a valid integer"),
        ("FRONTS", "0", "a number from 1 to 256, or auto"),
        ("FRONTS", "many", "a number from 1 to 256, or auto"),
        ("DEVICES", "65", "a number from 1 to 64, or auto"),
        ("GPU_JPEG", "true", "Input should be 'auto' or 'off'"),
        ("ACCESS_LOG", "maybe", "Input should be a valid boolean"),
        ("DATASET", "lenet5@mnist5k", "String should match pattern"),
        ("MAX_BODIES_BYTES", "1000", "less than one body, CONVSERVE_MAX_BODY_BYTES (10,485,760)"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, named: str
) -> None:
    (line,) = lines(monkeypatch, **{name: value})
    assert line.startswith(f"error: CONVSERVE_{name}: ")
    assert named in line
    assert "s3cret" not in line


def test_each_wrong_value_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(lines(monkeypatch, MAX_BATCH="0", SCAN_S="x", API_KEYS="[", DECODER="1")) == 4


def test_a_precision_or_library_that_the_runtime_lacks_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = lines(monkeypatch, RUNTIME="onnxruntime", PRECISION="bf16")
    assert line == "error: CONVSERVE_PRECISION: onnxruntime has fp32, int8"
    monkeypatch.delenv("CONVSERVE_PRECISION")
    missing = registry.RUNTIMES["onnxruntime"]._replace(library="nosuch")
    monkeypatch.setitem(registry.RUNTIMES, "onnxruntime", missing)
    (line,) = lines(monkeypatch, RUNTIME="onnxruntime")
    assert line == "error: CONVSERVE_RUNTIME: onnxruntime is not installed here"


def test_a_runtime_for_gpus_needs_a_gpu_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "accelerator", lambda: None)
    monkeypatch.setattr("cuda.core.Device.get_all_devices", lambda: 1 / 0)
    gpu.device.cache_clear()
    for name in ("tensorrt", "tensorrt_rtx"):
        assert lines(monkeypatch, RUNTIME=name) == [f"error: CONVSERVE_RUNTIME: {gpu.NO_GPU}"]


@pytest.mark.parametrize(
    ("cards", "variables", "said"),
    [
        (0, {}, "one process does it all (4 cores and no GPU)"),
        (0, {"FRONTS": "1"}, "one process does it all (CONVSERVE_FRONTS; 4 cores and no GPU)"),
        (0, {"DEVICES": "3"}, "fronts: 2, device processes: 3 (CONVSERVE_DEVICES; 4 cores and no GPU)"),
        (0, {"FRONTS": "2", "DEVICES": "2"}, "fronts: 2, device processes: 2 (CONVSERVE_FRONTS and CONVSERVE_DEVICES)"),
        (1, {}, "one process does it all (4 cores and 1 GPU)"),
        (2, {"FRONTS": "5"}, "fronts: 5, device processes: 2 (CONVSERVE_FRONTS; 4 cores and 2 GPUs)"),
    ],
)
def test_the_log_says_what_decided_on_the_processes(
    monkeypatch: pytest.MonkeyPatch, cards: int, variables: dict[str, str], said: str
) -> None:
    monkeypatch.setattr(processes, "gpus", lambda: list(map(str, range(cards))))
    monkeypatch.setattr(processes, "cores", lambda: 4)
    assert str(processes.layout(read(monkeypatch, **variables))) == said


def test_a_runtime_that_computes_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [read(monkeypatch, RUNTIME=name).invents for name in ("paced", "null", "auto", "openvino")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert explain([], "paced", "auto") == "nothing to tune: paced computes nothing"


@pytest.mark.parametrize(("name", "near"), [("APIKEYS", "API_KEYS"), ("API_KEY", "API_KEYS"), ("TIMEOUT", "TIMEOUT_S")])
def test_a_misspelt_name_ends_the_start(monkeypatch: pytest.MonkeyPatch, name: str, near: str) -> None:
    (line,) = lines(monkeypatch, **{name: "s3cret"})
    assert line == f"error: CONVSERVE_{name}: there is no such setting; did you mean CONVSERVE_{near}?"


def test_other_names_are_only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    read(monkeypatch, PORT="tcp://10.0.0.1:3000", SERVICE_HOST="10.0.0.1", PORT_3000_TCP_ADDR="10.0.0.1")
    assert not list(unknown())  # what Kubernetes sets for a service called convserve
    read(monkeypatch, COLOUR="red", API_KEYS="a", API_KEY="a")  # a client's key beside the server's
    assert list(unknown()) == ["CONVSERVE_API_KEY", "CONVSERVE_COLOUR"]


def test_packing_a_bento_reads_the_settings_too(run: Run) -> None:
    done = run("service.pack", check=False, CONVSERVE_API_KEYS="[")
    assert done.stderr == "error: CONVSERVE_API_KEYS: not JSON: Expecting value at character 2\n"
