"""Settings: every source, their order, names that are refused or ignored, and messages that hold no secret."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from rayloom.cluster.settings import Settings, SettingsError, load_settings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def load(home: Path, folder: Path | None = None, /, **environ: str) -> Settings:
    return load_settings(folder, environ={"RAYLOOM_HOME": str(home), **environ})


def refused(home: Path, folder: Path | None = None, /, **environ: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(home, folder, **environ)
    assert all("\n" not in line for line in caught.value.lines)
    return caught.value.lines


def test_defaults_are_those_of_the_contract(home: Path) -> None:
    settings = load(home)
    assert (settings.host, settings.port, settings.api_url) == ("127.0.0.1", 8000, "http://127.0.0.1:8000")
    assert not settings.database.dsn_given
    assert not settings.redis.dsn_given
    assert (settings.sandbox, settings.log_store, settings.blob_store) == ("auto", "postgres", "postgres")
    assert settings.demo
    assert settings.skills_dir == home / "skills"
    assert (settings.database.pool_size, settings.database.max_overflow, settings.database.worker_pool_size) == (
        20,
        10,
        2,
    )
    assert (settings.engine.retry_initial_s, settings.engine.retry_max_s, settings.engine.lane) == (1, 60, "auto")
    assert settings.ray_num_cpus is None


def test_home_is_below_the_users_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings(environ={}).home == tmp_path / ".rayloom"


def test_the_first_source_that_names_a_setting_wins(home: Path, here: Path) -> None:
    (home / "rayloom.toml").write_text("port = 1\nretry_max_s = 11\n")
    assert load(home, here).port == 1
    (home / ".env").write_text("RAYLOOM_PORT=2\n")
    assert load(home, here).port == 2
    (here / "rayloom.toml").write_text('RAYLOOM_PORT = "3"\n')
    assert load(home, here).port == 3
    (here / ".env").write_text("export RAYLOOM_PORT='4'\nOTHER=x\n")
    assert load(home, here).port == 4
    assert load(home, here, RAYLOOM_PORT="5").port == 5
    environ = {"RAYLOOM_HOME": str(home), "RAYLOOM_PORT": "5"}
    assert load_settings(here, environ=environ, port=6).port == 6
    assert load_settings(here, environ=environ, port=None).port == 5
    # What only the lowest source names still counts.
    assert load(home, here, RAYLOOM_PORT="5").retry_max_s == 11


def test_a_jobs_own_folder_is_never_read(home: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / ".env").write_text("RAYLOOM_PORT=4\nRAYLOOM_NONSENSE=1\n")
    (here / "rayloom.toml").write_text("this is not TOML")
    monkeypatch.chdir(here)
    assert load(home).port == 8000


def test_home_may_be_named_by_the_folder_of_up(home: Path, here: Path) -> None:
    (here / "rayloom.toml").write_text('home = "../home"\n')
    (home / ".env").write_text("RAYLOOM_PORT=7\n")
    settings = load_settings(here, environ={})
    assert (settings.home, settings.port) == (home, 7)


def test_home_can_not_be_named_by_its_own_files(home: Path) -> None:
    (home / ".env").write_text("RAYLOOM_HOME=/elsewhere\n")
    assert "can't be set in" in refused(home)[0]


def test_an_empty_value_means_the_default_whatever_others_say(home: Path) -> None:
    (home / ".env").write_text("RAYLOOM_DATABASE_URL=postgresql://u:p@db/x\nRAYLOOM_PORT=9\n")
    settings = load(home, RAYLOOM_DATABASE_URL="", RAYLOOM_PORT="", RAYLOOM_RAY_NUM_CPUS="")
    assert not settings.database.dsn_given
    assert settings.port == 8000


@pytest.mark.parametrize("spelling", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_any_spelling_of_a_database_url_becomes_asyncpgs(home: Path, spelling: str) -> None:
    settings = load(home, RAYLOOM_DATABASE_URL=f"{spelling}://u:p%40@db:5433/x?sslmode=require")
    assert settings.database.primary_dsn() == "postgresql+asyncpg://u:p%40@db:5433/x?ssl=require"


@pytest.mark.parametrize("user", ["", "u@", "u:p%40@"])
def test_a_database_url_may_lead_to_a_local_socket(home: Path, user: str) -> None:
    settings = load(home, RAYLOOM_DATABASE_URL=f"postgresql://{user}/db?host=/var/run/postgresql")
    url = make_url(settings.database.primary_dsn())
    assert (url.drivername, url.host, url.database) == ("postgresql+asyncpg", None, "db")
    assert url.query == {"host": "/var/run/postgresql"}


def test_lists_and_objects(home: Path, here: Path) -> None:
    settings = load(home, RAYLOOM_ALLOW_ADDRESSES="10.0.0.0/8, localhost:9000,", RAYLOOM_SQL_CONNECTIONS='{"a": "u"}')
    assert settings.allow_addresses == ("10.0.0.0/8", "localhost:9000")
    assert settings.tools.sql_connections["a"].get_secret_value() == "u"
    (here / "rayloom.toml").write_text('allow_addresses = ["h:1"]\n[sql_connections]\nb = "v"\n')
    settings = load(home, here)
    assert settings.tools.allow_addresses == ("h:1",)
    assert settings.tools.sql_connections["b"].get_secret_value() == "v"


def test_plans_begin_early_unless_that_is_switched_off(home: Path) -> None:
    assert load(home).engine.early_start
    assert not load(home, RAYLOOM_EARLY_START="0").engine.early_start


def test_who_wants_approval_and_for_how_long(home: Path) -> None:
    settings = load(home, RAYLOOM_APPROVAL_LEVELS="execute, admin", RAYLOOM_APPROVAL_TTL_S="60")
    assert settings.serve.approval_levels == settings.engine.approval_levels == ("execute", "admin")
    assert settings.engine.approval_ttl_s == 60
    assert load(home).engine.approval_levels == ()


def test_names_under_which_assistants_find_it(home: Path) -> None:
    settings = load(home, RAYLOOM_MCP_HOSTS="rayloom.default.svc, rayloom")
    assert settings.serve.mcp_hosts == ("rayloom.default.svc", "rayloom")
    assert load(home).serve.mcp_hosts == ()
    (line,) = refused(home, RAYLOOM_APPROVAL_LEVELS="all")
    assert line.startswith("RAYLOOM_APPROVAL_LEVELS=all in the environment: ")
    assert "'execute'" in line


def test_how_long_results_are_kept(home: Path) -> None:
    assert load(home).engine.cache_ttl_s == 3600
    assert load(home, RAYLOOM_CACHE_TTL_S="0").engine.cache_ttl_s == 0
    assert refused(home, RAYLOOM_CACHE_TTL_S="-1")[0].startswith("RAYLOOM_CACHE_TTL_S=-1 in the environment: ")


def test_addresses_that_mean_nothing_are_refused_with_what_is_accepted(home: Path) -> None:
    assert load(home, RAYLOOM_ALLOW_ADDRESSES="192.168.1.5/24").allow_addresses == ("192.168.1.5/24",)
    (line,) = refused(home, RAYLOOM_ALLOW_ADDRESSES="10.0.0.0/8,localhost")
    assert line == (
        "RAYLOOM_ALLOW_ADDRESSES=10.0.0.0/8,localhost in the environment: 'localhost' is none of host:port, address, "
        "address:port, [IPv6]:port and CIDR such as 10.0.0.0/8"
    )


def test_unknown_names_are_refused_with_the_nearest_valid_one(home: Path, here: Path) -> None:
    assert refused(home, RAYLOOM_PROT="1") == (
        "RAYLOOM_PROT in the environment is not a setting; did you mean RAYLOOM_PORT?",
    )
    (here / ".env").write_text("RAYLOOM_SANBOX=auto\n")
    assert "did you mean RAYLOOM_SANDBOX?" in refused(home, here)[0]
    (here / ".env").unlink()
    (here / "rayloom.toml").write_text("databse_url = 'x'\n")
    assert "did you mean database_url?" in refused(home, here)[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAYLOOM_SERVICE_HOST", "10.0.0.1"),
        ("RAYLOOM_SERVICE_PORT", "8000"),
        ("RAYLOOM_HEAD_SERVICE_PORT_DASHBOARD", "8265"),
        ("RAYLOOM_PORT", "tcp://10.0.0.1:8000"),
        ("RAYLOOM_RAY_DASHBOARD_PORT", "udp://10.0.0.1:8000"),
        ("RAYLOOM_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("RAYLOOM_REDIS_PORT", "tcp://10.0.0.1:6379"),
    ],
)
def test_service_links_of_kubernetes_are_ignored(home: Path, name: str, value: str) -> None:
    settings = load(home, **{name: value})
    assert (settings.port, settings.ray_dashboard_port) == (8000, 8265)


def test_what_is_not_ours_is_no_concern(home: Path) -> None:
    assert load(home, PORT="x", RAYLOOMX="y", MY_RAYLOOM_PORT="z").port == 8000


def test_every_fault_has_its_line_and_its_origin(home: Path, here: Path) -> None:
    (here / ".env").write_text("RAYLOOM_RETRY_MAX_S=never\n")
    lines = refused(home, here, RAYLOOM_PORT="70000", RAYLOOM_SANDBOX="box")
    assert len(lines) == 3
    assert any(line.startswith("RAYLOOM_PORT=70000 in the environment: ") for line in lines)
    assert any(line.startswith(f"RAYLOOM_RETRY_MAX_S=never in {here / '.env'}: ") for line in lines)
    assert any("'bubblewrap'" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAYLOOM_DATABASE_URL", "mysql://u:geheim@h/x"),
        ("RAYLOOM_DATABASE_URL", "postgresql://u:geheim@h"),
        ("RAYLOOM_DATABASE_URL", "postgresql://u:geheim@℀/x"),
        ("RAYLOOM_DATABASE_URL", "postgresql://u:geheim/geheim@h/x"),
        ("RAYLOOM_REDIS_URL", "http://:geheim@h"),
        ("RAYLOOM_LLM_BASE_URL", "ftp://u:geheim@h"),
        ("RAYLOOM_URL", "geheim"),
        ("RAYLOOM_SQL_CONNECTIONS", '{"a": "geheim"'),
        ("RAYLOOM_LLM_MODELS", '{"a": {"api_key": "geheim"}'),
        ("RAYLOOM_LLM_MODELS", '{"a": "geheim"}'),
        ("RAYLOOM_SQL_CONNECTIONS", '["geheim"]'),
        ("RAYLOOM_SQL_CONNECTIONS", '{"a": ["geheim"]}'),
    ],
)
def test_a_message_never_holds_a_secret(home: Path, name: str, value: str) -> None:
    lines = refused(home, **{name: value})
    assert lines[0].startswith(f"{name} in the environment: ")
    assert "geheim" not in "".join(lines)


def test_settings_never_print_a_secret(home: Path) -> None:
    settings = load(
        home,
        RAYLOOM_DATABASE_URL="postgresql://u:geheim@h/x",
        RAYLOOM_REDIS_URL="redis://:geheim@h",
        RAYLOOM_API_KEY="geheim",
        RAYLOOM_SECRET_KEY="geheim",
        RAYLOOM_LLM_BASE_URL="https://model.example/v1",
        RAYLOOM_LLM_MODEL="m",
        RAYLOOM_LLM_API_KEY="geheim",
        RAYLOOM_LLM_MODELS='{"b": {"base_url": "https://h/v1", "model": "m", "api_key": "geheim"}}',
        RAYLOOM_SQL_CONNECTIONS='{"a": "geheim"}',
    )
    parts = (
        settings,
        settings.database,
        settings.redis,
        settings.tools,
        settings.serve,
        settings.engine,
        settings.models,
    )
    assert "geheim" not in "".join(f"{part!r}{part}{part.model_dump_json()}" for part in parts)
    assert settings.redis.dsn() == "redis://:geheim@h"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAYLOOM_LOG_STORE", "loki"),
        ("RAYLOOM_LOG_STORE", "elasticsearch"),
    ],
)
def test_what_is_not_built_is_refused_and_not_pretended(home: Path, name: str, value: str) -> None:
    line = refused(home, **{name: value})[0]
    assert line.startswith(name)
    assert "built in this version" in line


@pytest.mark.parametrize(
    ("text", "said"), [("port = ", "is not valid TOML"), ("port = [1]", "RAYLOOM_PORT in ")], ids=["syntax", "type"]
)
def test_a_broken_file_is_named(home: Path, here: Path, text: str, said: str) -> None:
    (here / "rayloom.toml").write_text(text)
    line = refused(home, here)[0]
    assert said in line
    assert str(here / "rayloom.toml") in line


def test_a_file_in_another_encoding_is_named(home: Path, here: Path) -> None:
    (here / ".env").write_bytes(b"RAYLOOM_HOST=\xff\n")
    assert refused(home, here) == (f"{here / '.env'} can't be read: it is not UTF-8",)


def test_values_that_contradict_each_other(home: Path) -> None:
    assert "RAYLOOM_RETRY_MAX_S" in refused(home, RAYLOOM_RETRY_MAX_S="0.5")[0]
    assert "RAYLOOM_LEASE_S" in refused(home, RAYLOOM_LEASE_S="1")[0]


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000"), ("10.1.2.3", "http://10.1.2.3:8000")],
)
def test_clients_find_the_api_wherever_it_listens(home: Path, host: str, url: str) -> None:
    assert load(home, RAYLOOM_HOST=host).api_url == url
    named = load(home, RAYLOOM_HOST=host, RAYLOOM_URL="https://x.example/")
    assert (named.api_url, named.near_url) == ("https://x.example", url)


def test_tools_may_never_reach_our_own_database(home: Path) -> None:
    settings = load(home, RAYLOOM_DATABASE_URL="postgresql://u:p@h/x")
    assert [url.get_secret_value() for url in settings.tools.sql_forbidden_urls] == [settings.database.primary_dsn()]
    assert load(home).tools.sql_forbidden_urls == ()


def test_a_replica_is_handed_on_and_no_tool_reaches_it(home: Path) -> None:
    assert load(home).database.replica_url is None
    settings = load(home, RAYLOOM_DATABASE_REPLICA_URL="postgresql://u:p@replica/x", RAYLOOM_REPLICA_MAX_LAG_S="2.5")
    url = settings.database.replica_url
    assert url is not None
    assert url.get_secret_value() == "postgresql+asyncpg://u:p@replica/x"
    assert settings.database.replica_max_lag_s == 2.5
    assert url in settings.tools.sql_forbidden_urls
    assert "RAYLOOM_REPLICA_MAX_LAG_S" in refused(home, RAYLOOM_REPLICA_MAX_LAG_S="0")[0]


def test_settings_cross_processes(home: Path) -> None:
    settings = load(home, RAYLOOM_PORT="9", RAYLOOM_API_KEY="k")
    assert pickle.loads(pickle.dumps(settings)) == settings
    error = SettingsError(["a", "b"])
    assert pickle.loads(pickle.dumps(error)).lines == ("a", "b")


def test_an_unknown_argument_is_a_bug_of_the_caller() -> None:
    with pytest.raises(TypeError, match="prot"):
        load_settings(environ={}, prot=1)


def test_faults_are_a_seed_and_a_rate(home: Path) -> None:
    assert load(home, RAYLOOM_FAULTS="7:0.02").engine.faults == "7:0.02"
    (line,) = refused(home, RAYLOOM_FAULTS="often")
    assert line.startswith("RAYLOOM_FAULTS=often")
    assert "must be seed:rate" in line
