"""Builds the Helm chart from the kustomize overlays: the objects are theirs, and a value replaces one field of them.

make chart

Writes dist/helm/notellm and packs it beside. A template is an overlay as ``kubectl kustomize`` renders it; `FIELDS`
says which value of the chart replaces which field, and one that is not set leaves what kustomize wrote. What this
writes is not kept, so there is one source.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

FOLDER = Path(__file__).parent
K8S = FOLDER.parent / "k8s"
OUT = FOLDER.parent.parent / "dist" / "helm"
OVERLAYS = ("local", "gpu", "production", "rollout")
SETTINGS = "notellm-settings"
# Components that add objects and change none: any overlay can have them, under the value of this name.
SWITCHES = {
    "ingress": "ingress.enabled",
    "httproute": "httpRoute.enabled",
    "monitoring": "monitoring.enabled",
    "webhook": "webhook.enabled",
}

Object = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """A field of every object of a kind whose name matches, and the value of the chart that replaces it.

    In ``path``, ``[x]`` is the item of a list that is named x. ``helper`` is the template that writes the field from
    the value and from what kustomize wrote. With ``added`` kustomize has no such field.
    """

    kind: str
    name: str
    path: str
    value: str
    helper: str = "notellm.or"
    added: bool = False


CONTAINER = "spec.template.spec.containers"
FIELDS = (
    Field("ScaledObject", "worker", "spec.triggers.0.metadata.stream", "checkpoint", "notellm.jobs"),
    Field("Deployment", "worker-next", f"{CONTAINER}.[worker].env.[NOTELLM_CHECKPOINT].value", "next.checkpoint"),
    Field("Deployment", "gateway", "spec.replicas", "gateway.replicas"),
    Field("Deployment", "gateway", f"{CONTAINER}.[gateway].resources", "gateway.resources"),
    Field(
        "Deployment",
        "gateway",
        f"{CONTAINER}.[gateway].env.[NOTELLM_HTTP__CORS_ORIGINS].value",
        "gateway.corsOrigins",
        "notellm.list",
    ),
    Field(
        "Deployment",
        "gateway",
        f"{CONTAINER}.[gateway].env.[NOTELLM_INDEX__ADDRESSES].value",
        "indexer.shards",
        "notellm.shards",
    ),
    Field(
        "CronJob",
        "learn",
        "spec.jobTemplate.spec.template.spec.containers.[learn].env.[NOTELLM_INDEX__ADDRESSES].value",
        "indexer.shards",
        "notellm.shards",
    ),
    Field("HorizontalPodAutoscaler", "gateway", "spec.minReplicas", "gateway.minReplicas"),
    Field("HorizontalPodAutoscaler", "gateway", "spec.maxReplicas", "gateway.maxReplicas"),
    Field("Deployment", "worker", "spec.replicas", "worker.replicas"),
    Field("Deployment", "worker(-next)?", f"{CONTAINER}.[worker].resources", "worker.resources"),
    Field("ScaledObject", "worker", "spec.minReplicaCount", "worker.minReplicas"),
    Field("ScaledObject", "worker", "spec.maxReplicaCount", "worker.maxReplicas"),
    Field("StatefulSet", "indexer(-b)?", "spec.replicas", "indexer.shards"),
    Field(
        "StatefulSet",
        "indexer(-b)?",
        f"{CONTAINER}.[indexer].env.[NOTELLM_INDEX__ADDRESSES].value",
        "indexer.shards",
        "notellm.listen",
    ),
    Field("StatefulSet", "indexer(-b)?", f"{CONTAINER}.[indexer].resources", "indexer.resources"),
    Field(
        "StatefulSet",
        "indexer(-b)?",
        "spec.volumeClaimTemplates.0.spec.resources.requests.storage",
        "storage.index",
    ),
    Field("StatefulSet", "redis", "spec.volumeClaimTemplates.0.spec.resources.requests.storage", "storage.redis"),
    Field("PersistentVolumeClaim", "models", "spec.resources.requests.storage", "storage.models"),
    Field("PersistentVolumeClaim", "backups", "spec.resources.requests.storage", "storage.backups"),
    Field("PersistentVolumeClaim", "data", "spec.resources.requests.storage", "storage.data"),
    Field("PersistentVolumeClaim", "models", "spec.storageClassName", "storage.sharedClassName", added=True),
    Field("PersistentVolumeClaim", "backups|data", "spec.storageClassName", "storage.className", added=True),
    Field("StatefulSet", ".+", "spec.volumeClaimTemplates.0.spec.storageClassName", "storage.className", added=True),
    Field("ServiceAccount", ".+", "imagePullSecrets", "images.pullSecrets", added=True),
    Field("CronJob", "backup", "spec.schedule", "backup.schedule"),
    Field("NetworkPolicy", "redis-clients", "spec.egress.0.to.0.ipBlock.cidr", "redis.cidr"),
    Field("NetworkPolicy", "webhook", "spec.egress.0.to.0.ipBlock.cidr", "webhook.cidr"),
    Field("NetworkPolicy", "webhook", "spec.egress.0.ports.0.port", "webhook.port"),
    Field("Ingress", "gateway", "metadata.annotations", "ingress.annotations"),
    Field("Ingress", "gateway", "spec.ingressClassName", "ingress.className"),
    Field("Ingress", "gateway", "spec.tls.0.hosts.0", "host"),
    Field("Ingress", "gateway", "spec.rules.0.host", "host"),
    Field("Ingress", "gateway", "spec.tls.0.secretName", "ingress.tlsSecret"),
    Field("HTTPRoute", "gateway", "spec.hostnames.0", "host"),
    Field("HTTPRoute", "gateway", "spec.parentRefs", "httpRoute.parentRefs"),
)


def build(folder: Path) -> Path:
    """The chart, as a folder in this one."""
    chart = folder / "notellm"
    shutil.rmtree(chart, ignore_errors=True)
    shutil.copytree(FOLDER, chart, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copy(FOLDER.parent.parent / "LICENSE", chart)
    used: set[Field] = set()
    for overlay in OVERLAYS:
        (chart / "templates" / f"{overlay}.yaml").write_text(template(overlay, used))
    if unused := set(FIELDS) - used:
        raise LookupError(f"no overlay has the field {unused.pop()}")
    return chart


def template(overlay: str, used: set[Field]) -> str:
    """The template that renders an overlay; adds to ``used`` the fields that it found."""
    with tempfile.TemporaryDirectory() as folder:
        k8s = shutil.copytree(K8S, Path(folder) / "k8s")
        own = {_key(one) for one in _rendered(k8s, overlay, ())}
        everything = list(_rendered(k8s, overlay, SWITCHES))
        switch = {
            _key(one): value
            for component, value in SWITCHES.items()
            for one in yaml.safe_load_all(_kustomize(k8s / "components" / component))
        }
    writer = _Writer(everything, used)
    parts = [f'{{{{- if eq .Values.overlay "{overlay}" }}}}']
    for one in everything:
        if one["kind"] == "Namespace":
            continue  # Helm keeps its own records in it, so it is there before the chart
        text = "---\n" + writer.text(one)
        if value := switch.get(_key(one)):
            wanted = f"(list .Values.{value} `{json.dumps(_key(one) in own)}`)"
            text = f'{{{{- if eq (include "notellm.or" {wanted}) "true" }}}}\n{text}{{{{- end }}}}\n'
        parts.append(text)
    return "\n".join([*parts, "{{- end }}\n"])


def _key(one: Object) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def _rendered(k8s: Path, overlay: str, components: Iterable[str]) -> Iterator[Object]:
    """The objects of an overlay with these components, too. ``rollout`` is production in the midst of one."""
    file = k8s / "overlays" / ("production" if overlay == "rollout" else overlay) / "kustomization.yaml"
    before = file.read_text()
    edited = yaml.safe_load(before)
    named = [f"../../components/{name}" for name in components]
    edited["components"] += [path for path in named if path not in edited["components"]]
    if overlay == "rollout":
        edited["components"].insert(0, "../../components/next")
    file.write_text(yaml.safe_dump(edited))
    try:
        yield from yaml.safe_load_all(_kustomize(file.parent))
    finally:
        file.write_text(before)


def _kustomize(folder: Path) -> str:
    kubectl = Path(sys.executable).parent / "kubectl"
    return subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True).stdout  # noqa: S603


class _Writer:
    """Objects as text of a template. A field that a value replaces is a word of its own until the rest is written."""

    def __init__(self, everything: Sequence[Object], used: set[Field]) -> None:
        self._shards = [name for kind, name in map(_key, everything) if kind == "StatefulSet" and "indexer" in name]
        [self._settings] = [one for one in everything if one["kind"] == "ConfigMap" and SETTINGS in _key(one)[1]]
        self._used = used
        self._words: dict[str, tuple[str, bool]] = {}

    def text(self, one: Object) -> str:
        """One object."""
        self._words = {}
        one["metadata"]["namespace"] = self._word("{{ .Release.Namespace }}")
        for field in FIELDS:
            if field.kind == one["kind"] and re.fullmatch(field.name, one["metadata"]["name"]):
                for place, key in _places(one, field.path.split("."), added=field.added):
                    self._used.add(field)
                    place[key] = self._replaced(field, place.get(key) if isinstance(place, dict) else place[key])
        if one["kind"] == "ConfigMap":
            one["data"] = self._word(f'{{{{ include "notellm.settings" (list . `{json.dumps(one["data"])}`) }}}}')
        text = yaml.safe_dump(self._named(one), sort_keys=False, width=1_000_000).replace("{{", '{{ "{{" }}')
        for word, (expression, added) in self._words.items():
            if added:
                line = rf"\1{{{{- with {expression} }}}}\n\1\2: {{{{ toJson . }}}}\n\1{{{{- end }}}}"
                text = re.sub(rf"(?m)^( *)(\w+): {word}$", line, text)
            else:
                text = text.replace(word, expression)
        return text

    def _replaced(self, field: Field, written: Any) -> str:
        value = f".Values.{field.value}"
        if field.added:
            return self._word(value, added=True)
        names = " ".join(json.dumps(name) for name in self._shards)
        return self._word(f'{{{{ include "{field.helper}" (list {value} `{json.dumps(written)}` (list {names})) }}}}')

    def _named(self, part: Any) -> Any:
        """The same with images and the name of the settings as words."""
        if isinstance(part, dict):
            return {key: self._image(each) if key == "image" else self._named(each) for key, each in part.items()}
        if isinstance(part, list):
            return [self._named(each) for each in part]
        if part == self._settings["metadata"]["name"]:
            return self._word(
                f'{{{{ include "notellm.settings.name" (list . `{part}` `{json.dumps(self._settings["data"])}`) }}}}'
            )
        return part

    def _image(self, image: str) -> str:
        found = re.fullmatch(r"(?:(.+)/)?(notellm-[a-z-]+):(.+)", image)
        if not found:
            return image
        registry, name, tag = found.groups()
        return self._word(f'{{{{ include "notellm.image" (list . "{registry or ""}" "{name}" "{tag}") }}}}')

    def _word(self, expression: str, *, added: bool = False) -> str:
        word = f"VALUE{len(self._words):04}WORD"
        self._words[word] = expression, added
        return word


def _places(part: Any, path: Sequence[str], *, added: bool) -> Iterator[tuple[Any, Any]]:
    """Where the path leads to: what holds the field, and its key there."""
    step, *rest = path
    if re.fullmatch(r"\[.+\]", step):
        keys: list[Any] = [number for number, item in enumerate(part) if item["name"] == step[1:-1]]
    elif isinstance(part, list):
        keys = [int(step)] if int(step) < len(part) else []
    else:
        keys = [step] if step in part or (added and not rest) else []
    for key in keys:
        if rest:
            yield from _places(part[key], rest, added=added)
        else:
            yield part, key


def main() -> None:
    """Build the chart and pack it."""
    OUT.mkdir(parents=True, exist_ok=True)
    helm_python.package(build(OUT), destination=OUT)


if __name__ == "__main__":
    main()
