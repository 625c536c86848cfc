"""Takes the pictures of the console that the documentation shows, from the demo as a person runs it.

    make screenshots

Needs Chromium; with the font Inter installed (`apt-get install fonts-inter`) they look as they were taken last.
"""

import argparse
import io
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page
from support.browser import Visit, chromium
from support.service import NOTELLM, Service, running, until

from model.data.samples.generate import sample_notes
from service.client.bodies import EventFields
from service.settings import MINI

COLORS = 128  # the means of four rounds keep the rare ones, such as that of a mistake
MAX_BYTES = 200_000
LOAD_S = 600


def show_explore(page: Page, api: str) -> None:
    """A note and those related to it."""
    page.goto(f"{api}/#explore/travel-01")
    page.locator("#results .result").nth(9).wait_for()


def show_write(page: Page, api: str) -> None:
    """A draft with the category and one hashtag taken."""
    page.goto(f"{api}/#write")
    page.fill("#draft-title", "My puppy finally sleeps through the night")
    page.fill(
        "#draft-content", "We moved the crate next to our bed and took her out at five. The vet says: some more weeks."
    )
    page.locator("#suggestions:not([aria-busy])").wait_for()
    page.locator("#suggested-category >> text=Dogs").click()
    page.locator("#suggested-hashtags button").first.click()
    page.mouse.move(0, 0)
    page.locator("#suggestions:not([aria-busy]) #draft-related .result").nth(4).wait_for()


def show_service(page: Page, api: str) -> None:
    """The figures after a minute in which notes were written, once many at a time."""
    page.goto(f"{api}/#service")
    page.locator("#figures").wait_for()
    texts = _texts()
    for number in range(18):
        many = 60 if number == 6 else 1
        bulk = [{"note_id": f"{number}-{copy}", "title": next(texts)} for copy in range(many)]
        httpx.post(f"{api}/notes", json=bulk[1:], timeout=30)
        httpx.put(f"{api}/notes/{number}-0?wait=10", json={"title": bulk[0]["title"]}, timeout=30)
        page.wait_for_timeout(2000)


def _texts() -> Iterator[str]:
    notes = sample_notes()
    return (f"{one.title}, and {other.title}" for one, other in zip(notes, reversed(notes), strict=True))


def show_experiments(page: Page, api: str) -> None:
    """What 300 readers say of more diverse lists."""
    page.goto(f"{api}/#experiments")
    page.locator("#running .verdict").wait_for()


def run_experiment(demo: Service) -> None:
    """An experiment on simulated readers, of whom those in its second arm click half as much again."""
    draw, seen, folder = random.Random(0), list[EventFields](), demo.folder / "events"
    notes = [note.id for note in sample_notes()]
    with demo.client() as client:
        model = client.status().model
        _notellm(demo, "experiment", "start", "diverse-lists", "--arms", f"A={model}", f"B={model},diversity=0.3")
        until(lambda: client.related("travel-01", reader="reader-0").arm)
        for reader in [f"reader-{number}" for number in range(300)] * 4:
            answer = client.related(draw.choice(notes), k=5, reader=reader)
            likely = {"A": 0.12, "B": 0.18}[answer.arm or ""]
            for place, item in enumerate(answer.items, start=1):
                event = {"event_id": f"e-{len(seen)}", "user_id": reader, "note_id": item.note_id, "ts": time.time()}
                event |= {"type": "click" if draw.random() < likely else "impression", "position": place}
                seen.append(EventFields(**event, answer_id=answer.answer_id))
        for first in range(0, len(seen), 1000):
            client.record(seen[first : first + 1000])
    time.sleep(6)  # a gateway logs its answers every five seconds
    _notellm(demo, "events", "export", "--to", str(folder), "--reports")


def _notellm(demo: Service, *words: str) -> None:
    subprocess.run([*NOTELLM, *words], env=demo.environment, check=True)


SHOTS: dict[str, Callable[[Page, str], None]] = {
    "explore": show_explore,
    "write": show_write,
    "experiments": show_experiments,
    "service": show_service,
}


def take(browser: Browser, api: str, folder: Path) -> None:
    """One picture of each view, 1280 pixels wide, in few colours: they are flat, and stay in every clone."""
    for name, prepare in SHOTS.items():
        visit = Visit(browser, api)
        prepare(visit.page, api)
        picture = Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB")
        path = folder / f"console-{name}.png"
        picture.quantize(COLORS, kmeans=4, dither=Image.Dither.NONE).save(path, optimize=True)
        assert path.stat().st_size < MAX_BYTES
        print(f"{path}: {path.stat().st_size} bytes")
        visit.close()


def main() -> None:
    """Start the demo, take the pictures, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs"))
    folder = parser.parse_args().folder
    folder.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as state,
        running(Service(Path(state), MINI, "--samples")) as demo,
        chromium() as browser,
    ):
        until(lambda: httpx.get(f"{demo.api}/status").json()["notes"]["searchable"] == len(sample_notes()), LOAD_S)
        run_experiment(demo)
        take(browser, demo.api, folder)


if __name__ == "__main__":
    main()
