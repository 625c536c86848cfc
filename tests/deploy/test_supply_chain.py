"""What our images are made of: bills of materials that are those of the requirements, licenses, advisories."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = ROOT / "deploy" / "requirements"
IMAGES = sorted(path.stem for path in REQUIREMENTS.glob("*.txt") if path.stem != "build")


@pytest.fixture(scope="module")
def sbom() -> Iterator[object]:
    sys.path.insert(0, str(REQUIREMENTS))
    try:
        import sbom

        yield sbom
    finally:
        sys.path.remove(str(REQUIREMENTS))


@pytest.mark.parametrize("target", IMAGES)
def test_a_bill_of_materials_is_the_one_of_the_requirements(sbom, target):
    """The same text as `make sbom` writes, of these very packages."""
    written = sbom.path(target).read_text()
    licenses = {one["name"]: one["licenses"][0]["expression"] for one in json.loads(written)["components"]}

    assert written == sbom.text(target, list(sbom.pinned(target)), licenses)
    assert len(licenses) == len((REQUIREMENTS / f"{target}.txt").read_text().splitlines()) - 1


@pytest.mark.parametrize("target", IMAGES)
def test_a_bill_of_materials_is_cyclonedx(sbom, target):
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.path(target).read_text()) is None


@pytest.mark.parametrize("target", IMAGES)
def test_an_image_holds_its_bill_of_materials(target):
    [stage] = re.findall(
        rf"^FROM \w+ AS {target}\n(.*?)(?=^FROM|\Z)", (ROOT / "Dockerfile").read_text(), re.MULTILINE | re.DOTALL
    )

    assert f"COPY deploy/requirements/{target}.cdx.json /usr/share/notellm/sbom.cdx.json\n" in stage


@pytest.mark.parametrize("target", IMAGES)
def test_every_license_is_allowed(sbom, target):
    components = json.loads(sbom.path(target).read_text())["components"]

    refused = {one["name"] for one in components if not sbom.is_allowed(one["licenses"][0]["expression"], target)}

    assert refused == set()


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT AND (GPL-3.0-only OR Apache-2.0)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("Apache-2.0 WITH Classpath-exception-2.0", False),
        ("GPL-2.0-only WITH LLVM-exception", False),
        ("LicenseRef-NVIDIA-Proprietary", False),
    ],
)
def test_a_license_is_allowed_by_what_its_expression_says(sbom, expression, allowed):
    assert sbom.is_allowed(expression, "gateway") is allowed


def test_what_belongs_to_cuda_is_allowed_in_images_for_cuda_alone(sbom):
    assert sbom.is_allowed("LicenseRef-NVIDIA-Proprietary", "worker-cuda")


@pytest.mark.parametrize(
    ("metadata", "expression"),
    [
        ({"license_expression": "MIT OR Apache-2.0", "license": "GPL"}, "MIT OR Apache-2.0"),
        ({"classifier": ["License :: OSI Approved :: MIT License"], "license": "a text"}, "MIT"),
        ({"classifier": [f"License :: OSI Approved :: {one}" for one in ("MIT License", "BSD License")]},
         "BSD-3-Clause AND MIT"),
        ({"classifier": ["License :: OSI Approved"], "license": "ISC"}, "ISC"),
        ({"classifier": ["License :: OSI Approved :: GNU Affero General Public License v3"], "license": "MIT"}, ""),
        ({"license": "MIT License\n\nCopyright (c) ..."}, "MIT"),
        ({"license": "free for all"}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_a_license_is_what_a_package_says_and_never_a_guess(sbom, metadata, expression):
    assert sbom.license_of({"name": "some-package"} | metadata) == expression


class Advisories(BaseHTTPRequestHandler):
    """Answers as https://api.osv.dev does, with one advisory, of ``affected``."""

    affected = ""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
        one = {
            "id": "PYSEC-2026-1",
            "summary": "It does what it must not",
            "affected": [
                {
                    "package": {"name": asked, "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9999.1"}]}],
                }
            ],
        }
        body = json.dumps({"vulns": [one]} if asked == self.affected else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def advisories(affected: str) -> Iterator[str]:
    handler = type("Handler", (Advisories,), {"affected": affected})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


def audit(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REQUIREMENTS / "audit.py", "-s", "osv", "--osv-url", url]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_an_advisory_is_named_and_ends_the_audit_with_1():
    with advisories("msgpack") as url:
        done = audit(url)

    version = re.search(r"^msgpack==(\S+)", (REQUIREMENTS / "gateway.txt").read_text(), re.MULTILINE)[1]
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[0] == f"msgpack {version}: PYSEC-2026-1, mended in 9999.1"
    assert re.fullmatch(r"\d+ packages audited, 1 advisories", done.stdout.splitlines()[1])


def test_without_an_advisory_the_audit_says_how_many_packages_it_asked_for():
    with advisories("none of ours") as url:
        done = audit(url)

    pins = {
        line.split()[0].partition("+")[0]
        for path in REQUIREMENTS.glob("*.txt")
        for line in path.read_text().splitlines()[1:]
    }
    assert (done.returncode, done.stdout) == (0, f"{len(pins)} packages audited, 0 advisories\n")


def test_where_the_advisories_cannot_be_reached_nothing_is_called_audited():
    done = audit("http://127.0.0.1:9/v1/query")

    assert done.returncode == 0
    assert done.stdout == "not audited: the service with the advisories cannot be reached\n"
