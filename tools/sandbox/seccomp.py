"""The system-call filter of the sandbox: a deny list as classic BPF, made without libseccomp.

Namespaces already take away what these calls could reach; the filter narrows the kernel code that hostile programs can
touch at all. New namespaces, kernel modules, keys, tracing, io_uring, mounts and odd socket families are refused, and
so is memory that belongs to no process and no capped file system, where nobody would count it.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97

_NR_OFFSET, _ARCH_OFFSET, _ARG0_OFFSET = 0, 4, 16
_X32_BIT = 0x40000000

# CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET; NEWTIME can't be passed to clone
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. The others (AF_VSOCK above all) aren't bound to a network namespace.
_SOCKET_FAMILIES = (1, 2, 10, 16)

# name: (x86_64, aarch64); None where the architecture has no such call
_DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "set_mempolicy": (238, 237),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The numbers of one processor architecture."""

    audit: int
    column: int
    clone: int
    clone3: int
    socket: int


_ARCHITECTURES: Final = {
    "x86_64": Architecture(audit=0xC000003E, column=0, clone=56, clone3=435, socket=41),
    "aarch64": Architecture(audit=0xC00000B7, column=1, clone=220, clone3=435, socket=198),
}

SUPPORTED: Final = tuple(_ARCHITECTURES)


@lru_cache
def deny_list(machine: str = "") -> bytes | None:
    """The filter as an array of ``struct sock_filter``; None for an architecture that we have no numbers for."""
    machine = machine or platform.machine()
    architecture = _ARCHITECTURES.get({"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine))
    if architecture is None:
        return None
    denied = sorted(nr for numbers in _DENIED.values() if (nr := numbers[architecture.column]) is not None)
    # (opcode, value, label when true, label when false); an empty label means the next instruction
    body: list[tuple[int, int, str, str]] = [
        (_LOAD, _ARCH_OFFSET, "", ""),
        (_JEQ, architecture.audit, "", "kill"),
        (_LOAD, _NR_OFFSET, "", ""),
        (_JGE, _X32_BIT, "kill", ""),
        *((_JEQ, nr, "eperm", "") for nr in denied),
        # The flags of clone3 lie in memory, where a filter can't look: C libraries fall back to clone.
        (_JEQ, architecture.clone3, "enosys", ""),
        (_JEQ, architecture.clone, "clone", ""),
        (_JEQ, architecture.socket, "socket", "allow"),
    ]
    tails: dict[str, list[tuple[int, int, str, str]]] = {
        "clone": [(_LOAD, _ARG0_OFFSET, "", ""), (_JSET, _NEW_NAMESPACES, "eperm", "allow")],
        "socket": [
            (_LOAD, _ARG0_OFFSET, "", ""),
            *((_JEQ, family, "allow", "") for family in _SOCKET_FAMILIES),
            (_RETURN, _ERRNO | _EAFNOSUPPORT, "", ""),
        ],
        "allow": [(_RETURN, _ALLOW, "", "")],
        "eperm": [(_RETURN, _ERRNO | _EPERM, "", "")],
        "enosys": [(_RETURN, _ERRNO | _ENOSYS, "", "")],
        "kill": [(_RETURN, _KILL, "", "")],
    }
    labels = {}
    for label, instructions in tails.items():
        labels[label] = len(body)
        body.extend(instructions)

    def jump(at: int, label: str) -> int:
        return labels[label] - at - 1 if label else 0

    return b"".join(
        struct.pack("HBBI", opcode, jump(at, true), jump(at, false), value)
        for at, (opcode, value, true, false) in enumerate(body)
    )
