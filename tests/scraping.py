"""What a scraper sees: figures by name and labels, read by Prometheus' own parser."""

import http.client
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def get(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Status, content type and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


def scrape(port: int) -> str:
    status, _, text = get(port)
    assert status == 200, text
    return text


@contextmanager
def scraped(port: int) -> Iterator[list[dict[str, float]]]:
    """Meanwhile a run is scraped again and again; gives what it told of itself, in order."""
    seen: list[dict[str, float]] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            try:
                seen.append(training(scrape(port)))
            except (OSError, http.client.HTTPException):  # it does not listen yet, or any longer
                pass

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def parsed(text: str) -> Figures:
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def training(text: str) -> dict[str, float]:
    """The figures of a run by their short names."""
    found = {}
    for (name, labels), value in parsed(text).items():
        if name.startswith("svdflow_training_"):
            assert [label for label, _ in labels if label != "rank"] == ["stage"]
            rank = dict(labels).get("rank")
            found[name.removeprefix("svdflow_training_") + (f"[{rank}]" if rank else "")] = value
    return found


def complaints(text: str, promtool: str) -> str:
    """What Prometheus' linter says about an exposition; nothing when all is well."""
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=600)
    return done.stdout + done.stderr if done.returncode else ""
