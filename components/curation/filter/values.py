"""The single value of a clip on each axis, out of the annotations' columns, in SQL.

A value is the reduction of the finite figures there are. Without any it is NULL when nothing was annotated (missing),
and NaN when something was, though no number: the two have reasons of their own.
"""

from __future__ import annotations

from ...common.manifests import AXES
from .settings import FilterSettings

ANNOTATED = tuple(axis for axis in AXES if axis != "duplicate")  # "duplicate" comes from comparing clips
DROPS_ABOVE = {axis: axis in ("text", "watermark", "nsfw", "duplicate") for axis in AXES}

_FRAMES = (1, 2, 3)
_COLUMNS = {"text": "text_area", "aesthetic": "aesthetic", "watermark": "watermark", "nsfw": "nsfw"}


def value_sql(axis: str, settings: FilterSettings) -> str:
    """SQL of type DOUBLE for a clip's value on an axis: a finite number, NaN or NULL."""
    if axis == "motion":
        groups, reduce, over_groups = [["motion_score"]], "mean", "mean"
    elif axis == "similarity":
        groups = [[f"similarity_{c}[{i}]" for i in _FRAMES] for c in settings.similarity_captions]
        reduce, over_groups = settings.similarity_reduce, settings.similarity_caption_reduce
    else:
        groups, over_groups = [[f"{_COLUMNS[axis]}[{i}]" for i in _FRAMES]], "mean"
        reduce = getattr(settings, f"{axis}_reduce")
    figures = [figure for group in groups for figure in group]
    whole = _reduce([_reduce(group, reduce) for group in groups], over_groups)
    in_part = _reduce_known([_reduce_known([_finite(f) for f in group], reduce) for group in groups], over_groups)
    annotated = f"coalesce({', '.join(figures)}) IS NOT NULL"
    return f"""CASE WHEN isfinite({" + ".join(figures)}) THEN {whole}
                    ELSE coalesce({in_part}, CASE WHEN {annotated} THEN 'nan'::DOUBLE END) END"""


def _finite(figure: str) -> str:
    return f"CASE WHEN isfinite({figure}) THEN {figure} END"


def _reduce(values: list[str], how: str) -> str:
    """Over values that are all there. The mean adds from left to right, as NumPy does."""
    if len(values) == 1:
        return values[0]
    if how == "mean":
        return f"(({' + '.join(values)}) / {len(values)})"
    return f"{'least' if how == 'min' else 'greatest'}({', '.join(values)})"


def _reduce_known(values: list[str], how: str) -> str:
    """Over those that are not NULL; NULL when all are."""
    if how != "mean" or len(values) == 1:
        return _reduce(values, how)
    total = " + ".join(f"coalesce({value}, 0)" for value in values)
    count = " + ".join(f"({value} IS NOT NULL)::INT" for value in values)
    return f"(({total}) / nullif({count}, 0))"
