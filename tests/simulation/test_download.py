"""`fedferry download` against a server that truncates, stalls, corrupts or is not there."""

import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
from filelock import FileLock

from settings.errors import InputError
from simulation.download import download
from simulation.transfer import Transfer
from tasks.catalogue import load_task
from tasks.data import open_population
from tasks.published import PUBLISHED, Published, Remote, cached

ROOT = Path(__file__).parents[2]
QUICK = Transfer(patience=0.3, attempts=3, pause=0.01)
NAME = "mini.tar.bz2"


class Server:
    """Serves one file; what it does to each request is the next word of `script`, the last one for good.

    `whole`: as asked, ranges included. `deaf`: whole, ranges unheard. `half`: half of what was asked
    for, then the connection is cut. `deaf half`. `stall`: half, then nothing. `corrupt`: with one bit
    flipped. `silent`: headers, then nothing. `missing`: 404. `busy`: 503.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.script = ["whole"]
        self.ranges: list[str | None] = []
        self.over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/{NAME}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        how = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        asked = handler.headers["Range"]
        self.ranges.append(asked)
        if how in ("missing", "busy"):
            handler.send_error(404 if how == "missing" else 503)
            return
        start = int(asked.removeprefix("bytes=")[:-1]) if asked and "deaf" not in how else 0
        if start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.end_headers()
            return
        content = bytearray(self.content[start:])
        if how == "corrupt":
            content[len(content) // 2] ^= 1
        handler.send_response(206 if start else 200)
        if start:
            last = len(self.content) - 1
            handler.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if "half" in how or how == "stall":
            content = content[: (len(content) + 1) // 2]
        if how != "silent":
            handler.wfile.write(content)
        if how in ("stall", "silent"):
            handler.wfile.flush()
            self.over.wait(10)

    def stop(self) -> None:
        self.over.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture(scope="module")
def archive() -> bytes:
    """A tar.bz2 of two small HDF5 files in TFF's layout, one of them in a folder, and a stranger."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as tar:
        for path in ("mini_train.h5", "./folder/mini_test.h5"):
            file = io.BytesIO()
            with h5py.File(file, "w") as h5:
                for client in ("a", "b"):
                    noise = np.random.default_rng(1).integers(256, size=100_000, dtype=np.uint8)
                    h5[f"examples/{client}/noise"] = noise
            info = tarfile.TarInfo(path)
            info.size = len(file.getvalue())
            tar.addfile(info, io.BytesIO(file.getvalue()))
        tar.addfile(tarfile.TarInfo("../../stranger.h5"), io.BytesIO())
    return buffer.getvalue()


@pytest.fixture
def server(archive: bytes) -> Iterator[Server]:
    running = Server(archive)
    yield running
    running.stop()


def published(server: Server) -> Published:
    remote = Remote(server.url, hashlib.sha256(server.content).hexdigest())
    return Published((remote,), ("mini_train.h5", "mini_test.h5"))


def fetch(server: Server, cache: Path) -> Path:
    return download("mini", published(server), cache, QUICK)


def is_there(cache: Path) -> bool:
    """Whether both splits open, and nothing else lies about."""
    train = cache / "mini" / "mini_train.h5"
    ids = [open_population(train, split).client_ids for split in ("train", "test")]
    visible = {path.name for path in cache.iterdir()} - {".mini.lock"}
    return ids == [["a", "b"]] * 2 and visible == {"mini"}


