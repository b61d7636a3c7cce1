"""What the guardian holds in a machine of E2B, whatever its template lets anybody do."""

from __future__ import annotations

import pytest

from rayloom.dag.errors import UserError
from rayloom.tools.sandbox.e2b import E2b
from rayloom.tools.sandbox.sandbox import RunSpec
from rayloom.tools.settings import SandboxLimits
from tests.integration.tools import e2b_rig
from tests.integration.tools.hostile.attack import PRELUDE
from tests.integration.tools.sandboxes import ids_only

pytestmark = ids_only

_OVERWRITES = f"""{PRELUDE}
import encodings, json, stat
places = [encodings.__file__, json.__file__, os.path.realpath(sys.executable)]
print(sys.prefix, *(oct(stat.S_IMODE(os.stat(each).st_mode)) for each in places))
for path in (*places, sys.prefix + '/lib/new.py', '/usr/local/bin/python3', '/tmp/../x'):
    attempt(lambda: open(path, 'a').write('x'), path)
attempt(lambda: os.rename(os.path.dirname(json.__file__), sys.prefix + '/lib/moved'), 'rename')
attempt(lambda: os.chmod(json.__file__, 0o600), 'chmod')
for path in ('/tmp/x', '/dev/shm/x', '/workspace/x'):
    open(path, 'w').write('mine')
"""


async def test_an_interpreter_that_anybody_may_write_to_can_not_be_written_to() -> None:
    sandbox = E2b(e2b_rig.settings(template="loose"))
    result = await sandbox.run(RunSpec(program="python", source=_OVERWRITES.encode(), limits=SandboxLimits()))
    first, *lines = result.stdout.splitlines()
    assert first == "/usr/local 0o777 0o777 0o777", result.stderr
    assert "ESCAPED" not in result.stdout
    assert lines == ["refused: OSError"] * 8, result.stdout
    assert (result.exit_code, list(result.files)) == (0, ["x"]), result.stderr


async def test_input_that_finds_no_room_there_is_its_author_s_fault() -> None:
    spec = RunSpec(program="shell", source=b"cat", stdin=bytes(1 << 20), limits=SandboxLimits())
    with pytest.raises(UserError, match="/stdin") as error:
        await E2b(e2b_rig.settings(template="small")).run(spec)
    assert error.value.code == "FILES_TOO_LARGE"
    assert e2b_rig.machines() == {}
