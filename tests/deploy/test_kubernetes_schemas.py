"""Every object that an operator applies, held against the schemas of Kubernetes and of the operators' own kinds."""

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus
from support.kubernetes import K8S, OVERLAYS, Object, objects

# The oldest that has all that the manifests ask for, and the newest that there are schemas of.
VERSIONS = ("1.31", "1.37")
OPERATORS = {"keda.sh/v1alpha1": keda, "monitoring.coreos.com/v1": prometheus}


def refusals(one: Object, version: str) -> list[str]:
    """What the schema of the object's kind says against it. A field that the schema does not know counts."""
    models = OPERATORS.get(one["apiVersion"])
    try:
        if models is None:
            kubernetes_validate.validate(one, version, strict=True)
            return []
        # Made from the kinds' own definitions. They drop what they do not know and convert what they can: then what
        # comes out is not what went in.
        read = (
            getattr(models, one["kind"]).model_validate(one).model_dump(mode="json", by_alias=True, exclude_unset=True)
        )
    except ValueError as error:
        return [str(error)]
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return [] if read == one else ["the kind does not know all of its fields"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_its_schema(overlay, version):
    held = objects(overlay)
    assert len(held) > 20
    found = {f"{one['kind']} {one['metadata']['name']}": refusals(one, version) for one in held}
    assert {name: reasons for name, reasons in found.items() if reasons} == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pod_that_weights_are_copied_through_fits_its_schema(version):
    [pod] = yaml.safe_load_all((K8S / "components/weights/copy.yaml").read_text())
    assert refusals(pod, version) == []


def broken(kind: str, name: str, path: str, value: object) -> Object:
    """An object of production with one field set to something wrong."""
    [one] = [one for one in objects("production") if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    place = one
    *way, last = path.split(".")
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    return one


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("Deployment", "gateway", "spec.template.spec.enableServiceLink", False),
        ("Deployment", "gateway", "spec.template.spec.containers.0.ports.0.containerPort", "http"),
        ("StatefulSet", "indexer", "spec.replicas", "two"),
        ("NetworkPolicy", "gateway", "spec.podSelector.labels", {"a": "b"}),
        ("CronJob", "backup", "spec.jobTemplate.spec.template.spec.containers.0.argv", ["notellm"]),
        ("ScaledObject", "worker", "spec.minReplicas", 2),
        ("ScaledObject", "worker", "spec.maxReplicaCount", "8"),
        ("ScaledObject", "worker", "spec.triggers.0.metadata.streamLength", 2000),
        ("TriggerAuthentication", "redis", "spec.secretTargetRef.0.secret", "notellm-redis"),
        ("PodMonitor", "notellm", "spec.podMetricsEndpoints.0.interval", "often"),
        ("PodMonitor", "notellm", "spec.endpoints", []),
    ],
)
def test_a_field_that_is_misspelt_or_of_another_type_is_found(kind, name, path, value):
    assert refusals(broken(kind, name, path, value), VERSIONS[-1])
