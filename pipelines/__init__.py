"""Pipelines of svdflow: what each is called, where it is, and what it does."""

PIPELINES = {
    "curation": ("svdflow.pipelines.curation.pipeline:curation", "raw footage to a versioned dataset"),
    "train": ("svdflow.pipelines.train.pipeline:train", "one training stage on a dataset version"),
    "training": ("svdflow.pipelines.training.pipeline:training", "dataset version to an evaluated video model"),
    "interpolation": (
        "svdflow.pipelines.interpolation.pipeline:interpolation",
        "dataset version to an exported interpolation model",
    ),
    "svd": ("svdflow.pipelines.svd.pipeline:svd", "raw footage to a served video model"),
}
