"""Claims on a store: who adds objects to it, and who removes some, say so there, and do not meet.

A registration relies on objects that it found and that no version names yet; a removal in that moment would break it,
on whichever machines the two run. So each first puts up its claim and then looks for the other's: at least one of the
two sees the other. A claim is renewed while its holder lives, and counts for nothing ten minutes after its last sign.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from ...common.errors import StorageError, SvdflowError
from ...common.storage import DataRoot

_PLACE = "svdflow/claims"
ADDING, REMOVING = "adding", "removing"
_RENEW_S = 60.0
_STALE_S = 600.0
_POLL_S = 1.0


@contextmanager
def adding(remote: DataRoot, what: str) -> Iterator[None]:
    """Objects found or written inside the block stay; a removal under way is waited for."""
    with _claimed(remote, ADDING, what) as own:
        while _live(remote, REMOVING, own):
            time.sleep(_POLL_S)
        yield


@contextmanager
def removing(remote: DataRoot, what: str) -> Iterator[None]:
    """Nobody adds objects inside the block.

    Raises:
        StorageError: somebody adds or removes some now; says who.
    """
    with _claimed(remote, REMOVING, what) as own:
        if others := _live(remote, ADDING, own) or _live(remote, REMOVING, own):
            raise StorageError(
                f"{remote.location}: {others[0]} now; run again when that is done (one that was killed "
                f"on another machine counts for {_STALE_S / 60:g} minutes). Nothing was removed"
            )
        yield


@contextmanager
def _claimed(remote: DataRoot, kind: str, what: str) -> Iterator[str]:
    uri = f"{_PLACE}/{kind}/{uuid.uuid4().hex}.json"
    text = json.dumps({"what": what, "host": socket.gethostname(), "pid": os.getpid()}).encode()
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_S):
            try:
                remote.put_named(uri, text)
            except SvdflowError:
                continue  # the store does not answer: the work itself will say so

    remote.put_named(uri, text)
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield uri
    finally:
        ended.set()
        thread.join()
        remote.remove(uri)


def _live(remote: DataRoot, kind: str, own: str) -> list[str]:
    """What the other claims of a kind say, without those that are stale; ages are told by the store's own clock."""
    entries = {entry.uri: entry for place in (ADDING, REMOVING) for entry in remote.entries(f"{_PLACE}/{place}")}
    now = entries[own].written_at if own in entries else time.time()
    found = []
    for uri, entry in sorted(entries.items()):
        if uri.startswith(f"{_PLACE}/{kind}/") and uri != own and now - entry.written_at < _STALE_S:
            found += _holder(remote, uri)
    return found


def _holder(remote: DataRoot, uri: str) -> list[str]:
    """Who holds a claim, in words; nobody if it was given up meanwhile, or its process on this machine is no more."""
    try:
        claim = json.loads(remote.read(uri))
        what, host, pid = claim["what"], claim["host"], int(claim["pid"])
        if host == socket.gethostname():
            os.kill(pid, 0)
    except ProcessLookupError:
        return []
    except PermissionError:
        pass  # alive, and another user's
    except StorageError:
        return []
    except (ValueError, KeyError, TypeError):
        return ["another process is adding or removing objects"]
    return [f"process {pid} on {host} is {what}"]
