"""Models from buckets and web servers: real servers of each kind, on loopback, and what goes wrong with them."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import sys
import threading
import urllib.request
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from meshnode.errors import ConfigError, ModelError, TransferFailed
from meshnode.models.repository import source_stores
from meshnode.models.repository.scanning import scan
from meshnode.models.repository.source_stores import Listing, RemoteFile, Store
from meshnode.models.repository.source_urls import check_url, is_url, shown
from meshnode.models.repository.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MODEL = bytes(range(256)) * 400
FILES = {"net/1/model.onnx": MODEL, "net/config.pbtxt": b'name: "net"', "bare.onnx": b"bare"}


class WebServer:
    """A folder on a web server, which may ask for a password, and counts what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = 200
        self.asked: list[str] = []
        owner = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked.append(f"GET {self.path}")
                self.answer(super().do_GET)

            def do_HEAD(self) -> None:
                self.answer(super().do_HEAD)

            def answer(self, otherwise: Callable[[], None]) -> None:
                if owner.status == 200:
                    otherwise()
                else:
                    self.send_error(owner.status)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Handler, directory=str(folder))
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    (tmp_path / "www").mkdir()
    server = WebServer(tmp_path / "www")
    yield server
    server.close()


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def contents(path: Path) -> dict[str, bytes]:
    return {
        place.relative_to(path).as_posix(): place.read_bytes()
        for place in path.rglob("*")
        if place.is_file()
    }


def fetched(url: str, folder: Path) -> Path:
    return Source(url, folder / "copies").refresh(may_be_old=False)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_listed_folder_of_a_web_server_is_a_repository(web: WebServer, tmp_path: Path) -> None:
    put(web.folder / "models", {**FILES, ".git/config": b"x", "net/1/a b.bin": b"1"})
    path = fetched(f"{web.url}/models/", tmp_path)
    assert path.name == "models"
    assert contents(path) == {**FILES, "net/1/a b.bin": b"1"}
    assert [(model.name, model.error) for model in scan(path)] == [("bare", ""), ("net", "")]


def test_only_what_has_changed_is_fetched_again_and_what_is_gone_goes(
    web: WebServer, tmp_path: Path
) -> None:
    put(web.folder / "m", FILES)
    source = Source(f"{web.url}/m/", tmp_path / "copies")
    path = source.refresh(may_be_old=False)
    old = (path / "bare.onnx").open("rb")
    web.asked.clear()
    put(web.folder / "m", {"bare.onnx": b"newer"})
    os.utime(web.folder / "m" / "bare.onnx", (10**9, 10**9))
    (web.folder / "m" / "net" / "config.pbtxt").unlink()
    assert source.refresh(may_be_old=False) == path
    assert contents(path) == {"net/1/model.onnx": MODEL, "bare.onnx": b"newer"}
    assert [line for line in web.asked if "onnx" in line] == ["GET /m/bare.onnx"]
    with old:
        assert old.read() == b"bare"  # who has it open keeps it


def test_a_bare_file_and_archives_of_a_web_server(web: WebServer, tmp_path: Path) -> None:
    put(web.folder, {"net.onnx": MODEL, "net.zip": zipped({"net/1/model.onnx": MODEL})})
    put(web.folder, {"flat.zip": zipped({"1/model.onnx": MODEL})})
    assert fetched(f"{web.url}/net.onnx", tmp_path).read_bytes() == MODEL
    for name in ("net", "flat"):
        path = fetched(f"{web.url}/{name}.zip?signature=secret", tmp_path)
        assert [(model.name, model.error) for model in scan(path)] == [(name, "")]


def test_an_archive_that_has_changed_replaces_what_was_unpacked(
    web: WebServer, tmp_path: Path
) -> None:
    put(web.folder, {"net.zip": zipped({"net/1/model.onnx": b"1"})})
    source = Source(f"{web.url}/net.zip", tmp_path / "copies")
    first = source.refresh(may_be_old=False)
    assert source.refresh(may_be_old=False) == first
    put(web.folder, {"net.zip": zipped({"net/2/model.onnx": b"22"})})
    assert contents(source.refresh(may_be_old=False)) == {"2/model.onnx": b"22"}
    assert not first.exists()


