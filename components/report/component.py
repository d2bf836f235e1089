"""KFP interface of the report step."""

from kfp import dsl


@dsl.component(base_image="svdflow/pipeline:0.1.0", install_kfp_package=False)
def report(
    workdir: str, run_id: str, profile: str, overrides: dict, page: dsl.Output[dsl.HTML], pipeline: str = "svdflow"
):
    """Make the run's page and summary out of what its steps told, also when one of them failed.

    Args:
        workdir: the run's work directory; ``report.html`` and ``summary.json`` are written there.
        run_id: the run whose steps are told.
        profile: the profile that ran.
        overrides: the settings changed on the command line.
        page: the same page as an artifact.
        pipeline: the name of the pipeline that ran, for the page's title.
    """
    import os
    from pathlib import Path

    from svdflow.common.progress import emit
    from svdflow.report.compose import compose_report

    os.environ["SVDFLOW_STEP"] = "report"
    emit(event="start")
    html = compose_report(workdir, os.environ.get("SVDFLOW_RUN_ID") or run_id, profile, overrides, pipeline)
    emit(event="end", done=1, reused=0)
    Path(page.path).parent.mkdir(parents=True, exist_ok=True)
    Path(page.path).write_text(html)
