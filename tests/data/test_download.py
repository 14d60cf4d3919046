"""Fetching CIFAR with torchvision, from a server on this machine."""

import http.server
import pickle
import threading
from hashlib import md5

import pytest
import torchvision
from copies import (
    assert_same,
    batch_files,
    load,
    splits,
    write_archive,
)

from saddlebook import data
from saddlebook.data import batches
from saddlebook.errors import DataError, MachineError


@pytest.fixture
def server(tmp_path):
    """A web server on this machine with the files of a folder; its address."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()
        thread.join()


@pytest.fixture
def released(server, monkeypatch):
    """A made-up release that torchvision can fetch from the server."""
    folder, address = server
    files = batch_files() | {"batches.meta": pickle.dumps({"label_names": ["a"]})}
    path, release = write_archive(folder, files=files)
    fetch = torchvision.datasets.CIFAR10
    digests = [[file, md5(content).hexdigest()] for file, content in files.items()]
    monkeypatch.setattr(fetch, "url", address + path.name)
    monkeypatch.setattr(fetch, "tgz_md5", md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(fetch, "train_list", digests[:5])
    monkeypatch.setattr(fetch, "test_list", digests[5:6])
    monkeypatch.setitem(fetch.meta, "md5", digests[6][1])
    monkeypatch.setitem(batches.RELEASES, "cifar10", (release,))
    return path


def test_a_download_is_read_and_a_damaged_one_fetched_again(tmp_path, released):
    root = tmp_path / "root"
    loaded = data.load("cifar10", root, download=True, cache=tmp_path / "cache")
    assert_same(loaded, splits())
    (root / released.name).write_bytes(b"cut short")
    with pytest.raises(DataError, match="not the released archive"):
        load(tmp_path, root=root)
    again = data.load("cifar10", root, download=True, cache=tmp_path / "cache")
    assert again.digest == loaded.digest


def test_a_download_that_gets_a_web_page_says_so(tmp_path, released):
    released.write_bytes(b"<html>moved</html>")
    with pytest.raises(DataError, match="could not be downloaded"):
        data.load("cifar10", tmp_path, download=True)
    with pytest.raises(DataError, match="is a web page"):
        data.load("cifar10", tmp_path)


def test_a_download_from_nowhere_says_where_to_get_the_file(tmp_path, released):
    released.unlink()
    with pytest.raises(DataError, match=rf"404.*{released.name} by other means"):
        data.load("cifar10", tmp_path, download=True)


def test_a_download_into_a_place_that_cannot_be_written_is_refused(tmp_path, released):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MachineError, match="file/root"):
        data.load("cifar10", tmp_path / "file" / "root", download=True)
