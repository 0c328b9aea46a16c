"""Values from all sources: who wins, what is refused, and what is said about it."""

import os
from pathlib import Path

import pytest

from pggit_reactor.config.legacy import HONOURED, REPORTED
from pggit_reactor.config.load import Loaded, default_worker_id, load_settings
from pggit_reactor.config.settings import LogFormat, LogLevel, Settings
from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError

SECRET_TEXT = "hunter22-correct-horse"
DSN = f"postgresql://worker:{SECRET_TEXT}@db.example.com/pggit"
KEY_LINE = f"k1:passphrase:{SECRET_TEXT}"


@pytest.fixture
def toml(tmp_path: Path):
    def write(text: str, mode: int = 0o600) -> Path:
        path = tmp_path / "reactor.toml"
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path

    return write


@pytest.fixture
def secret_file(tmp_path: Path):
    def write(text: str, name: str = "secret", mode: int = 0o600) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path

    return write


def load(toml_path: Path | None = None, overrides: dict[str, object] | None = None, **environ: str) -> Loaded:
    return load_settings(environ=environ, toml_path=toml_path, overrides=overrides or {})


def refusal(toml_path: Path | None = None, overrides: dict[str, object] | None = None, **environ: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(toml_path, overrides, **environ)
    assert SECRET_TEXT not in str(caught.value)
    return str(caught.value)


def test_without_any_source_all_is_default_but_the_workers_id():
    loaded = load()

    assert loaded.settings.worker.worker_id.endswith(f"-{os.getpid()}")
    assert loaded.settings.delivery == Settings().delivery
    assert loaded.settings.database == Settings().database
    assert loaded.warnings == ()
    assert loaded.sources == {}


def test_a_workers_id_is_its_host_and_process():
    assert default_worker_id("db1", 42) == "db1-42"
    assert load(PGGIT_REACTOR_WORKER_ID="blue").settings.worker.worker_id == "blue"


def test_sources_win_in_rising_order(toml):
    """Each setting is left to one source more than the one before it."""
    path = toml("[worker]\npoll_seconds = 2\ndrain_seconds = 2\nattempts_max = 2\n")
    variables = {"PGGIT_REACTOR_WORKER_DRAIN_SECONDS": "3", "PGGIT_REACTOR_WORKER_ATTEMPTS_MAX": "3"}

    loaded = load(path, {"worker.attempts_max": 4}, **variables)

    worker = loaded.settings.worker
    assert (worker.lease_seconds, worker.poll_seconds, worker.drain_seconds, worker.attempts_max) == (
        30,
        2,
        3,
        4,
    )
    assert loaded.warnings == ()
    assert loaded.sources == {
        "worker.poll_seconds": f"{path}: worker.poll_seconds",
        "worker.drain_seconds": "PGGIT_REACTOR_WORKER_DRAIN_SECONDS",
        "worker.attempts_max": "flag for worker.attempts_max",
    }


def test_the_file_holds_every_kind_of_value(toml, tmp_path):
    loaded = load(
        toml(
            f"""
            postgres_bin = "bin"
            [database]
            url = "{DSN}"
            [delivery]
            timeout_seconds = 2
            backoff_base_seconds = 0.5
            [egress]
            ports = [443, 8443]
            allow = "198.51.100.0/24"
            unsafe_allow = ["127.0.0.0/8:*", "[::1]:*"]
            [log]
            level = "debug"
            format = "json"
            """
        )
    )

    settings = loaded.settings
    assert settings.postgres_bin == tmp_path / "bin"
    assert settings.database.url == Secret(DSN)
    assert settings.database.listen_url == Secret(DSN)
    assert settings.delivery.timeout_seconds == 2
    assert settings.delivery.backoff_base_seconds == 0.5
    assert settings.egress.ports == "443,8443"
    assert settings.egress.unsafe_allow == "127.0.0.0/8:*,[::1]:*"
    assert settings.egress.rules().ports == {443, 8443}
    assert (settings.log.level, settings.log.format) == (LogLevel.DEBUG, LogFormat.JSON)


def test_variables_are_read_as_what_they_plainly_are():
    settings = load(
        PGGIT_REACTOR_DATABASE_URL="host=db dbname=pggit",
        PGGIT_REACTOR_DATABASE_LISTEN_URL="host=direct",
        PGGIT_REACTOR_DELIVERY_TIMEOUT_SECONDS=" 2.5 ",
        PGGIT_REACTOR_METRICS_PORT="0",
        PGGIT_REACTOR_LOG_LEVEL="WARN",
        PGGIT_REACTOR_POSTGRES_BIN="/opt/pg/bin",
        PGGIT_REACTOR_MASTER_KEY=KEY_LINE,
    ).settings

    assert settings.database.url == Secret("host=db dbname=pggit")
    assert settings.database.listen_url == Secret("host=direct")
    assert settings.delivery.timeout_seconds == 2.5
    assert settings.metrics.port == 0
    assert settings.log.level is LogLevel.WARNING
    assert settings.postgres_bin == Path("/opt/pg/bin")
    assert settings.keys.master_key == Secret(KEY_LINE)


def test_a_flag_that_was_not_given_sets_nothing():
    loaded = load(None, {"worker.processes": None, "metrics.port": 9000, "log.format": "console"})

    assert loaded.settings.worker.processes == 1
    assert loaded.settings.metrics.port == 9000
    assert loaded.settings.log.format is LogFormat.CONSOLE


def test_an_empty_variable_counts_as_not_set(toml):
    """Compose passes `NAME=` for what nobody set."""
    path = toml('[delivery]\ntimeout_seconds = 2\n[egress]\nports = "8443"\n')

    loaded = load(
        path,
        PGGIT_REACTOR_DELIVERY_TIMEOUT_SECONDS="",
        PGGIT_REACTOR_EGRESS_PORTS=" ",
        PGGIT_REACTOR_MASTER_KEY="",
        PGGIT_REACTOR_MASTER_KEY_FILE="",
        DATABASE_URL="",
        HTTP_TIMEOUT="",
        BATCH_SIZE="",
    )

    assert loaded.settings.delivery.timeout_seconds == 2
    assert loaded.settings.egress.ports == "8443"
    assert loaded.settings.keys.master_key is None
    assert loaded.warnings == ()


def test_an_empty_variable_empties_a_list(toml):
    path = toml('[egress]\nunsafe_allow = "127.0.0.0/8:*"\n')

    assert load(path, PGGIT_REACTOR_EGRESS_UNSAFE_ALLOW="").settings.egress.unsafe_allow == ""


# ---- secrets in files -----------------------------------------------------------------------------------


def test_a_secret_comes_from_a_file_that_a_variable_names(secret_file):
    path = secret_file(KEY_LINE + "\n")

    loaded = load(PGGIT_REACTOR_MASTER_KEY_FILE=str(path))

    assert loaded.settings.keys.master_key == Secret(KEY_LINE)
    assert loaded.sources == {"keys.master_key": f"PGGIT_REACTOR_MASTER_KEY_FILE ({path})"}


def test_a_secret_comes_from_a_file_that_the_settings_file_names(toml, secret_file):
    secret_file(DSN, name="dsn")

    assert load(toml('[database]\nurl_file = "dsn"\n')).settings.database.url == Secret(DSN)


def test_of_a_variable_and_its_file_the_file_wins_and_a_difference_is_told(secret_file):
    path = secret_file(KEY_LINE)
    other = load(
        PGGIT_REACTOR_MASTER_KEY="k2:passphrase:" + SECRET_TEXT, PGGIT_REACTOR_MASTER_KEY_FILE=str(path)
    )
    same = load(PGGIT_REACTOR_MASTER_KEY=KEY_LINE, PGGIT_REACTOR_MASTER_KEY_FILE=str(path))

    assert other.settings.keys.master_key == Secret(KEY_LINE)
    place = f"PGGIT_REACTOR_MASTER_KEY_FILE ({path})"
    assert other.warnings == (f"PGGIT_REACTOR_MASTER_KEY differs from {place}, which wins (keys.master_key)",)
    assert same.warnings == ()


def test_a_secret_file_that_cannot_be_used_is_an_error_that_names_the_variable(secret_file, tmp_path):
    readable = secret_file(KEY_LINE, mode=0o644)

    assert "everybody may read it (mode 0644); right is mode 0600" in refusal(
        PGGIT_REACTOR_MASTER_KEY_FILE=str(readable)
    )
    missing = refusal(PGGIT_REACTOR_MASTER_KEY_FILE=str(tmp_path / "no"))
    assert (
        missing
        == f"PGGIT_REACTOR_MASTER_KEY_FILE: {tmp_path / 'no'} cannot be read: No such file or directory"
    )


def test_a_key_in_a_settings_file_that_others_may_read_is_refused(toml):
    text = f'[keys]\nmaster_key = "{KEY_LINE}"\n'

    assert "keys.master_key: is a secret in a file where everybody may read it" in refusal(toml(text, 0o644))
    assert load(toml(text, 0o600)).settings.keys.master_key == Secret(KEY_LINE)


def test_a_database_password_in_such_a_file_is_told(toml):
    with_password = load(toml(f'[database]\nurl = "{DSN}"\n', 0o644))
    without = load(toml('[database]\nurl = "host=db"\n', 0o644))

    assert len(with_password.warnings) == 1
    assert "database.url: holds a password in a file where everybody may read it" in with_password.warnings[0]
    assert without.warnings == ()


# ---- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[worker]\nattempts_max = true", "True is not a whole number; right is 1 to 65536"),
        ('[worker]\nattempts_max = "256"', "'256' is not a whole number"),
        ('[delivery]\nhealth_prediction = "true"', "'true' is neither true nor false"),
        ("[delivery]\nhealth_prediction = 1", "1 is neither true nor false"),
        ("[worker]\nattempts_max = 256.0", "256.0 is not a whole number"),
        ("[worker]\npoll_seconds = false", "False is not a plain number; right is 0.1 to 3600 s"),
        ('[worker]\npoll_seconds = "5"', "'5' is not a plain number"),
        ("[worker]\npoll_seconds = nan", "nan is not a finite number"),
        (f"[worker]\npoll_seconds = 1{'0' * 400}", "is not a number of any use"),
        ("[worker]\nid = 7", "7 is not text; right is the same in quotes"),
        ("[worker]\nid = [1]", "[1] is not text"),
        ("[log]\nlevel = 3", "3 is not one of debug, info, warning, error, critical"),
        ("[egress]\nports = 443", "443 is not a list; right is an array, or text with commas"),
        ("[egress]\nports = [443.0]", "443.0 is not an entry"),
        ('[egress]\nallow = ["10.0.0.0/8,11.0.0.0/8"]', "is not an entry"),
        ("[egress]\nports = []", "names no port"),
        ("[database]\nurl = 5", "is empty or no text (it is a secret and not shown)"),
        ("[database]\nurl = ['hunter22-correct-horse']", "is empty or no text"),
        ("postgres_bin = 5", "5 is not a path"),
        ("[keys]\nmaster_key_file = 5", "is not the path of a file, in quotes"),
    ],
)
def test_the_file_gives_typed_values_and_nothing_is_guessed(toml, line, complaint):
    path = toml(line)

    text = refusal(path)

    assert text.startswith(f"{path}: ")
    assert complaint in text


