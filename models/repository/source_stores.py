"""Buckets and web servers, read through fsspec: what lies there, and how it comes here.

Credentials are found as fsspec's own libraries find them: for `s3://` the AWS variables, profiles and
instance roles, `AWS_ENDPOINT_URL` for another server than Amazon's; for `gs://` `GOOGLE_APPLICATION_CREDENTIALS`,
`gcloud`'s login and instance roles, `STORAGE_EMULATOR_HOST` for an emulator. A bucket of `s3://` for which there
are no credentials is read anonymously.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urljoin, urlsplit

from meshnode.errors import ConfigError, MeshError, ModelError, TransferFailed
from meshnode.limits import MAX_LISTED_PAGES, MAX_SOURCE_FILES
from meshnode.models.repository.source_urls import extra_of, is_web, last_part, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CONNECT_S: Final = 15.0
_SILENCE_S: Final = 60.0
_PIECE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a source.

    Attributes:
        path: Its relative POSIX path, of one part where the source is a single file.
        address: What the store calls it.
        size_bytes: Its length; None if the server does not say.
        stamp: What changes when its content does (an ETag, a generation, a time); empty if nothing does.
        md5: Of its content, as hex; empty if the store does not say.
    """

    path: str
    address: str
    size_bytes: int | None
    stamp: str
    md5: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies at a URL: several files below it, or one file that the URL names."""

    files: tuple[RemoteFile, ...]
    is_single: bool


class Store:
    """One store, opened for one URL; used in one thread at a time."""

    def __init__(self, url: str) -> None:
        """Open it.

        Raises:
            ConfigError: if its library is not installed.
        """
        self._url = url
        self._anonymous = False
        self._system = _open(url, anonymous=False)

    def list(self) -> Listing:
        """Return what lies there.

        Raises:
            ModelError: if there is nothing.
            ConfigError: if it may not be read.
            TransferFailed: if it cannot be reached.
        """
        with translated(self._url):
            try:
                return self._list()
            except Exception as error:
                if self._anonymous or not _is_without_credentials(error):
                    raise
        with translated(self._url):
            self._anonymous = True
            self._system = _open(self._url, anonymous=True)
            return self._list()

    def _list(self) -> Listing:
        return self._list_web() if is_web(self._url) else self._list_bucket()

    def fetch(self, file: RemoteFile, place: Path, took: Callable[[int], None]) -> None:
        """Copy a file here.

        Args:
            file: One of those listed.
            place: The local file, which is made or replaced.
            took: Told of each piece's bytes as it arrives; what it raises ends the transfer.

        Raises:
            MeshError: as `list`.
        """
        from fsspec.callbacks import Callback

        class Counting(Callback):  # type: ignore[misc]  # fsspec has no types
            def relative_update(self, inc: int = 1) -> None:
                took(inc)

        # A download in parts at once would come faster, and leave holes where it breaks off.
        options = {} if is_web(self._url) else {"concurrency": 1, "max_concurrency": 1}
        if extra_of(self._url) == "s3":
            del options["concurrency"]
        elif extra_of(self._url) == "gcs":
            del options["max_concurrency"]
        with translated(self._url):
            self._system.get_file(file.address, str(place), callback=Counting(), **options)

    def close(self) -> None:
        """Give its connections back."""
        session = getattr(self._system, "_session", None)
        close = getattr(type(self._system), "close_session", None)
        if session is not None and close is not None:
            with contextlib.suppress(Exception):  # it is closed with the process else
                close(self._system.loop, session)
        self._system = None

    def _list_bucket(self) -> Listing:
        root = self._system._strip_protocol(self._url)
        found = self._system.find(root, withdirs=False, detail=True, maxdepth=None)
        if list(found) == [root]:
            return Listing((_bucket_file(last_part(self._url), root, found[root]),), is_single=True)
        files: list[RemoteFile] = []
        for address, info in sorted(found.items()):
            path = address.removeprefix(root.rstrip("/") + "/")
            if not path or path.endswith("/"):
                continue  # what a console leaves for an empty folder
            files.append(_bucket_file(path, address, info))
            _check_count(files)
        if not files:
            raise FileNotFoundError(self._url)
        return Listing(tuple(files), is_single=False)

    def _list_web(self) -> Listing:
        if not urlsplit(self._url).path.endswith("/"):
            return Listing((self._web_file(last_part(self._url), self._url),), is_single=True)
        files: list[RemoteFile] = []
        for address in self._pages(self._url):
            path = unquote(urlsplit(address).path[len(urlsplit(self._url).path) :])
            files.append(self._web_file(path, address))
            _check_count(files)
        if not files:
            raise ModelError(
                f"{shown(self._url)} lists no files: it must be a page with links to what lies in the folder, "
                "as web servers make them; else name an archive or a single file"
            )
        return Listing(tuple(files), is_single=False)

    def _pages(self, root: str) -> Iterator[str]:
        """Yield the address of each file that the pages below a URL link to."""
        waiting, seen = [root], {root}
        while waiting:
            page = waiting.pop()
            for link in self._links(page):
                if link in seen or not link.startswith(root) or len(link) == len(page):
                    continue
                seen.add(link)
                if not link.endswith("/"):
                    yield link
                    continue
                waiting.append(link)
                if len(seen) > MAX_SOURCE_FILES or len(waiting) > MAX_LISTED_PAGES:
                    raise ModelError(f"{shown(root)} has more than {MAX_LISTED_PAGES} folders")

    def _links(self, page: str) -> Iterator[str]:
        """Yield what a page links to, without what sorts its columns."""
        for link in self._system.ls(page, detail=False):
            address = urljoin(page, link)
            if not urlsplit(address).query and not urlsplit(address).fragment:
                yield address

    def _web_file(self, path: str, address: str) -> RemoteFile:
        info = self._system.info(address)
        stamp = info.get("ETag") or info.get("Last-Modified") or ""
        return RemoteFile(path, address, info.get("size"), stamp, _md5_of(info.get("Content-MD5")))


def _open(url: str, *, anonymous: bool) -> Any:
    scheme = url.partition("://")[0].lower()
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        if is_web(url):
            import aiohttp

            # aiohttp's own limit of five minutes for all of a transfer is no measure for a model.
            limits = aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S
            )
            options |= {"client_kwargs": {"timeout": limits}, "simple_links": False}
        elif anonymous:
            options["anon"] = True
        return _kind_of(scheme)(**options)
    except ImportError as error:
        extra = extra_of(url)
        package = f"meshnode[{extra}]" if extra else "fsspec"
        raise ConfigError(
            f"reading {scheme}:// needs a library that is not installed ({error}): pip install '{package}'"
        ) from None
    except Exception as error:
        raise _told(error, url) from error


def _kind_of(scheme: str) -> Any:
    """Return fsspec's class for a scheme.

    gcsfs has a second one, chosen by default, which first asks over gRPC what kind of bucket it is: behind a
    proxy, or with an emulator, that takes a minute to fail.
    """
    if extra_of(f"{scheme}://") == "gcs":
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem
    import fsspec

    return fsspec.get_filesystem_class(scheme)


def _bucket_file(path: str, address: str, info: dict[str, Any]) -> RemoteFile:
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    stamp = str(info.get("generation") or etag or info.get("LastModified") or "")
    md5 = _md5_of(info.get("md5Hash"))
    if not md5 and len(etag) == 32 and set(etag) <= set("0123456789abcdef"):
        md5 = etag  # S3, for objects that were uploaded whole
    size = info.get("size")
    return RemoteFile(path, address, int(size) if size is not None else None, stamp, md5)


def _md5_of(text: Any) -> str:
    """Return the hex of an MD5 in base64; empty if it is none."""
    import base64
    import binascii

    if not isinstance(text, str):
        return ""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == 16 else ""


def _check_count(files: list[RemoteFile]) -> None:
    if len(files) > MAX_SOURCE_FILES:
        raise ModelError(
            f"there are more than {MAX_SOURCE_FILES} files; name a folder further down"
        )


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn every foreign exception inside into one of meshnode's own, which says what to do."""
    try:
        yield
    except MeshError:
        raise
    except Exception as error:
        raise _told(error, url) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    at: BaseException | None = error
    seen: set[int] = set()
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in a library's exception, whatever it calls it."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        codes = [getattr(each, "status", None)]
        if codes == [None]:  # where it has both, the other one is deprecated
            codes.append(getattr(each, "code", None))
        if isinstance(response, dict):
            codes.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        for code in codes:
            if str(code).isdecimal():
                return int(str(code))
    return None


