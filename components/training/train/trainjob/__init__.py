"""Training as a TrainJob of Kubeflow Trainer: the launcher's Kubernetes backend."""