@pytest.mark.parametrize("text", ["1_000", "0x10", "ten", "5s", "1e3", "²", "9" * 5000, "--1"])
def test_text_that_is_no_plain_whole_number_is_refused(text):
    assert "is not a whole number; right is 1 to 65536" in refusal(PGGIT_REACTOR_WORKER_ATTEMPTS_MAX=text)


@pytest.mark.parametrize("text", ["nan", "inf", "1_0.5", "30s", "0x1p3", "1e999", "5,5", "9" * 5000])
def test_text_that_is_no_plain_number_is_refused(text):
    assert refusal(PGGIT_REACTOR_WORKER_POLL_SECONDS=text).startswith("PGGIT_REACTOR_WORKER_POLL_SECONDS: ")


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("PGGIT_REACTOR_WORKER_POL_SECONDS", "PGGIT_REACTOR_WORKER_POLL_SECONDS"),
        ("PGGIT_REACTOR_TIMEOUT_SECONDS", "PGGIT_REACTOR_DELIVERY_TIMEOUT_SECONDS"),
        ("PGGIT_REACTOR_KEYS_MASTER_KEY", "PGGIT_REACTOR_MASTER_KEY"),
        ("pggit_reactor_worker_id", "PGGIT_REACTOR_WORKER_ID"),
        ("PGGIT_REACTOR_LOG_LEVEL_FILE", "PGGIT_REACTOR_LOG_LEVEL"),
    ],
)
def test_an_unknown_variable_of_ours_is_an_error_with_a_guess(name, guess):
    text = refusal(**{name: SECRET_TEXT})

    assert text.startswith(f"{name}: ")
    assert text.endswith(f"; did you mean {guess}?")


