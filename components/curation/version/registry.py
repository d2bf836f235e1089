"""The registry: a git repository in which every dataset version is a commit and an annotated tag ``name@v1.2.3``.

A version comes into being in one step: with an origin, when that takes branch and tag in one atomic push; without, when
the local tag is made. Branch and checked-out files follow, and are brought in line by the next use if a crash comes in
between. So a kill at any point leaves a version whole or not there.
"""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import BadInputError, StorageError
from .git import Git, GitRefused
from .settings import NAME_PATTERN

BRANCH = "refs/heads/main"
_UPSTREAM = "refs/remotes/origin/main"
_ORIGIN_TAGS = "refs/svdflow/origin/tags"
_NONE = "0" * 40
_TAG = re.compile(rf"({NAME_PATTERN})@v(\d+)\.(\d+)\.(\d+)")
_MOVED = ("[rejected]", "[remote rejected]", "cannot lock ref", "failed to update ref", "incorrect old value")


@dataclass(frozen=True, order=True)
class VersionTag:
    """``name@v1.2.3``; ordered by name and number."""

    name: str
    number: tuple[int, int, int]

    @staticmethod
    def parse(tag: str) -> VersionTag | None:
        """The tag's parts, or None when it is no version tag."""
        match = _TAG.fullmatch(tag)
        return VersionTag(match[1], (int(match[2]), int(match[3]), int(match[4]))) if match else None

    def __str__(self) -> str:
        return f"{self.name}@v{'.'.join(map(str, self.number))}"


