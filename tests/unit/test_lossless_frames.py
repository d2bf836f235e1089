"""Frames kept without loss: they come back as they were, and what is damaged or gone is told and made anew."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from svdflow.common.errors import BadInputError
from svdflow.common.lossless_frames import keep_once, kept_at, pack_frames, unpack_frames
from svdflow.common.storage import DataRoot

FRAMES = np.random.default_rng(0).integers(0, 255, (12, 8, 10, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    return DataRoot.open(tmp_path / "data")


def test_frames_come_back_in_order_and_any_tool_reads_them(root):
    data = pack_frames("x", FRAMES)
    assert data == pack_frames("x", FRAMES.copy())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        read = [np.asarray(Image.open(tar.extractfile(name))) for name in tar.getnames()]
        assert tar.getnames()[::11] == ["x/000.png", "x/011.png"]
    assert np.array_equal(read, FRAMES)
    assert np.array_equal(unpack_frames(root, root.put_bytes(data)), FRAMES)


def test_what_is_kept_is_not_made_again_and_what_is_gone_is(root):
    made = []

    def make():
        made.append(1)
        return FRAMES

    assert kept_at(root, "some_video", "key") is None
    uri, fresh = keep_once(root, "some_video", "key", make)
    assert fresh and keep_once(root, "some_video", "key", make) == (uri, False)
    assert kept_at(root, "some_video", "key") == uri
    root.remove(uri)
    assert kept_at(root, "some_video", "key") is None
    assert keep_once(root, "some_video", "key", make) == (uri, True)
    assert len(made) == 2 and np.array_equal(unpack_frames(root, uri), FRAMES)


@pytest.mark.parametrize(
    "data", [b"", b"no tar" * 200, pack_frames("x", FRAMES)[:700], pack_frames("x", FRAMES).replace(b"IHDR", b"IHDX")]
)
def test_what_is_damaged_is_told_with_what_to_do_of_orbits_and_videos_alike(root, data):
    uri = root.put_bytes(data)
    with pytest.raises(
        BadInputError, match=r"no tar of PNG frames of one size .*remove this file and run the step"
    ) as e:
        unpack_frames(root, uri)
    assert str(e.value).startswith(f"{root.location}/{uri}: ") and "orbit" not in str(e.value)