def test_a_name_that_is_like_nothing_gets_no_guess():
    assert refusal(PGGIT_REACTOR_QQQQQQQQ="1") == "PGGIT_REACTOR_QQQQQQQQ: there is no such setting"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (
            "[worker]\npol_seconds = 1",
            "worker.pol_seconds: there is no such setting; did you mean worker.poll_seconds?",
        ),
        ("poll_seconds = 1", "poll_seconds: there is no such setting; did you mean worker.poll_seconds?"),
        ("[workers]\npoll_seconds = 1", "there is no section [workers]; did you mean worker?"),
        ("worker = 1", "worker is a section; right is [worker] and its settings below it"),
        ("[worker.poll_seconds]\nx = 1", "{'x': 1} is not a plain number"),
        ("[worker]\npoll_seconds_file = 'x'", "there is no such setting; did you mean worker.poll_seconds?"),
        ("[worker", "is not TOML: "),
    ],
)
def test_an_unknown_name_in_the_file_is_an_error_with_a_guess(toml, line, complaint):
    assert complaint in refusal(toml(line))


def test_an_unknown_flag_is_an_error_with_a_guess():
    text = refusal(None, {"worker.proceses": 2})

    assert text == "flag for worker.proceses: there is no such setting; did you mean worker.processes?"


