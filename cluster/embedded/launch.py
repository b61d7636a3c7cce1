"""Becomes a server: takes on its identity, ties its life to the parent's, and executes it.

Run by path as a program of its own, with nothing but the standard library, because changing users and namespaces is
safe only in a process without threads:

    launch.py WAY UID GID PARENT_PID DEATH_SIGNAL PROGRAM [ARGUMENT …]

WAY is ``self``, ``nobody`` (drop to UID and GID), ``userns`` (a user namespace in which we are UID; files stay ours)
or ``capability`` (drop, but keep the right to pass folders that others closed). With DEATH_SIGNAL 0 it is not told of
its parent's death.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
_CLONE_NEWUSER = 0x10000000
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522
CANNOT_LAUNCH = 125

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _drop(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _enter_user_namespace(uid: int, gid: int) -> None:
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    _checked("unshare", _libc.unshare(_CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {outer_uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {outer_gid} 1")


def _drop_with_capability(uid: int, gid: int) -> None:
    _checked("prctl", _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    _drop(uid, gid)
    mask = 1 << _CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable; twice, for the lower and the upper 32 capabilities.
    data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    _checked("capset", _libc.capset(header, data))
    _checked("prctl", _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0))


WAYS: dict[str, Callable[[int, int], None]] = {
    "self": lambda uid, gid: None,
    "nobody": _drop,
    "userns": _enter_user_namespace,
    "capability": _drop_with_capability,
}


def main(arguments: list[str]) -> int:
    """Never returns when all goes well; otherwise says why on stderr and gives the exit code."""
    way, uid, gid, parent, death_signal, *program = arguments
    try:
        os.umask(0o077)
        WAYS[way](int(uid), int(gid))
        if int(death_signal):
            # After the change of user, which clears it.
            _checked("prctl", _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0))
            if os.getppid() != int(parent):
                return CANNOT_LAUNCH  # the parent died before we could ask to be told
        os.execv(program[0], program)
    except OSError as error:
        sys.stderr.write(f"launch: {way}: {program[0]}: {error}\n")
    return CANNOT_LAUNCH


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
