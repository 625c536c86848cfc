"""What no schema says of the manifests: that their parts fit together, and fit the processes that they run.

A policy is a function that yields what is wrong. Each holds for every overlay, and each finds manifests that were
spoilt on purpose.
"""

import base64
import os
import re
import shlex
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import click
import pytest
import yaml
from pydantic import ValidationError
from pydantic_settings import SettingsError
from support.chart import VALUES, charted
from support.kubernetes import K8S, OVERLAYS, POD_INDEX, ROOT, Manifests, Workload, manifests_of, matches, quantity
from support.working import stored

from indexer.shards import replicas
from model.network.checkpoint import load_manifest
from service.cli.main import cli
from service.processes.health import OpsServer, Readiness
from service.processes.local_redis import redis_command
from service.server import server
from service.settings import MINI, Settings, environment_names
from service.store.jobs import JobQueue
from service.store.notes import RedisStore
from service.store.schema import JOBS
from service.wiring.worker import GRACE_S

Policy = Callable[[Manifests], Iterator[str]]

USER = 10001
OWN_IMAGE = re.compile(r"(?:.+/)?notellm-([a-z-]+):(.+)")
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


def settings_of(environment: dict[str, str]) -> Settings:
    """As a process in this environment reads them. Raises ValidationError or SettingsError."""
    with patch.dict(os.environ, environment, clear=True):
        return Settings()


def processes(manifests: Manifests) -> Iterator[tuple[Workload, dict[str, Any], dict[str, str]]]:
    """Every container that runs our command, with what is in its environment."""
    for workload in manifests.workloads:
        for container in workload.containers:
            if container.get("command") == ["notellm"]:
                for environment in manifests.environments(workload, container):
                    yield workload, container, environment


def selectors_find_pods(manifests: Manifests) -> Iterator[str]:
    """Whatever selects pods selects some; what makes pods selects those that it makes."""
    for workload in manifests.workloads:
        if "selector" in workload.spec and not matches(workload.spec["selector"], workload.labels):
            yield f"{workload} does not select its own pods"
        spread = [one["labelSelector"] for one in workload.pod.get("topologySpreadConstraints", [])]
        for kind in workload.pod.get("affinity", {}).get("podAntiAffinity", {}).values():
            spread += [term.get("podAffinityTerm", term)["labelSelector"] for term in kind]
        if not all(matches(selector, workload.labels) for selector in spread):
            yield f"{workload} is spread by labels that it has not"
    for one in manifests.of("Service"):
        if not manifests.selected({"matchLabels": one["spec"]["selector"]}):
            yield f"Service {one['metadata']['name']} selects no pod"
    for one in manifests.of("PodDisruptionBudget", "PodMonitor"):
        if not manifests.selected(one["spec"]["selector"]):
            yield f"{one['kind']} {one['metadata']['name']} selects no pod"
    for one in manifests.of("NetworkPolicy"):
        rules = one["spec"].get("ingress", []) + one["spec"].get("egress", [])
        peers = [peer for rule in rules for peer in rule.get("from", []) + rule.get("to", [])]
        inside = [peer["podSelector"] for peer in peers if "podSelector" in peer and "namespaceSelector" not in peer]
        for selector in [one["spec"]["podSelector"], *inside]:
            if not manifests.selected(selector):
                yield f"NetworkPolicy {one['metadata']['name']} selects no pod with {selector}"


def mounts_have_volumes(manifests: Manifests) -> Iterator[str]:
    """Every mount has its volume, and no volume lies unused."""
    for workload in manifests.workloads:
        held = {volume["name"] for volume in workload.pod.get("volumes", [])} | set(workload.claims)
        mounted = {mount["name"] for one in workload.containers for mount in one.get("volumeMounts", [])}
        yield from (f"{workload} mounts {name}, which is no volume" for name in mounted - held)
        yield from (f"{workload} has a volume {name} that nothing mounts" for name in held - mounted)


def references_exist(manifests: Manifests) -> Iterator[str]:
    """Whatever is referred to by name is there; secrets apart."""
    for workload in manifests.workloads:
        yield from _missing(manifests, "ServiceAccount", workload.pod["serviceAccountName"], workload)
        for volume in workload.pod.get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                yield from _missing(manifests, "PersistentVolumeClaim", claim["claimName"], workload)
        for container in workload.containers:
            for source in container.get("envFrom", []):
                yield from _missing(manifests, "ConfigMap", source["configMapRef"]["name"], workload)
        if workload.kind == "StatefulSet":
            yield from _missing(manifests, "Service", workload.spec["serviceName"], workload)
    for one in manifests.of("ScaledObject"):
        for trigger in one["spec"]["triggers"]:
            yield from _missing(manifests, "TriggerAuthentication", trigger["authenticationRef"]["name"], one["kind"])


def secrets_are_made(manifests: Manifests) -> Iterator[str]:
    """Every key of a secret that is asked for is in a manifest, or a command in the README makes it."""
    made = secrets_by_hand()
    for one in manifests.of("Secret"):
        made.setdefault(one["metadata"]["name"], set()).update(one.get("data", {}))
    wanted = set(_mounted_secrets(manifests))
    for workload in manifests.workloads:
        for container in workload.containers:
            for variable in container.get("env", []):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    wanted.add((reference["name"], reference["key"]))
    for one in manifests.of("TriggerAuthentication"):
        wanted |= {(each["name"], each["key"]) for each in one["spec"]["secretTargetRef"]}
    for name, key in sorted(wanted):
        if key not in made.get(name, set()):
            yield f"nobody makes the secret {name} with {key}"