def test_a_file_that_is_missing_too_large_or_not_text_is_an_error(toml, tmp_path):
    assert "no.toml: cannot be read: No such file" in refusal(tmp_path / "no.toml")
    assert "is larger than 1048576 bytes" in refusal(toml("#" * 1_048_577))
    path = toml("")
    path.write_bytes(b"\xff\xfe")
    assert "is not text; right is UTF-8" in refusal(path)


def test_all_errors_are_told_at_once_each_with_its_place(toml):
    path = toml("[worker]\npoll_seconds = 0\nlaese_seconds = 5\n")

    lines = refusal(
        path,
        {"worker.processes": 0},
        PGGIT_REACTOR_METRICS_PORT="eighty",
        PGGIT_REACTOR_LOG_LEVEL="loud",
        DATABASE_URL=f"mysql://root:{SECRET_TEXT}@db/x",
        PGGIT_REACTOR_DELIVERY_TIMEOUT_SECONDS="20",
        PGGIT_REACTOR_WORKER_LEASE_SECONDS="10",
    ).splitlines()

    assert lines[0] == "7 settings are wrong:"
    starts = [line.strip().split(": ")[0] for line in lines[1:]]
    assert starts.count(str(path)) == 2
    assert set(starts) == {
        str(path),
        "flag for worker.processes",
        "PGGIT_REACTOR_METRICS_PORT",
        "PGGIT_REACTOR_LOG_LEVEL",
        "DATABASE_URL",
        "worker.lease_seconds",
    }


def test_a_rule_about_two_settings_names_the_places_of_both():
    text = refusal(None, {"worker.lease_seconds": 10}, HTTP_TIMEOUT="8")

    assert (
        "worker.lease_seconds: 10 is too little for delivery.timeout_seconds 8; right is 11 s or more" in text
    )
    assert text.endswith(
        "(worker.lease_seconds is from flag for worker.lease_seconds, "
        "delivery.timeout_seconds is from HTTP_TIMEOUT)"
    )


# ---- other names and those of the original worker -------------------------------------------------------


def test_the_plain_database_url_will_do():
    loaded = load(DATABASE_URL=DSN)

    assert loaded.settings.database.url == Secret(DSN)
    assert loaded.warnings == ()


def test_our_own_database_url_wins_and_a_difference_is_told_without_either():
    loaded = load(DATABASE_URL=DSN, PGGIT_REACTOR_DATABASE_URL="host=db")
    same = load(DATABASE_URL=DSN, PGGIT_REACTOR_DATABASE_URL=DSN)

    assert loaded.settings.database.url == Secret("host=db")
    assert loaded.warnings == (
        "DATABASE_URL differs from PGGIT_REACTOR_DATABASE_URL, which wins (database.url)",
    )
    assert same.warnings == ()


def test_a_plain_database_url_of_another_program_does_no_harm_beside_ours():
    loaded = load(DATABASE_URL="mysql://root@db/shop", PGGIT_REACTOR_DATABASE_URL="host=db")

    assert loaded.settings.database.url == Secret("host=db")
    assert len(loaded.warnings) == 1


