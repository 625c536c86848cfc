"""Writes the bill of materials of every image: CycloneDX 1.6, one file a target, beside its requirements.

A file says what the requirements say (each package by version and hash) and each package's license, from its own
metadata and licenses.toml. The same requirements give the same file: there is no time in it, and its serial number is
theirs. pip has to find the packages' metadata, as for lock.py; it installs nothing. Needs pip 25 or newer.
"""

import json
import re
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from license_expression import AND, OR, LicenseWithExceptionSymbol, Licensing
from packageurl import PackageURL

FOLDER = Path(__file__).parent
PROJECT = tomllib.loads((FOLDER.parent.parent / "pyproject.toml").read_text())["project"]
LICENSES = tomllib.loads((FOLDER / "licenses.toml").read_text())
TARGETS = sorted(path.stem for path in FOLDER.glob("*.txt") if path.stem != "build")
_CLASSIFIER = "License :: "
_IDENTIFIERS = {*LICENSES["allow"], *LICENSES["only"]}
# Classifiers that say as much as none.
_VAGUE = {"OSI Approved", "Other/Proprietary License"}


@dataclass(frozen=True, slots=True)
class Pin:
    """One line of the requirements."""

    name: str
    version: str
    sha256: str


def main() -> None:
    """All targets, or those that are named."""
    for target in sys.argv[1:] or TARGETS:
        pins = list(pinned(target))
        found = {_plain(one["name"]): one for one in _metadata(pins)}
        licenses = {pin.name: license_of(found[pin.name]) for pin in pins}
        if unknown := sorted(name for name, one in licenses.items() if not one):
            sys.exit(f"{target}: no license is known of {', '.join(unknown)}; say which in licenses.toml, [packages]")
        if refused := sorted(name for name, one in licenses.items() if not is_allowed(one, target)):
            sys.exit(f"{target}: licenses.toml does not allow the license of {', '.join(refused)}")
        path(target).write_text(text(target, pins, licenses))


def path(target: str) -> Path:
    """Where the bill of materials of a target is."""
    return FOLDER / f"{target}.cdx.json"


def pinned(target: str) -> Iterator[Pin]:
    """The packages of a target, in the order of their names."""
    for line in (FOLDER / f"{target}.txt").read_text().splitlines():
        if pin := re.fullmatch(r"(\S+)==(\S+)(?: ;.*)? --hash=sha256:(\w+)(?: --hash=\S+)?", line):
            yield Pin(*pin.groups())


def license_of(metadata: dict[str, Any]) -> str:
    """SPDX expression of a package's license; empty when it is not known."""
    if stated := LICENSES["packages"].get(_plain(metadata["name"])):
        return str(stated)
    if expression := metadata.get("license_expression"):
        return str(expression)
    classifiers = [one for one in metadata.get("classifier", []) if one.startswith(_CLASSIFIER)]
    first_line = metadata.get("license", "").strip().partition("\n")[0].strip()
    names = {one.rpartition(" :: ")[2] for one in classifiers} - _VAGUE or {first_line}
    spelled = [LICENSES["spelled"].get(name, name if name in _IDENTIFIERS else "") for name in names]
    return " AND ".join(sorted(spelled)) if all(spelled) else ""


def is_allowed(expression: str, target: str) -> bool:
    """Whether an image may hold a package with this license, an SPDX expression."""
    return _holds(Licensing().parse(expression), target)


def text(target: str, pins: list[Pin], licenses: dict[str, str]) -> str:
    """The bill of materials, from the licenses of all pins."""
    name = f"notellm-{target}"
    image = Component(type=ComponentType.CONTAINER, name=name, version=PROJECT["version"], bom_ref=name)
    image.licenses.add(LicenseExpression(PROJECT["license"]))
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, (FOLDER / f"{target}.txt").read_text()))
    bom.metadata.timestamp = None  # type: ignore[assignment]
    bom.metadata.component = image
    components = [_component(pin, licenses[pin.name]) for pin in pins]
    bom.components.update(components)
    bom.register_dependency(image, components)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1) + "\n"


def _holds(one: Any, target: str) -> bool:
    match one:
        case OR():
            return any(_holds(part, target) for part in one.args)
        case AND():
            return all(_holds(part, target) for part in one.args)
        case LicenseWithExceptionSymbol():
            return _holds(one.license_symbol, target) and one.exception_symbol.key in LICENSES["exceptions"]
    return one.key in LICENSES["allow"] or target in LICENSES["only"].get(one.key, ())


def _component(pin: Pin, expression: str) -> Component:
    url = PackageURL("pypi", name=pin.name, version=pin.version)
    return Component(
        type=ComponentType.LIBRARY,
        name=pin.name,
        version=pin.version,
        purl=url,
        bom_ref=str(url),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=pin.sha256)],
        licenses=[LicenseExpression(expression)],
    )


def _metadata(pins: list[Pin]) -> list[dict[str, Any]]:
    """What the packages say of themselves, without a download where the index serves it alone."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    # "===" as in lock.py
    command = [*pip, "--report", "-", *(f"{pin.name}==={pin.version}" for pin in pins)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit("pip does not find what is pinned; what it says stands above")
    return [one["metadata"] for one in json.loads(done.stdout)["install"]]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
