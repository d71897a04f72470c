"""The weight store: a folder with a version's name is complete, whatever ended the learner that wrote it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace_core.errors import WeightsDamaged
from headrace_core.weights import MANIFEST, WeightStore, default_root


def writing(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_text(text)
        (folder / "config.json").write_text("{}")

    return write


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path, "ftjob-a", keep=2)


def test_what_is_published_can_be_opened(store: WeightStore) -> None:
    published = store.publish(1, 1, writing("abc"))
    assert (published.version, published.name, published.bytes) == (1, "v00000001-t1", 5)
    folder = store.open(published.name)
    assert folder == published.path
    assert (folder / "model.safetensors").read_text() == "abc"


def test_a_write_that_raises_leaves_nothing(store: WeightStore) -> None:
    def write(folder: Path) -> None:
        writing("abc")(folder)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        store.publish(1, 1, write)
    assert list(store.folder.iterdir()) == []


def test_a_killed_write_is_never_a_version_and_the_next_term_clears_it(store: WeightStore, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from headrace_core.weights import WeightStore\n"
        "def write(folder):\n"
        "    (folder / 'model.safetensors').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "WeightStore(Path(sys.argv[1]), 'ftjob-a').publish(1, 1, write)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(store.folder.iterdir())) == 1
    assert store.versions() == []
    store.publish(1, 2, writing("whole"))
    assert [p.name for p in store.folder.iterdir()] == ["v00000001-t2"]


def test_the_newest_versions_are_kept(store: WeightStore) -> None:
    for version in range(1, 6):
        store.publish(version, 1, writing("abc"))
    assert store.versions() == ["v00000004-t1", "v00000005-t1"]
    assert sorted(p.name for p in store.folder.iterdir()) == store.versions()  # nothing hidden stays either
    with pytest.raises(WeightsDamaged, match="v00000003-t1"):
        store.open("v00000003-t1")


def test_terms_of_one_version_do_not_push_out_an_older_version(store: WeightStore) -> None:
    store.publish(6, 1, writing("six"))
    for term in (1, 2, 10):
        store.publish(7, term, writing(f"seven of term {term}"))
    assert store.versions() == ["v00000006-t1", "v00000007-t1", "v00000007-t2", "v00000007-t10"]


def test_a_version_published_again_replaces_itself(store: WeightStore) -> None:
    store.publish(7, 1, writing("first"))
    store.publish(7, 1, writing("second"))
    assert store.versions() == ["v00000007-t1"]
    assert (store.open("v00000007-t1") / "model.safetensors").read_text() == "second"


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", '{"files": {"gone.bin": 3}}', '{"files": null}'])
def test_a_damaged_manifest_is_said_to_be(store: WeightStore, manifest: str) -> None:
    published = store.publish(1, 1, writing("abc"))
    (published.path / MANIFEST).write_text(manifest)
    with pytest.raises(WeightsDamaged, match="v00000001-t1"):
        store.open(published.name)


def test_a_file_cut_short_is_damage(store: WeightStore) -> None:
    published = store.publish(1, 1, writing("abc"))
    (published.path / "model.safetensors").write_text("ab")
    with pytest.raises(WeightsDamaged, match="sizes"):
        store.open(published.name)


def test_the_folder_is_private_and_goes_when_removed(store: WeightStore) -> None:
    store.publish(1, 1, writing("abc"))
    assert store.folder.stat().st_mode & 0o077 == 0
    store.remove()
    assert not store.folder.exists()
    store.remove()


def test_the_default_root_can_be_written() -> None:
    assert os.access(default_root().parent, os.W_OK)
    assert default_root().name == f"headrace-{os.getuid()}"
