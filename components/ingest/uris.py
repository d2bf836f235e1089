"""URIs as a list names them: which scheme, what of them may be written down, and what names the place they mean."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_IN_TEXT = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s\"'<>\\]+")
_S3 = re.compile(r"s3://([^/]*)/?(.*)", re.DOTALL | re.IGNORECASE)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# What signs a request or lets it in, and is another each time; the rest of a query names what is wanted.
_SIGNING_PREFIXES = ("x-amz-", "x-goog-", "x-oss-")
_SIGNING = {"signature", "sig", "expires", "se", "key-pair-id", "policy", "token", "access_token",
            "awsaccesskeyid", "googleaccessid"}  # fmt: skip


def scheme_of(uri: str) -> str:
    """The scheme in lower case; "" for a path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else "file" if uri[:5].lower() == "file:" else ""


def split_s3(uri: str) -> tuple[str, str] | None:
    """Bucket and key (or prefix) of an ``s3://`` URI; None when it is none, or the bucket cannot be one."""
    match = _S3.fullmatch(uri)
    return (match[1], match[2]) if match and _BUCKET.fullmatch(match[1]) else None


def without_secrets(uri: str, kept_query: Collection[str] = ()) -> str:
    """A URI as it may be recorded: no user, no password, no fragment, and of the query the named parameters alone.

    Args:
        uri: of any scheme; a path comes back as it is.
        kept_query: names of query parameters that are no secret.
    """
    scheme = scheme_of(uri)
    if not scheme:
        return uri
    if scheme == "s3":  # a key may hold any character, and is no query
        bucket, slash, key = uri[5:].partition("/")
        return f"s3://{bucket.rpartition('@')[2]}{slash}{key}"
    try:
        parts = urlsplit(uri)
        query = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name in kept_query]
        return urlunsplit((scheme, parts.netloc.rpartition("@")[2], parts.path, urlencode(query), ""))
    except ValueError:  # no URL after all: nothing but its beginning is told
        host = re.split(r"[/?#]", uri[len(scheme) + 3 :])[0].rpartition("@")[2]
        return f"{scheme}://{host}"


def text_without_secrets(text: str, kept_query: Collection[str] = ()) -> str:
    """A text in which every URI is written as ``without_secrets`` does it."""
    return _IN_TEXT.sub(lambda match: without_secrets(match[0], kept_query), text)


def same_place(uri: str) -> str:
    """What names the place behind a URI: a URL whose signature was renewed names the same one. Never to be shown."""
    if scheme_of(uri) not in ("http", "https"):
        return uri
    parts = urlsplit(uri)
    query = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if name.lower() not in _SIGNING and not name.lower().startswith(_SIGNING_PREFIXES)
    ]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2].lower(), parts.path, urlencode(query), ""))
