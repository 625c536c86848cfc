"""deploy/compose.yaml against its schema, against the code that it runs, and against what we promise of it."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from service.cli.main import cli
from service.settings import Settings, environment_names

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "deploy" / "compose.yaml"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("notellm-"))
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def environment(name):
    return {key: defaults(str(value)) for key, value in SERVICES[name].get("environment", {}).items()}


def defaults(text):
    """As compose reads ${NAME:-default} where NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def volumes(name):
    return [defaults(volume).split(":") for volume in SERVICES[name].get("volumes", [])]


def test_it_is_valid_by_the_schema_of_the_compose_specification():
    command = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def test_an_invalid_file_would_be_noticed(tmp_path):
    (tmp_path / "compose.yaml").write_text("services: {redis: {image: redis, comand: x}}")
    command = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]

    assert subprocess.run([*command, tmp_path / "compose.yaml"], capture_output=True).returncode == 1


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_and_has_a_value_that_is_accepted(name, monkeypatch, tmp_path):
    mine = environment(name)
    assert set(mine) <= set(environment_names())
    image = re.findall(r"(NOTELLM_\w+)=(\S+)", DOCKERFILE)
    assert {variable for variable, _ in image} <= set(environment_names())

    (tmp_path / "url").write_text("redis://redis:6379/0")
    for variable, value in mine.items():
        monkeypatch.setenv(variable, str(tmp_path / "url") if value.startswith("/run/secrets/") else value)

    assert Settings()


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one_of_ours(name):
    words = [*SERVICES[name].get("entrypoint", ["notellm"])[1:], *SERVICES[name].get("command", [])]
    if not words:
        target = SERVICES[name]["build"]["target"]
        words = [re.search(rf'AS {target}\n.*?^CMD \["(\w+)"\]', DOCKERFILE, re.MULTILINE | re.DOTALL)[1]]

    command = cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    assert not isinstance(command, click.Group)


@pytest.mark.parametrize("name", OURS)
def test_every_target_is_in_the_dockerfile_and_the_image_has_the_version_of_the_project(name):
    image, _, version = SERVICES[name]["image"].partition(":")

    assert f'version = "{version}"\n' in (ROOT / "pyproject.toml").read_text()
    assert re.search(rf"^FROM \w+ AS {image.removeprefix('notellm-')}$", DOCKERFILE, re.MULTILINE)
    assert SERVICES[name].get("build", {}).get("target", "gateway") == image.removeprefix("notellm-")


@pytest.mark.parametrize("name", SERVICES)
def test_every_published_port_is_this_hosts_alone(name):
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", defaults(port))


def test_only_what_people_open_is_published():
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"proxy", "prometheus", "grafana"}


def test_what_holds_data_or_the_model_reaches_nothing_outside():
    assert COMPOSE["networks"]["back"]["internal"]
    for name in ("redis", "gateway", "worker", "worker-cuda", "shard-0", "shard-1"):
        assert list(SERVICES[name]["networks"]) == ["back"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned(name):
    tag = SERVICES[name]["image"].partition("@")[0].rpartition(":")[2]

    assert re.fullmatch(r"v?\d+\.\d+\.\d+(-\w+)?", tag)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_limits_and_no_rights(name):
    service = SERVICES[name]

    assert {"mem_limit", "cpus", "pids_limit", "restart"} <= set(service)
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_that_stays_has_a_health_check(name):
    service = SERVICES[name]
    tool = service.get("profiles") == ["tools"]

    assert service["healthcheck"] == {"disable": True} if tool else service["healthcheck"]["test"]
    assert service["restart"] == ("no" if tool else "unless-stopped")


@pytest.mark.parametrize("name", SERVICES)
def test_whoever_needs_redis_waits_until_it_is_healthy(name):
    service = SERVICES[name]
    waits = {other: how["condition"] for other, how in service.get("depends_on", {}).items()}

    assert set(waits.values()) <= {"service_healthy"}
    assert ("redis" in waits) == ("build" in service)
    assert set(waits) <= set(SERVICES)


def test_no_password_stands_in_the_file_or_in_an_environment():
    for name, service in SERVICES.items():
        secrets = {value for value in environment(name).values() if value.startswith("/run/secrets/")}
        given = {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
        assert secrets <= given
        assert not [key for key in environment(name) if re.search("PASSWORD$|REDIS_URL$|_KEY$", key)]
    assert set(COMPOSE["secrets"]) == {secret for service in SERVICES.values() for secret in service.get("secrets", [])}


def test_every_secret_is_made_by_the_script(tmp_path):
    subprocess.run(["sh", ROOT / "deploy/secrets.sh", tmp_path / "secrets"], check=True)

    files = {defaults(secret["file"]) for secret in COMPOSE["secrets"].values()}

    assert {Path(file).parent for file in files} == {Path("secrets")}
    assert {Path(file).name for file in files} <= {path.name for path in (tmp_path / "secrets").iterdir()}


def test_each_component_has_its_own_user_of_redis():
    of = {name: environment(name).get("NOTELLM_REDIS_URL_FILE") for name in OURS}

    assert of == {
        **dict.fromkeys(("worker", "worker-cuda"), "/run/secrets/redis-worker"),
        **dict.fromkeys(("shard-0", "shard-1"), "/run/secrets/redis-indexer"),
        "gateway": "/run/secrets/redis-gateway",
        "ops": "/run/secrets/redis-ops",
        "keys": None,
    }


def test_the_processes_find_each_other():
    shards = yaml.safe_load(environment("gateway")["NOTELLM_INDEX__ADDRESSES"])
    workers = yaml.safe_load(environment("gateway")["NOTELLM_WORKER__ADDRESSES"])

    assert shards == ["shard-0:9200", "shard-1:9200"]
    for number, shard in enumerate(shards):
        own = environment(shard.partition(":")[0])
        assert yaml.safe_load(own["NOTELLM_INDEX__ADDRESSES"]) == shards
        assert own["NOTELLM_INDEX__NUMBER"] == str(number)
    assert workers == ["worker:9100"]
    assert SERVICES["worker-cuda"]["networks"]["back"]["aliases"] == ["worker"]
    assert "worker" in SERVICES
    assert {environment(name)["NOTELLM_CHECKPOINT"] for name in ("gateway", "worker", "worker-cuda", "ops")} == {
        "/var/lib/notellm/checkpoint"
    }


def test_every_volume_is_declared_or_a_folder_that_is_here():
    named = set()
    for name in SERVICES:
        for source, target, *_ in volumes(name):
            if source.startswith("."):
                assert (FILE.parent / source).resolve().is_relative_to(ROOT)
                assert (FILE.parent / source).is_dir(), source
            else:
                named.add(source)
                assert target.startswith(("/var/lib/", "/data", "/prometheus"))
    assert named == set(COMPOSE["volumes"])


def test_redis_keeps_what_it_acknowledged_and_drops_nothing():
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--maxmemory"] == "1gb"
    assert options["--aclfile"] == "/run/secrets/redis-users"
    assert SERVICES["redis"]["volumes"] == [f"redis:{options['--dir']}"]


def test_the_gpu_is_asked_for_in_its_profile_alone():
    asks = {
        name: service.get("profiles") for name, service in SERVICES.items() if "nvidia" in str(service.get("deploy"))
    }

    assert asks == {"worker-cuda": ["gpu"]}
