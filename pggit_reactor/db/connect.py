"""Opens connections to PostgreSQL on Trio; the rooms above need nothing else of psycopg.

Names are resolved by Trio (libpq's own look-up blocks every task), hosts and addresses are tried one after
another with a limit for each, and TCP is told to notice a peer that died.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import psycopg
import trio
from psycopg._conninfo_utils import get_param, is_ip_address, split_attempts
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.connection import TrioConnection, TrioCursor
from pggit_reactor.db.translate import one_line, translate_errors
from pggit_reactor.db.waiting import drive_connecting
from pggit_reactor.errors import ConfigurationError, DatabaseUnavailableError

__all__ = [
    "TrioConnection",
    "TrioCursor",
    "connect",
    "connection_parameters",
    "open_connection",
    "translate_errors",
]

Parameters = dict[str, Any]

CONNECT_SECONDS: Final = 10.0

# A half-open connection is noticed within 5 + 3 x 3 seconds of silence; one with unanswered octets in 10.
_LIVENESS: Final[Mapping[str, str]] = {
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_PORT_DEFAULT: Final = "5432"


async def connect(
    dsn: Secret[str],
    *,
    application_name: str,
    options: Mapping[str, str] = {},
    connect_timeout_seconds: float = CONNECT_SECONDS,
    prepare_threshold: int | None = 5,
) -> TrioConnection:
    """Connect to the server that *dsn* names (URL or key=value form of libpq), in autocommit mode.

    Hosts are tried in their order, each address of each within *connect_timeout_seconds*; with
    ``target_session_attrs=read-write`` servers that refuse writes are passed over. *options* are session
    settings that hold from the start. *prepare_threshold* None prepares nothing, for poolers. Raises
    `DatabaseUnavailableError` that names every failure, `ConfigurationError` where *dsn* cannot be read.
    """
    failures: list[str] = []
    for host in _hosts(connection_parameters(dsn, application_name, options)):
        for address in await _addresses(host, connect_timeout_seconds, failures):
            try:
                connection = await _open(address, connect_timeout_seconds)
            except DatabaseUnavailableError as error:
                failures.append(str(error))
                continue
            connection._autocommit = True  # noqa: SLF001  # nothing was sent yet, so there is nothing to wait for
            connection.prepare_threshold = prepare_threshold
            return connection
    raise DatabaseUnavailableError("cannot connect to PostgreSQL: " + "; ".join(failures))


@asynccontextmanager
async def open_connection(
    dsn: Secret[str],
    *,
    application_name: str,
    options: Mapping[str, str] = {},
    connect_timeout_seconds: float = CONNECT_SECONDS,
    prepare_threshold: int | None = 5,
) -> AsyncIterator[TrioConnection]:
    """As `connect`; the connection is closed at the end of the block, whatever happens."""
    connection = await connect(
        dsn,
        application_name=application_name,
        options=options,
        connect_timeout_seconds=connect_timeout_seconds,
        prepare_threshold=prepare_threshold,
    )
    try:
        yield connection
    finally:
        connection.close_now()


def connection_parameters(dsn: Secret[str], application_name: str, options: Mapping[str, str]) -> Parameters:
    """Return libpq's parameters for *dsn* with ours; those of *dsn* win, and *options* are added."""
    try:
        given = conninfo_to_dict(dsn.reveal())
    except (psycopg.Error, UnicodeError):
        # libpq's own message quotes the piece that it stumbled over, which may be a password.
        raise ConfigurationError(
            "the database URL cannot be read; right would be postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
            " (with % escapes) or libpq's key=value form"
        ) from None
    params: Parameters = {
        "fallback_application_name": application_name,
        "gssencmode": "disable",  # Its look-ups block, and nobody asked for it.
        **_LIVENESS,
        **given,
        "client_encoding": "UTF8",
    }
    settings = [f"-c {name}={_escaped(value)}" for name, value in options.items()]
    if settings:
        params["options"] = " ".join([str(given.get("options") or ""), *settings]).strip()
    return params


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def _hosts(params: Parameters) -> list[Parameters]:
    """Return the parameters for each host of a multi-host URL, in the order to try them."""
    prefer_standby = get_param(params, "target_session_attrs") == "prefer-standby"
    if prefer_standby:
        params = {name: value for name, value in params.items() if name != "target_session_attrs"}
    try:
        hosts = cast("list[Parameters]", split_attempts(params))
    except psycopg.Error as error:
        raise ConfigurationError(f"the database URL cannot be read: {one_line(str(error))}") from None
    if get_param(params, "load_balance_hosts") == "random":
        random.shuffle(hosts)
    if prefer_standby:
        return [{**host, "target_session_attrs": "standby"} for host in hosts] + hosts
    return hosts


async def _addresses(host: Parameters, seconds: float, failures: list[str]) -> list[Parameters]:
    """Return *host* once for each address of its name; libpq's own look-up would block every task."""
    name = get_param(host, "host")
    if not name or name.startswith(("/", "@")) or get_param(host, "hostaddr"):
        return [host]
    if is_ip_address(name):
        return [{**host, "hostaddr": name}]
    try:
        with trio.fail_after(seconds):
            answers = await trio.socket.getaddrinfo(
                name, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
    except trio.TooSlowError:
        failures.append(f"host {name!r}: no address within {seconds:g} s")
        return []
    except (OSError, UnicodeError) as error:
        failures.append(f"host {name!r}: {one_line(str(error))}")
        return []
    return [
        {**host, "hostaddr": address} for address in dict.fromkeys(str(answer[4][0]) for answer in answers)
    ]


async def _open(address: Parameters, seconds: float) -> TrioConnection:
    conninfo = make_conninfo("", **address)
    try:
        with trio.fail_after(seconds):
            return await drive_connecting(TrioConnection._connect_gen(conninfo))  # noqa: SLF001  # of our parent
    except trio.TooSlowError:
        where = (
            f"{address.get('host')!r} ({address.get('hostaddr')}), port {address.get('port', _PORT_DEFAULT)}"
        )
        raise DatabaseUnavailableError(f"host {where}: no answer within {seconds:g} s") from None
    except psycopg.Error as error:
        raise DatabaseUnavailableError(one_line(str(error))) from None
