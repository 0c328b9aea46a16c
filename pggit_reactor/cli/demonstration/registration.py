"""The demo's webhook, registered by the functions that `webhook add` uses, and by the same policy."""

from __future__ import annotations

import secrets
import socket
from typing import Final

import attrs

from pggit_reactor.cli.judging import judge_url
from pggit_reactor.cli.webhook_keys import parse_change
from pggit_reactor.config.settings import Settings
from pggit_reactor.core.model import WebhookId
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import new_secret
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.keys import ensure_keys
from pggit_reactor.db.registry import By, add
from pggit_reactor.security.keyring import require_keyring
from pggit_reactor.security.sealing import Sealer

NAME: Final = "demo"
SECRET_OCTETS: Final = 32


@attrs.frozen(kw_only=True)
class Registered:
    """The new webhook, and the secret that its receiver needs."""

    webhook_id: WebhookId
    secret: Secret[str]


async def register(connection: TrioConnection, settings: Settings, *, url: str) -> Registered:
    """Register *url* with a new secret; the URL policy of *settings* has its say."""
    judged = await judge_url(url, settings.egress.rules())
    keyring = require_keyring(settings.keys.master_key)
    by = By(name=NAME, host=socket.gethostname())
    await ensure_keys(connection, keyring, by=by.name, must_register=True)
    change = attrs.evolve(parse_change((f"url={url}", f"name={NAME}")), url_origin=judged.target.origin)
    secret = Secret(new_secret(secrets.token_bytes(SECRET_OCTETS)))
    webhook_id = await add(connection, Sealer(keyring), change, secret=secret, by=by)
    return Registered(webhook_id=webhook_id, secret=secret)
