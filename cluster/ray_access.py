"""Close the Ray that rayloom starts to other users of the machine: its token, and the folder of its files.

Ray 2.60 makes each of its folders with mode 0777. Other users stay out only where they can't enter the folder above.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from rayloom.cluster.checks import StartRefused
from rayloom.cluster.home import Home, RunningInstance
from rayloom.cluster.settings import Settings

TOKEN: Final = "ray_auth_token"
_FOREIGN: Final = ("RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Variables that Ray prefers to ours, or takes for the cluster to join."""
_SOCKET_PATH_BYTES: Final = 107
_LONGEST_SOCKET: Final = "/session_2026-12-02_19-40-39_817394_4194304/sockets/dash_MetricsHead"
_ANSWER_S: Final = 10.0
_ALIVE: Final = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def token_file(home: Home) -> Path:
    """Return where the token of Ray is kept in this home."""
    return home.path / TOKEN


def set_authentication(settings: Settings, home: Home) -> None:
    """Set the variables that decide who may use Ray, for this process and all that it starts.

    Call it before Ray is imported. On a given cluster the user's own variables hold. Raises HomeError.
    """
    if settings.ray_address:
        return
    for name in (*_FOREIGN, "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)
    os.environ["RAY_AUTH_MODE"] = settings.ray_auth
    if settings.ray_auth == "token":
        home.secret(TOKEN)
        token_file(home).chmod(0o600)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file(home))


def temporary_folder() -> Path:
    """Return the folder for the sessions of Ray: sockets, logs, spilled objects. Only this user can enter it.

    Raises StartRefused.
    """
    given = os.environ.get("RAY_TMPDIR")
    above = Path(given or tempfile.gettempdir())
    if not _is_closed(above):
        above = _closed_in(above)
        if not given and len(os.fsencode(f"{above}/ray{_LONGEST_SOCKET}")) > _SOCKET_PATH_BYTES:
            above = _closed_in(Path("/tmp"))
    return above / "ray"


def _closed_in(folder: Path) -> Path:
    closed = folder / f"rayloom-{os.geteuid()}"
    try:
        closed.mkdir(mode=0o700, exist_ok=True)
        found = closed.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            closed.chmod(0o700)
            return closed
    except OSError as error:
        raise StartRefused(
            f"{closed} can't be made for Ray's files ({error.strerror}): set RAY_TMPDIR to a folder of your own"
        ) from None
    raise StartRefused(f"{closed} belongs to another user: remove it, or set RAY_TMPDIR to a folder of your own")


def _is_closed(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def refuse_wrong_token(address: str) -> None:
    """Raise StartRefused where the Ray cluster at ``host:port`` refuses what this process would show it.

    Ray itself would try for 21 s, and then name no reason. Addresses of another form are left to Ray.
    """
    if "://" in address or ":" not in address:
        return
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel
    from ray.exceptions import AuthenticationError

    try:
        with init_grpc_channel(address) as channel:
            channel.unary_unary(_ALIVE)(b"", timeout=_ANSWER_S)
    except AuthenticationError:
        raise StartRefused(_no_token(address)) from None
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise StartRefused(_refused(address)) from None


def _no_token(address: str) -> str:
    return (
        f"RAY_AUTH_MODE=token, and there is no token for the Ray cluster at {address}: "
        "let RAY_AUTH_TOKEN_PATH name the file that holds the cluster's token"
    )


def _refused(address: str) -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return (
            f"the Ray cluster at {address} asks for a token, and RAY_AUTH_MODE is not token: "
            "set RAY_AUTH_MODE=token, and let RAY_AUTH_TOKEN_PATH name the file that holds the cluster's token"
        )
    return (
        f"the Ray cluster at {address} refuses the token of {_source()}: "
        "let RAY_AUTH_TOKEN_PATH name the file that holds the cluster's own"
    )


def _source() -> str:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    return os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"


def shell_variables(settings: Settings, running: RunningInstance | None) -> dict[str, str | None]:
    """Return the variables with which other programs find this rayloom and its Ray; None for one to unset.

    No value is a secret. ``running``: what `up` wrote down; None where none runs.
    """
    found: dict[str, str | None] = {
        "RAYLOOM_HOME": str(settings.home),
        "RAYLOOM_URL": running.url if running else settings.api_url,
    }
    dashboard = running.urls.get("ray") if running else None
    if settings.ray_address:
        return found | ({"RAY_ADDRESS": dashboard} if dashboard else {})
    found |= dict.fromkeys(_FOREIGN)
    found["RAY_ADDRESS"] = dashboard or f"http://127.0.0.1:{settings.ray_dashboard_port}"
    mode = (running.ray_auth if running else "") or settings.ray_auth
    found["RAY_AUTH_MODE"] = mode
    found["RAY_AUTH_TOKEN_PATH"] = str(token_file(Home(settings.home))) if mode == "token" else None
    return found
