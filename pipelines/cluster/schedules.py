"""Schedules: recurring runs of a pipeline version, told apart by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from svdflow.common.errors import BadInputError, ConfigError

from .client import Client, Refused
from .environment import Environment
from .submit import Version, experiment_id, runtime_config

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FIELDS = ("second", "minute", "hour", "day", "month", "weekday")
_RANGES = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


@dataclass(frozen=True)
class Timing:
    """When runs start: by ``cron`` (six fields, seconds first, in the server's time zone) or every ``interval_s``."""

    cron: str = ""
    interval_s: int = 0
    start: datetime | None = None
    end: datetime | None = None


def timing(cron: str | None, every: str | None, start: str | None = None, end: str | None = None) -> Timing:
    """Read what was asked for.

    Raises:
        ConfigError: neither or both were given, or one cannot be read.
    """
    if bool(cron) == bool(every):
        raise ConfigError("a schedule has either --cron '0 2 * * *' or --every 6h")
    begins, ends = _moment("--start", start), _moment("--end", end)
    if begins and ends and begins >= ends:
        raise ConfigError("--end is not after --start")
    if cron:
        return Timing(cron=cron_fields(cron), start=begins, end=ends)
    return Timing(interval_s=_interval(every or ""), start=begins, end=ends)


def cron_fields(text: str) -> str:
    """A cron expression as KFP reads it: with seconds in front.

    One of five fields, as crontab has it, gets a second 0. KFP would take its minutes for seconds and start a run every
    hour instead of every day.

    Raises:
        ConfigError: it is none.
    """
    if text.startswith("@"):
        if re.fullmatch(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly)", text):
            return text
        raise ConfigError(f"--cron {text!r}: there are @hourly, @daily, @weekly, @monthly and @yearly; or use --every")
    fields = text.split()
    if len(fields) == 5:
        fields.insert(0, "0")
    if len(fields) != 6:
        raise ConfigError(f"--cron {text!r}: write five fields (minute hour day month weekday) or six, seconds first")
    for name, field, (low, high) in zip(_FIELDS, fields, _RANGES, strict=True):
        names = r"[A-Za-z]{3}" if name in ("month", "weekday") else r"\d{1,2}"
        one = rf"(\*|\?|(\d{{1,2}}|{names})(-(\d{{1,2}}|{names}))?)(/\d{{1,2}})?"
        numbers = [int(number) for number in re.findall(r"(?<![/\d])\d+", field)]
        if not re.fullmatch(rf"{one}(,{one})*", field) or any(not low <= number <= high for number in numbers):
            raise ConfigError(f"--cron {text!r}: {field!r} is no {name} ({low} to {high}, lists, ranges and steps)")
    return " ".join(fields)


def create(
    client: Client,
    environment: Environment,
    version: Version,
    name: str,
    when: Timing,
    arguments: Mapping[str, Any],
    experiment: str,
    revision: str,
    *,
    concurrency: int = 1,
    catch_up: bool = False,
    paused: bool = False,
    replace: bool = False,
) -> Any:
    """Make a schedule.

    Args:
        client: the server.
        environment: gives the runs' account.
        version: what each run runs.
        name: of the schedule.
        when: of its runs.
        arguments: of each run.
        experiment: its runs' experiment.
        revision: of the source, for the description.
        concurrency: how many of its runs may be at work at once, 1 to 10; a run that is due waits.
        catch_up: whether runs that were missed while it was paused, or the server away, are made up for.
        paused: whether it waits for ``resume``.
        replace: whether one of the same name goes.

    Raises:
        BadInputError: there is one of that name already.
    """
    import kfp_server_api as api

    if not 1 <= concurrency <= 10:
        raise ConfigError(f"--concurrency {concurrency}: Kubeflow Pipelines takes 1 to 10")
    old = _by_name(client, name)
    if old is not None and not replace:
        raise BadInputError(f"{name}: there is a schedule of that name; --replace puts the new one in its place")
    bounds = {"start_time": when.start, "end_time": when.end}
    trigger = (
        api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=when.cron, **bounds))
        if when.cron
        else api.V2beta1Trigger(
            periodic_schedule=api.V2beta1PeriodicSchedule(interval_second=str(when.interval_s), **bounds)
        )
    )
    body = api.V2beta1RecurringRun(
        display_name=name,
        description=f"svdflow {revision}, version {version.name}, environment {environment.name}",
        experiment_id=experiment_id(client, experiment),
        namespace=client.access.namespace,
        pipeline_version_reference=api.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
        runtime_config=runtime_config(environment, arguments),
        service_account=environment.service_account,
        max_concurrency=str(concurrency),
        no_catchup=not catch_up,
        mode="DISABLE" if paused else "ENABLE",
        trigger=trigger,
    )
    known = old.recurring_run_id if old is not None else None
    if old is not None:  # two at once would start every run twice
        client.read(client.schedules.recurring_run_service_disable_recurring_run, known)
    try:
        made = client.create(
            lambda: client.once(client.schedules.recurring_run_service_create_recurring_run, body),
            lambda: _by_name(client, name, but=known),
        )
    except Exception:
        if old is not None and old.mode != "DISABLE":
            client.read(client.schedules.recurring_run_service_enable_recurring_run, known)
        raise
    if old is not None:
        _remove(client, old)
    return made


