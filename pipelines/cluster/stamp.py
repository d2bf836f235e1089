"""A pipeline as an environment is sent it: images by digest, resources, and a version named after its content."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field

from svdflow.curation.version.provenance import code_version, own_version

from ..limits import require_limits
from ..registry import compiled_path, pipeline_spec, placed_pipeline
from .environment import Environment
from .resources import image_kind, placement, require_digests

REVISION = "SVDFLOW_REVISION"  # where there is no git checkout to ask, as in an image


@dataclass(frozen=True)
class Stamped:
    """The IR for an environment and what is recorded with it. Equal IR has an equal version, whoever makes it."""

    pipeline: str
    environment: str
    ir: str = field(repr=False)
    revision: str  # of the package and the source: ``0.1.0 (1a2b3c4d5e6f)``, ``-dirty`` when changed since

    @property
    def sha256(self) -> str:
        """Of the IR's bytes."""
        return hashlib.sha256(self.ir.encode()).hexdigest()

    @property
    def version(self) -> str:
        """The pipeline version's name: ``svd-0.1.0-`` and the start of the content's hash."""
        return f"{self.pipeline}-{own_version()}-{self.sha256[:12]}".lower().replace("+", "-")

    @property
    def commit(self) -> str:
        """Of the source; empty where it is not known."""
        return self.revision.partition("(")[2].rstrip(")")

    @property
    def tags(self) -> dict[str, str]:
        """For the version; keys without dots, which KFP refuses."""
        return {
            "svdflow": own_version(),
            "revision": self.commit or "unknown",
            "environment": self.environment,
            "ir-sha256": self.sha256[:63],
        }

    @property
    def description(self) -> str:
        """One line for a person."""
        return f"svdflow {self.revision} for environment {self.environment}; IR sha256 {self.sha256}"


def stamp(pipeline: str, environment: Environment) -> Stamped:
    """Compile a pipeline for an environment.

    Raises:
        ConfigError: there is no such pipeline, an image lacks a digest, or the result is beyond what a backend takes.
    """
    executors = pipeline_spec(compiled_path(pipeline))["deploymentSpec"]["executors"].values()
    require_digests({image_kind(executor["container"]["image"]) for executor in executors}, environment)
    ir = placed_pipeline(pipeline, placement(environment))
    require_limits(ir, f"{pipeline} for environment {environment.name}")
    return Stamped(pipeline, environment.name, ir, source_revision())


def source_revision() -> str:
    """The package's version, and the commit it runs from as git or ``SVDFLOW_REVISION`` tells it."""
    return f"{own_version()} ({told})" if (told := os.environ.get(REVISION, "").strip()) else code_version()
