"""Webhooks without a network: signatures, secrets, and which URLs a submit may ask for."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from api.problem import Problem
from api.submit import validate
from broker.declared import WebhookEndpoint
from broker.settings import Settings
from worker.signature import headers, secret_key
from worker.webhooks import endpoints

SECRET = "whsec_" + b64encode(b"k" * 32).decode()
OLD = "whsec_" + b64encode(b"o" * 32).decode()
PLAIN = {"provider": "sim", "model": "sim-1", "messages": [{"role": "user", "content": "hi"}]}


def settings(**endpoint: object) -> Settings:
    declared = {"url": "https://hooks.example.com/in", "secret_env": "HOOK", **endpoint}
    return Settings(providers=("sim",), webhooks={"ops": declared})  # type: ignore[arg-type]


def test_a_delivery_is_signed_as_others_verify_it() -> None:
    """The reference implementation takes it, and its own signature is the same."""
    body = b'{"test": 2432232314}'
    now = int(time.time())
    signed = headers("msg_1", now, body, [secret_key(SECRET)])
    assert Webhook(SECRET).verify(body.decode(), signed) == {"test": 2432232314}
    own = Webhook(SECRET).sign("msg_1", datetime.fromtimestamp(now, UTC), body.decode())
    assert signed["webhook-signature"] == own


def test_while_a_secret_is_changed_both_verify() -> None:
    body = b"{}"
    signed = headers("msg_1", int(time.time()), body, [secret_key(SECRET), secret_key(OLD)])
    for secret in (SECRET, OLD):
        Webhook(secret).verify("{}", signed)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + b64encode(b"x" * 32).decode()).verify("{}", signed)


@pytest.mark.parametrize("changed", ["webhook-id", "webhook-timestamp"])
def test_what_is_signed_cannot_be_changed(changed: str) -> None:
    signed = headers("msg_1", int(time.time()), b"{}", [secret_key(SECRET)])
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify("{}", signed | {changed: str(int(time.time()) + 1)})


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!!!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ="])
def test_a_secret_that_is_none_ends_the_worker_at_its_start(secret: str) -> None:
    with pytest.raises(ValueError, match="webhook 'ops': HOOK is not whsec_ and 24 to 64 bytes") as raised:
        endpoints(settings(), {"HOOK": secret})
    assert secret in ("", "whsec_") or secret not in str(raised.value)


def test_both_secrets_of_an_endpoint_sign() -> None:
    found = endpoints(settings(old_secret_env="HOOK_OLD"), {"HOOK": SECRET, "HOOK_OLD": OLD})
    assert [endpoint.keys for endpoint in found] == [(secret_key(SECRET), secret_key(OLD))]


COVERED = [
    "https://hooks.example.com/in",
    "https://hooks.example.com/in/",
    "https://hooks.example.com/in/a/b?c=d&e=%20",
    "https://HOOKS.example.com/in/x",
]
NOT_COVERED = [
    "https://hooks.example.com/inside",
    "https://hooks.example.com/",
    "https://hooks.example.com",
    "http://hooks.example.com/in/x",
    "https://hooks.example.com:8443/in/x",
    "https://hooks.example.com.evil.com/in/x",
    "https://evil.com/in/x",
    "https://hooks.example.com@evil.com/in/x",
    "https://user:pass@hooks.example.com/in/x",
    "https://hooks.example.com/in/../admin",
    "https://hooks.example.com/in/%2e%2e/admin",
    "https://hooks.example.com/in/./x",
    "https://hooks.example.com\\@evil.com/in",
    "https://hooks.example.com/in/x#y",
    "https://hooks.example.com/in/x y",
    "https://hooks.example.com/in/\n",
    "//hooks.example.com/in",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("url", COVERED)
def test_a_submit_may_ask_for_what_the_operator_allows(url: str) -> None:
    wanted = validate(PLAIN | {"webhook": {"url": url}}, settings(asked=True))
    assert wanted.job().webhook_url == url


@pytest.mark.parametrize("url", NOT_COVERED)
def test_a_submit_may_ask_for_nothing_else(url: str) -> None:
    """Neither for another host, nor for a URL that a server might resolve to somewhere else."""
    with pytest.raises(Problem) as refused:
        validate(PLAIN | {"webhook": {"url": url}}, settings(asked=True))
    assert [item.field for item in refused.value.fields] == ["webhook.url"]


def test_an_endpoint_for_all_cannot_be_asked_for() -> None:
    with pytest.raises(Problem):
        validate(PLAIN | {"webhook": {"url": "https://hooks.example.com/in"}}, settings())


WRONG = {
    "no url": {"url": "ftp://x"},
    "credentials": {"url": "https://user:secret@example.com/"},
    "a fragment": {"url": "https://example.com/#a"},
    "a query where it is asked for": {"url": "https://example.com/?a=b", "asked": True},
    "no event": {"events": []},
    "an unknown event": {"events": ["started"]},
    "an unknown field": {"secret": "whsec_x"},
    "no variable": {"secret_env": "not a name"},
}


@pytest.mark.parametrize("fields", WRONG.values(), ids=list(WRONG))
def test_an_endpoint_that_cannot_be_is_named(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="ops"):
        settings(**fields)


def test_a_name_of_an_endpoint_is_plain() -> None:
    with pytest.raises(ValidationError, match="is no name"):
        Settings(webhooks=json.dumps({"a:b": {"url": "https://example.com/", "secret_env": "X"}}))  # type: ignore[arg-type]


def test_declared_endpoints_have_defaults() -> None:
    declared = WebhookEndpoint(url="https://example.com/", secret_env="HOOK")
    assert declared.events == ("completed", "failed", "cancelled")
    assert not declared.text
    assert not declared.asked
    assert not declared.private
