"""launch/kubernetes.yaml: what the operator and `lemon` need of it. No cluster is here; the form is
checked against the classes of the package kubeflow-training."""

import re
from importlib import import_module
from typing import Any

import pytest
import yaml

from pipeline.cli import build_parser
from pipeline.config import load
from tests.helpers.cli import ROOT
from tests.helpers.required import require_module

JOB = yaml.safe_load((ROOT / "launch" / "kubernetes.yaml").read_text())


@pytest.mark.parametrize("replica", ["Master", "Worker"])
def test_each_pod_runs_the_same_command(replica):
    """The names are those that the operator looks for; without LOCAL_RANK a pod is a node."""
    spec = JOB["spec"]["pytorchReplicaSpecs"][replica]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["name"] == "pytorch" and container["ports"][0]["name"] == "pytorchjob-port"
    options = build_parser().parse_args(container["args"])
    assert options.command == "run" and load(ROOT / options.config, options.overrides).path.parts[:2] == ("/", "runs")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    assert "nprocPerNode" not in JOB["spec"] and "elasticPolicy" not in JOB["spec"]


def test_the_form_is_that_of_the_api():
    models = require_module("kubeflow.training.models", "kubeflow-training")
    require_form(JOB, models.KubeflowOrgV1PyTorchJob, "job")
    broken = {**JOB, "spec": {**JOB["spec"], "replicas": 2}}
    with pytest.raises(AssertionError, match=r"job\.spec\.replicas"):
        require_form(broken, models.KubeflowOrgV1PyTorchJob, "job")


def require_form(content: Any, kind: Any, place: str) -> None:
    """Every key is one of the class's, all the way down. kind: a class of the API, or a type as it writes them."""
    if isinstance(kind, str):
        if inner := re.fullmatch(r"list\[(.*)\]|dict\(str, (.*)\)", kind):
            items = content if inner[1] else content.values()
            for item in items:
                require_form(item, inner[1] or inner[2], place)
            return
        places = (import_module(name) for name in ("kubeflow.training.models", "kubernetes.client"))
        kind = next((found for place in places if (found := getattr(place, kind, None))), None)
    if kind is None:  # a plain value
        assert not isinstance(content, dict), place
        return
    names = {json: (name, kind.openapi_types[name]) for name, json in kind.attribute_map.items()}
    for key, value in content.items():
        assert key in names, f"{place}.{key}"
        require_form(value, names[key][1], f"{place}.{key}")
