"""Processes of the server: how many, where they meet, and which GPU each device process has."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from engines.published import files
from engines.runtimes.machine import cores, gpus
from service.settings import Settings

# Private to the server's processes: the first process sets the variable, the others inherit the variable.
FOLDER = "_CONVSERVE_FOLDER"
PR_SET_PDEATHSIG = 1  # of Linux' prctl
NAMES = "convserve-"  # prefix of the folders' names
OWNER = "owner.lock"  # held by the process that made the folder
STARTING_S = 60.0  # for which a folder may be without an owner
FRONTS_A_GPU = 12  # more did not help one H200
CLAIMED = ExitStack()  # locks that this process holds until its end
KEPT_CORES = 3  # of a machine with a GPU, for the device process and the client of a reverse proxy


class Layout(NamedTuple):
    """Numbers of processes: `fronts` for HTTP and decoding, `devices` for engines; one front alone does it all."""

    fronts: int
    devices: int
    reason: str

    @property
    def split(self) -> bool:
        """True if HTTP and engines are in different processes."""
        return (self.fronts, self.devices) != (1, 1)

    def __str__(self) -> str:
        numbers = f"fronts: {self.fronts}, device processes: {self.devices}"
        return f"{numbers if self.split else 'one process does it all'} ({self.reason})"


def layout(settings: Settings) -> Layout:
    """Return the numbers of processes: those of the settings, else by cores and GPUs."""
    cards = len(gpus())
    devices = settings.devices if settings.devices != "auto" else max(1, cards)
    if sys.platform != "linux":
        return Layout(1, 1, "memory is shared between processes on Linux only")
    if settings.fronts != "auto":
        fronts = settings.fronts
    elif cards:
        fronts = max(1, min(FRONTS_A_GPU * devices, cores() - KEPT_CORES))
    else:
        fronts = 2 if devices > 1 else 1
    return Layout(fronts, devices, reason(settings, cards))


def reason(settings: Settings, cards: int) -> str:
    """Return what decided on the numbers of processes: the settings that state one, and the machine for the other."""
    stated = [f"CONVSERVE_{name.upper()}" for name in ("fronts", "devices") if getattr(settings, name) != "auto"]
    if len(stated) == 2:
        return " and ".join(stated)
    machine = f"{counted(cores(), 'core')} and {counted(cards, 'GPU')}"
    return "; ".join([*stated, machine])


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "2 cores" and "no GPU"."""
    return f"{number or 'no'} {noun}{'s' if number > 1 else ''}"


def folder() -> Path:
    """Return the folder in which the server's processes meet; the first process makes and removes the folder."""
    if FOLDER not in os.environ:
        remove_deserted()
        made = tempfile.mkdtemp(prefix=NAMES)  # for this user only
        CLAIMED.enter_context(files.locked(Path(made) / OWNER))
        os.environ[FOLDER] = made
        atexit.register(remove, made, os.getpid())
    return Path(os.environ[FOLDER])


def remove_deserted() -> None:
    """Remove the folders of servers that were killed."""
    for lock in Path(tempfile.gettempdir()).glob(f"{NAMES}*/{OWNER}"):
        with suppress(OSError):
            if time.time() - lock.stat().st_mtime < STARTING_S:
                continue
            with files.lock_if_free(lock) as free:
                if free:
                    shutil.rmtree(lock.parent, ignore_errors=True)


def remove(made: str, owner: int) -> None:
    """Remove the folder, in the process that made the folder."""
    if os.getpid() == owner:
        shutil.rmtree(made, ignore_errors=True)


def end_with_parent() -> None:
    """Let the system send SIGTERM to this process when its parent has ended, which would start it again."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def claim(devices: int) -> int:
    """Return the number of this device process, from 1: the first that no other process of the server has."""
    for number in range(1, devices + 1):
        if CLAIMED.enter_context(files.lock_if_free(folder() / f"device-{number}.lock")):
            return number
    raise SystemExit(f"error: {devices} device processes are running already")


def socket_of(device: int) -> Path:
    """Return the path of a device process's socket; device processes count from 1."""
    return folder() / f"device-{device}.sock"


def take_gpu(device: int) -> None:
    """Let this device process see one GPU only: of the visible ones the first for process 1, and so on in turn."""
    if visible := gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[(device - 1) % len(visible)]
