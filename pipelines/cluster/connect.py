"""From a command's options to a client of a cluster and the environment that its runs get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from svdflow.common.errors import ConfigError

from .access import find_access
from .client import Client
from .environment import IMAGES, Environment, load_environment


@dataclass(frozen=True)
class Connection:
    """What every command that talks to a cluster can be told."""

    env: str | None = None
    endpoint: str | None = None
    namespace: str | None = None
    token_file: Path | None = None
    cookie_file: Path | None = None
    ca_file: Path | None = None

    def client(self, environment: Environment | None = None) -> Client:
        """A client; the environment, or else the one that ``env`` names, fills in what was not told."""
        if environment is None and self.env:
            environment = load_environment(self.env)
        access = find_access(
            self.endpoint,
            self.namespace,
            self.token_file,
            self.cookie_file,
            self.ca_file,
            default_endpoint=environment.endpoint if environment else "",
            default_namespace=environment.namespace if environment else "",
        )
        return Client(access)


def environment_of(env: str | None, images_file: Path | None, images: Sequence[str]) -> Environment:
    """The environment that a command names, with images on top.

    Args:
        env: a shipped one, or a YAML file.
        images_file: YAML or JSON with a mapping of image to reference, as a build writes it.
        images: ``curation=registry/name@sha256:…``.

    Raises:
        ConfigError: there is none, or an image is unknown.
    """
    if not env:
        raise ConfigError("name the environment with --env: production, airgapped, dev, or a YAML file of your own")
    given: dict[str, str] = {}
    if images_file:
        try:
            loaded = yaml.safe_load(images_file.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"--images {images_file}: cannot be read ({type(error).__name__})") from None
        if not isinstance(loaded, dict) or not all(isinstance(value, str) for value in loaded.values()):
            raise ConfigError(f"--images {images_file}: is no mapping of images to references")
        given |= loaded
    for text in images:
        kind, equals, reference = text.partition("=")
        if not equals or not reference:
            raise ConfigError(f"--image {text!r}: write it as curation=registry/name@sha256:…")
        given[kind] = reference
    if unknown := sorted(set(given) - set(IMAGES)):
        raise ConfigError(f"image {unknown[0]!r}: images are {', '.join(IMAGES)}")
    return load_environment(env, given)
