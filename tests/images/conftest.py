"""The images of the Dockerfile, really built: buildah builds, podman runs, and Debian's packages make the bases.

Everything is kept in build/images, apart from the machine's own images; a second run finds the layers again.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.images import PROBE, Contents
from support.service import UNSET

ROOT = Path(__file__).parent.parent.parent
KEPT = ROOT / "build" / "images"
BASE = "localhost/python:debian"
# Folders of the base that hold nothing: a mount elsewhere would leave a folder behind in the image.
MOUNTS = ("/mnt", "/media", "/srv")
# All files of a layer carry this time.
EPOCH = "1767225600"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
CONTAINERS = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
helper_binaries_dir = ["/usr/lib/podman", "/usr/libexec/podman"]
tmp_dir = "{kept}/run/libpod"
[network]
network_backend = "netavark"
network_config_dir = "{kept}/networks"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{kept}/storage"
runroot = "{kept}/run"
"""


class Engine:
    """buildah and podman with a configuration and a storage of their own."""

    def __init__(self) -> None:
        KEPT.mkdir(parents=True, exist_ok=True)
        (KEPT / "containers.conf").write_text(CONTAINERS.format(kept=KEPT))
        (KEPT / "storage.conf").write_text(STORAGE.format(kept=KEPT))
        self.environment = {
            **UNSET,
            "CONTAINERS_CONF": str(KEPT / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(KEPT / "storage.conf"),
        }

    def run(self, *words: object, **environment: str) -> str:
        """What the command prints; when it fails, the test fails with the end of what it said."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=ROOT,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{' '.join(map(str, words[:3]))}: {(done.stdout + done.stderr)[-4000:]}"
        return done.stdout

    @functools.cached_property
    def base(self) -> str:
        """An image with Debian's Python in the place of docker.io's, which not every machine can reach."""
        if not self._holds(BASE):
            root = KEPT / "root"
            shutil.rmtree(root, ignore_errors=True)
            packages = "--include=ca-certificates,python3,python3-venv,python3-pip"
            self.run("debootstrap", "--variant=minbase", packages, "bookworm", root, _mirror())
            (root / "usr/bin/python").symlink_to("python3")
            for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
                marker.unlink()
            for kept in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists", "var/cache/apt"):
                shutil.rmtree(root / kept)
            self.run("tar", "-C", root, "-cf", KEPT / "base.tar", ".")
            self.run("podman", "import", "--quiet", KEPT / "base.tar", BASE)
            shutil.rmtree(root)
            (KEPT / "base.tar").unlink()
        return BASE

    def build(self, image: str, *arguments: object) -> str:
        """The image, built; ``arguments`` are buildah's."""
        self.run(
            *("buildah", "bud", "--isolation", "chroot", "--pull-never", "--layers", "--format", "docker"),
            *("--timestamp", EPOCH, "--build-arg", f"BASE={self.base}"),
            *("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro", "--tag", image),
            *arguments,
        )
        return image

    def built(self, target: str, *arguments: object) -> str:
        """One of the Dockerfile's images, under the name that compose.yaml gives it."""
        wheels = dict(zip(MOUNTS, _find_links(), strict=False))
        (KEPT / "pip.conf").write_text("\n".join(["[global]", f"find-links = {' '.join(wheels)}", *_pip()]) + "\n")
        mounts = [f"--volume={folder}:{mount}:ro" for mount, folder in wheels.items()]
        secret = f"--secret=id=pip,src={KEPT / 'pip.conf'}"
        return self.build(f"notellm-{target}:{_version()}", "--target", target, secret, *mounts, *arguments, ".")

    def inspect(self, image: str) -> dict[str, object]:
        """What podman says of it."""
        [found] = json.loads(self.run("podman", "image", "inspect", image))
        return dict(found)

    def contents(self, image: str) -> Contents:
        """What is in it, as its own user sees it."""
        bare = ["--network=none", "--read-only", "--no-healthcheck", "--entrypoint=python"]
        found = json.loads(self.run("podman", "run", "--rm", *bare, image, "-c", PROBE).splitlines()[-1])
        return Contents(size_bytes=int(str(self.inspect(image)["Size"])), **found)

    def _holds(self, image: str) -> bool:
        return subprocess.run(["podman", "image", "exists", image], env=self.environment).returncode == 0


@pytest.fixture(scope="session")
def engine() -> Engine:
    missing = [tool for tool in ("podman", "buildah", "runc", "debootstrap") if not shutil.which(tool)]
    if missing or os.geteuid() != 0:
        pytest.fail(f"needs root and {', '.join(missing) or 'nothing else'}: run `make images-test` as root")
    return Engine()


@pytest.fixture(scope="session")
def built(engine: Engine) -> Callable[[str], str]:
    return functools.cache(engine.built)


@pytest.fixture(scope="session")
def debian_images(engine: Engine) -> list[str]:
    """Debian's Redis and nginx under the names of the images that compose.yaml asks for."""
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    names = {"redis": services["redis"]["image"], "nginx": services["proxy"]["image"]}
    return [engine.build(image, ROOT / "tests/images" / folder) for folder, image in names.items()]


def _version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def _mirror() -> str:
    """Where this machine's apt finds Debian."""
    for path in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("debian.*"))):
        for line in path.read_text().splitlines() if path.exists() else ():
            words = [word for word in line.split() if not word.startswith("[")]
            if words and words[0] in ("deb", "URIs:"):
                return words[1]
    pytest.fail("no Debian mirror in /etc/apt")


def _configured() -> list[str]:
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()


def _find_links() -> list[Path]:
    """Folders of packages that pip is told of: torch's CPU build may be in one."""
    values = [line.partition("=")[2].strip("'") for line in _configured() if ".find-links=" in line]
    return sorted({Path(word) for value in values for word in value.split() if Path(word).is_dir()})


def _pip() -> list[str]:
    """The other parts of pip's configuration that say where packages are; hashes make sure of what they are."""
    lines = {line.partition(".")[2] for line in _configured()}
    wanted = ("index-url", "extra-index-url", "proxy", "cert")
    said = (line.partition("=") for line in sorted(lines))
    return [f"{name} = {value.strip(chr(39))}" for name, _, value in said if name in wanted and "file:" not in value]
