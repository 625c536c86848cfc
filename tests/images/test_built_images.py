"""Each image holds what it should and nothing else, and is the same image when it is built again."""

import pytest
from support.images import problems

TARGETS = ["gateway", "indexer", "worker", "trainer"]
COMMANDS = {"gateway": ["gateway"], "indexer": ["indexer"], "worker": ["worker"], "trainer": ["train", "--help"]}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_small_holds_no_tools_and_runs_as_nobody_special(engine, built, target):
    found = engine.contents(built(target))
    print(f"{target}: {found.size_bytes / 1e6:.0f} MB, {len(found.packages)} packages, torch {found.torch}")

    assert problems(target, found) == []


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS)
def test_an_image_says_what_it_is_and_how_it_is_run(engine, built, target):
    found = engine.inspect(built(target))
    config = found["Config"]

    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["notellm"]
    assert config["Cmd"] == COMMANDS[target]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "NoteLLM"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert {f"org.opencontainers.image.{name}" for name in ("version", "revision", "source")} <= set(labels)
    assert ("/livez" in str(found["Healthcheck"])) == (target != "trainer")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", ["gateway", "indexer"])
def test_the_same_sources_give_the_same_layers(engine, target):
    """The heavy images are made by the same steps."""
    first, again = (engine.inspect(engine.built(target, "--no-cache"))["RootFS"]["Layers"] for _ in range(2))

    assert again == first


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS)
def test_a_mistake_is_one_line_in_a_container_too(engine, built, target):
    """The command is there, imports what it needs, and dies at once of a setting that does not exist."""
    bare = ["--rm", "--network=none", "--read-only", "--no-healthcheck", "--env=NOTELLM_HTTP__PROT=1"]
    said = engine.run("sh", "-c", f"podman run {' '.join(bare)} {built(target)} settings 2>&1; echo status $?")

    assert said.splitlines() == [
        "notellm: unknown setting NOTELLM_HTTP__PROT; `notellm settings` lists the known ones",
        "status 2",
    ]
