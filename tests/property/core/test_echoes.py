"""What a receiver echoes of what it was sent is masked, wherever in its answer it stands and is cut."""

from __future__ import annotations

from urllib.parse import quote, unquote

from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.echoes import mask_echoes
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import new_secret, sign
from pggit_reactor.testing.senders import make_webhook

# Letters that no mask and no text around it has.
tokens = st.text(alphabet="QWZ0123456789", min_size=6, max_size=40).filter(lambda text: len(set(text)) > 3)
around = st.text(alphabet="abc /?&=:,{}", max_size=40)


@given(token=tokens, value=tokens, before=around, after=around, cut=st.integers(0, 200))
def test_no_token_of_a_url_and_no_header_is_left_of_an_echo(token, value, before, after, cut):
    webhook = make_webhook(
        f"https://a.example/hooks/{token}?x={token}", headers=(("X-A", f"Bearer {value}"),)
    )
    echo = f"{before}/hooks/{token}?x={token} Bearer {value} {value}{after}"
    shown = mask_echoes(echo[: len(echo) - cut] if cut < len(echo) else "", webhook)

    assert token not in shown
    assert value not in shown
    assert not shown.endswith((token[:6], value[:6]))


@given(octets=st.binary(min_size=24, max_size=40), around=around)
def test_no_secret_is_left_of_an_echo_with_its_prefix_or_without(octets, around):
    secret = new_secret(octets)
    webhook = make_webhook("https://a.example/", secrets=(Secret(secret),))
    bare = secret.removeprefix("whsec_")

    assert bare not in mask_echoes(f"{around}{secret} {bare}{around}", webhook)


@given(
    st.text(alphabet="\u00fcQWZ 0123", min_size=6, max_size=20).filter(
        lambda text: len(text.strip()) == len(text)
    )
)
def test_a_path_that_was_decoded_is_masked_too(token):
    webhook = make_webhook(f"https://a.example/hooks/{quote(token)}")

    assert unquote(quote(token)) not in mask_echoes(f"no such path: /hooks/{token}!", webhook)


@given(around)
def test_signatures_and_row_headers_are_masked(around):
    webhook = make_webhook("https://a.example/")
    headers = sign(b"{}", id="an-id", timestamp=1, secrets=[webhook.secrets[0].reveal()])
    shown = mask_echoes(f"{around}{headers} ROWVALUE{around}", webhook, [("X-Row", "ROWVALUE")])

    assert headers["webhook-signature"] not in shown
    assert headers["X-pgGit-Signature"] not in shown
    assert "ROWVALUE" not in shown


def test_the_rest_of_an_answer_stays_as_it_was():
    webhook = make_webhook("https://a.example/hooks/alerts?a=b")

    assert mask_echoes("no such channel", webhook) == "no such channel"
