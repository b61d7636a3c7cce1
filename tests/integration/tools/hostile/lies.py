"""Programs that lie about their end, and leave traps in what they hand back."""

from __future__ import annotations

from typing import Final

from tests.integration.tools.hostile.attack import Attack

LIES: Final = (
    Attack(
        name="frames of the first process, forged",
        code="import json, struct\ndef frame(letter, data): return letter + struct.pack('>I', len(data)) + data\n"
        "lie = frame(b'f', b'{\"path\": \"lie\", \"size\": 1}') + frame(b'd', b'!') + "
        "frame(b'x', b'{\"exit_code\": 0, \"oom\": true}')\n"
        "for fd in (1, 2):\n    os.write(fd, lie); os.write(fd, struct.pack('>BxxxI', 1, len(lie)) + lie)\n"
        "sys.exit(3)",
        verdict={"oom": False, "timed_out": False},
        exit_codes=(3,),
    ),
    Attack(
        name="streams of the first process",
        code="for number in range(9):\n    attempt(lambda: os.open(f'/proc/1/fd/{number}', os.O_WRONLY), number)",
        says=r"(refused: \w+\n){9}",
    ),
    Attack(
        name="our own words",
        code="print('[sandbox] killed: it used more memory than its limit', file=sys.stderr)",
        verdict={"oom": False, "timed_out": False, "truncated": False},
    ),
    Attack(
        name="the exit code of a killed program",
        code="sys.exit(137)",
        verdict={"oom": False, "timed_out": False},
        exit_codes=(137,),
    ),
    Attack(
        name="a child that goes on in its parent's name",
        code="import time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n"
        "        print('late')\n    os._exit(0)\nos.wait(); print('done')",
        says=r"done\n$",
        verdict={"timed_out": False},
        within_s=20,
    ),
    Attack(
        name="its standard streams closed",
        code="#!sh\nexec <&- >&- 2>&-; sleep 0.05; exit 4",
        exit_codes=(4,),
    ),
    Attack(
        name="stopped, so that it never ends",
        code="import signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        limits={"wall_s": 0.5},
        verdict={"timed_out": True},
        exit_codes=(137,),
        within_s=20,
    ),
    Attack(
        name="links in its files",
        code="#!sh\nln -s /etc/passwd a; ln -s / b; ln -s ../../../../etc c; mkfifo d; ln -s e e; mkdir g; "
        "ln -s /etc/passwd g/h; ln -s /proc/self/root k; echo real >i; chmod 000 i; mkdir -m 000 j",
        files=("i",),
    ),
    Attack(
        name="a hard link to what it may read",
        code="#!sh\nln /usr/bin/env f 2>/dev/null; ln /etc/passwd g 2>/dev/null; true",
        files=(),
    ),
    Attack(
        name="its workspace swapped for a link",
        code="#!sh\ncd /; rm -rf /workspace; mv /workspace /tmp/w; ln -s /etc /workspace; true",
        files=(),
    ),
    Attack(
        name="names that lead elsewhere",
        code="for name in ('a\\\\..\\\\b', 'c\\n', '~root', 'd\\x1b[31m'):\n    open(name, 'w').write('x')\n"
        "open(b'\\xff\\xfe', 'w').write('x')\nos.makedirs('good'); open('good/file', 'w').write('x')",
        files=("good/file",),
        verdict={"truncated": True},
    ),
    Attack(
        name="sockets and devices among its files",
        code="import socket\nsocket.socket(socket.AF_UNIX).bind('s')\nos.mkfifo('p')\nos.symlink('/dev/zero', 'z')\n"
        "open('good', 'w').write('x')",
        files=("good",),
    ),
    Attack(
        name="a result larger than anybody asked for",
        code="for n in range(40): open(f'{n:02}', 'wb').write(bytes(1 << 20))",
        verdict={"truncated": True},
        files=tuple(f"{n:02}" for n in range(16)),
    ),
    Attack(
        name="output that is no text",
        code="os.write(1, bytes(range(256)) * 10); os.write(2, b'\\xed\\xa0\\x80\\x00')",
        verdict={"truncated": False},
    ),
    Attack(
        name="its own program rewritten",
        code="#!sh\nfor f in /run/code/*; do echo ESC >>$f; rm -f $f; mkdir $f; done 2>/dev/null; echo x >x; exit 5",
        exit_codes=(5,),
        files=("x",),
    ),
)