def _is_without_credentials(error: BaseException) -> bool:
    return "NoCredentialsError" in _names(error)


_CREDENTIALS: Final = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, for an account that may read it",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS to the key file of an account that may read it, or log in with "
    "`gcloud auth application-default login`",
    "": "put what the server asks for into the URL, such as https://USER:PASSWORD@HOST/..., or use a signed one",
}
_NO_CREDENTIALS: Final = frozenset({
    "NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError",
    "CredentialRetrievalError", "ProfileNotFound", "TokenRetrievalError",
})  # fmt: skip
_NO_ANSWER: Final = frozenset({"ClientError", "TimeoutError"})
_URL_IN_TEXT: Final = re.compile(r"[a-z0-9]+://[^\s'\"]+")
_NO_CONNECTION: Final = frozenset({
    "ClientConnectorError", "ConnectionRefusedError", "EndpointConnectionError", "ConnectTimeoutError",
})  # fmt: skip
_NO_TRUST: Final = frozenset({"ClientConnectorCertificateError", "SSLCertVerificationError"})
_NO_NAME: Final = frozenset({"gaierror", "ClientConnectorDNSError", "NameResolutionError"})


def _told(error: BaseException, url: str) -> MeshError:
    """Say what an exception of fsspec or of a library below it means, and what to do."""
    place, names, status = shown(url), _names(error), _status(error)
    to_do = _CREDENTIALS[extra_of(url)]
    if names & _NO_CREDENTIALS:
        return ConfigError(f"{place} needs credentials, and there are none that work: {to_do}")
    if status == 401:
        return ConfigError(f"{place} wants to know who asks (401): {to_do}")
    if status == 403 or isinstance(error, PermissionError):
        return ConfigError(f"{place} may not be read with these credentials (403): {to_do}")
    if names & _NO_NAME:
        host = urlsplit(url).hostname
        return TransferFailed(
            f"{place} cannot be reached: no address is known for {host!r}; compare the name, and this "
            "machine's network"
        )
    if names & _NO_TRUST:
        return TransferFailed(
            f"{place} has a certificate that this machine does not trust: compare the name, and the "
            "certificates of this machine"
        )
    if names & _NO_CONNECTION:
        return TransferFailed(
            f"{place} cannot be reached: nothing takes connections there; compare host and port, and see that "
            "the server runs"
        )
    # fsspec says "not found" also where a web server could not be asked at all.
    is_missing = isinstance(error, FileNotFoundError) and not names & _NO_ANSWER
    if status == 404 or (status is None and is_missing):
        return ModelError(f"{place} does not exist, or may not be seen (404): compare the name")
    # A URL in a library's message may have a password or a signature.
    reason = _URL_IN_TEXT.sub(lambda found: shown(found[0]), str(error)) or type(error).__name__
    return TransferFailed(f"{place} cannot be read now: {reason[:300]}; try again later")
