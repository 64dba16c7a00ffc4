"""Tests of the manifests: valid by the schemas of Kubernetes, KServe and Kubeflow, and true of this server."""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from service.settings import PREFIX, Settings
from tests.serving import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
SCHEMAS = ROOT / "tests" / "deploy" / "schemas"
VERSION = "1.33"  # of Kubernetes
NOT_MANIFESTS = {"kustomization.yaml", "patch-deployment.yaml", "adapter.yaml"}
OVERLAYS = ("overlays/cpu", "overlays/gpu", "kserve")
FILES = [path for path in sorted(KUBERNETES.rglob("*.yaml")) if path.name not in NOT_MANIFESTS]
Manifest = dict[str, Any]


def documents(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def validate(manifest: Manifest) -> None:
    """Raise an error of jsonschema if a manifest is not valid; fields that no schema has are errors."""
    path = SCHEMAS / f"{manifest['kind'].lower()}.json"
    if path.exists():
        jsonschema.validate(manifest, json.loads(path.read_text()))
        for spec in pod_specs(manifest):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": spec}
            validate(pod)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("kubernetes_validate").validate(manifest, VERSION, strict=True)


def pod_specs(manifest: Manifest) -> Iterator[Manifest]:
    """Yield the specifications of pods in a manifest."""
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "PyTorchJob":
            yield from (replica["template"]["spec"] for replica in spec["pytorchReplicaSpecs"].values())
        case "ServingRuntime":
            yield {"containers": spec["containers"], "volumes": spec["volumes"]}
        case "Deployment" | "Job":
            yield spec["template"]["spec"]


def settings_in(manifest: Manifest) -> dict[str, str]:
    """Return the settings of the server in a manifest."""
    found = {
        variable["name"]: variable["value"]
        for spec in pod_specs(manifest)
        for container in spec["containers"]
        for variable in container.get("env", [])
    }
    found |= manifest.get("data", {}) if manifest["kind"] == "ConfigMap" else {}
    return {name: value for name, value in found.items() if name.startswith(PREFIX)}


def rendered(folder: str) -> list[Manifest]:
    """Return the manifests of an overlay; skip the test without kubectl."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(KUBERNETES / folder)]
    return documents(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(KUBERNETES).as_posix())
def test_a_manifest_is_valid(path: Path) -> None:
    for manifest in documents(path.read_text()):
        validate(manifest)


def test_a_field_that_no_schema_has_is_an_error() -> None:
    for name in ("base/deployment.yaml", "kserve/servingruntime.yaml"):
        (manifest,) = documents((KUBERNETES / name).read_text())
        next(pod_specs(manifest))["containers"][0]["imagePullPolice"] = "Always"
        with pytest.raises(jsonschema.ValidationError):
            validate(manifest)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_an_overlay_is_valid_and_its_settings_are_the_servers(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, str] = {}
    for manifest in rendered(folder):
        validate(manifest)
        settings |= settings_in(manifest)
    assert settings
    for name, value in settings.items():
        assert name.removeprefix(PREFIX).lower() in Settings.model_fields
        if not value.startswith("s3://"):  # s3fs need not be installed here
            monkeypatch.setenv(name, value)
    longest = Settings()
    assert longest.drain_s == 10


@pytest.mark.parametrize("folder", OVERLAYS[:2])
def test_an_overlay_fits_together(folder: str) -> None:
    manifests = {manifest["kind"]: manifest for manifest in rendered(folder)}
    spec = manifests["Deployment"]["spec"]
    template, (container,) = spec["template"], spec["template"]["spec"]["containers"]
    labels = template["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert manifests["Service"]["spec"]["selector"].items() <= labels.items()
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", manifests["Deployment"]["metadata"]["name"])
    assert container["envFrom"][0]["configMapRef"]["name"] == manifests["ConfigMap"]["metadata"]["name"]
    defaults = Settings()
    drain_s = float(manifests["ConfigMap"]["data"]["CONVSERVE_DRAIN_S"])
    assert template["spec"]["terminationGracePeriodSeconds"] > drain_s + defaults.timeout_s + 5
    probe = container["readinessProbe"]
    assert drain_s > probe["periodSeconds"] * (probe["failureThreshold"] + 1)
    assert container["image"].endswith({"overlays/cpu": ":cpu", "overlays/gpu": ":cuda"}[folder])
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (folder == "overlays/gpu")


def test_no_pod_of_the_server_has_rights_that_it_does_not_need() -> None:
    manifests = [manifest for path in FILES for manifest in documents(path.read_text())]
    seen = 0
    for manifest in manifests:
        if manifest["kind"] in {"Deployment", "ServingRuntime"}:
            for spec in pod_specs(manifest):
                pod = spec.get("securityContext", {})
                for container in spec["containers"]:
                    own = pod | container["securityContext"]
                    assert own["runAsNonRoot"]
                    assert own["runAsUser"] >= 10_000
                    assert own["readOnlyRootFilesystem"]
                    assert not own["allowPrivilegeEscalation"]
                    assert own["capabilities"] == {"drop": ["ALL"]}
                    assert own["seccompProfile"] == {"type": "RuntimeDefault"}
                    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
                    assert mounts == {"/var/lib/convserve", "/tmp", "/dev/shm"}
                    seen += 1
    assert seen == 2


def test_no_service_looks_like_a_setting() -> None:
    (deployment,) = documents((KUBERNETES / "base" / "deployment.yaml").read_text())
    (service,) = documents((KUBERNETES / "kserve" / "inferenceservice.yaml").read_text())
    for pod in (deployment["spec"]["template"]["spec"], service["spec"]["predictor"]):
        assert pod["enableServiceLinks"] is False
