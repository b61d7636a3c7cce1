"""Programs that take as much as they can: processes, memory, disk, output, time."""

from __future__ import annotations

from typing import Final

from tests.integration.tools.hostile.attack import Attack

KILLED: Final = (137,)
OOM: Final = {"oom": True, "timed_out": False}
OVER: Final = {"timed_out": True, "oom": False}

RESOURCES: Final = (
    Attack(
        name="fork bomb that waits",
        code="import time\nn = 0\ntry:\n    while True:\n        if os.fork() == 0: time.sleep(60)\n        n += 1\n"
        "except OSError: print(n if n <= 25 else f'ESCAPED {n}')",
        limits={"pids": 24},
        exit_codes=(0, 137),
    ),
    Attack(
        name="fork bomb that never stops",
        code="#!sh\nf() { f | f & }; f; sleep 60",
        limits={"pids": 24, "wall_s": 1},
        exit_codes=(2, 127, 137, 254),
    ),
    Attack(
        name="fork bomb of processes that replace themselves",
        code="while True:\n    try:\n        if os.fork(): os._exit(0)\n    except OSError: pass",
        limits={"pids": 24, "wall_s": 1},
        exit_codes=(0, 137),
    ),
    Attack(
        name="thread bomb",
        code="import threading, time\nn = 0\ntry:\n    while True:\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1\n"
        "except RuntimeError: print('ESCAPED' if n > 40 else 'refused', flush=True)\nos._exit(0)",
        limits={"pids": 32},
        exit_codes=(0, 137),
    ),
    Attack(
        name="memory at once",
        code="x = bytearray(400 << 20)\nimport time; time.sleep(30)",
        limits={"memory_mb": 128},
        verdict=OOM,
        exit_codes=KILLED,
    ),
    Attack(
        name="memory little by little",
        code="x = []\nwhile True: x.append('y' * 1_000_000 + str(len(x)))",
        limits={"memory_mb": 128},
        verdict=OOM,
        exit_codes=KILLED,
    ),
    Attack(
        name="memory of many processes",
        code="import time\nfor n in range(4): os.fork()\nx = bytearray(range(256)) * 40_000\ntime.sleep(30)",
        limits={"memory_mb": 96},
        verdict=OOM,
        exit_codes=KILLED,
    ),
    Attack(
        name="memory in files",
        code="with open('/tmp/a', 'wb') as a, open('/workspace/b', 'wb') as b, open('/dev/shm/c', 'wb') as c:\n"
        "    for n in range(60):\n        for file in (a, b, c): file.write(os.urandom(1 << 20))\n"
        "import time; time.sleep(30)",
        limits={"memory_mb": 100, "disk_mb": 64},
        verdict={"oom": True},
        exit_codes=KILLED,
    ),
    *(
        Attack(
            name=f"disk hog in {place}",
            code=f"written = 0\ntry:\n    for n in range(64):\n        with open('{place}/' + str(n), 'wb') as file:\n"
            "            file.write(bytes(1 << 20))\n            written += 1\n"
            "except OSError as error: print(error.errno, 'ESCAPED' if written > 8 else '')",
            limits={"disk_mb": 8},
            says=r"28",
        )
        for place in ("/workspace", "/tmp", "/dev/shm")
    ),
    Attack(
        name="one file that never ends",
        code="#!sh\ntrap '' XFSZ; cat /dev/zero >big; du -m big | cut -f1",
        limits={"disk_mb": 8},
        says=r"[78]\n",
    ),
    Attack(
        name="sparse file of a terabyte",
        code="attempt(lambda: os.truncate('big', 1 << 40) or os.stat('big').st_size, 'truncate')",
        files=(),
        exit_codes=(0, 153),
    ),
    Attack(
        name="as many files as fit",
        code="n = 0\ntry:\n    while n < 30_000: open(f'/workspace/{n}', 'w').close(); n += 1\nexcept OSError: pass\n"
        "print('done')",
        verdict={"truncated": True},
        says="done",
    ),
    Attack(
        name="folders in one another",
        code="n = 0\ntry:\n    while n < 3_000: os.mkdir('d'); os.chdir('d'); n += 1\nexcept OSError: pass\n"
        "open('deep', 'w').close(); print('done')",
        verdict={"truncated": True},
        says="done",
    ),
    Attack(
        name="output without end",
        code="#!sh\nexec yes",
        limits={"output_kb": 16, "wall_s": 40},
        verdict={"truncated": True, "timed_out": False},
        exit_codes=KILLED,
    ),
    Attack(
        name="one line without end on stderr",
        code="while True: sys.stderr.write('x' * 100_000)",
        limits={"output_kb": 16, "wall_s": 40},
        verdict={"truncated": True, "timed_out": False},
        exit_codes=KILLED,
    ),
    Attack(
        name="a zip bomb unpacked",
        code="import io, zipfile\ndata = io.BytesIO()\nwith zipfile.ZipFile(data, 'w', zipfile.ZIP_DEFLATED) as file:\n"
        "    with file.open('bomb', 'w', force_zip64=True) as out:\n"
        "        for n in range(100): out.write(bytes(1 << 20))\n"
        "print(len(data.getvalue()) < 1 << 20)\ntry: zipfile.ZipFile(data).extractall('.')\n"
        "except OSError as error: print(error.errno)",
        limits={"disk_mb": 16},
        verdict={"truncated": False},
        says=r"True\n(27|28)",
    ),
    Attack(
        name="a loop that ignores every signal",
        code="import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        limits={"wall_s": 0.5},
        verdict=OVER,
        exit_codes=KILLED,
        within_s=20,
    ),
    Attack(
        name="a sleep for ever in a session of its own",
        code="#!sh\nsetsid sleep 1000 & setsid sleep 1000",
        limits={"wall_s": 0.5},
        verdict=OVER,
        exit_codes=KILLED,
        within_s=20,
    ),
    Attack(
        name="descriptors without end",
        code="n = 0\ntry:\n    while n < 100_000: os.open('/dev/null', 0); n += 1\nexcept OSError: pass\n"
        "print('ESCAPED' if n > 2_000 else 'refused')",
        says="refused",
    ),
    Attack(
        name="pipes full of data",
        code="n = 0\ntry:\n    while n < 100_000:\n        r, w = os.pipe(); os.set_blocking(w, False)\n"
        "        os.write(w, bytes(65536)); n += 1\nexcept OSError: pass\nprint('ESCAPED' if n > 1_000 else 'refused')",
        says="refused",
    ),
    Attack(
        name="limits raised from within",
        code="import resource as r\nfor what in (r.RLIMIT_FSIZE, r.RLIMIT_CORE, r.RLIMIT_NOFILE):\n"
        "    attempt(lambda: r.setrlimit(what, (1 << 40, 1 << 40)), 'setrlimit')\nprint('end')",
        says=r"(refused: \w+\n){3}end",
    ),
)
