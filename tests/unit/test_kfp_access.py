"""Where the API is, who calls it, and that nobody else learns the secret."""

from pathlib import Path

import pytest

from svdflow.common.errors import ConfigError
from svdflow.pipelines.cluster import access as accesses
from svdflow.pipelines.cluster.access import Secret, find_access
from svdflow.pipelines.cluster.schedules import cron_fields, timing


def access(**options):
    return find_access(**({"environ": {}} | options))


def test_the_endpoint_of_an_option_goes_before_the_variable_before_the_environment_file():
    environ = {"SVDFLOW_KFP_ENDPOINT": "https://variable", "KF_PIPELINES_ENDPOINT": "https://kubeflow"}
    assert access(endpoint="https://option/", environ=environ).endpoint == "https://option"
    assert access(default_endpoint="https://file", environ=environ).endpoint == "https://variable"
    del environ["SVDFLOW_KFP_ENDPOINT"]
    assert access(default_endpoint="https://file", environ=environ).endpoint == "https://file"
    assert access(environ=environ).endpoint == "https://kubeflow"
    with pytest.raises(ConfigError, match="SVDFLOW_KFP_ENDPOINT"):
        access()


def test_the_namespace_is_at_last_the_pod_s_own(tmp_path, monkeypatch):
    given = {"endpoint": "https://kfp"}
    assert access(**given).namespace == ""
    (tmp_path / "namespace").write_text("svdflow\n")
    monkeypatch.setattr(accesses, "OWN_NAMESPACE", tmp_path / "namespace")
    assert access(**given).namespace == "svdflow"
    assert access(**given, default_namespace="team").namespace == "team"
    assert access(**given, environ={"SVDFLOW_KFP_NAMESPACE": "mine"}, default_namespace="team").namespace == "mine"


@pytest.mark.parametrize(
    "url", ["kfp.example.com", "ftp://kfp", "https://", "https://me:secret@kfp", "https://kfp?a=b"]
)
def test_an_endpoint_that_is_none_is_refused_and_a_password_in_it_is_not_repeated(url):
    with pytest.raises(ConfigError) as caught:
        access(endpoint=url)
    assert "secret" not in str(caught.value)


def test_a_token_is_found_in_a_file_a_variable_or_the_projected_volume(tmp_path: Path):
    for name in ("option", "variable", "projected"):
        (tmp_path / name).write_text(f"{name}\n")
    environ = {
        "SVDFLOW_KFP_TOKEN": "value",
        "SVDFLOW_KFP_TOKEN_FILE": str(tmp_path / "variable"),
        "KF_PIPELINES_SA_TOKEN_PATH": str(tmp_path / "projected"),
    }
    found = []
    found.append(access(endpoint="https://kfp", token_file=tmp_path / "option", environ=environ).token)
    for name in ("SVDFLOW_KFP_TOKEN", "SVDFLOW_KFP_TOKEN_FILE", "KF_PIPELINES_SA_TOKEN_PATH"):
        found.append(access(endpoint="https://kfp", environ=environ).token)
        del environ[name]
    assert [secret.read() for secret in found] == ["option", "value", "variable", "projected"]
    assert access(endpoint="https://kfp").token is None
    (tmp_path / "projected").write_text("renewed")
    assert found[-1].read() == "renewed", "the kubelet replaces it"


def test_a_secret_is_in_no_representation_and_no_message(tmp_path: Path):
    given = access(
        endpoint="https://kfp", environ={"SVDFLOW_KFP_TOKEN": "ey.secret", "SVDFLOW_KFP_COOKIE": "session=hidden"}
    )
    assert "secret" not in repr(given) + given.told and "hidden" not in repr(given) + given.told
    assert given.told == "the token in SVDFLOW_KFP_TOKEN and the cookie in SVDFLOW_KFP_COOKIE"
    for bad in ("", "two\nlines-secret", "sécret", "x-secret" * 9000):
        (tmp_path / "bad").write_text(bad)
        with pytest.raises(ConfigError) as caught:
            Secret("the token in a file", tmp_path / "bad").read()
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        Secret("the token in a file", tmp_path / "absent").read()


@pytest.mark.parametrize("host", ["kfp.example.com", "10.0.0.7", "ml-pipeline.kubeflow"])
def test_a_secret_does_not_cross_a_network_in_the_clear(host):
    with pytest.raises(ConfigError, match="in the clear"):
        access(endpoint=f"http://{host}:8888", environ={"SVDFLOW_KFP_TOKEN": "x"})
    assert access(endpoint=f"http://{host}:8888").token is None  # without one there is nothing to hide


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "ml-pipeline", "ml-pipeline.kubeflow.svc", "a.b.svc.x.y"])
def test_loopback_and_services_of_the_cluster_may_be_asked_by_http(host):
    assert access(endpoint=f"http://{host}:8888", environ={"SVDFLOW_KFP_TOKEN": "x"}).token


def test_a_ca_file_has_to_be_there(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        access(endpoint="https://kfp", ca_file=tmp_path / "ca.crt")


def test_a_crontab_line_gets_the_seconds_that_kfp_reads_first():
    assert cron_fields("0 2 * * *") == "0 0 2 * * *"
    assert cron_fields("*/15 8-18 * * MON-FRI") == "0 */15 8-18 * * MON-FRI"
    assert cron_fields("30 0 2 1,15 jan ?") == "30 0 2 1,15 jan ?"
    assert cron_fields("@daily") == "@daily"


@pytest.mark.parametrize("text", ["", "2", "0 25 * * *", "60 * * * *", "0 0 0 * *", "0 2 * * 7", "a b c d e", "@often"])
def test_what_is_no_cron_line_is_refused(text):
    with pytest.raises(ConfigError):
        cron_fields(text)


def test_a_schedule_has_one_clock():
    assert timing(None, "6h").interval_s == 21600
    assert timing("0 2 * * *", None).cron == "0 0 2 * * *"
    begins = timing(None, "1d", "2030-01-01T00:00:00+02:00").start
    assert begins is not None and begins.utcoffset().total_seconds() == 7200
    for bad in (
        (None, None),
        ("0 2 * * *", "6h"),
        (None, "6 hours"),
        (None, "0m"),
        (None, "1h", "tomorrow"),
        (None, "1h", "2030-01-01T00:00:00"),
        (None, "1h", "2030-01-02T00:00:00Z", "2030-01-01T00:00:00Z"),
    ):
        with pytest.raises(ConfigError):
            timing(*bad)
