"""What the launcher tells the training processes: one JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.files import write_atomic
from .settings import StageSettings

GRID = "grid.jpg"  # in a folder of samples: all of them in one picture
SMALL_GRID = "grid-small.jpg"  # the same for the report's page


@dataclass(frozen=True)
class Job:
    """What is to be trained.

    Attributes:
        stage: one of the stages.
        settings: of the stage, resolved.
        samples: path of the samples manifest.
        root: location of the data root.
        init: model directory to start from, or None for a fresh model.
        checkpoints: folder of the run's checkpoints.
        store: name of the run's checkpoints in the data root, or None when they are kept on this machine alone.
        logs: folder for TensorBoard's event files.
        samples_out: folder for what the model makes while it trains.
        out: folder for the model directory; not there yet.
        card: plain values for the model's card.
    """

    stage: str
    settings: StageSettings
    samples: Path
    root: str
    init: Path | None
    checkpoints: Path
    store: str | None
    logs: Path
    samples_out: Path
    out: Path
    card: dict[str, Any]

    @staticmethod
    def read(path: Path) -> Job:
        """Read a job file."""
        values = json.loads(path.read_text())
        paths = {name: Path(values[name]) for name in ("samples", "checkpoints", "logs", "samples_out", "out")}
        init = Path(values["init"]) if values["init"] else None
        return Job(**{**values, **paths, "init": init, "settings": StageSettings(**values["settings"])})

    def to_json(self) -> bytes:
        """What ``read`` reads."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return json.dumps({**values, "settings": self.settings.model_dump(mode="json")}, indent=1).encode()

    def write(self, path: Path) -> None:
        """Write it for the processes."""
        write_atomic(path, self.to_json())
