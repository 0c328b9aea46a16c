"""The text of egress.proxy_url."""

import base64

import pytest

from pggit_reactor.config.settings import EgressSettings
from pggit_reactor.core.egress import EgressRules
from pggit_reactor.core.forward_proxy import parse_proxy
from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("http://proxy.example.com:3128", "proxy.example.com", 3128, "http://proxy.example.com:3128"),
        ("http://Proxy:80/", "proxy", 80, "http://proxy:80"),
        ("http://10.0.0.1:8080", "10.0.0.1", 8080, "http://10.0.0.1:8080"),
        ("http://[FD00::1]:8080", "fd00::1", 8080, "http://[fd00::1]:8080"),
    ],
)
def test_a_proxy_is_a_host_and_a_port(text, host, port, shown):
    proxy = parse_proxy(text)

    assert (proxy.host, proxy.port, str(proxy), proxy.authorization) == (host, port, shown, None)


@pytest.mark.parametrize(
    ("user_info", "credentials"),
    [
        ("me:hunter22", b"me:hunter22"),
        ("me", b"me:"),
        ("me:a:b", b"me:a:b"),
        ("m%40e:p%2Fw%3A%20", b"m@e:p/w: "),
        ("me:%C3%A9", "me:é".encode()),
    ],
)
def test_credentials_are_sent_as_basic_and_never_shown(user_info, credentials):
    proxy = parse_proxy(f"http://{user_info}@proxy.example.com:3128")

    assert proxy.authorization == Secret("Basic " + base64.b64encode(credentials).decode())
    assert "hunter22" not in repr(proxy) + str(proxy)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "proxy.example.com:3128",
        "http://proxy.example.com",
        "http://proxy.example.com:0",
        "http://proxy.example.com:65536",
        "http://proxy.example.com:3128/path",
        "http://proxy.example.com:3128?hunter22",
        "http://a:hunter22@b@proxy.example.com:3128",
        "http://me:hunter22@:3128",
        "http://[::g]:3128",
        "http://[1.2.3.4.5]:3128",
        "http://proxy.example.com:3128\r\nX: y",
        "socks5://me:hunter22@proxy.example.com:1080",
        "https://me:hunter22@proxy.example.com:3128",
    ],
)
def test_what_is_no_proxy_is_refused_and_not_quoted(text):
    with pytest.raises(ConfigurationError, match=r"egress\.proxy_url .*right is http://HOST:PORT") as caught:
        parse_proxy(text)

    assert "hunter22" not in str(caught.value)


def test_the_setting_is_the_rule():
    settings = EgressSettings(proxy_url=Secret(" http://proxy:3128\n"))

    assert settings.rules() == EgressRules(proxy=parse_proxy("http://proxy:3128"))
    with pytest.raises(ConfigurationError, match=r"egress\.proxy_url: is not the URL of a proxy"):
        EgressSettings(proxy_url=Secret("hunter22"))
