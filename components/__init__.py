"""svdflow: the open platform for the whole life of a Stable-Video-Diffusion-class model."""

__version__ = "0.1.0"
