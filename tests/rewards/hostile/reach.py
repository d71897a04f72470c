"""Acts that reach for files: secrets, and places to write."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def _gained(*acts: Callable[[], Any]) -> float:
    for act in acts:
        try:
            act()
        except OSError:
            continue
        return 1.0
    return 0.0


def _reads(paths: Iterable[str | Path], secret: str) -> float:
    for path in paths:
        try:
            if secret.encode() in Path(path).read_bytes():
                return 1.0
        except OSError:
            continue
    return 0.0


def environment(item: dict[str, Any]) -> float:
    return float(item["secret"] in str(os.environ))


def environment_of_the_service(item: dict[str, Any]) -> float:
    return _gained(lambda: Path(f"/proc/{item['service']}/environ").read_bytes())


def environment_of_everyone(item: dict[str, Any]) -> float:
    try:
        numbers = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return 0.0
    return _reads([f"/proc/{number}/environ" for number in numbers], item["secret"])


def data_folder(item: dict[str, Any]) -> float:
    folder = Path(item["data_folder"])
    return _reads([folder / "jobs.json"], item["secret"]) or _gained(lambda: os.listdir(folder))


def home(item: dict[str, Any]) -> float:
    """The way to an interpreter that lies there may show (it is not in `home_names`); nothing else."""
    paths = [Path(item["home"], name) for name in item["home_names"]]
    return _gained(*(lambda path=path: os.listdir(path) if path.is_dir() else path.read_bytes() for path in paths))


def passwords(item: Any) -> float:
    return _gained(lambda: Path("/etc/shadow").read_text(), lambda: Path("/etc/sudoers").read_text())


def files_of_others(item: dict[str, Any]) -> float:
    return _reads([item["outside"]], item["secret"])


def around_by_links(item: dict[str, Any]) -> float:
    os.symlink(item["outside"], "link")
    os.symlink("/", "root")
    around = ["link", f"root{item['outside']}", f"/proc/self/cwd/../..{item['outside']}"]
    return _reads([*around, f"/proc/self/root{item['outside']}", f"/proc/1/root{item['outside']}"], item["secret"])


def hard_link(item: dict[str, Any]) -> float:
    return _gained(lambda: os.link(item["outside"], "taken"), lambda: os.rename(item["outside"], "taken"))


def by_handle(item: dict[str, Any]) -> float:
    """The root folder's inode has number 2 on ext4: whoever may open by handle reads the whole disk."""
    handle = (ctypes.c_ubyte * 16)(8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    folder = os.open(item["own_folder"], os.O_RDONLY)
    return float(libc.open_by_handle_at(folder, handle, os.O_RDONLY) >= 0)


def write_outside(item: dict[str, Any]) -> float:
    """A file and a folder that everyone may write to."""
    folder = Path(item["open_folder"])
    return _gained(
        lambda: Path(item["outside"]).write_text("defaced"),
        lambda: os.truncate(item["outside"], 0),
        lambda: (folder / "new").write_text("x"),
        (folder / "new").mkdir,
        lambda: os.mkfifo(folder / "new"),
    )


def write_own_folder(item: dict[str, Any]) -> float:
    own = Path(item["own_folder"])
    return _gained(lambda: (own / "new.py").write_text("x"), lambda: (own / "grader.py").open("a").close())


def write_the_interpreter(item: Any) -> float:
    return _gained(
        lambda: Path(sys.executable).open("ab").close(),
        lambda: Path("/proc/self/exe").open("ab").close(),
        lambda: Path(os.__file__).open("a").close(),
        lambda: Path(sys.prefix, "new").write_text("x"),
    )


def memory_of_the_kernel(item: Any) -> float:
    """What only root reads, and whoever reads all files."""
    found = b""
    for name in ("kcore", "kpageflags", "slabinfo", "vmallocinfo", "timer_list"):
        try:
            with open(f"/proc/{name}", "rb") as file:
                found += file.read(64)
        except OSError:
            continue
    return float(bool(found))


def write_the_kernel(item: Any) -> float:
    return _gained(
        lambda: Path("/proc/sys/kernel/core_pattern").open("w").close(),
        lambda: Path("/proc/sysrq-trigger").open("w").close(),
        lambda: Path("/proc/self/oom_score_adj").write_text("-1000"),
        lambda: Path("/sys/fs/cgroup/new").mkdir(),
    )


def devices(item: Any) -> float:
    raw = ("/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/fuse", "/dev/kvm")
    return _gained(
        *(lambda path=path: os.close(os.open(path, os.O_RDONLY)) for path in raw),
        lambda: os.mknod("disk", 0o60600, os.makedev(8, 0)),
    )
