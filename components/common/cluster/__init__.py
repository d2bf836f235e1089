"""A thin layer over the Kubernetes API for the two backends that start jobs: training's launcher and the fan-out."""