def list_schedules(client: Client) -> list[Any]:
    """All of the namespace, newest first."""
    call = client.schedules.recurring_run_service_list_recurring_runs
    return list(client.pages(call, "recurring_runs", namespace=client.access.namespace, sort_by="created_at desc"))


def find_schedule(client: Client, wanted: str) -> Any:
    """A schedule by its name or id.

    Raises:
        BadInputError: there is none, or more than one.
    """
    found = [each for each in list_schedules(client) if wanted in (each.display_name, each.recurring_run_id)]
    if len(found) != 1:
        what = "no schedule has" if not found else f"{len(found)} schedules have"
        raise BadInputError(f"{wanted}: {what} this name or id; see `svdflow schedule list`")
    return found[0]


def pause(client: Client, wanted: str) -> Any:
    """Stop it from starting runs; those at work go on."""
    found = find_schedule(client, wanted)
    client.read(client.schedules.recurring_run_service_disable_recurring_run, found.recurring_run_id)
    return found


def resume(client: Client, wanted: str) -> Any:
    """Let it start runs again."""
    found = find_schedule(client, wanted)
    client.read(client.schedules.recurring_run_service_enable_recurring_run, found.recurring_run_id)
    return found


def delete(client: Client, wanted: str) -> Any:
    """Remove it; its runs stay."""
    found = find_schedule(client, wanted)
    _remove(client, found)
    return found


def told(schedule: Any) -> str:
    """When a schedule's runs start, in words."""
    trigger = schedule.trigger
    if trigger and trigger.cron_schedule and trigger.cron_schedule.cron:
        return f"cron {trigger.cron_schedule.cron}"
    seconds = int(trigger.periodic_schedule.interval_second) if trigger and trigger.periodic_schedule else 0
    unit = next((unit for unit in ("d", "h", "m") if seconds and seconds % _UNITS[unit] == 0), "s")
    return f"every {seconds // _UNITS[unit]}{unit}"


def _by_name(client: Client, name: str, but: str | None = None) -> Any:
    call = client.schedules.recurring_run_service_list_recurring_runs
    found = client.pages(call, "recurring_runs", namespace=client.access.namespace)
    return next((each for each in found if each.display_name == name and each.recurring_run_id != but), None)


def _remove(client: Client, schedule: Any) -> None:
    try:
        client.read(client.schedules.recurring_run_service_delete_recurring_run, schedule.recurring_run_id)
    except Refused as error:
        if error.status != 404:  # an earlier try was heard, and its answer lost
            raise


def _interval(text: str) -> int:
    match = re.fullmatch(r"([1-9]\d{0,8})([smhd])", text)
    if not match:
        raise ConfigError(f"--every {text!r}: write it as 30m, 6h or 1d")
    return int(match[1]) * _UNITS[match[2]]


def _moment(option: str, text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {text!r}: write it as 2030-01-31T02:00:00+00:00") from None
    if moment.tzinfo is None:
        raise ConfigError(f"{option} {text!r}: say which time zone, as 2030-01-31T02:00:00+00:00")
    return moment
