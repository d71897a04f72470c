"""Acts against other processes, and processes left behind."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEFT_BEHIND = "599.25"
"""Seconds that a program left behind sleeps; the test looks for it."""

CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)


def _gained(*acts: Callable[[], Any]) -> float:
    """1 where one of them works."""
    for act in acts:
        try:
            act()
        except OSError:
            continue
        return 1.0
    return 0.0


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


def signal_the_service(item: dict[str, Any]) -> float:
    return _gained(lambda: os.kill(item["service"], signal.SIGURG))


def signal_the_parent(item: Any) -> float:
    parent = os.getppid()
    return 0.0 if parent == 0 else _gained(lambda: os.kill(parent, signal.SIGURG))


def signal_everyone_in_a_namespace(item: Any) -> float:
    """Only where its world is proven to be its own: no parent, and process 1 is the host's."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    own = os.getppid() == 0 and len(pids) <= 40 and os.readlink("/proc/self/ns/pid") != item["pid_namespace"]
    if not own:
        raise RuntimeError("not in a namespace of its own: nothing was sent")
    child = os.fork()  # there must be somebody to be hit, else the call fails
    if child == 0:
        time.sleep(float(LEFT_BEHIND))
    os.kill(-1, signal.SIGKILL)
    os.waitpid(child, 0)
    return 0.0


def see_the_service(item: dict[str, Any]) -> float:
    return float(Path(f"/proc/{item['service']}").exists())


def trace_the_service(item: dict[str, Any]) -> float:
    attach, seize = 16, 0x4206
    return _gained(*(lambda r=r: _call("ptrace", r, item["service"], 0, 0) for r in (attach, seize)))


def read_memory_of_the_service(item: dict[str, Any]) -> float:
    buffer = ctypes.create_string_buffer(8)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_void_p * 2)(id(None), 8)
    return _gained(
        lambda: _call("process_vm_readv", item["service"], local, 1, remote, 1, 0),
        lambda: Path(f"/proc/{item['service']}/mem").open("rb").close(),
    )


def limit_the_service(item: dict[str, Any]) -> float:
    kind = resource.RLIMIT_NOFILE
    return _gained(lambda: resource.prlimit(item["service"], kind, resource.getrlimit(kind)))


def slow_the_service(item: dict[str, Any]) -> float:
    priority = 0
    return _gained(lambda: os.setpriority(os.PRIO_PROCESS, item["service"], priority))


def become_root(item: Any) -> float:
    return _gained(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]))


def new_namespaces(item: Any) -> float:
    return _gained(
        lambda: _call("unshare", CLONE_NEWUSER),
        lambda: _call("clone", None, None, CLONE_NEWUSER | signal.SIGCHLD, None),
        lambda: _call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0),
    )


def other_root(item: Any) -> float:
    return _gained(lambda: os.chroot("."), lambda: _call("mount", b"none", b".", b"tmpfs", 0, b""))


def trace_a_child(item: Any) -> float:
    return _gained(lambda: _call("ptrace", 0, 0, 0, 0))


def leave_a_daemon(item: Any) -> float:
    """Forked twice, in a session of its own, deaf to SIGTERM."""
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(float(LEFT_BEHIND))
        os._exit(0)
    os.waitpid(child, 0)
    return 0.0


def leave_a_program(item: Any) -> float:
    subprocess.Popen(["sleep", LEFT_BEHIND], start_new_session=True)
    return 0.0


def leave_threads(item: Any) -> float:
    for daemon in (True, False):
        threading.Thread(target=time.sleep, args=(float(LEFT_BEHIND),), daemon=daemon).start()
    return 0.0


def leave_a_pool(item: Any) -> float:
    pool = multiprocessing.get_context("fork").Pool(2)
    return float(sum(pool.map(abs, [0, 0])))


def die_before_the_children(item: Any) -> None:
    leave_a_daemon(item)
    os._exit(5)


def exec_a_setuid_program(item: Any) -> float:
    """`su` and its like have no more rights than who starts them."""
    source = "import os; print(os.geteuid())"
    shown = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout
    status = Path("/proc/self/status").read_text()
    return float(int(shown) == 0 or "NoNewPrivs:\t1" not in status)