def test_it_arrives(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetch(server, tmp_path / "cache")
    assert path == tmp_path / "cache/mini/mini_train.h5"
    assert is_there(tmp_path / "cache")
    assert len(list(path.parent.iterdir())) == 2
    assert not (tmp_path / "stranger.h5").exists()
    assert "2 clients" in capsys.readouterr().out
    assert fetch(server, tmp_path / "cache") == path
    assert "is there already" in capsys.readouterr().out
    assert server.ranges == [None]


@pytest.mark.parametrize("how", ["half", "stall"])
def test_it_goes_on_after_a_cut_or_a_stall(server: Server, tmp_path: Path, how: str) -> None:
    server.script = [how, how, how, "whole"]
    fetch(server, tmp_path)
    assert is_there(tmp_path)
    assert server.ranges[0] is None
    starts = [int(str(asked).removeprefix("bytes=")[:-1]) for asked in server.ranges[1:]]
    size = len(server.content)
    assert starts == pytest.approx([size / 2, size * 3 / 4, size * 7 / 8], abs=3)


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.script = ["busy", "busy", "whole"]
    fetch(server, tmp_path)
    assert is_there(tmp_path)


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.script = ["deaf half", "deaf"]
    fetch(server, tmp_path)
    assert is_there(tmp_path)
    assert [asked is None for asked in server.ranges] == [True, False]


@pytest.mark.parametrize("script", [["deaf half"], ["half", "silent"], ["half", "busy"]])
def test_it_gives_up_in_the_end_and_goes_on_later(
    server: Server, tmp_path: Path, script: list[str]
) -> None:
    server.script = script
    with pytest.raises(InputError, match="the same command goes on from there"):
        fetch(server, tmp_path)
    assert len(server.ranges) == QUICK.attempts
    half = (len(server.content) + 1) // 2
    assert (tmp_path / f"{NAME}.part").read_bytes() == server.content[:half]
    assert not (tmp_path / "mini").exists()
    server.script = ["whole"]
    fetch(server, tmp_path)
    assert is_there(tmp_path)
    assert server.ranges[-1] == f"bytes={half}-"


def test_what_the_server_does_not_have(server: Server, tmp_path: Path) -> None:
    server.script = ["missing"]
    with pytest.raises(InputError, match="the server answered 404"):
        fetch(server, tmp_path)
    assert len(server.ranges) == 1


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.script = ["corrupt"]
    with pytest.raises(InputError, match=r"something else than TFF published \(SHA-256"):
        fetch(server, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mini.lock"]


def test_a_damaged_beginning_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"?" * 100)
    fetch(server, tmp_path)
    assert is_there(tmp_path)
    assert server.ranges == ["bytes=100-", None]


@pytest.mark.parametrize("more", [b"", b"?"])
def test_a_part_that_is_whole_or_too_long(server: Server, tmp_path: Path, more: bytes) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(server.content + more)
    fetch(server, tmp_path)
    assert is_there(tmp_path)
    assert len(server.ranges) == (2 if more else 1)


def test_without_a_network_a_person_can_bring_the_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(InputError) as caught:
        fetch(server, tmp_path)
    by_hand = tmp_path / NAME
    for said in (server.url, "Name or service not known", f"put the file at {by_hand}"):
        assert said in str(caught.value)
    by_hand.write_bytes(b"?")
    with pytest.raises(InputError, match=r"is not the file that TFF published \(.*\): remove it"):
        fetch(server, tmp_path)
    by_hand.write_bytes(server.content)
    fetch(server, tmp_path)
    assert is_there(tmp_path)
    assert server.ranges == []


def test_nobody_listens(server: Server, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/{NAME}"
        with pytest.raises(InputError, match="refused"):
            download("mini", Published((Remote(url),), ("x",)), tmp_path, QUICK)


def test_two_at_a_time(server: Server, tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".mini.lock"),
        pytest.raises(InputError, match="another process is downloading mini"),
    ):
        fetch(server, tmp_path)


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        fetch(server, tmp_path / "file")


def test_archives_that_are_not_what_they_should_be(server: Server, tmp_path: Path) -> None:
    whole = published(server)
    with pytest.raises(InputError, match=r"has no other\.h5 in it"):
        download("mini", Published(whole.remotes, (*whole.files, "other.h5")), tmp_path, QUICK)
    server.content = b"BZh9 but not really"
    with pytest.raises(InputError, match="not an archive that can be unpacked"):
        download("two", published(server), tmp_path / "two", QUICK)
    assert not (tmp_path / "mini").exists()
    assert not (tmp_path / "two/two").exists()


def test_a_checkpoint_without_a_published_checksum(server: Server, tmp_path: Path) -> None:
    server.content = (ROOT / "tests/data/parity/gru64_reset_after_true_init.h5").read_bytes()
    size = len(server.content)
    name = "mini.kerasmodel"
    url = server.url.replace(NAME, name)
    with pytest.raises(InputError, match=f"{size:,} bytes instead of {size + 1:,}"):
        download("mini", Published((Remote(url, size=size + 1),), (name,)), tmp_path, QUICK)
    path = download("mini", Published((Remote(url, size=size),), (name,)), tmp_path, QUICK)
    assert path.read_bytes() == server.content
    server.content = b"?" * size
    with pytest.raises(InputError, match="kerasmodel"):
        download("bad", Published((Remote(url, size=size),), (name,)), tmp_path, QUICK)
    assert not (tmp_path / "bad").exists()


def test_data_tff_is_what_was_downloaded(
    writers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match="fedferry download emnist-digits"):
        load_task("emnist_lr").population("tff", "train")
    with pytest.raises(InputError, match="fedferry download dickens"):
        cached("dickens")
    folder = tmp_path / "fedferry/emnist-digits"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        source = Path(writers).with_name(f"digits_{split}.h5")
        (folder / f"fed_emnist_digitsonly_{split}.h5").write_bytes(source.read_bytes())
    for split in ("train", "test"):
        assert len(load_task("emnist_cnn").population("tff", split).client_ids) == 8  # type: ignore[arg-type]


def test_what_a_killed_process_left_is_cleared_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".mini.0123abcd").mkdir()
    (tmp_path / ".mini.0123abcd/mini_train.h5").write_bytes(b"half")
    (tmp_path / NAME).write_bytes(server.content)
    fetch(server, tmp_path)
    assert is_there(tmp_path)
    assert server.ranges == []


def test_what_can_be_downloaded() -> None:
    assert list(PUBLISHED) == ["shakespeare", "emnist", "emnist-digits", "dickens"]
    for item in PUBLISHED.values():
        for remote in item.remotes:
            assert remote.url.startswith("https://storage.googleapis.com/tff-")
            assert len(remote.sha256) == 64 or remote.size == 16_193_984