def _mounted_secrets(manifests: Manifests) -> Iterator[tuple[str, str]]:
    """Secret and file of every variable that names a file on a volume of secrets."""
    for workload, container, environment in processes(manifests):
        secrets = {one["name"]: one["secret"]["secretName"] for one in workload.pod["volumes"] if "secret" in one}
        for mount in container["volumeMounts"]:
            for value in environment.values():
                folder, _, file = value.rpartition("/")
                if mount["name"] in secrets and folder == mount["mountPath"]:
                    yield secrets[mount["name"]], file


def _missing(manifests: Manifests, kind: str, name: str, whose: object) -> Iterator[str]:
    if name not in manifests.names(kind):
        yield f"{whose} needs {kind} {name}"


def secrets_by_hand() -> dict[str, set[str]]:
    """Name and keys of every secret that the README tells how to make."""
    made: dict[str, set[str]] = {}
    text = (K8S / "README.md").read_text().replace("\\\n", " ")
    for line in re.findall(r"create secret generic (.+)", text):
        name, *options = shlex.split(line)
        found = made.setdefault(name, set())
        for option in options:
            if source := re.fullmatch(r"--from-(?:literal|file)=([^=]+)(?:=.*)?", option):
                found.add(source[1].rsplit("/", 1)[-1])
    return made


def ports_exist(manifests: Manifests) -> Iterator[str]:
    """Ports of Services, probes, monitors and network policies are ports of the containers behind them."""
    for one in manifests.of("Service"):
        name, behind = one["metadata"]["name"], manifests.selected({"matchLabels": one["spec"]["selector"]})
        for port in one["spec"]["ports"]:
            if any(port["targetPort"] not in workload.ports for workload in behind):
                yield f"Service {name}: no port {port['targetPort']} behind it"
    for kind, service, port in _ways_in(manifests):
        found = [one for one in manifests.of("Service") if one["metadata"]["name"] == service]
        if not any(port in (each["name"], each["port"]) for one in found for each in one["spec"]["ports"]):
            yield f"{kind}: no Service {service} with port {port}"
    for one in manifests.of("PodMonitor"):
        for endpoint in one["spec"]["podMetricsEndpoints"]:
            for workload in manifests.selected(one["spec"]["selector"]):
                if endpoint["port"] not in workload.ports:
                    yield f"PodMonitor: {workload} has no port {endpoint['port']}"
    for workload in manifests.workloads:
        for container in workload.containers:
            for probe in _probes(container):
                asked = probe.get("httpGet") or probe.get("tcpSocket")
                if asked and asked["port"] not in workload.ports:
                    yield f"{workload} is probed at {asked['port']}"
    for one in manifests.of("NetworkPolicy"):
        for rule in one["spec"].get("ingress", []):
            for workload in manifests.selected(one["spec"]["podSelector"]):
                yield from _not_of(workload, rule)
        for rule in one["spec"].get("egress", []):
            for peer in rule["to"]:
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    for workload in manifests.selected(peer["podSelector"]):
                        yield from _not_of(workload, rule)


def _ways_in(manifests: Manifests) -> Iterator[tuple[str, str, str | int]]:
    """Kind, Service and port, a name or a number, of whatever sends requests from outside to a Service."""
    for one in manifests.of("Ingress"):
        for path in (path for rule in one["spec"]["rules"] for path in rule["http"]["paths"]):
            port = path["backend"]["service"]["port"]
            yield "Ingress", path["backend"]["service"]["name"], port.get("name", port.get("number"))
    for one in manifests.of("HTTPRoute"):
        for behind in (behind for rule in one["spec"]["rules"] for behind in rule["backendRefs"]):
            yield "HTTPRoute", behind["name"], behind["port"]


def _not_of(workload: Workload, rule: dict[str, Any]) -> Iterator[str]:
    for port in rule["ports"]:
        if port["port"] not in workload.ports and port["port"] not in workload.ports.values():
            yield f"a network policy opens port {port['port']}, which {workload} has not"


def _probes(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe") if name in container]


def probes_are_answered(manifests: Manifests) -> Iterator[str]:
    """Everything that serves is probed, liveness asks for nothing but the process, and the paths are the app's."""
    for workload in manifests.workloads:
        for container in workload.containers:
            if workload.kind not in ("Deployment", "StatefulSet"):
                continue
            if len(_probes(container)) != 3:
                yield f"{workload} lacks a probe"
            for probe in _probes(container):
                if "httpGet" in probe and not _answered(probe["httpGet"]["path"]):
                    yield f"{workload} is asked for {probe['httpGet']['path']}, which the app does not know"
            if container.get("livenessProbe", {}).get("httpGet", {}).get("path", "/livez") != "/livez":
                yield f"{workload} would be killed for what others lack"


def _answered(path: str) -> bool:
    ops = OpsServer("127.0.0.1", 0, Readiness())
    ops.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{ops.port}{path}", timeout=5) as answer:
            return answer.status == 200
    except urllib.error.HTTPError as error:
        error.close()
        return False
    finally:
        ops.stop()


def settings_are_read(manifests: Manifests) -> Iterator[str]:
    """Every NOTELLM_ variable is a setting, and each process starts with what its pod gives it."""
    for workload in manifests.workloads:
        for container in workload.containers:
            for variable in container.get("env", []):
                if variable["name"].startswith("NOTELLM_") and variable["name"] not in environment_names():
                    yield f"{workload}: {variable['name']} is no setting"
    for workload, container, environment in processes(manifests):
        try:
            settings = settings_of(environment)
        except (ValidationError, SettingsError) as error:
            yield f"{workload}, {container['name']}: {error}"
            continue
        ports = {"ops": settings.ops.port, "http": settings.http.port}
        for name, port in ports.items():
            if workload.ports.get(name, port) != port:
                yield f"{workload} listens at {port}, and says that {name} is {workload.ports[name]}"
        if "ops" in workload.ports and settings.ops.host == "127.0.0.1":
            yield f"{workload} answers no probe"


def commands_are_known(manifests: Manifests) -> Iterator[str]:
    """What the containers run is a command with options that exist."""
    for workload, container, environment in processes(manifests):
        args = container["args"]
        try:
            args = [re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], one) for one in args]  # noqa: B023
            with cli.make_context("notellm", args) as context:
                name, command, rest = cli.resolve_command(context, [*context._protected_args, *context.args])
                assert command
                command.make_context(name, rest, parent=context).close()
        except (click.ClickException, KeyError) as error:
            yield f"{workload}: notellm {' '.join(args)}: {error}"