@pytest.mark.parametrize(
    ("status", "kind", "to_do"),
    [
        (401, ConfigError, r"wants to know who asks \(401\): put what the server asks for into the URL"),
        (403, ConfigError, r"may not be read with these credentials \(403\)"),
        (404, ModelError, r"does not exist, or may not be seen \(404\)"),
        (500, TransferFailed, "cannot be read now: .*; try again later"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/net.onnx", "/models/"])
def test_a_refusal_says_what_to_do(
    web: WebServer, tmp_path: Path, status: int, kind: type[Exception], to_do: str, path: str
) -> None:
    web.status = status
    with pytest.raises(kind, match=to_do) as caught:
        fetched(f"{web.url.replace('//', '//user:secret@')}{path}?key=secret", tmp_path)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_no_missing_model(tmp_path: Path) -> None:
    """The words are ours, not those of a library (`ssl:default [Connect call failed ...]`)."""
    url = "http://127.0.0.1:1/net.onnx"
    with pytest.raises(TransferFailed) as caught:
        fetched(url, tmp_path)
    assert str(caught.value) == (
        f"{url} cannot be reached: nothing takes connections there; compare host and port, and see that the server runs"
    )


@pytest.mark.parametrize("path", ["/none.onnx", "/none/"])
def test_what_is_not_there_is_told(web: WebServer, tmp_path: Path, path: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        fetched(web.url + path, tmp_path)


def test_a_page_without_files_or_a_file_that_is_no_model_is_told(
    web: WebServer, tmp_path: Path
) -> None:
    put(web.folder, {"hidden/a/.x": b"", "page.html": b"<html>"})
    (web.folder / "empty" / "a").mkdir(parents=True)
    with pytest.raises(ModelError, match="has no file that could belong to a model"):
        fetched(f"{web.url}/hidden/", tmp_path)
    with pytest.raises(ModelError, match="lists no files: it must be a page with links"):
        fetched(f"{web.url}/empty/", tmp_path)
    with pytest.raises(ModelError, match="neither a model file nor an archive"):
        fetched(f"{web.url}/page.html", tmp_path)


def test_links_out_of_a_listed_folder_are_not_followed(web: WebServer, tmp_path: Path) -> None:
    page = b"""<html><a href="../secret.onnx">a</a><a href="/secret.onnx">b</a>
    <a href="http://127.0.0.1:1/x.onnx">c</a><a href="net.onnx?sort=1">d</a><a href="net.onnx">e</a>
    <a href="%2e%2e/secret.onnx">f</a><a href="a%5c..%5cb.onnx">g</a></html>"""
    put(web.folder, {"m/index.html": page, "m/net.onnx": MODEL, "secret.onnx": b"secret"})
    put(web.folder, {"m/a\\..\\b.onnx": b"x"})
    source = Source(f"{web.url}/m/", tmp_path / "copies")
    assert contents(source.refresh(may_be_old=False)) == {"net.onnx": MODEL}
    assert any(
        "it is not a plain relative path; it is left out" in each for each in source.warnings
    )


def test_a_restart_without_the_network_uses_the_copy_and_says_so(
    web: WebServer, tmp_path: Path
) -> None:
    put(web.folder, FILES)
    url = f"{web.url}/"
    path = fetched(url, tmp_path)
    web.status = 503
    again = Source(url, tmp_path / "copies")
    assert again.refresh(may_be_old=True) == path
    assert "try again later; the copy that was fetched before is used" in again.warnings[0]
    with pytest.raises(TransferFailed, match="cannot be read now"):
        again.refresh(may_be_old=False)
    (path / "bare.onnx").write_bytes(b"BARE")  # damaged on the disk: of the same length
    with pytest.raises(TransferFailed, match="cannot be read now"):
        Source(url, tmp_path / "copies").refresh(may_be_old=True)
    web.status = 200
    assert contents(fetched(url, tmp_path)) == FILES


def test_room_is_looked_at_first(web: WebServer, tmp_path: Path) -> None:
    put(web.folder, FILES)
    source = Source(f"{web.url}/", tmp_path / "copies", free_bytes=lambda _: 512 * 1024 * 1024)
    with pytest.raises(TransferFailed, match=r"needs \d+ bytes, but .* has 536870912 free"):
        source.refresh(may_be_old=False)
    assert not any("onnx" in line for line in web.asked)


def test_progress_is_told(web: WebServer, tmp_path: Path) -> None:
    put(web.folder, FILES)
    told: list[tuple[int, int]] = []
    progress: Callable[[int, int], None] = lambda *pair: told.append(pair)  # noqa: E731
    Source(f"{web.url}/", tmp_path / "copies", progress=progress).refresh(may_be_old=False)
    total = sum(map(len, FILES.values()))
    assert told == sorted(told)
    assert told[-1] == (total, total)


class FakeStore(Store):
    """A store that answers what the test says."""

    def __init__(self, *files: RemoteFile, content: bytes = b"12345") -> None:
        self.files, self.content, self.fetches, self.closed = files, content, 0, 0

    def list(self) -> Listing:
        return Listing(self.files, is_single=False)

    def fetch(self, file: RemoteFile, place: Path, took: Callable[[int], None]) -> None:
        self.fetches += 1
        with place.open("wb") as stream:
            for start in range(0, len(self.content), 2):
                stream.write(self.content[start : start + 2])
                took(len(self.content[start : start + 2]))

    def close(self) -> None:
        self.closed += 1


FILE = RemoteFile("net.onnx", "a", 5, "stamp")


def of(store: FakeStore, folder: Path) -> Source:
    return Source("s3://bucket/x", folder, open_store=lambda _: store)


def test_a_file_that_is_shorter_or_longer_than_was_told_is_not_taken(tmp_path: Path) -> None:
    for size_bytes, reason in ((6, "has 5 bytes, but 6 were told"), (4, "is longer than was told")):
        store = FakeStore(replace(FILE, size_bytes=size_bytes))
        with pytest.raises(TransferFailed, match=reason):
            of(store, tmp_path).refresh(may_be_old=True)
        assert store.closed == 1
    assert not list(tmp_path.rglob("net.onnx"))


def test_an_md5_that_differs_each_time_is_damage_and_one_that_stays_is_none(tmp_path: Path) -> None:
    class Noisy(FakeStore):
        def fetch(self, file: RemoteFile, place: Path, took: Callable[[int], None]) -> None:
            self.content = f"{self.fetches:05}".encode()
            super().fetch(file, place, took)

    md5 = hashlib.md5(b"12345", usedforsecurity=False).hexdigest()
    good = FakeStore(replace(FILE, md5=md5))
    of(good, tmp_path / "good").refresh(may_be_old=False)
    assert good.fetches == 1
    encrypted = FakeStore(replace(FILE, md5="0" * 32))
    of(encrypted, tmp_path / "encrypted").refresh(may_be_old=False)
    assert encrypted.fetches == 2
    with pytest.raises(TransferFailed, match="arrived damaged twice"):
        of(Noisy(replace(FILE, md5=md5)), tmp_path / "noisy").refresh(may_be_old=False)


def test_what_had_arrived_before_a_break_is_not_fetched_again(tmp_path: Path) -> None:
    class Breaking(FakeStore):
        def fetch(self, file: RemoteFile, place: Path, took: Callable[[int], None]) -> None:
            if file.path == "b.onnx" and self.fetches == 1:
                self.fetches += 1
                raise TransferFailed("the line broke")
            super().fetch(file, place, took)

    files = (replace(FILE, path="a.onnx"), replace(FILE, path="b.onnx"))
    store = Breaking(*files)
    with pytest.raises(TransferFailed, match="the line broke"):
        of(store, tmp_path).refresh(may_be_old=True)
    assert not list(tmp_path.rglob("*.onnx"))
    path = of(store, tmp_path).refresh(may_be_old=False)
    assert store.fetches == 3
    assert sorted(contents(path)) == ["a.onnx", "b.onnx"]


@pytest.mark.parametrize("stamp", ["", "s"])
def test_a_file_of_which_nothing_tells_its_content_is_always_fetched(
    tmp_path: Path, stamp: str
) -> None:
    store = FakeStore(replace(FILE, stamp=stamp, size_bytes=None))
    source = of(store, tmp_path)
    source.refresh(may_be_old=False)
    source.refresh(may_be_old=False)
    assert store.fetches == (1 if stamp else 2)


def test_a_file_that_became_a_folder_is_replaced(tmp_path: Path) -> None:
    of(FakeStore(replace(FILE, path="a")), tmp_path).refresh(may_be_old=False)
    path = of(FakeStore(replace(FILE, path="a/b")), tmp_path).refresh(may_be_old=False)
    assert contents(path) == {"a/b": b"12345"}
    of(FakeStore(replace(FILE, path="a", stamp="2")), tmp_path).refresh(may_be_old=False)
    assert contents(path) == {"a": b"12345"}


def test_names_that_hide_one_another_are_refused(tmp_path: Path) -> None:
    store = FakeStore(replace(FILE, path="a/x.onnx"), replace(FILE, path="A/x.onnx"))
    with pytest.raises(ModelError, match="are the same name on some systems"):
        of(store, tmp_path).refresh(may_be_old=False)


# Buckets: real servers


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, Any]]:
    """moto's server and a client of Amazon's own library, with a bucket that everybody may read."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
    client.create_bucket(Bucket="bucket", ACL="public-read")
    for name, content in {**FILES, "folder/": b""}.items():
        client.put_object(Bucket="bucket", Key=f"models/{name}", Body=content, ACL="public-read")
    yield url, client
    client.close()
    server.stop()


@pytest.fixture
def bucket(s3: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client; the libraries below find server and credentials where Amazon's do."""
    for name in ("PROFILE", "CONFIG_FILE", "SHARED_CREDENTIALS_FILE", "SESSION_TOKEN"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3[0])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return s3[1]


def test_a_bucket_of_s3_is_a_repository(bucket: Any, tmp_path: Path) -> None:
    source = Source("s3://bucket/models", tmp_path / "copies")
    path = source.refresh(may_be_old=False)
    assert contents(path) == FILES
    assert [(model.name, model.error) for model in scan(path)] == [("bare", ""), ("net", "")]
    bucket.put_object(Bucket="bucket", Key="models/bare.onnx", Body=b"newer")
    before = (path / "net/1/model.onnx").stat().st_ino
    source.refresh(may_be_old=False)
    assert (path / "bare.onnx").read_bytes() == b"newer"
    assert (path / "net/1/model.onnx").stat().st_ino == before
    bucket.put_object(Bucket="bucket", Key="models/bare.onnx", Body=b"bare", ACL="public-read")


def test_a_single_model_of_s3_and_what_is_not_there(bucket: Any, tmp_path: Path) -> None:
    assert bucket
    [net] = scan(fetched("s3://bucket/models/net/", tmp_path))
    assert (net.name, net.error) == ("net", "")
    assert fetched("s3://bucket/models/net/1/model.onnx", tmp_path).read_bytes() == MODEL
    for url in ("s3://bucket/none", "s3://no-such-bucket/x"):
        with pytest.raises(ModelError, match="does not exist, or may not be seen"):
            fetched(url, tmp_path)


def test_without_credentials_a_bucket_is_read_anonymously(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bucket
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert contents(fetched("s3://bucket/models", tmp_path)) == FILES


def request(method: str, url: str, body: bytes = b"") -> None:
    """Ask a server of the test's own; without the header, it would look for a form in the body."""
    headers = {"Content-Type": "application/octet-stream"}
    asked = urllib.request.Request(url, body, headers, method=method)
    with urllib.request.urlopen(asked, timeout=10):
        pass


@pytest.fixture(scope="module")
def gcs() -> Iterator[str]:
    """An emulator of Google's storage."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    url = f"http://127.0.0.1:{server._api._httpd.server_port}"
    for name, content in FILES.items():
        place = f"{url}/upload/storage/v1/b/bucket/o?uploadType=media&name="
        request("POST", place + quote(f"models/{name}", safe=""), content)
    yield url
    server.stop()


def test_a_bucket_of_google_is_a_repository(
    gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs)
    path = fetched("gs://bucket/models", tmp_path)
    assert contents(path) == FILES
    assert fetched("gs://bucket/models/bare.onnx", tmp_path).read_bytes() == b"bare"
    with pytest.raises(ModelError, match="does not exist, or may not be seen"):
        fetched("gs://bucket/none", tmp_path)


# Errors of the libraries below, as they raise them


class _Web(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


def _named(name: str) -> Exception:
    kind: type[Exception] = type(name, (Exception,), {})
    return kind("it says")


def _boto(status: int) -> Exception:
    error = Exception("it says")
    error.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("url", "error", "kind", "to_do"),
    [
        ("s3://b/k", _boto(403), ConfigError, "set AWS_ACCESS_KEY_ID"),
        ("s3://b/k", PermissionError("Forbidden"), ConfigError, "set AWS_ACCESS_KEY_ID"),
        ("s3://b/k", _named("ProfileNotFound"), ConfigError, "there are none that work"),
        ("gs://b/k", _Web(401), ConfigError, "set GOOGLE_APPLICATION_CREDENTIALS"),
        ("gs://b/k", _named("DefaultCredentialsError"), ConfigError, "gcloud auth"),
        ("http://h/k", _named("ClientConnectorDNSError"), TransferFailed, "no address is known for 'h'"),
        ("https://h/k", _named("ClientConnectorCertificateError"), TransferFailed, "does not trust"),
        ("s3://b/k", _named("EndpointConnectionError"), TransferFailed, "nothing takes connections"),
        ("s3://b/k", OSError("reset"), TransferFailed, "cannot be read now: reset; try again"),
    ],
)  # fmt: skip
def test_foreign_errors_become_sentences(
    url: str, error: Exception, kind: type[Exception], to_do: str
) -> None:
    with pytest.raises(kind, match=to_do), source_stores.translated(url):
        raise error


@pytest.mark.parametrize(
    ("url", "missing", "install"),
    [("s3://b/k", "s3fs", r"meshnode\[s3\]"), ("gs://b/k", "gcsfs.core", r"meshnode\[gcs\]")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    url: str, missing: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.import_module("fsspec.registry")
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(known._registry, "s3", raising=False)
    with pytest.raises(ConfigError, match=f"pip install '{install}'"):
        Store(url)


@pytest.mark.parametrize(
    "url", ["ftp://h/x", "file:///etc", "s3://", "http:// h/x", "https://h\n/x"]
)
def test_other_urls_are_refused(url: str, tmp_path: Path) -> None:
    assert is_url(url)
    with pytest.raises(
        ConfigError, match=r"cannot be read: models come from|names no host or bucket"
    ):
        check_url(url)
    with pytest.raises(ConfigError):
        Source(url, tmp_path).refresh(may_be_old=True)


def test_what_people_see_of_a_url_has_no_secrets() -> None:
    assert shown("https://u:p@h:1/a/b?sig=x#f") == "https://h:1/a/b"
    assert shown("http://[broken?x") == "http://[broken"
    assert not is_url("C:\\models")
    assert not is_url("/srv/a://b")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TransferFailed, match="cannot be written: Not a directory"):
        of(FakeStore(FILE), tmp_path / "file" / "x").refresh(may_be_old=False)
