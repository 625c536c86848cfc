"""Writes the requirements of every image, one file a target: each package by version and by the hash of one file.

Images without torch have the hash of the file for arm64 behind it, where that is another file. Run it with the Python
of the images (3.11 on x86-64 Linux, glibc 2.28 or newer), so that pip resolves for it. Versions are those of
constraints.txt. ``torch`` is the CPU build in all images but those for CUDA: pip has to find it (``PIP_FIND_LINKS`` or
``PIP_EXTRA_INDEX_URL``). Where packages come from is pip's configuration; no file names a host.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
# "===" takes the version as it is written, so that no local build such as 2.13.0+cpu stands in for it.
CUDA_TORCH = "torch===2.13.0"
# What redis asks for on Python 3.11.0 to 3.11.2, Debian 12's.
EARLY = "async-timeout"
EARLY_MARKER = "python_full_version < '3.11.3'"
TARGETS = {
    "build": ("hatchling", "setuptools", "wheel"),
    "gateway": (".[gateway]", EARLY),
    "indexer": (".[indexer]", EARLY),
    "worker": (".[hf]", EARLY),
    "worker-cuda": (".[vllm]", EARLY, CUDA_TORCH),
    "trainer": (".[train]", EARLY),
    "trainer-cuda": (".[train]", EARLY, CUDA_TORCH),
}
# torch's CPU build is not at the same place for arm64.
ARM64 = ("build", "gateway", "indexer")
_ARM64_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def main() -> None:
    """All targets, or those that are named."""
    for target in sys.argv[1:] or TARGETS:
        lines = sorted(_pinned(_resolved(TARGETS[target])))
        torch = [line for line in lines if line.startswith("torch==")]
        if torch and ("+cpu" in torch[0]) == target.endswith("-cuda"):
            sys.exit(f"{target}: {torch[0].split()[0]} is the wrong build; let pip find the CPU build, too")
        if target in ARM64:
            lines = list(_with_arm64(lines))
        (FOLDER / f"{target}.txt").write_text("\n".join([f"# Made by lock.py for the target {target}.", *lines, ""]))


def _with_arm64(lines: list[str]) -> Iterator[str]:
    """The same packages, with the hashes of their files for arm64."""
    options = ["--no-deps", "--only-binary=:all:", "--target=none", "--python-version=3.11"]
    pins = [line.partition(" ")[0] for line in lines]
    found = _resolved((*options, *(f"--platform={one}" for one in _ARM64_PLATFORMS), *pins))
    hashes = {line.partition(" ")[0]: line.rpartition(" ")[2] for line in _pinned(found)}
    for line, pin in zip(lines, pins, strict=True):
        yield line if line.endswith(hashes[pin]) else f"{line} {hashes[pin]}"


def _resolved(requirements: tuple[str, ...]) -> list[dict[str, Any]]:
    """What pip would install into an empty environment."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command = [*pip, "-c", "constraints.txt", *requirements]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"pip cannot resolve {' '.join(requirements)}; what it says stands above")
    found: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return found


def _pinned(found: list[dict[str, Any]]) -> Iterator[str]:
    for package in found:
        source = package["download_info"]
        if "archive_info" in source:  # all but the project itself
            name = package["metadata"]["name"].lower().replace("_", "-")
            pin = f"{name}=={package['metadata']['version']}" + (f" ; {EARLY_MARKER}" if name == EARLY else "")
            yield f"{pin} --hash=sha256:{source['archive_info']['hashes']['sha256']}"


if __name__ == "__main__":
    main()
