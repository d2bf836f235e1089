"""Pipelines on a Kubeflow Pipelines backend: environments, uploads, schedules, runs."""
