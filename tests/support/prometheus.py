"""A real Prometheus for tests: the one of the PATH, on a free port, with the rules of deploy/."""

import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import yaml
from support.programs import need

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "notellm.yml"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
PATIENCE_S = 60


def alerts_of(rules: Path = RULES) -> dict[str, dict[str, Any]]:
    """Every alert by its name."""
    groups = yaml.safe_load(rules.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def hasty(rules: str) -> str:
    """The same rules with alerts that do not wait before they fire."""
    return re.sub(r"(?m)^( +for): .*$", r"\1: 0s", rules)


class Prometheus:
    """Scrapes the targets every second, by the committed configuration but for targets, interval and patience."""

    def __init__(self, folder: Path, targets: Sequence[str], *, patient: bool = True) -> None:
        config = yaml.safe_load(CONFIG.read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
        (folder / "rules").mkdir(parents=True)
        (folder / "rules" / RULES.name).write_text(RULES.read_text() if patient else hasty(RULES.read_text()))
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._folder = folder
        self._targets = len(targets)
        self._process: subprocess.Popen[bytes] | None = None
        self._http: httpx.Client

    def start(self) -> None:
        """Start, and return when every target was scraped."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            need("prometheus", "prometheus"),
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False, timeout=10)
        self.until(lambda: len(self.query("up == 1")) == self._targets)

    def stop(self) -> None:
        """End it."""
        if self._process:
            self._process.terminate()
            self._process.wait(PATIENCE_S)
            self._http.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Every sample of an instant vector, as of now."""
        found = self._get("query", query=expression)["result"]
        assert isinstance(found, list)
        return found

    def query_range(self, expression: str, seconds: float, step_s: float = 1.0) -> list[dict[str, Any]]:
        """Every series of the last seconds."""
        now = time.time()
        asked = {"query": expression, "start": now - seconds, "end": now, "step": step_s}
        found = self._get("query_range", **asked)["result"]
        assert isinstance(found, list)
        return found

    def alerts(self) -> dict[str, dict[str, Any]]:
        """Every alert that is pending or firing, by its name."""
        return {alert["labels"]["alertname"]: alert for alert in self._get("alerts")["alerts"]}

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with what became of its last evaluation."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def until(self, condition: Any, patience_s: float = PATIENCE_S) -> None:
        """Wait until it holds."""
        give_up = time.monotonic() + patience_s
        while True:
            with suppress(httpx.TransportError, httpx.HTTPStatusError):
                if condition():
                    return
            assert time.monotonic() < give_up, (self._folder / "log").read_text()[-2000:]
            time.sleep(0.1)

    def _get(self, path: str, **asked: Any) -> Mapping[str, Any]:
        response = self._http.get(f"/{path}", params=asked)
        assert response.status_code not in (400, 422), response.text
        answer: Mapping[str, Any] = response.raise_for_status().json()["data"]
        return answer
