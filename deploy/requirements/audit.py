"""Asks pip-audit whether an advisory is known of any package in our images. Arguments go to pip-audit.

Ends with 1 when there is one. Where the advisories cannot be reached nothing is known, and that is said: such a run is
no audit. PyPI is asked; ``-s osv --osv-url URL`` asks another service with the same answers as https://api.osv.dev.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = Path(__file__).parent
# Advisories are of a version, whatever its build: 2.13.0 for 2.13.0+cpu.
_PIN = re.compile(r"^\S+?==[^\s+]+", re.MULTILINE)

# pip-audit's own message when the connection takes too long, else what requests raises.
_AWAY = re.compile(r"Could not connect to|requests\.exceptions\.(Connection|Proxy|SSL|Timeout)\w*")


def main() -> None:
    """All images, each package once."""
    pins = sorted({pin for path in FOLDER.glob("*.txt") for pin in _PIN.findall(path.read_text())})
    with TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("\n".join(pins))
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--disable-pip", "--no-deps"]
        options = ["--progress-spinner", "off", "--format", "json", *sys.argv[1:]]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)  # noqa: S603
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        if _AWAY.search(done.stderr):
            sys.exit(_not_audited("the service with the advisories cannot be reached"))
        sys.exit("pip-audit failed: " + (done.stderr.strip() or "it said nothing").splitlines()[-1])
    sys.exit(_report(packages))


def _report(packages: list[dict[str, Any]]) -> int:
    found = [(one, vulnerability) for one in packages for vulnerability in one.get("vulns", ())]
    for package, vulnerability in found:
        mended = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, mended in {mended}")
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    if len(skipped) == len(packages):
        return _not_audited("the index has no advisories of any package")
    print(f"{len(packages) - len(skipped)} packages audited, {len(found)} advisories")
    if skipped:
        print(f"not audited, for nothing is known of them: {', '.join(skipped)}")
    return 1 if found else 0


def _not_audited(reason: str) -> int:
    print(f"not audited: {reason}")
    return 0


if __name__ == "__main__":
    main()
