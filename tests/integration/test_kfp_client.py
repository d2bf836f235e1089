"""Calls are bounded, reads outlast a server's absence, nothing is created twice, and errors say what to do."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import kfp_server_api
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from svdflow.common.errors import BadInputError
from svdflow.pipelines.cluster.access import Access, Secret
from svdflow.pipelines.cluster.client import Client, NoAnswer, Refused
from svdflow.pipelines.cluster.environment import load_environment
from svdflow.pipelines.cluster.runs import get_run, list_runs
from svdflow.pipelines.cluster.stamp import Stamped
from svdflow.pipelines.cluster.submit import Version, experiment_id, start_run, upload
from tests.fakes.kfp_api import FakePipelines
from tests.integration.kfp_runs import TOKEN, hurried_while, quick_client, stamped

ARGUMENTS = {"workdir": "/work/runs/curation"}


@pytest.fixture
def fake() -> Iterator[FakePipelines]:
    with FakePipelines(token=TOKEN) as server:
        yield server


@pytest.fixture(name="stamped")
def stamped_curation() -> Stamped:
    return stamped()


def run_once(client: Client, version: Version, name: str = "one of its kind"):
    return start_run(client, load_environment("dev"), version, ARGUMENTS, name, "nightly", "0.1.0")


def test_a_version_is_uploaded_once_and_found_again(fake, stamped):
    client = quick_client(fake)
    first, second = upload(client, stamped), upload(client, stamped)
    assert (first.uploaded, second.uploaded) == (True, False)
    assert first.version_id == second.version_id and len(fake.versions) == len(fake.pipelines) == 1
    kept = fake.versions[first.version_id]
    assert kept["name"] == stamped.version and kept["tags"] == stamped.tags
    assert stamped.revision in kept["description"] and stamped.sha256 in kept["description"]
    assert fake.pipelines[first.pipeline_id]["namespace"] == "svdflow"
    assert kept["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]


def test_another_content_is_another_version_of_the_same_pipeline(fake, stamped):
    client = quick_client(fake)
    upload(client, stamped)
    other = upload(client, Stamped("curation", "dev", stamped.ir + "# other\n", stamped.revision))
    assert other.uploaded and len(fake.pipelines) == 1 and len(fake.versions) == 2


def test_the_right_one_is_found_among_more_than_fit_on_a_page(fake, stamped):
    client = quick_client(fake)
    fake.largest_page = 2
    for n in range(5):
        upload(client, Stamped("curation", "dev", stamped.ir + f"# {n}\n", stamped.revision))
    again = upload(client, Stamped("curation", "dev", stamped.ir + "# 0\n", stamped.revision))
    assert not again.uploaded and len(fake.versions) == 5
    version = again
    for n in range(5):
        run_once(client, version, f"run {n}")
    assert [run.display_name for run in list_runs(client, 4)] == ["run 4", "run 3", "run 2", "run 1"]


@pytest.mark.parametrize("how", ["drop", "503", "500", "429", "hang"])
def test_reads_go_on_when_the_server_comes_back(fake, how):
    fake.fault("GET", how, times=2)
    assert list_runs(hurried_while(fake, quick_client(fake)), 5) == []
    assert fake.count("GET /apis/v2beta1/runs") == 3


def test_reads_give_up_after_their_patience_and_say_so(fake):
    fake.fault("GET", "503", times=99)
    with pytest.raises(NoAnswer, match="cannot answer now .503.: as the test wants it"):
        list_runs(quick_client(fake, patience_s=0.2), 5)


def test_no_request_waits_longer_than_its_time_out(fake):
    fake.fault("GET", "hang", times=99)
    since = time.monotonic()
    with pytest.raises(NoAnswer, match="does not answer"):
        list_runs(quick_client(fake, timeout_s=(0.5, 0.5), patience_s=0), 5)
    assert time.monotonic() - since < 300, "the fake would hang for ten minutes"


def test_a_server_that_is_not_there_is_told_at_once():
    access = Access("http://127.0.0.1:9", "svdflow")
    with pytest.raises(NoAnswer, match="127.0.0.1:9 does not answer"):
        list_runs(Client(access, patience_s=0), 5)


@pytest.mark.parametrize(("how", "there"), [("lose", True), ("drop", False)])
def test_an_upload_whose_answer_is_lost_is_looked_for_before_anything_else(fake, stamped, how, there):
    client = quick_client(fake)
    fake.fault("POST .*upload_version", how)
    if there:
        assert upload(client, stamped).version_id in fake.versions
    else:
        with pytest.raises(NoAnswer):
            upload(client, stamped)
        assert upload(client, stamped).uploaded
    assert len(fake.versions) == 1


def test_a_run_whose_answer_is_lost_is_not_started_twice(fake, stamped):
    client = quick_client(fake)
    version = upload(client, stamped)
    fake.fault("POST /apis/v2beta1/runs$", "lose")
    run = run_once(client, version)
    assert list(fake.runs) == [run.run_id] and fake.count("POST /apis/v2beta1/runs$") == 1
    fake.fault("POST /apis/v2beta1/runs$", "drop")
    with pytest.raises(NoAnswer):
        run_once(client, version, "another")
    assert len(fake.runs) == 1


def test_two_that_make_the_same_thing_at_once_both_have_it(fake, stamped):
    """Between the look and the creation somebody else is faster: 409, and theirs is taken."""
    client = quick_client(fake)
    upload(client, stamped)
    name = experiment_id(client, "nightly")
    seen = client.first
    misses = iter([True, False])

    def late(*arguments, **named):
        return None if next(misses, False) else seen(*arguments, **named)

    client.first = late  # type: ignore[method-assign]
    assert experiment_id(client, "nightly") == name
    assert fake.count("POST /apis/v2beta1/experiments") == 2 and len(fake.experiments) == 1


def test_a_wrong_token_is_told_with_where_it_came_from_and_without_itself(fake):
    access = Access(fake.url, "svdflow", Secret("the token in SVDFLOW_KFP_TOKEN", value="wrong-secret"))
    with pytest.raises(Refused) as caught:
        list_runs(Client(access, patience_s=0), 5)
    assert "(401)" in str(caught.value) and "the token in SVDFLOW_KFP_TOKEN was sent" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)
    with pytest.raises(Refused, match="no token and no cookie was sent"):
        list_runs(Client(Access(fake.url, "svdflow"), patience_s=0), 5)


def test_a_token_that_is_renewed_between_two_calls_is_taken_up(fake, tmp_path: Path):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    client = Client(Access(fake.url, "svdflow", Secret("the token in a file", file)), patience_s=0)
    list_runs(client, 5)
    fake.token = "renewed"
    file.write_text("renewed")
    assert list_runs(client, 5) == []


def test_a_token_that_ends_while_it_is_sent_is_read_again(fake, tmp_path: Path):
    class Late(Secret):
        """The kubelet replaces the file right after it was read."""

        def read(self) -> str:
            value = super().read()
            file.write_text("renewed")
            return value

    file = tmp_path / "token"
    file.write_text("old")
    fake.token = "renewed"
    assert list_runs(Client(Access(fake.url, "svdflow", Late("a file", file)), patience_s=0), 5) == []
    assert fake.count("GET /apis/v2beta1/runs") == 2


def test_what_the_account_may_not_do_is_told_with_the_namespace(fake, stamped):
    fake.forbidden.add("POST /apis/v2beta1/pipelines$")
    with pytest.raises(Refused, match=r"\(403\).*may not do this in namespace svdflow"):
        upload(quick_client(fake), stamped)


def test_a_cookie_is_sent_and_a_login_page_is_told_without_what_its_address_holds():
    with FakePipelines(cookie="authservice_session=abc") as fake:
        good = Access(fake.url, "svdflow", cookie=Secret("the cookie in a file", value="authservice_session=abc"))
        assert list_runs(Client(good), 5) == []
        stale = Access(fake.url, "svdflow", cookie=Secret("the cookie in a file", value="authservice_session=old"))
        with pytest.raises(Refused) as caught:
            list_runs(Client(stale, patience_s=0), 5)
        assert "/dex/auth (302): a login; the cookie in a file was sent" in str(caught.value)
        assert "state=secret" not in str(caught.value) and "old" not in str(caught.value)
        assert fake.count("dex") == 0, "a redirect is not followed: the cookie would go along"


def test_a_web_page_in_place_of_json_is_no_empty_answer(fake):
    fake.fault("GET", "page")
    with pytest.raises(Refused, match="text/html and not with JSON"):
        list_runs(quick_client(fake), 5)


def test_a_run_that_is_not_there_is_a_users_mistake(fake):
    with pytest.raises(BadInputError, match="has no such run"):
        get_run(quick_client(fake), "00000000-0000-0000-0000-000000000000")


def test_what_the_server_finds_wrong_is_told_in_its_words(fake, stamped):
    client = quick_client(fake)
    version = upload(client, stamped)
    with pytest.raises(Refused, match=r"refused \(400\): parameter \['nonsense'\] is not in the pipeline's inputs"):
        start_run(client, load_environment("dev"), version, ARGUMENTS | {"nonsense": 1}, "x", "nightly", "0.1.0")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody else trusts, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(pem)
    return path


def test_a_certificate_is_trusted_only_by_its_authority(certificate):
    with FakePipelines(certificate=certificate) as fake:
        trusting = Access(fake.url, "svdflow", ca_file=certificate)
        assert list_runs(Client(trusting, patience_s=0), 5) == []
        with pytest.raises(Refused, match="no TLS connection .*CERTIFICATE_VERIFY_FAILED.*--ca-file"):
            list_runs(Client(Access(fake.url, "svdflow"), patience_s=0), 5)


def test_a_server_without_tls_is_not_spoken_to_in_the_clear(fake):
    access = Access(fake.url.replace("http:", "https:"), "svdflow", Secret("a test", value=TOKEN))
    with pytest.raises(Refused, match="no TLS connection"):
        list_runs(Client(access, patience_s=0), 5)
    assert fake.asked == []


def test_an_error_that_the_generated_client_trips_over_is_told_as_what_it_was(fake):
    """Its handler decodes a body that an error without an answer does not have."""

    def trips(_request_timeout: object) -> None:
        try:
            raise kfp_server_api.ApiException(status=0, reason="SSLError: unknown protocol")
        except kfp_server_api.ApiException as error:
            error.body.decode()

    with pytest.raises(Refused, match="SSLError: unknown protocol"):
        quick_client(fake).once(trips)
