"""The Helm chart as `make chart` builds it, rendered by Helm's own library."""

import functools
import json
import re
import runpy
import tempfile
from pathlib import Path
from typing import Any

import helm_python
import yaml
from support.kubernetes import ROOT, Object

HELM = ROOT / "deploy" / "helm"
# Every value that is the operator's, other than the overlay's.
VALUES: dict[str, Any] = yaml.safe_load("""
images: {registry: registry.internal/team, pullSecrets: [{name: registry}]}
checkpoint: /models/6f1d0c2ab3e49587
next: {checkpoint: /models/00000000000000ff}
settings: {NOTELLM_LOG_LEVEL: DEBUG, NOTELLM_MAX_QUEUE: 5000}
host: notes.example.org
ingress: {enabled: false, className: own, annotations: {own: "yes"}, tlsSecret: own-tls}
httpRoute: {enabled: true, parentRefs: [{name: edge, namespace: edge}]}
monitoring: {enabled: true}
redis: {cidr: 10.9.0.0/16}
webhook: {enabled: true, cidr: 198.51.100.0/24, port: 8443}
gateway:
  replicas: 5
  minReplicas: 4
  maxReplicas: 6
  corsOrigins: [https://app.example]
  resources:
    requests: {cpu: "1", memory: 1Gi, ephemeral-storage: 1Gi}
    limits: {cpu: "3", memory: 3Gi, ephemeral-storage: 2Gi}
worker:
  replicas: 2
  minReplicas: 3
  maxReplicas: 9
  resources:
    requests: {cpu: "4", memory: 8Gi, ephemeral-storage: 1Gi}
    limits: {cpu: "9", memory: 9Gi, ephemeral-storage: 41Gi}
indexer:
  shards: 4
  resources:
    requests: {cpu: "1", memory: 1Gi, ephemeral-storage: 1Gi}
    limits: {cpu: "3", memory: 3Gi, ephemeral-storage: 2Gi}
backup: {schedule: "5 4 * * *"}
storage: {className: fast, sharedClassName: shared, index: 7Gi, redis: 8Gi, models: 9Gi, backups: 10Gi, data: 11Gi}
""")


@functools.cache
def chart() -> Path:
    """The folder of the chart, built once a process."""
    return Path(runpy.run_path(str(HELM / "chart.py"))["build"](Path(_folder().name)))


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Removed with the process."""
    return tempfile.TemporaryDirectory()


def charted(overlay: str, values: dict[str, Any], namespace: str = "notellm") -> list[Object]:
    """The objects that `helm template` shows for an overlay and these values, the caller's to change."""
    return list(yaml.load_all(_rendered(overlay, json.dumps(values), namespace), Loader=yaml.CSafeLoader))


@functools.cache
def _rendered(overlay: str, values: str, namespace: str) -> str:
    with helm_python.Chart.load(chart()) as loaded:
        texts = loaded.render({**json.loads(values), "overlay": overlay}, name="notellm", namespace=namespace)
    [text] = [text for name, text in texts.items() if name.endswith(".yaml") and re.search(r"\S", text)]
    return text
