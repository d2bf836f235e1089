"""Pipelines of svdflow: what each is called, where it is, and what it does."""

PIPELINES = {
    "curation": ("svdflow.pipelines.curation.pipeline:curation", "raw footage to a versioned dataset"),
    "svd": ("svdflow.pipelines.svd.pipeline:svd", "raw footage to a served video model"),
}
