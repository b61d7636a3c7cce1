"""Programs that reach for what is not theirs: the host, the kernel, the network, other processes."""

from __future__ import annotations

from typing import Final

from tests.integration.tools.hostile.attack import Attack


def _all_refused(name: str, code: str, count: int) -> Attack:
    return Attack(name=name, code=code, says=rf"(refused: \w+\n){{{count}}}")


# Numbers of calls that the C library has no function for: (x86_64, aarch64).
_CALL: Final = "nr = lambda x86, arm: x86 if os.uname().machine == 'x86_64' else arm\n"

ESCAPES: Final = (
    Attack(
        name="environments of all processes",
        code="#!sh\nenv; cat /proc/*/environ /proc/*/cmdline /proc/*/maps 2>/dev/null; true",
    ),
    Attack(
        name="files of the host",
        code="for path in ('/root', '/home', '/opt', '/etc/shadow', '/var/run/docker.sock', '/run/docker.sock',\n"
        "             '/var/lib', '/boot', '/host', '/mnt', os.environ.get('HERE', '/x')):\n"
        "    attempt(lambda: os.listdir(path) if os.path.isdir(path) else open(path).read(), path)\nprint('end')",
        says=r"(refused: \w+\n){11}end",
    ),
    Attack(
        name="canary of the host by its path",
        code="attempt(lambda: open(sys.stdin.read().split()[0]).read(), 'read the canary')",
        says="refused",
    ),
    _all_refused(
        "files written where all is read-only",
        "for path in ('/x', '/usr/x', '/etc/passwd', '/dev/x', '/bin/sh', '/usr/bin/python3'):\n"
        "    attempt(lambda: open(path, 'a').write('x'), path)",
        6,
    ),
    _all_refused(
        "files of its own interpreter",
        "import encodings, json\n"
        "for path in (encodings.__file__, json.__file__, os.path.realpath(sys.executable), sys.prefix + '/lib/x'):\n"
        "    attempt(lambda: open(path, 'a').write('x'), path)",
        4,
    ),
    _all_refused(
        "settings of the kernel",
        "for path in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/sys/vm/drop_caches',\n"
        "             '/proc/sys/kernel/hostname', '/proc/self/uid_map', '/proc/irq/0/smp_affinity'):\n"
        "    attempt(lambda: os.write(os.open(path, os.O_WRONLY), b'c'), path)",
        6,
    ),
    _all_refused(
        "memory of the kernel",
        "for path in ('/dev/mem', '/dev/kmem', '/dev/port', '/proc/kcore', '/dev/kmsg', '/proc/kmsg'):\n"
        "    attempt(lambda: len(open(path, 'rb').read(64)) or -1, path)",
        6,
    ),
    _all_refused(
        "devices of its own",
        "import stat\nfor kind, major, minor in ((stat.S_IFBLK, 8, 0), (stat.S_IFCHR, 1, 1), (stat.S_IFBLK, 254, 0)):\n"
        "    attempt(lambda: os.mknod('/tmp/device', 0o666 | kind, os.makedev(major, minor)), 'mknod')",
        3,
    ),
    _all_refused(
        "mounts",
        "attempt(lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None), 'tmpfs')\n"
        "attempt(lambda: libc.mount(b'proc', b'/tmp', b'proc', 0, None), 'proc')\n"
        "attempt(lambda: libc.mount(b'/', b'/tmp', None, 4096, None), 'bind')\n"
        "attempt(lambda: libc.mount(None, b'/', None, 32, None), 'remount')\n"
        "attempt(lambda: libc.umount2(b'/workspace', 2), 'umount')",
        5,
    ),
    _all_refused(
        "namespaces",
        "for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x02000000, 0x04000000, 0x08000000):\n"
        "    attempt(lambda: libc.unshare(flag), hex(flag))\n"
        "attempt(lambda: libc.setns(os.open('/proc/self/ns/net', 0), 0), 'setns')",
        8,
    ),
    _all_refused(
        "a user namespace by clone",
        f"{_CALL}attempt(lambda: libc.syscall(nr(56, 220), 0x10000000 | 17, 0, 0, 0, 0), 'clone')",
        1,
    ),
    _all_refused(
        "another root",
        f"{_CALL}attempt(lambda: libc.chroot(b'/tmp'), 'chroot')\n"
        "attempt(lambda: libc.syscall(nr(155, 41), b'/tmp', b'/tmp'), 'pivot_root')",
        2,
    ),
    _all_refused(
        "file handles, as the shocker did",
        f"{_CALL}import struct\nroot = os.open('/', 0)\n"
        "handle = ctypes.create_string_buffer(struct.pack('<IiQ', 8, 1, 2))\n"
        "attempt(lambda: libc.syscall(nr(304, 265), root, handle, 0), 'open_by_handle_at')",
        1,
    ),
    _all_refused(
        "rights of root",
        "for what in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]),\n"
        "             lambda: os.setresuid(0, 0, 0), lambda: os.chown('/workspace', 0, 0)):\n"
        "    attempt(what, 'root')",
        5,
    ),
    Attack(
        name="capabilities, and programs that give some",
        code="status = dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines() "
        "if ':\\t' in line)\n"
        "for name in ('CapEff', 'CapPrm', 'CapInh', 'CapBnd', 'CapAmb'):\n"
        "    if int(status[name], 16): print('ESCAPED', name, status[name])\n"
        "print(status['NoNewPrivs'], status['Seccomp'], os.getuid() != 0)",
        says="1 2 True",
    ),
    _all_refused(
        "tracing the first process",
        "attempt(lambda: libc.ptrace(16, 1, 0, 0), 'attach')\nattempt(lambda: libc.ptrace(0x4206, 1, 0, 0), 'seize')\n"
        "for name in ('mem', 'maps', 'environ', 'fd/0', 'root/etc', 'cwd'):\n"
        "    attempt(lambda: open(f'/proc/1/{name}', 'rb').read(1) and 1, name)",
        8,
    ),
    _all_refused(
        "memory of the first process",
        f"{_CALL}data = ctypes.create_string_buffer(8)\n"
        "vector = (ctypes.c_void_p * 2)(ctypes.addressof(data), 8)\n"
        "attempt(lambda: libc.syscall(nr(310, 270), 1, vector, 1, vector, 1, 0), 'process_vm_readv')\n"
        "attempt(lambda: libc.syscall(nr(311, 271), 1, vector, 1, vector, 1, 0), 'process_vm_writev')\n"
        "attempt(lambda: libc.syscall(438, os.pidfd_open(1), 0, 0), 'pidfd_getfd')",
        3,
    ),
    Attack(
        name="signals to all that it can reach",
        code="#!sh\nkill -9 -1; kill -STOP 1; kill -INT 1; kill -TERM 1; kill -9 1; kill -9 $PPID; kill -9 $$",
        exit_codes=(137,),
    ),
    Attack(
        name="signals to a process of the host",
        code="pid = int(sys.stdin.read().split()[1])\n"
        "attempt(lambda: os.kill(pid, 0) or 1, 'kill') if pid > 1000 else print('refused: small')",
        says="refused",
    ),
    Attack(
        name="addresses of the network",
        code="import socket\nport = int(sys.stdin.read().split()[2])\n"
        "print([name for _, name in socket.if_nameindex() if name[:3] in ('eth', 'ens', 'vet', 'doc', 'wla')])\n"
        "for address in (('127.0.0.1', port), ('1.1.1.1', 53), ('169.254.169.254', 80), ('10.0.0.1', 22),\n"
        "                ('172.17.0.1', port), ('168.63.129.16', 80)):\n"
        "    attempt(lambda: socket.create_connection(address, 1), address)\n"
        "for address in (('::1', port), ('fd00:ec2::254', 80), ('2606:4700:4700::1111', 53)):\n"
        "    attempt(lambda: socket.create_connection(address, 1), address)",
        says=r"\[\]\n(refused: \w+\n){9}",
    ),
    Attack(
        name="datagrams and names",
        code="import socket\ndef ask():\n    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:\n"
        "        s.settimeout(1); s.sendto(b'x', ('8.8.8.8', 53)); return s.recv(9)\n"
        "attempt(ask, 'udp')\nattempt(lambda: socket.getaddrinfo('example.com', 80), 'dns')",
        says=r"(refused: \w+\n){2}",
    ),
    _all_refused(
        "raw and odd sockets",
        "import socket as s\n"
        "attempt(lambda: s.socket(s.AF_PACKET, s.SOCK_RAW), 'packet')\n"
        "attempt(lambda: s.socket(s.AF_INET, s.SOCK_RAW, 1), 'icmp')\n"
        "attempt(lambda: s.socket(s.AF_INET6, s.SOCK_RAW, 58), 'icmp6')\n"
        "attempt(lambda: s.socket(s.AF_VSOCK, s.SOCK_STREAM).connect((2, 1024)), 'vsock')",
        4,
    ),
    Attack(
        name="abstract sockets of the host",
        code="import socket\ndef connect():\n    s = socket.socket(socket.AF_UNIX)\n"
        "    s.connect('\\0rayloom-hostile-test')\n    return 1\nattempt(connect, 'abstract')",
        says="refused",
    ),
    _all_refused(
        "the kernel's own machinery",
        f"{_CALL}attempt(lambda: libc.syscall(nr(321, 280), 0, 0, 0), 'bpf')\n"
        "attempt(lambda: libc.syscall(nr(298, 241), 0, 0, -1, -1, 0), 'perf_event_open')\n"
        "attempt(lambda: libc.syscall(nr(175, 105), 0, 0, b''), 'init_module')\n"
        "attempt(lambda: libc.syscall(nr(246, 104), 0, 0, 0, 0), 'kexec_load')\n"
        "attempt(lambda: libc.syscall(nr(169, 142), 0xfee1dead, 672274793, 0x1234567, 0), 'reboot')\n"
        "attempt(lambda: libc.syscall(nr(167, 224), b'/tmp', 0), 'swapon')\n"
        "attempt(lambda: libc.syscall(nr(163, 89), b'/tmp/x'), 'acct')\n"
        "attempt(lambda: libc.syscall(nr(103, 116), 3, ctypes.create_string_buffer(9), 8), 'syslog')",
        8,
    ),
    _all_refused(
        "keys, faults and rings",
        f"{_CALL}attempt(lambda: libc.syscall(nr(248, 217), b'user', b'x', b'y', 1, -3), 'add_key')\n"
        "attempt(lambda: libc.syscall(nr(250, 219), 0, -3, 1), 'keyctl')\n"
        "attempt(lambda: libc.syscall(nr(323, 282), 0), 'userfaultfd')\n",
        3,
    ),
    _all_refused(
        "the clock and the names of the machine",
        "import time\nattempt(lambda: time.clock_settime(time.CLOCK_REALTIME, 0), 'clock')\n"
        "attempt(lambda: libc.sethostname(b'owned', 5), 'sethostname')\n"
        "attempt(lambda: libc.setdomainname(b'owned', 5), 'setdomainname')",
        3,
    ),
    Attack(
        name="control groups",
        code="import glob\nfor path in glob.glob('/sys/fs/cgroup/**/*max*', recursive=True)[:50] + "
        "glob.glob('/sys/fs/cgroup/**/cgroup.procs', recursive=True)[:50] + "
        "glob.glob('/sys/fs/cgroup/**/release_agent', recursive=True):\n"
        "    attempt(lambda: os.write(os.open(path, os.O_WRONLY), b'1'), path)\nprint('end')",
        says=r"(refused: \w+\n)*end",
    ),
    Attack(
        name="a first process made helpless",
        code="import resource\nfor what in range(16):\n    try: resource.prlimit(1, what, (0, 0))\n"
        "    except (OSError, ValueError): pass\n"
        "try: os.setpriority(os.PRIO_PROCESS, 1, 19)\nexcept OSError: pass\nprint('done')",
        says=r"(done)?",
        exit_codes=(0, 137),
    ),
)
