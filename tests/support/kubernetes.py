"""The manifests as an operator applies them: rendered by the kustomize inside kubectl, and asked questions."""

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("local", "gpu", "production", "rollout")
COMPONENT = "app.kubernetes.io/component"
POD_INDEX = "apps.kubernetes.io/pod-index"

Object = dict[str, Any]


@functools.cache
def rendered(overlay: str) -> str:
    """What `kubectl kustomize` makes of an overlay; its warnings are errors. The binary is that of this environment.

    ``rollout`` is production in the midst of one, as the README says to edit it.
    """
    if overlay != "rollout":
        return _kustomize(K8S / "overlays" / overlay)
    with tempfile.TemporaryDirectory() as folder:
        copied = shutil.copytree(K8S, Path(folder) / "k8s")
        edited = copied / "overlays" / "production" / "kustomization.yaml"
        edited.write_text(edited.read_text().replace("# - ../../components/next", "- ../../components/next"))
        return _kustomize(edited.parent)


def _kustomize(folder: Path) -> str:
    kubectl = Path(sys.executable).parent / "kubectl"
    assert kubectl.exists(), f"{kubectl} is missing; the extra `deploy` brings it"
    made = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")
    return made.stdout


def objects(overlay: str) -> list[Object]:
    """The objects of an overlay, the caller's to change."""
    return list(yaml.load_all(rendered(overlay), Loader=yaml.CSafeLoader))


@dataclass(frozen=True, slots=True)
class Workload:
    """Whatever makes pods, and one of its pods."""

    kind: str
    name: str
    spec: Object
    labels: Mapping[str, str]
    pod: Object
    claims: Sequence[str] = field(default=())

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def component(self) -> str:
        """Which of our processes it is."""
        return self.labels.get(COMPONENT, "")

    @property
    def containers(self) -> list[Object]:
        """Those that run first, then the others."""
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        """Container ports by name."""
        return {port["name"]: port["containerPort"] for one in self.containers for port in one.get("ports", [])}


class Manifests:
    """All objects of one overlay."""

    def __init__(self, held: Sequence[Object]) -> None:
        self.objects = held

    def of(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [one for one in self.objects if one["kind"] in kinds]

    def find(self, kind: str, name: str) -> Object:
        """One object; the name may lack the hash that kustomize adds. Raises LookupError."""
        for one in self.of(kind):
            if re.fullmatch(re.escape(name) + r"(-[a-z0-9]{10})?", one["metadata"]["name"]):
                return one
        raise LookupError(f"no {kind} {name}")

    def names(self, kind: str) -> set[str]:
        """Names of the objects of a kind."""
        return {one["metadata"]["name"] for one in self.of(kind)}

    @property
    def workloads(self) -> list[Workload]:
        """Everything that makes pods."""
        return list(map(_workload, self.of("Deployment", "StatefulSet", "CronJob", "Job", "Pod")))

    def selected(self, selector: Object) -> list[Workload]:
        """The workloads whose pods a label selector matches; an empty selector matches all."""
        return [one for one in self.workloads if matches(selector, one.labels)]

    def least_replicas(self, workload: Workload) -> int:
        """How many pods there are at least, by whatever scales it."""
        for scaler in self.of("HorizontalPodAutoscaler", "ScaledObject"):
            target = scaler["spec"]["scaleTargetRef"]
            if (target["kind"], target["name"]) == (workload.kind, workload.name):
                return int(scaler["spec"].get("minReplicas") or scaler["spec"]["minReplicaCount"])
        return int(workload.spec.get("replicas", 1))

    def environments(self, workload: Workload, container: Object) -> Iterator[dict[str, str]]:
        """What the container's process finds in its environment, in each pod of a StatefulSet or in one of others.

        A value from a Secret is a plausible one. Raises LookupError for a ConfigMap or a label that is not there.
        """
        ordinals = int(workload.spec.get("replicas", 1)) if workload.kind == "StatefulSet" else 1
        for ordinal in range(ordinals):
            found: dict[str, str] = {}
            for source in container.get("envFrom", []):
                found |= self.find("ConfigMap", source["configMapRef"]["name"])["data"]
            for variable in container.get("env", []):
                found[variable["name"]] = _value(variable, workload, ordinal)
            yield found


def manifests_of(overlay: str) -> Manifests:
    """The manifests of an overlay, the caller's to change."""
    return Manifests(objects(overlay))


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches these labels. Raises ValueError for an operator that is not known here."""
    wanted = dict(selector.get("matchLabels") or {})
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for rule in selector.get("matchExpressions") or []:
        if rule["operator"] != "In":
            raise ValueError(rule["operator"])
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: cores, bytes, pieces."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|Ki|Mi|Gi|Ti)?", str(text))
    assert found, f"not a quantity: {text}"
    scale = {None: 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(found[1]) * scale[found[2]]


def _workload(one: Object) -> Workload:
    name, spec = one["metadata"]["name"], one.get("spec", {})
    if one["kind"] == "Pod":
        return Workload("Pod", name, {}, one["metadata"].get("labels", {}), spec)
    if one["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template = spec["template"]
    claims = [claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])]
    return Workload(one["kind"], name, spec, template["metadata"]["labels"], template["spec"], claims)


def _value(variable: Object, workload: Workload, ordinal: int) -> str:
    if "value" in variable:
        return str(variable["value"])
    source = variable["valueFrom"]
    if "secretKeyRef" in source:
        is_webhook = variable["name"] == "NOTELLM_WEBHOOK_URL"
        return "https://somewhere/hook" if is_webhook else "redis://somewhere:6379/0"
    path = source["fieldRef"]["fieldPath"]
    job = {"job-name": f"{workload.name}-1", "job-completion-index": str(ordinal)}
    given = {POD_INDEX: str(ordinal)} | {f"batch.kubernetes.io/{label}": value for label, value in job.items()}
    if path == "metadata.name":
        return f"{workload.name}-1"
    if label := re.fullmatch(r"metadata\.labels\['(.+)'\]", path):
        return ({**workload.labels} | given)[label[1]]
    raise LookupError(path)
