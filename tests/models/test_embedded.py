"""The cache of the embedded model: where it lies, who can read it, and what is said where it cannot be written."""

import multiprocessing
import os
import resource
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qrhead_rag.models import embedded as embedded_model
from qrhead_rag.models.embedded import cache_folder, converted

NOBODY = 65534


def convert(source, building):
    """A stand-in for the conversion, with weights that are written as the real ones are."""
    (building / "config.json").write_text("{}")
    save_file({"weight": torch.zeros(1000)}, building / "model.safetensors")


@pytest.fixture
def cache(monkeypatch):
    """A folder that every user can reach, for the cache to be made in."""
    monkeypatch.setattr(embedded_model, "_convert", convert)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("QRHEAD_CACHE", f"{folder}/deep/cache")
        yield Path(folder) / "deep" / "cache"


def in_a_child(action):
    """What an action returns, or the error it raises, in a process that is not root."""

    def run():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            sender.send(action())
        except Exception as error:
            sender.send((type(error), str(error)))

    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=run)
    child.start()
    assert receiver.poll(60)
    child.join(60)
    return receiver.recv()


def convert_here():
    return str(converted(Path("Small.gguf")))


def test_the_variable_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("QRHEAD_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("QRHEAD_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("QRHEAD_CACHE", "")
    assert cache_folder().name == "qrhead-rag"
    assert not cache_folder().exists()


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o027, 0o077])
def test_modes_follow_the_umask(cache, umask):
    before = os.umask(umask)
    try:
        folder = converted(Path("Small.gguf"))
    finally:
        os.umask(before)
    paths = [cache.parent, cache, *cache.rglob("*")]
    assert len(paths) == 2 + 5  # the lock, and a folder of weights, configuration and manifest
    assert folder in paths
    for path in paths:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


@pytest.mark.parametrize("with_lock", [True, False])
def test_who_can_only_read_the_cache_loads_from_it(cache, with_lock, monkeypatch):
    """As from an image: the folder is whole, so that nothing is written, the lock included."""
    folder = converted(Path("Small.gguf"))
    if not with_lock:
        Path(f"{folder}.lock").unlink()
    for path in [*cache.rglob("*"), cache]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(embedded_model, "_convert", lambda *_: pytest.fail("converted again"))
    assert in_a_child(convert_here) == str(folder)
    assert {path.name for path in cache.iterdir()} == {folder.name} | ({f"{folder.name}.lock"} if with_lock else set())
    cache.chmod(0o755)
    folder.chmod(0o755)


def a_folder_of_another(cache):
    cache.parent.mkdir()
    cache.parent.chmod(0o555)


def a_cache_of_another(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o555)


def a_damaged_model_of_another(cache):
    folder = converted(Path("Small.gguf"))
    (folder / "config.json").write_text("[]")
    for path in (folder, Path(f"{folder}.lock"), cache):
        path.chmod(path.stat().st_mode & 0o555)


def a_file_in_the_way(cache):
    cache.parent.write_text("")


@pytest.mark.parametrize(
    ("prepare", "kind"),
    [
        (a_folder_of_another, PermissionError),
        (a_cache_of_another, PermissionError),
        (a_damaged_model_of_another, PermissionError),
        (a_file_in_the_way, OSError),
    ],
)
def test_a_cache_that_cannot_be_written_is_named_with_the_variable_that_moves_it(cache, prepare, kind):
    prepare(cache)
    raised, message = in_a_child(convert_here)
    assert issubclass(raised, kind)
    assert str(cache) in message
    assert "set QRHEAD_CACHE to a folder that can be written" in message


def test_a_full_disk_is_reported(cache):
    """A limit on the size of files stands in for it: the weights meet it first."""
    cache.mkdir(parents=True)
    cache.chmod(0o777)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        return convert_here()

    raised, message = in_a_child(limited)
    assert issubclass(raised, OSError)
    assert "File too large" in message
    assert "set QRHEAD_CACHE" in message
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_damaged_package_is_no_fault_of_the_cache(cache, monkeypatch):
    monkeypatch.setattr(embedded_model, "_convert", lambda source, _: source.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"^\[Errno 2\] No such file or directory: 'Small.gguf'$"):
        converted(Path("Small.gguf"))