def every_shard_has_a_pod(manifests: Manifests) -> Iterator[str]:
    """A job that shares its work runs as many pods, each with an index of its own, as it makes shards."""
    for workload, container, _ in processes(manifests):
        args = container["args"]
        if "--shard" not in args:
            continue
        job = next(one for one in manifests.of("CronJob") if one["metadata"]["name"] == workload.name)
        pods = job["spec"]["jobTemplate"]["spec"]
        shards = args[args.index("--shard") + 1].partition("/")[2]
        if pods.get("completionMode") != "Indexed" or str(pods.get("completions")) != shards:
            yield f"{workload}: {shards} shards, and {pods.get('completions')} pods"


def resources_are_bounded(manifests: Manifests) -> Iterator[str]:
    """Requests and limits everywhere, requests within limits, and room for what lies in emptyDirs."""
    for workload in manifests.workloads:
        volumes = [volume["emptyDir"] for volume in workload.pod.get("volumes", []) if "emptyDir" in volume]
        if any("sizeLimit" not in volume for volume in volumes):
            yield f"{workload} has an emptyDir without bound"
        scratch = sum(quantity(one.get("sizeLimit", "0")) for one in volumes if one.get("medium") != "Memory")
        for container in workload.containers:
            given = container.get("resources", {})
            requests, limits = given.get("requests", {}), given.get("limits", {})
            for kind in ("cpu", "memory", "ephemeral-storage"):
                if kind not in requests or kind not in limits:
                    yield f"{workload}, {container['name']}: no bound on {kind}"
            for kind, request in requests.items():
                if quantity(request) > quantity(limits.get(kind, "0")):
                    yield f"{workload}, {container['name']}: asks for more {kind} than it may have"
            if scratch > quantity(limits.get("ephemeral-storage", "0")):
                yield f"{workload}, {container['name']}: its volumes may hold more than it may"


def threads_fit_the_cpus(manifests: Manifests) -> Iterator[str]:
    """No process computes with more threads than it has cores: it would be halted for most of each period."""
    for workload, container, environment in processes(manifests):
        settings, cores = settings_of(environment), quantity(container["resources"]["limits"]["cpu"])
        wanted = {
            "gateway": 1,
            "worker": 1 if settings.worker.backend == "vllm" else settings.worker.threads,
            "indexer": settings.index.threads,
        }.get(workload.component, int(environment.get("OMP_NUM_THREADS", "1")))
        if not 0 < wanted <= cores:
            yield f"{workload}: {wanted} threads on {cores} cores"


