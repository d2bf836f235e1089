"""Fixtures that all tests share."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings

from svdflow.common.object_store import EmbeddedStore, StoreEndpoint
from svdflow.common.storage import DataRoot

settings.register_profile("svdflow", deadline=None)  # a busy machine is no failure
settings.load_profile("svdflow")

# Started in the background by a shell, the tests and all that they start would ignore Ctrl-C, which some of them test.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before a test's fixtures: what it finds is the same in every run, whatever came before it.

    PyTorch begins at another seed in each process, and a step that a test was in names itself for good.
    """
    os.environ.pop("SVDFLOW_STEP", None)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def media() -> Path:
    """The sample clips that `make setup` takes out of registry packages."""
    directory = REPOSITORY / ".cache" / "media"
    if len(list(directory.glob("*.mp4"))) < 5:
        pytest.skip("sample footage is not there: run `make setup`")
    return directory


@pytest.fixture(autouse=True)
def _scheduled_as_others() -> Iterator[None]:
    """SVT-AV1, by which some tests encode, makes its caller a real-time process where it is root's, for good.

    All that is started later would be one as well, and two of them that spin leave no core to anybody.
    """
    yield
    if sys.platform == "linux" and os.sched_getscheduler(0) != os.SCHED_OTHER:
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="module", autouse=True)
def _arithmetic_as_before() -> Iterator[None]:
    """What trains in this process changes how all of it computes, and pods and Triton are not in it.

    The engine flushes denormal numbers to zero, and DeepSpeed's ZeRO 3 puts a function of its own in the place of
    ``torch.nn.functional.linear``: neither ends by itself.
    """
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)
        torch.nn.functional.linear = torch._C._nn.linear


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    return DataRoot.open(tmp_path / "data root")


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreEndpoint]:
    """A real S3 server for the tests of this session."""
    with EmbeddedStore(tmp_path_factory.mktemp("object store")) as endpoint:
        yield endpoint