class Registry:
    """A registry directory.

    Raises:
        BadInputError: the directory is there, is not empty and is no git repository.
        StorageError: git refuses.
    """

    def __init__(self, directory: Path, origin: str = "") -> None:
        self.directory = directory.resolve()
        self.origin = origin
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(
                f"{self.directory}: no place for a registry ({error.strerror}); name another"
            ) from error
        self.git = Git(self.directory)
        if not (self.directory / ".git").exists():
            if any(path.name != ".git" for path in self.directory.iterdir()):
                raise BadInputError(
                    f"{self.directory}: not empty and no git repository; name another registry directory"
                )
            self.git("init", "--quiet", "--initial-branch=main")  # harmless when two do it at once

    @staticmethod
    def existing(directory: Path) -> Registry:
        """A registry that must be there, with the origin that it is known to have.

        Raises:
            BadInputError: it is not.
        """
        if not (directory / ".git").exists():
            raise BadInputError(
                f"{directory}: there is no dataset registry here; run the version step, or clone one to this place"
            )
        registry = Registry(directory)
        try:
            registry.origin = registry.git.line("config", "remote.origin.url")
        except GitRefused:
            pass  # it has none
        return registry

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the registry alone; leaves it as the origin (or the newest tag) has it, before the block's own work."""
        handle = os.open(self.directory / ".git" / "svdflow.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self.refresh()
            yield
        finally:
            os.close(handle)

    # reading

    def tags(self, name: str | None = None) -> list[VersionTag]:
        """The version tags, oldest number first."""
        found = map(VersionTag.parse, self.git("tag", "--list").decode().splitlines())
        return sorted(tag for tag in found if tag and name in (None, tag.name))

    def revision(self, ref: str) -> str:
        """The commit that a ref names, or "" when there is none."""
        try:
            return self.git.line("rev-parse", "--quiet", "--verify", f"{ref}^{{commit}}")
        except GitRefused:
            return ""

    def root_commit(self) -> str:
        """The registry's first commit: the same in all its clones, and in no other registry."""
        return self.git.line("rev-list", "--max-parents=0", BRANCH).splitlines()[-1]

    def date(self, ref: str) -> str:
        """When the version was made, ISO 8601; a takedown keeps it."""
        return self.git.line("log", "-1", "--format=%aI", ref)

    def read(self, ref: str, path: str) -> bytes:
        """A file at a revision; b"" when it is not there."""
        try:
            return self.git("cat-file", "blob", f"{ref}:{path}")
        except GitRefused:
            return b""

    # writing

    def refresh(self) -> None:
        """Take over what the origin has, and what a process that was killed left half done."""
        if self.origin:
            self._fetch()
        ahead = ["--no-merged", BRANCH] if self.revision(BRANCH) else []
        for tag in self.git("for-each-ref", "--format=%(refname:short)", *ahead, "refs/tags").decode().splitlines():
            ours, theirs = self.revision(BRANCH), self.revision(f"refs/tags/{tag}")
            if VersionTag.parse(tag) and (not ours or self._is_ancestor(ours, theirs)):  # the branch has yet to follow
                self.git("update-ref", BRANCH, theirs)
        self._check_out()

    def publish(
        self,
        files: Mapping[str, bytes],
        message: str,
        tag: VersionTag | None = None,
        moved: Mapping[VersionTag, tuple[str, str]] | None = None,
    ) -> str | None:
        """Commit files on top of the branch, tag the commit, and push all at once to the origin if there is one.

        Args:
            files: path to content.
            message: of the commit and the tag.
            tag: a new version.
            moved: versions that get another commit (a takedown): tag to (commit, message of the tag).

        Returns:
            The commit, or None when the origin has moved meanwhile: refresh and decide anew.
        """
        base = self.revision(BRANCH)
        commit = self.commit(base, files, message)
        changes = [(BRANCH, commit, base or _NONE)]
        if tag:
            changes.append((f"refs/tags/{tag}", self._tag(tag, commit, message), _NONE))
        for each, (to, why) in (moved or {}).items():
            ref = f"refs/tags/{each}"
            changes.append((ref, self._tag(each, to, why), self.git.line("rev-parse", "--verify", ref)))
        if self.origin:
            # a lease is what makes the move of a tag safe: the origin's must be the one that was read
            leases = [f"--force-with-lease={ref}:{old if old != _NONE else ''}" for ref, _, old in changes[1:]]
            refs = [f"{'+' if old != _NONE and ref != BRANCH else ''}{sha}:{ref}" for ref, sha, old in changes]
            try:
                self.git("push", "--quiet", "--atomic", *leases, "origin", *refs)
            except GitRefused as error:
                if any(sign in error.said for sign in _MOVED):
                    return None
                raise
        lines = [f"update {ref} {sha} {old}" for ref, sha, old in changes]
        try:
            self.git("update-ref", "--stdin", stdin=("start\n" + "\n".join(lines) + "\ncommit\n").encode())
        except GitRefused as error:
            if not self.origin and any(sign in error.said for sign in _MOVED):
                return None
            raise
        self._check_out()
        return commit

    def message(self, tag: VersionTag) -> str:
        """What the tag says of its version."""
        return self.git("for-each-ref", "--format=%(contents)", f"refs/tags/{tag}").decode(errors="replace").strip()

    def names(self, ref: str, folder: str = "") -> list[str]:
        """The files below a folder, or all of them, at a revision."""
        if not self.revision(ref):
            return []
        return self.git("ls-tree", "-r", "--name-only", ref, *([f"{folder}/"] if folder else [])).decode().splitlines()

    def _tag(self, tag: VersionTag, commit: str, message: str) -> str:
        tagger = self.git.line("var", "GIT_COMMITTER_IDENT")
        body = f"object {commit}\ntype commit\ntag {tag}\ntagger {tagger}\n\n{message}\n"
        return self.git.line("mktag", stdin=body.encode())

    def commit(self, base: str, files: Mapping[str, bytes], message: str, written_at: str = "") -> str:
        """A commit of these files on top of another, which no branch or tag names yet.

        Args:
            base: the commit below; "" for none.
            files: path to content.
            message: of the commit.
            written_at: the author's date, ISO 8601; now by default.
        """
        index = self.directory / ".git" / f"svdflow-index-{os.getpid()}"
        try:
            self.git("read-tree", base or "--empty", index=index)
            for path, data in files.items():
                blob = self.git.line("hash-object", "-w", "--stdin", stdin=data)
                self.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", index=index)
            tree = self.git.line("write-tree", index=index)
        finally:
            index.unlink(missing_ok=True)
        parent = ["-p", base] if base else []
        # Two registries begun in the same second with the same files must not have the same first commit.
        own = "" if base else f"Registry: {uuid.uuid4().hex}\n"
        text = f"{message}\n{own}".encode()
        return self.git.line("commit-tree", tree, *parent, "-F", "-", stdin=text, written_at=written_at)

    def _fetch(self) -> None:
        path = Path(self.origin)
        if "://" not in self.origin and ":" not in self.origin.split("/")[0]:
            path = path.resolve()
            if not path.exists():
                path.mkdir(parents=True)
                Git(path)("init", "--quiet", "--bare", "--initial-branch=main")
        url = str(path) if path.exists() else self.origin
        self.git("config", "remote.origin.url", url)
        self.git("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
        refspecs = [f"+refs/tags/*:{_ORIGIN_TAGS}/*", "+refs/heads/*:refs/remotes/origin/*"]
        self.git("fetch", "--quiet", "--no-tags", "origin", *refspecs)
        ours, theirs = self.revision(BRANCH), self.revision(_UPSTREAM)
        if not ours or not theirs or self._is_ancestor(ours, theirs) or self._is_ancestor(theirs, ours):
            self._follow_tags()
        if ours == theirs:
            return
        if not ours or (theirs and self._is_ancestor(ours, theirs)):
            self.git("update-ref", BRANCH, theirs)
        elif not theirs or self._is_ancestor(theirs, ours):  # versions from before there was an origin
            tags = [f"refs/tags/{tag}" for tag in self.tags()]
            self.git("push", "--quiet", "--atomic", "origin", f"{BRANCH}:{BRANCH}", *[f"{tag}:{tag}" for tag in tags])
        else:
            raise StorageError(
                f"{self.directory}: this registry and its origin {self.origin} hold different versions; clone the "
                "origin to a new registry directory and run again there: objects already stored are found"
            )

    def _follow_tags(self) -> None:
        """Have the origin's tags here, also where a takedown has moved them."""
        listed = self.git("for-each-ref", "--format=%(refname) %(objectname)", _ORIGIN_TAGS, "refs/tags").decode()
        known = dict(line.split() for line in listed.splitlines())
        lines = []
        for ref, sha in known.items():
            local = ref.replace(_ORIGIN_TAGS, "refs/tags", 1)
            if ref != local and known.get(local) != sha:
                lines.append(f"update {local} {sha}")
        if lines:
            self.git("update-ref", "--stdin", stdin=("\n".join(lines) + "\n").encode())

    def _check_out(self) -> None:
        """Bring the files in line with the branch, unless a user has another revision checked out.

        Local edits are kept in git's stash.
        """
        if not self.revision(BRANCH) or self.git.line("rev-parse", "--symbolic-full-name", "HEAD") != BRANCH:
            return
        if self.git("status", "--porcelain", "--untracked-files=no"):
            edits = self.git.line("diff", "--name-only")
            kept = self.git.line("stash", "create") if edits else ""
            if kept:
                self.git("stash", "store", "-m", "edits found by svdflow in the registry", kept)
            self.git("reset", "--quiet", "--hard", BRANCH)

    def _is_ancestor(self, older: str, newer: str) -> bool:
        return self.git.succeeds("merge-base", "--is-ancestor", older, newer)
