"""The weight store: a folder with a version's name is complete, whatever ended the learner that wrote it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace_core.errors import WeightsDamaged
from headrace_core.storage.weight_store import MANIFEST, WeightStore, default_root
from headrace_lab.faults.byte_damage import damages


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
        "import os, signal, sys; from pathlib import Path; from headrace_core.storage.weight_store import WeightStore\n"
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


def test_a_damaged_manifest_is_said_to_be(store: WeightStore) -> None:
    published = store.publish(1, 1, writing("abc"))
    whole = (published.path / MANIFEST).read_bytes()
    for what, raw in [*damages(whole), ("a file that is gone", whole.replace(b"config", b"confih"))]:
        (published.path / MANIFEST).write_bytes(raw)
        try:
            assert store.open(published.name) == published.path, what
        except WeightsDamaged as error:
            assert "v00000001-t1" in error.message, what  # noqa: PT017
        else:  # a flipped bit in the name of a field that nobody needs, say
            assert b"config.json" in raw, what


@pytest.mark.parametrize("name", ["../ftjob-b/v00000001-t1", "/etc", "v1-t1/../..", ".", "", "v00000001-t1/", "v\0"])
def test_no_name_leads_out_of_the_store(store: WeightStore, name: str) -> None:
    store.publish(1, 1, writing("abc"))
    with pytest.raises(WeightsDamaged, match="is not the name of a published version"):
        store.open(name)


@pytest.mark.parametrize("named", ["../v00000001-t1/config.json", "/etc/passwd", "sub/x", "..", "link"])
def test_a_manifest_names_plain_files_of_its_folder_alone(store: WeightStore, named: str) -> None:
    published = store.publish(1, 1, writing("abc"))
    (published.path / "link").symlink_to("/etc/passwd")
    size = os.stat("/etc/passwd").st_size
    (published.path / MANIFEST).write_text(json.dumps({"version": 1, "files": {named: size}}))
    with pytest.raises(WeightsDamaged, match=r"not the name of a file in it|no plain file"):
        store.open(published.name)


@pytest.mark.parametrize("level", ["job", "version"])
@pytest.mark.parametrize("how", ["group may write", "all may write", "a link"])
def test_what_another_user_may_have_planted_is_not_opened(store: WeightStore, level: str, how: str) -> None:
    published = store.publish(1, 1, writing("abc"))
    folder = store.folder if level == "job" else published.path
    if how == "a link":
        folder.rename(folder.with_name("elsewhere"))
        folder.symlink_to(folder.with_name("elsewhere"))
    else:
        folder.chmod(0o770 if how == "group may write" else 0o707)
    with pytest.raises(WeightsDamaged, match=r"is a link|can be written to by other users"):
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
