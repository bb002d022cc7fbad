"""Manifests that are valid for the operator and for Kubernetes, and whose commands are a fit."""

import copy
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import dask_nmf
from tests.clusters.ceph import free_ports
from tests.clusters.conftest import FIT, RECIPES, Run

RECIPE = RECIPES / "kubernetes"
ROOT = RECIPES.parent
VERSIONS = ("1.29", "1.37")  # of Kubernetes; before, the schema of podFailurePolicy is wrong


def manifests(name: str) -> dict[str, dict[str, Any]]:
    """Those of a file, by kind."""
    yaml = pytest.importorskip("yaml")
    return {each["kind"]: each for each in yaml.safe_load_all((RECIPE / name).read_text())}


def valid(manifest: dict[str, Any]) -> None:
    """For Kubernetes itself: no unknown names, nothing missing."""
    validate = pytest.importorskip("kubernetes_validate").validate
    for version in VERSIONS:
        validate(manifest, version, strict=True)


def valid_for_operator(manifest: dict[str, Any]) -> None:
    """By the definition that the operator installs, which takes no unknown names here."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(_definition()).validate(manifest)


@cache
def _definition() -> Any:
    yaml = pytest.importorskip("yaml")
    operator = Path(pytest.importorskip("dask_kubernetes").__file__).parent / "operator"
    (path,) = operator.rglob("crds/daskcluster.yaml")
    (version,) = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    names = {"apiVersion": {"const": f"kubernetes.dask.org/{version['name']}"}}
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"] |= names | {"kind": {"const": "DaskCluster"}, "metadata": {}}
    return _strict(schema)


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _strict(each) for name, each in schema.items()}
    return {"additionalProperties": False} | found if "properties" in schema else found


def test_manifests_are_valid() -> None:
    found = manifests("cluster.yaml") | manifests("job.yaml")
    valid_for_operator(found.pop("DaskCluster"))
    assert set(found) == {"ServiceAccount", "NetworkPolicy", "Job"}
    for manifest in found.values():
        valid(manifest)


def test_what_the_operator_makes_of_them_is_valid() -> None:
    """Deployments and a service, with names that the service finds, on nodes that we asked for."""
    import importlib

    pytest.importorskip("dask_kubernetes")
    made = importlib.import_module("dask_kubernetes.operator.controller.controller")
    cluster = manifests("cluster.yaml")["DaskCluster"]
    scheduler, worker = cluster["spec"]["scheduler"], cluster["spec"]["worker"]
    labels = scheduler["metadata"]["labels"]
    one = made.build_scheduler_deployment_spec("nmf", scheduler["spec"], {}, labels)
    service = made.build_scheduler_service_spec("nmf", scheduler["service"], {}, labels)
    other = made.build_worker_deployment_spec(
        "nmf-default", "default", "nmf", "0a1b", worker["spec"], {}, worker["metadata"]["labels"]
    )
    for manifest in (one, service, other):
        valid(manifest)
    pod = one["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert f"{name}:{port}" in (RECIPE / "job.yaml").read_text()
    spot = other["spec"]["template"]["spec"]
    assert {x["key"] for x in spot["tolerations"]} == set(spot["nodeSelector"])
    assert "tolerations" not in pod["spec"]


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "worker", "spec", "nodeSelector"),
        ("spec", "worker", "spec", "tolerations"),
        ("spec", "scheduler", "service"),
        ("spec", "template", "spec", "restartPolicy"),
        ("spec", "podFailurePolicy", "rules"),
    ],
    ids=".".join,
)
def test_a_typing_error_is_found(path: tuple[str, ...]) -> None:
    found = manifests("cluster.yaml") | manifests("job.yaml")
    manifest = copy.deepcopy(found["DaskCluster" if path[1] in ("worker", "scheduler") else "Job"])
    parent = manifest
    for name in path[:-1]:
        parent = parent[name]
    parent[f"{path[-1]}s"] = parent.pop(path[-1])
    with pytest.raises(Exception, match=path[-1]):
        (valid_for_operator if manifest["kind"] == "DaskCluster" else valid)(manifest)


def test_their_commands_are_a_fit(run: Run, expected: str) -> None:
    """As processes of this machine, with other addresses, and two workers in place of eight."""
    cluster, job = manifests("cluster.yaml")["DaskCluster"], manifests("job.yaml")["Job"]
    (port, web), pod = free_ports(2), job["spec"]["template"]["spec"]
    address = f"127.0.0.1:{port}"
    here = {
        "nmf-scheduler:8786": address,
        "wait_for_workers(8": "wait_for_workers(2",
        "8786": str(port),
        ":8787": f"127.0.0.1:{web}",
        "/scratch": str(run.folder / "scratch"),
        "s3://BUCKET/V.zarr": str(run.V),
        "s3://BUCKET/out.zarr": str(run.out),
        "=4GiB": "=1GiB",
    }

    def start(container: dict[str, Any], *more: str, **variables: str) -> Any:
        variables |= {each["name"]: each["value"] for each in container.get("env", [])}
        run.environment |= variables
        words = [*container.get("command", []), *container["args"]]
        for there, instead in here.items():
            words = [word.replace(there, instead) for word in words]
        words = [re.sub(r"\$\((\w+)\)", lambda m: variables[m[1]], word) for word in words]
        return run.start(*words, *more)

    start(cluster["spec"]["scheduler"]["spec"]["containers"][0], "--host", "127.0.0.1")
    (worker,) = cluster["spec"]["worker"]["spec"]["containers"]
    for name in ("one", "two"):  # what the operator adds to them
        told = {"DASK_WORKER_NAME": name, "DASK_SCHEDULER_ADDRESS": f"tcp://{address}"}
        start(worker, "--host", "127.0.0.1", **told)
    assert start(pod["initContainers"][0]).wait(90) == 0, run.said()
    fit = copy.deepcopy(pod["containers"][0])
    fit["args"] = [each for each in fit["args"] if not each.startswith(("--rank", "--memory"))]
    assert start(fit, *FIT).wait(90) == 0, run.said()
    assert run.digest() == expected
    assert address in str(dask_nmf.open_result(run.out).plan)


def test_the_options_of_the_job_are_those_of_the_command() -> None:
    from dask_nmf.cli import _parser

    (fit,) = manifests("job.yaml")["Job"]["spec"]["template"]["spec"]["containers"]
    assert fit["args"][0] == "dask-nmf"
    asked = _parser().parse_args(fit["args"][1:])
    assert (asked.rank, asked.memory) == (20, "2400MiB")


def test_what_the_image_holds_can_be_installed(tmp_path: Path) -> None:
    """The files that the Dockerfile copies, by its pip; there is no docker here."""
    text = (RECIPE / "Dockerfile").read_text()
    for *sources, target in (line.split()[1:] for line in text.splitlines() if line[:4] == "COPY"):
        for source in sources:
            place = tmp_path / target.strip("/") / ("" if target.endswith("/") else ".")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place)
            else:
                place.mkdir(exist_ok=True)
                shutil.copy(ROOT / source, place)
    (what,) = re.findall(r'pip install --no-cache-dir "/src(\[\w+\])"', text)
    assert what == "[s3]"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
    subprocess.run([*install, str(tmp_path / "site"), str(tmp_path / "src")], check=True)
    show = "import dask_nmf; print(dask_nmf.__file__)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", show]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert str(tmp_path / "site") in done.stdout, done.stderr