def pods_are_restricted(manifests: Manifests) -> Iterator[str]:
    """Pod Security `restricted`, a user by number, and files that nobody changes."""
    for one in manifests.of("Namespace"):
        if one["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the namespace is not restricted"
    for workload in manifests.workloads:
        pod, own = workload.pod, workload.pod.get("securityContext", {})
        if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{workload} is in a namespace of the node"
        if own.get("runAsNonRoot") is not True or (own.get("runAsUser"), own.get("fsGroup")) != (USER, USER):
            yield f"{workload} does not run as {USER}"
        if own.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{workload} has no seccomp profile"
        for volume in pod.get("volumes", []):
            if not VOLUMES & volume.keys():
                yield f"{workload}: volume {volume['name']} is of a kind that is not allowed"
        for container in workload.containers:
            held = container.get("securityContext", {})
            if held.get("allowPrivilegeEscalation") is not False or held.get("privileged") is not False:
                yield f"{workload} may become somebody else"
            if held.get("readOnlyRootFilesystem") is not True:
                yield f"{workload} may change its image"
            if held.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{workload} has capabilities"
            if set(held) & {"runAsUser", "runAsNonRoot", "seccompProfile", "procMount"}:
                yield f"{workload} takes back what its pod says"
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{workload} takes a port of the node"


def pods_hold_no_token(manifests: Manifests) -> Iterator[str]:
    """No token of the Kubernetes API, an account each, no variables of Services."""
    for workload in manifests.workloads:
        if workload.pod.get("automountServiceAccountToken") is not False:
            yield f"{workload} has a token"
        if workload.pod.get("enableServiceLinks") is not False:
            yield f"{workload} is given variables of Services"
    for one in manifests.of("ServiceAccount"):
        if one.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount {one['metadata']['name']} hands its token out"


def images_are_pinned(manifests: Manifests) -> Iterator[str]:
    """A tag on every image, never latest; ours are this version's, and targets of the Dockerfile."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    targets = set(re.findall(r"(?m)^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text()))
    for workload in manifests.workloads:
        for container in workload.containers:
            image = container["image"]
            if not re.fullmatch(r".+:[\w.-]+", image) or image.endswith(":latest"):
                yield f"{workload}: {image} is not pinned"
            elif own := OWN_IMAGE.fullmatch(image):
                if own[2] != version:
                    yield f"{workload}: {image} is not version {version}"
                if own[1] not in targets:
                    yield f"{workload}: the Dockerfile has no target {own[1]}"


def secrets_are_references(manifests: Manifests) -> Iterator[str]:
    """No password, key or URL with one stands in a manifest."""
    for one in manifests.of("Secret"):
        values = map(str, one.get("stringData", {}).values())
        for value in [*values, *(_decoded(value) for value in one.get("data", {}).values())]:
            if not re.fullmatch(r"redis://[^@:/]+:\d+/\d+", value):
                yield f"Secret {one['metadata']['name']} holds a secret"
    for workload in manifests.workloads:
        for container in workload.containers:
            for variable in container.get("env", []):
                if re.search("REDIS_URL|PASSWORD|TOKEN$|NOTELLM_KEY$", variable["name"]) and "value" in variable:
                    yield f"{workload}: {variable['name']} is written out"


def _decoded(value: str) -> str:
    return base64.b64decode(value).decode()


def nodes_can_be_drained(manifests: Manifests) -> Iterator[str]:
    """Everything that serves has a budget, and each budget lets at least one pod go."""
    for one in manifests.of("PodDisruptionBudget"):
        spec, behind = one["spec"], manifests.selected(one["spec"]["selector"])
        there = sum(manifests.least_replicas(workload) for workload in behind)
        if not (spec.get("maxUnavailable", 0) >= 1 or there > spec.get("minAvailable", there)):
            yield f"PodDisruptionBudget {one['metadata']['name']} lets nothing go"
    for component in ("gateway", "worker", "indexer"):
        labels = {"app.kubernetes.io/component": component}
        if not any(matches(one["spec"]["selector"], labels) for one in manifests.of("PodDisruptionBudget")):
            yield f"{component} has no PodDisruptionBudget"


def scalers_have_targets(manifests: Manifests) -> Iterator[str]:
    """What scales has something to scale, which has no number of its own; KEDA looks at the queue of the model."""
    for one in manifests.of("HorizontalPodAutoscaler", "ScaledObject"):
        target = one["spec"]["scaleTargetRef"]
        found = [each for each in manifests.of(target["kind"]) if each["metadata"]["name"] == target["name"]]
        if not found:
            yield f"{one['kind']} {one['metadata']['name']} scales nothing"
        elif "replicas" in found[0]["spec"]:
            yield f"{target['name']} has a number of its own, which every apply would bring back"
    for one in manifests.of("ScaledObject"):
        checkpoint = manifests.find("ConfigMap", "notellm-settings")["data"]["NOTELLM_CHECKPOINT"]
        for trigger in one["spec"]["triggers"]:
            if trigger["metadata"]["stream"] != JOBS + checkpoint.rsplit("/", 1)[-1]:
                yield f"{one['metadata']['name']} looks at {trigger['metadata']['stream']}"
            if "consumerGroup" in trigger["metadata"]:
                yield f"{one['metadata']['name']} counts what workers hold"


def pods_have_time_to_leave(manifests: Manifests) -> Iterator[str]:
    """The grace period is longer than everything that a process still does after SIGTERM."""
    for workload, _, environment in processes(manifests):
        settings, grace_s = settings_of(environment), workload.pod.get("terminationGracePeriodSeconds", 30)
        needed_s = {
            "gateway": settings.limits.drain_s + server._GRACE_S,
            "worker": settings.http.tags_s + GRACE_S,
        }.get(workload.component, 0)
        if grace_s <= needed_s:
            yield f"{workload} is killed after {grace_s} s, and needs {needed_s} s"
        if workload.component == "gateway" and settings.limits.drain_s < 5:
            yield f"{workload} stops listening while routers still send to it"


def addresses_agree(manifests: Manifests) -> Iterator[str]:
    """Gateways know every shard and replica by the name that its pod has; indexers know how many shards there are."""
    indexers = sorted(
        (one for one in manifests.workloads if one.component == "indexer"),
        key=lambda one: one.labels["notellm/replica"],
    )
    shards = range(indexers[0].spec["replicas"])
    there = [
        [f"{one.name}-{shard}.{one.spec['serviceName']}:{one.ports['searches']}" for one in indexers]
        for shard in shards
    ]
    for workload, container, environment in processes(manifests):
        settings = settings_of(environment)
        index, own = settings.index, container.get("args", [])
        if own[:1] in (["gateway"], ["learn"]) and [replicas(shard) for shard in index.addresses] != there:
            yield f"{workload} asks shards at {index.addresses}; they are at {there}"
        if own == ["indexer"]:
            if len(index.addresses) != len(shards):
                yield f"{workload} believes in {len(index.addresses)} shards of {len(shards)}"
            listens = [replicas(shard)[index.replica] for shard in index.addresses]
            if set(listens) != {f"0.0.0.0:{workload.ports['searches']}"}:
                yield f"{workload} listens at {listens}"
            if str(index.replica) != workload.labels["notellm/replica"]:
                yield f"{workload} takes itself for replica {index.replica}"
        if own == ["worker"] and settings.worker.addresses[settings.worker.number] != "0.0.0.0:9100":
            yield f"{workload} listens at {settings.worker.addresses}"
        if own == ["gateway"]:
            for address in settings.worker.addresses:
                name, _, port = address.partition(":")
                served = {str(each["port"]) for each in manifests.find("Service", name)["spec"]["ports"]}
                if port not in served:
                    yield f"{workload} looks for workers at {address}"
    numbers = [each["NOTELLM_INDEX__NUMBER"] for one, _, each in processes(manifests) if one.component == "indexer"]
    if sorted(numbers) != sorted(str(shard) for shard in shards for _ in indexers):
        yield f"shards {numbers} of {list(shards)}"


def replicas_are_apart(manifests: Manifests) -> Iterator[str]:
    """Where a shard has replicas, no two of the same shard are in one zone."""
    indexers = [one for one in manifests.workloads if one.component == "indexer"]
    for workload in indexers if len(indexers) > 1 else []:
        terms = workload.pod["affinity"]["podAntiAffinity"].get("requiredDuringSchedulingIgnoredDuringExecution", [])
        together = [
            term
            for term in terms
            if term["topologyKey"] == "topology.kubernetes.io/zone"
            and term.get("matchLabelKeys") == [POD_INDEX]
            and all(matches(term["labelSelector"], one.labels) for one in indexers)
        ]
        if not together:
            yield f"{workload}: replicas of a shard may be lost together"


def redis_keeps_what_it_acknowledges(manifests: Manifests) -> Iterator[str]:
    """A Redis of ours is started as `serve` starts one, and evicts and forgets nothing."""
    promised = [str(word) for word in redis_command(ROOT, ROOT, ROOT)]
    for workload in manifests.workloads:
        if workload.component != "redis":
            continue
        [container] = workload.containers
        given = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
        for option in ("--appendonly", "--appendfsync", "--save", "--maxmemory-policy"):
            if given.get(option) != promised[promised.index(option) + 1]:
                yield f"{workload}: {option} {given.get(option)}"
        if int(given["--maxmemory"].removesuffix("mb")) * 2**20 > 0.8 * quantity(
            container["resources"]["limits"]["memory"]
        ):
            yield f"{workload} is killed before it refuses"


def connections(manifests: Manifests, way: str) -> set[tuple[str, str, int]]:
    """What the network policies let out of pods, or into them, inside the namespace: from, to, port."""
    pods = manifests.workloads
    return {
        (source.component, target.component, port)
        for source in pods
        for target in pods
        for port in target.ports.values()
        if _opens(manifests, way, source, target, port)
    }


def _opens(manifests: Manifests, way: str, source: Workload, target: Workload, port: int) -> bool:
    """Whether the policies of one end allow it; an end without any allows everything."""
    own, other = (source, target) if way == "egress" else (target, source)
    policies = _policies(manifests, way, own)
    return not policies or any(
        any(_is_peer(one, other) for one in rule["to" if way == "egress" else "from"])
        and port in {target.ports.get(one["port"], one["port"]) for one in rule["ports"]}
        for policy in policies
        for rule in policy.get(way, [])
    )


def _policies(manifests: Manifests, way: str, workload: Workload) -> list[dict[str, Any]]:
    specs = [one["spec"] for one in manifests.of("NetworkPolicy")]
    return [
        spec for spec in specs if way.title() in spec["policyTypes"] and matches(spec["podSelector"], workload.labels)
    ]


def _is_peer(peer: dict[str, Any], workload: Workload) -> bool:
    return "podSelector" in peer and "namespaceSelector" not in peer and matches(peer["podSelector"], workload.labels)


def only_what_has_to_talks(manifests: Manifests) -> Iterator[str]:
    """The connections inside are exactly these; none comes in from elsewhere but clients' and Prometheus'."""
    wanted = {("gateway", "worker", 9100), ("gateway", "indexer", 9200), ("learn", "indexer", 9200)}
    components = {workload.component for workload in manifests.workloads}
    if "redis" in components:
        wanted |= {(name, "redis", 6379) for name in ("gateway", "worker", "indexer", "backup", "events", "learn")}
    wanted = {one for one in wanted if one[0] in components}
    for way in ("ingress", "egress"):
        there = connections(manifests, way)
        yield from (f"{way}: {one} cannot connect" for one in wanted - there)
        yield from (f"{way}: {one} can connect" for one in there - wanted)
        yield from (f"{one}: {way} is free" for one in manifests.workloads if not _policies(manifests, way, one))
    outside = {
        (workload.component, str(peer["namespaceSelector"]["matchLabels"]), rule["ports"][0]["port"])
        for one in manifests.of("NetworkPolicy")
        for rule in one["spec"].get("ingress", [])
        for peer in rule["from"]
        if "namespaceSelector" in peer
        for workload in manifests.selected(one["spec"]["podSelector"])
    }
    prometheus = "{'kubernetes.io/metadata.name': 'monitoring'}"
    expected = {("gateway", "{'notellm/client': 'yes'}", "http")}
    expected |= {(name, prometheus, "ops") for name in ("gateway", "worker", "indexer")}
    if outside != expected:
        yield f"from outside: {outside ^ expected}"
    for one in manifests.of("NetworkPolicy"):
        for rule in one["spec"].get("egress", []):
            if any("ipBlock" in peer and peer["ipBlock"]["cidr"].endswith("/0") for peer in rule["to"]):
                yield "the whole world can be reached"
    yield from (f"{one} cannot resolve names" for one in manifests.workloads if not _resolves(manifests, one))


def _resolves(manifests: Manifests, workload: Workload) -> bool:
    wanted = {(protocol, 53) for protocol in ("UDP", "TCP")}
    rules = [rule for policy in _policies(manifests, "egress", workload) for rule in policy.get("egress", [])]
    return any({(one["protocol"], one["port"]) for one in rule["ports"]} == wanted for rule in rules)


POLICIES: tuple[Policy, ...] = (
    selectors_find_pods,
    mounts_have_volumes,
    references_exist,
    secrets_are_made,
    ports_exist,
    probes_are_answered,
    settings_are_read,
    commands_are_known,
    every_shard_has_a_pod,
    resources_are_bounded,
    threads_fit_the_cpus,
    pods_are_restricted,
    pods_hold_no_token,
    images_are_pinned,
    secrets_are_references,
    nodes_can_be_drained,
    scalers_have_targets,
    pods_have_time_to_leave,
    addresses_agree,
    replicas_are_apart,
    redis_keeps_what_it_acknowledges,
    only_what_has_to_talks,
)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_keeps_every_policy(overlay, policy):
    assert list(policy(manifests_of(overlay))) == []


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_chart_keeps_every_policy_with_other_values(overlay, policy):
    """With the values that it begins with, its objects are the overlay's."""
    assert list(policy(Manifests(charted(overlay, VALUES)))) == []


def at(kind: str, name: str, path: str, value: Any) -> Callable[[Manifests], None]:
    """One field of one object set to a value; None takes it away."""

    def spoil(manifests: Manifests) -> None:
        place = manifests.find(kind, name)
        *way, last = path.split(".")
        for step in way:
            place = place[int(step)] if step.isdigit() else place[step]
        if value is None:
            del place[int(last) if last.isdigit() else last]
        elif last == "+":
            place.append(value)
        else:
            place[int(last) if last.isdigit() else last] = value

    return spoil


def without(kind: str, name: str) -> Callable[[Manifests], None]:
    """One object forgotten."""
    return lambda manifests: manifests.objects.remove(manifests.find(kind, name))


POD = "spec.template.spec"
FIRST = f"{POD}.containers.0"
GATEWAY = {"matchLabels": {"app.kubernetes.io/component": "gateway"}}
JOB = "spec.jobTemplate.spec.template.spec.containers.0"


def env(kind: str, name: str, variable: str, value: str) -> Callable[[Manifests], None]:
    """One variable of the first container, set anew or added."""

    def spoil(manifests: Manifests) -> None:
        held = manifests.find(kind, name)["spec"]["template"]["spec"]["containers"][0]["env"]
        held[:] = [one for one in held if one["name"] != variable] + [{"name": variable, "value": value}]

    return spoil


SPOILT: tuple[tuple[Policy, Callable[[Manifests], None]], ...] = (
    (selectors_find_pods, at("Deployment", "gateway", "spec.selector.matchLabels", {"app": "gateway"})),
    (selectors_find_pods, at("Service", "worker", "spec.selector", {"app": "worker"})),
    (selectors_find_pods, at("PodDisruptionBudget", "indexer", "spec.selector.matchLabels", {"app": "indexer"})),
    (selectors_find_pods, at("NetworkPolicy", "worker", "spec.podSelector.matchLabels", {"app": "worker"})),
    (selectors_find_pods, at("NetworkPolicy", "worker", "spec.ingress.0.from.0.podSelector.matchLabels", {"a": "b"})),
    (selectors_find_pods, at("PodMonitor", "notellm", "spec.selector.matchExpressions.0.values", ["gate"])),
    (
        selectors_find_pods,
        at("Deployment", "worker", f"{POD}.topologySpreadConstraints.0.labelSelector.matchLabels", {"app": "worker"}),
    ),
    (mounts_have_volumes, at("Deployment", "gateway", f"{FIRST}.volumeMounts.0.name", "temp")),
    (mounts_have_volumes, at("StatefulSet", "indexer", "spec.volumeClaimTemplates.0.metadata.name", "data")),
    (references_exist, without("PersistentVolumeClaim", "models")),
    (references_exist, without("ConfigMap", "notellm-settings")),
    (references_exist, without("ServiceAccount", "jobs")),
    (references_exist, without("Service", "indexer")),
    (references_exist, without("TriggerAuthentication", "redis")),
    (secrets_are_made, at("TriggerAuthentication", "redis", "spec.secretTargetRef.0.key", "host")),
    (
        secrets_are_made,
        at("Deployment", "gateway", f"{POD}.volumes", [{"name": "keys", "secret": {"secretName": "k"}}]),
    ),
    (secrets_are_made, env("Deployment", "gateway", "NOTELLM_KEYS_FILE", "/etc/notellm/keys/all.json")),
    (ports_exist, at("Service", "gateway", "spec.ports.0.targetPort", "web")),
    (ports_exist, at("Ingress", "gateway", "spec.rules.0.http.paths.0.backend.service.port.name", "web")),
    (ports_exist, at("PodMonitor", "notellm", "spec.podMetricsEndpoints.0.port", "metrics")),
    (ports_exist, at("Deployment", "worker", f"{FIRST}.readinessProbe.httpGet.port", "health")),
    (ports_exist, at("NetworkPolicy", "indexer", "spec.ingress.0.ports.0.port", "rpc")),
    (ports_exist, at("NetworkPolicy", "gateway", "spec.egress.0.ports.0.port", 9101)),
    (probes_are_answered, at("Deployment", "gateway", f"{FIRST}.livenessProbe.httpGet.path", "/healthz")),
    (probes_are_answered, at("Deployment", "gateway", f"{FIRST}.livenessProbe.httpGet.path", "/readyz")),
    (probes_are_answered, at("StatefulSet", "indexer-b", f"{FIRST}.startupProbe", None)),
    (settings_are_read, env("Deployment", "gateway", "NOTELLM_HTTP_PORT", "8000")),
    (settings_are_read, env("Deployment", "gateway", "NOTELLM_HTTP__PORT", "8001")),
    (settings_are_read, env("Deployment", "worker", "NOTELLM_WORKER__THREADS", "two")),
    (settings_are_read, env("Deployment", "worker", "NOTELLM_WORKER__ADDRESSES", "0.0.0.0:9100")),
    (settings_are_read, env("Deployment", "worker", "NOTELLM_HTTP__HOST", "0.0.0.0")),
    (settings_are_read, env("StatefulSet", "indexer", "NOTELLM_OPS__HOST", "127.0.0.1")),
    (commands_are_known, at("Deployment", "gateway", f"{FIRST}.args", ["gatewya"])),
    (commands_are_known, at("CronJob", "backup", f"{JOB}.args", ["backup", "--into", "/backups"])),
    (commands_are_known, at("CronJob", "learn", f"{JOB}.args", ["learn", "--into", "/models/turns"])),
    (commands_are_known, at("CronJob", "evaluation", f"{JOB}.args", ["evaluate", "/data", "--checkpoint", "$(MODEL)"])),
    (every_shard_has_a_pod, at("CronJob", "embedding", "spec.jobTemplate.spec.completions", 7)),
    (every_shard_has_a_pod, at("CronJob", "embedding", "spec.jobTemplate.spec.completionMode", "NonIndexed")),
    (resources_are_bounded, at("Deployment", "gateway", f"{FIRST}.resources.limits.memory", None)),
    (resources_are_bounded, at("CronJob", "backup", f"{JOB}.resources", None)),
    (resources_are_bounded, at("Deployment", "worker", f"{FIRST}.resources.requests.memory", "49Gi")),
    (resources_are_bounded, at("Deployment", "gateway", f"{POD}.volumes.0.emptyDir", {})),
    (resources_are_bounded, at("Deployment", "gateway", f"{POD}.volumes.0.emptyDir", {"sizeLimit": "1Gi"})),
    (threads_fit_the_cpus, env("StatefulSet", "indexer", "NOTELLM_INDEX__THREADS", "8")),
    (threads_fit_the_cpus, env("Deployment", "worker", "NOTELLM_WORKER__BACKEND", "hf")),
    (pods_are_restricted, at("Namespace", "notellm", "metadata.labels", {})),
    (pods_are_restricted, at("Deployment", "worker", f"{POD}.securityContext.runAsUser", 0)),
    (pods_are_restricted, at("Deployment", "worker", f"{POD}.securityContext.seccompProfile", None)),
    (pods_are_restricted, at("Deployment", "worker", f"{POD}.hostNetwork", True)),
    (pods_are_restricted, at("Deployment", "worker", f"{POD}.volumes.0", {"name": "tmp", "hostPath": {"path": "/"}})),
    (pods_are_restricted, at("Deployment", "worker", f"{FIRST}.securityContext.capabilities.add", ["NET_RAW"])),
    (pods_are_restricted, at("Deployment", "worker", f"{FIRST}.securityContext.readOnlyRootFilesystem", False)),
    (pods_are_restricted, at("Deployment", "worker", f"{FIRST}.securityContext.allowPrivilegeEscalation", None)),
    (pods_are_restricted, at("Deployment", "worker", f"{FIRST}.securityContext.runAsUser", 0)),
    (pods_hold_no_token, at("Deployment", "gateway", f"{POD}.automountServiceAccountToken", None)),
    (pods_hold_no_token, at("Deployment", "gateway", f"{POD}.enableServiceLinks", None)),
    (pods_hold_no_token, at("ServiceAccount", "jobs", "automountServiceAccountToken", None)),
    (images_are_pinned, at("Deployment", "gateway", f"{FIRST}.image", "registry.example.com:5000/notellm-gateway")),
    (images_are_pinned, at("Deployment", "gateway", f"{FIRST}.image", "redis:latest")),
    (images_are_pinned, at("Deployment", "gateway", f"{FIRST}.image", "notellm-gateway:0.0.9")),
    (images_are_pinned, at("Deployment", "gateway", f"{FIRST}.image", "notellm-gate:0.1.0")),
    (secrets_are_references, env("Deployment", "gateway", "NOTELLM_REDIS_URL", "redis://:secret@redis:6379/0")),
    (
        secrets_are_references,
        lambda manifests: manifests.objects.append(
            {"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"url": "redis://:secret@redis:6379/0"}}
        ),
    ),
    (nodes_can_be_drained, at("PodDisruptionBudget", "worker", "spec.maxUnavailable", 0)),
    (nodes_can_be_drained, at("PodDisruptionBudget", "gateway", "spec", {"minAvailable": 3, "selector": GATEWAY})),
    (nodes_can_be_drained, without("PodDisruptionBudget", "indexer")),
    (scalers_have_targets, at("HorizontalPodAutoscaler", "gateway", "spec.scaleTargetRef.name", "gateways")),
    (scalers_have_targets, at("Deployment", "worker", "spec.replicas", 2)),
    (scalers_have_targets, at("ScaledObject", "worker", "spec.triggers.0.metadata.stream", "notellm:jobs")),
    (scalers_have_targets, at("ScaledObject", "worker", "spec.triggers.0.metadata.consumerGroup", "workers")),
    (pods_have_time_to_leave, at("Deployment", "gateway", f"{POD}.terminationGracePeriodSeconds", 30)),
    (pods_have_time_to_leave, env("Deployment", "gateway", "NOTELLM_LIMITS__DRAIN_S", "30")),
    (pods_have_time_to_leave, env("Deployment", "gateway", "NOTELLM_LIMITS__DRAIN_S", "0")),
    (pods_have_time_to_leave, at("Deployment", "worker", f"{POD}.terminationGracePeriodSeconds", 20)),
    (addresses_agree, at("StatefulSet", "indexer", "spec.replicas", 3)),
    (addresses_agree, at("StatefulSet", "indexer-b", "spec.serviceName", "indexer-b")),
    (addresses_agree, env("Deployment", "gateway", "NOTELLM_INDEX__ADDRESSES", '["indexer-0.indexer:9200"]')),
    (addresses_agree, env("StatefulSet", "indexer", "NOTELLM_INDEX__ADDRESSES", '["0.0.0.0:9200"]')),
    (addresses_agree, env("StatefulSet", "indexer", "NOTELLM_INDEX__NUMBER", "0")),
    (addresses_agree, env("StatefulSet", "indexer-b", "NOTELLM_INDEX__REPLICA", "0")),
    (addresses_agree, env("Deployment", "gateway", "NOTELLM_WORKER__ADDRESSES", '["worker:9200"]')),
    (addresses_agree, env("Deployment", "worker", "NOTELLM_WORKER__ADDRESSES", '["127.0.0.1:9100"]')),
    (replicas_are_apart, at("StatefulSet", "indexer-b", f"{POD}.affinity", {"podAntiAffinity": {}})),
    (only_what_has_to_talks, without("NetworkPolicy", "default-deny")),
    (only_what_has_to_talks, without("NetworkPolicy", "dns")),
    (only_what_has_to_talks, without("NetworkPolicy", "worker")),
    (only_what_has_to_talks, at("NetworkPolicy", "gateway", "spec.egress.0", None)),
    (only_what_has_to_talks, at("NetworkPolicy", "indexer", "spec.ingress.0.from.0.podSelector", {})),
    (
        only_what_has_to_talks,
        at("NetworkPolicy", "gateway", "spec.ingress.0.from.0", {"namespaceSelector": {"matchLabels": {}}}),
    ),
    (only_what_has_to_talks, at("NetworkPolicy", "redis-clients", "spec.egress.0.to.0.ipBlock.cidr", "0.0.0.0/0")),
)


@pytest.mark.parametrize(
    ("policy", "spoil"), SPOILT, ids=[f"{policy.__name__}-{number}" for number, (policy, _) in enumerate(SPOILT)]
)
def test_a_policy_finds_what_was_spoilt(policy, spoil):
    manifests = manifests_of("production")
    spoil(manifests)
    assert set(policy(manifests)) - set(policy(manifests_of("production")))


def test_a_route_that_leads_nowhere_is_found():
    """No overlay has an HTTPRoute by itself; the chart can add it to each."""
    manifests = Manifests(charted("production", {"httpRoute": {"enabled": True}}))
    assert list(ports_exist(manifests)) == []
    at("HTTPRoute", "gateway", "spec.rules.0.backendRefs.0.port", 8000)(manifests)
    assert list(ports_exist(manifests)) == ["HTTPRoute: no Service gateway with port 8000"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--appendfsync", "everysec"), ("--maxmemory-policy", "allkeys-lru"), ("--maxmemory", "2048mb")],
)
def test_a_redis_that_would_lose_notes_is_found(option, value):
    manifests = manifests_of("local")
    [redis] = [one for one in manifests.workloads if one.component == "redis"]
    args = redis.containers[0]["args"]
    args[args.index(option) + 1] = value
    assert list(redis_keeps_what_it_acknowledges(manifests))


def test_every_policy_was_seen_to_fail():
    assert {policy for policy, _ in SPOILT} == set(POLICIES) - {redis_keeps_what_it_acknowledges}


def test_without_a_checkpoint_the_overlays_serve_the_model_of_the_images():
    """The placeholder that the overlays with weights begin with is that model's fingerprint."""
    data = manifests_of("production").find("ConfigMap", "notellm-settings")["data"]
    assert data["NOTELLM_CHECKPOINT"] == f"/models/{load_manifest(MINI).fingerprint}"
    assert "NOTELLM_CHECKPOINT" not in manifests_of("local").find("ConfigMap", "notellm-settings")["data"]


async def test_the_length_of_the_stream_is_what_is_left_to_do_when_the_lag_is_unknown(redis):
    """Why KEDA is told streamLength: of ten jobs seven were handed out and five are done, so five are left."""
    queue = JobQueue(redis, "w0", "m", 2)
    await queue.open()
    await RedisStore(redis, max_queue=100).put([stored(f"n{number}") for number in range(10)])
    await queue.finish([claimed.entry for claimed in await queue.claim(4, 0.1)])
    *_, last = await queue.claim(3, 0.1)
    await queue.finish([last.entry])

    [group] = await redis.xinfo_groups(JOBS + "m")
    assert group["lag"] is None
    assert await redis.xlen(JOBS + "m") == 5


def test_variables_of_a_service_would_stop_every_process():
    """Why enableServiceLinks is false: a Service named notellm-http gives every pod this variable."""
    with pytest.raises(ValidationError, match="unknown setting NOTELLM_HTTP_PORT_8000_TCP"):
        settings_of({"NOTELLM_HTTP_PORT_8000_TCP": "tcp://10.0.0.1:8000"})


def test_what_copies_weights_keeps_the_policies_of_pods():
    [pod] = yaml.safe_load_all((K8S / "components/weights/copy.yaml").read_text())
    manifests = manifests_of("gpu")
    alone = Manifests([pod, *manifests.of("ServiceAccount", "PersistentVolumeClaim", "ConfigMap")])
    for policy in (
        pods_are_restricted,
        pods_hold_no_token,
        resources_are_bounded,
        mounts_have_volumes,
        images_are_pinned,
    ):
        assert list(policy(alone)) == []
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] in manifests.names("PersistentVolumeClaim")


def test_prometheus_rules_are_those_that_are_tested():
    """Whoever changes deploy/prometheus/rules runs deploy/k8s/rules.sh, too."""
    ours = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))]
    expected = [group for held in ours for group in held.get("groups", [])]
    made = manifests_of("production").of("PrometheusRule")
    found = [group for one in made for group in one["spec"]["groups"]]
    assert sorted(found, key=lambda group: group["name"]) == sorted(expected, key=lambda group: group["name"])