def test_the_variables_of_the_original_worker_are_honoured():
    settings = load(
        WORKER_ID="worker-1",
        POLL_INTERVAL="0.5",
        HTTP_TIMEOUT="3.0",
        LOG_LEVEL="Warning",
        METRICS_PORT="8001",
        RATE_LIMIT_RPS="10",
    ).settings

    assert settings.worker.worker_id == "worker-1"
    assert settings.worker.poll_seconds == 0.5
    assert settings.delivery.timeout_seconds == 3
    assert settings.log.level is LogLevel.WARNING
    assert settings.metrics.port == 8001
    assert settings.delivery.rate_per_s == 10


def test_our_own_name_wins_over_a_legacy_one_and_only_a_difference_is_told(toml):
    path = toml("[delivery]\ntimeout_seconds = 4\n")

    loaded = load(path, HTTP_TIMEOUT="3", LOG_LEVEL="INFO", PGGIT_REACTOR_LOG_LEVEL="info")

    assert loaded.settings.delivery.timeout_seconds == 4
    assert loaded.warnings == (
        f"HTTP_TIMEOUT differs from {path}: delivery.timeout_seconds, which wins (delivery.timeout_seconds)",
    )


def test_a_flag_overrules_a_legacy_variable_without_a_word():
    assert load(None, {"metrics.port": 9000}, METRICS_PORT="8001").warnings == ()


def test_a_bad_legacy_value_is_refused_and_the_way_out_is_named():
    assert refusal(HTTP_TIMEOUT="30") == (
        "HTTP_TIMEOUT: 30 is too much; right is 0.1 to 20 s "
        "(or set PGGIT_REACTOR_DELIVERY_TIMEOUT_SECONDS, which wins)"
    )


@pytest.mark.parametrize("name", sorted(REPORTED))
def test_a_legacy_variable_without_effect_is_reported_and_never_quoted(name):
    (warning,) = load(**{name: SECRET_TEXT}).warnings

    assert warning.startswith(f"{name} has no effect: ")
    assert SECRET_TEXT not in warning


def test_all_of_datadogs_variables_are_one_line():
    loaded = load(DD_API_KEY=SECRET_TEXT, DD_SERVICE="x")

    assert [warning.split()[0] for warning in loaded.warnings] == ["DD_*"]


LEGACY_NAMES = """
    WORKER_ID WORKER_COUNT BATCH_SIZE POLL_INTERVAL HTTP_TIMEOUT LOG_LEVEL METRICS_PORT MAX_RETRIES
    RATE_LIMIT_RPS CIRCUIT_BREAKER_FAILURE_THRESHOLD CIRCUIT_BREAKER_TIMEOUT_SECONDS DB_POOL_MIN DB_POOL_MAX
    DB_CONNECT_TIMEOUT HTTPS_ONLY TLS_MIN_VERSION MIN_TLS_VERSION CERT_PIN_HASHES CERTIFICATE_PIN_HASHES
    ENCRYPTION_MASTER_KEY WEBHOOK_ENCRYPTION_KEY WEBHOOK_SIGNING_SECRET JWT_SECRET JWT_SECRET_KEY
    BEARER_TOKEN_EXPIRY_HOURS RATE_LIMIT_GLOBAL_RPS RATE_LIMIT_PER_REQUESTER_RPS REDIS_URL AUDIT_LOG_ENABLED
    AUDIT_LOG_RETENTION_DAYS KEY_ROTATION_INTERVAL_DAYS KEY_ROTATION_GRACE_PERIOD_DAYS PROMETHEUS_ENABLED
    PROMETHEUS_PORT SENTRY_DSN
"""


def test_no_variable_of_the_original_worker_is_ignored():
    """LEGACY 9, read and documented alike."""

    assert set(LEGACY_NAMES.split()) <= set(HONOURED) | set(REPORTED)
    assert not set(HONOURED) & set(REPORTED)


def test_no_secret_shows_in_what_was_loaded():
    loaded = load(
        DATABASE_URL=DSN,
        PGGIT_REACTOR_MASTER_KEY=KEY_LINE,
        PGGIT_REACTOR_API_TOKEN_KEY=SECRET_TEXT,
        PGGIT_REACTOR_DATABASE_LISTEN_URL=DSN + "?sslmode=require",
    )

    assert SECRET_TEXT not in repr(loaded)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("On", True), ("1", True), ("false", False), (" OFF ", False), ("0", False)],
)
def test_a_switch_may_be_written_in_words_of_a_variable(text, value):
    loaded = load_settings(environ={"PGGIT_REACTOR_DELIVERY_HEALTH_PREDICTION": text})

    assert loaded.settings.delivery.health_prediction is value
