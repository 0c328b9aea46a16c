"""The SSRF gate, case by case: each way in that somebody once found, and what stays open."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from pggit_reactor.core.special_networks import SPECIAL_IPV4, SPECIAL_IPV6, special_kind
from pggit_reactor.core.url_policy import (
    URL_CHARS_MAX,
    EgressEntry,
    EgressRules,
    Target,
    judge_addresses,
    parse_target,
)
from pggit_reactor.errors import UrlRefusedError

STRICT = EgressRules()
LOOPBACK_FREE = EgressRules.parse(unsafe_allow="127.0.0.0/8:*,[::1]:*")


@pytest.mark.parametrize(
    ("url", "origin", "path_and_query"),
    [
        ("https://example.com", "https://example.com", "/"),
        ("https://example.com/", "https://example.com", "/"),
        ("https://example.com/a/../b//c?d=e&f=%2F", "https://example.com", "/a/../b//c?d=e&f=%2F"),
        ("https://example.com?token=x", "https://example.com", "/?token=x"),
        (
            "https://example.com/?u=https://user@10.0.0.1/",
            "https://example.com",
            "/?u=https://user@10.0.0.1/",
        ),
        ("https://example.com:443/", "https://example.com", "/"),
        ("HTTPS://Hooks.Example.COM/T0", "https://hooks.example.com", "/T0"),
        ("https://8.8.8.8/x", "https://8.8.8.8", "/x"),
        ("https://[2606:4700:4700::1111]/x", "https://[2606:4700:4700::1111]", "/x"),
        ("https://[2606:4700:4700::ABCD]/x", "https://[2606:4700:4700::abcd]", "/x"),
        ("https://münchen.de/", "https://xn--mnchen-3ya.de", "/"),
        ("https://MÜNCHEN.de/", "https://xn--mnchen-3ya.de", "/"),
        ("https://mu\u0308nchen.de/", "https://xn--mnchen-3ya.de", "/"),
        ("https://ΒΌΛΟΣ.com/", "https://xn--nxasmq6b.com", "/"),
        ("https://bücher.example.com/", "https://xn--bcher-kva.example.com", "/"),
        ("https://notmetadata.goog/", "https://notmetadata.goog", "/"),
        ("https://XN--mnchen-3ya.de/", "https://xn--mnchen-3ya.de", "/"),
        ("https://faß.de/", "https://xn--fa-hia.de", "/"),
        ("https://my--site.example.com/", "https://my--site.example.com", "/"),
        ("https://10.example.com/", "https://10.example.com", "/"),
        ("https://172.example.com/", "https://172.example.com", "/"),
        ("https://127.0.0.1.example.com/", "https://127.0.0.1.example.com", "/"),
        ("https://localhost.example.com/", "https://localhost.example.com", "/"),
        ("https://mylocalhost.com/", "https://mylocalhost.com", "/"),
        ("https://internal.io/", "https://internal.io", "/"),
    ],
)
def test_a_good_url_is_read_into_its_parts(url, origin, path_and_query):
    target = parse_target(url, STRICT)

    assert target.origin == origin
    assert target.path_and_query.reveal() == path_and_query


@pytest.mark.parametrize(
    ("url", "why"),
    [
        # The scheme, and what is needed before anything can be read.
        ("", "https://"),
        ("example.com/x", "https://"),
        ("//example.com/", "https://"),
        ("http://example.com/", "https://"),
        ("ftp://example.com/", "https://"),
        ("https:example.com/", "https://"),
        ("https:/example.com/", "https://"),
        ("https:\\\\example.com\\", "backslash"),
        ("https://example.com\\@10.0.0.1/", "backslash"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("https://:443/", "no host"),
        ("https://?x", "no host"),
        ("https://example.com/" + "x" * URL_CHARS_MAX, "at most 2048"),
        # Characters.
        (" https://example.com/", "white space"),
        ("https://example.com/ ", "white space"),
        ("https://example.com/a b", "white space"),
        ("https://exam\tple.com/", "white space"),
        ("https://example.com/\r\nHost: x", "white space"),
        ("https://example.com\0.evil.com/", "control"),
        ("https://example.com/\x7f", "control"),
        ("https://example.com/\u3000", "white space"),
        ("https://exa\u200bmple.com/", "invisible"),
        ("https://exa\u00admple.com/", "invisible"),
        ("https://\u202eexample.com/", "invisible"),
        ("https://example.com/\ud800", "invisible"),
        ("https://example.com/é", "outside ASCII"),
        ("https://example.com/?q=é", "outside ASCII"),
        ("https://example.com/#", "fragment"),
        ("https://example.com#x", "fragment"),
        # User info.
        ("https://user@example.com/", "user info"),
        ("https://user:pass@example.com/", "user info"),
        ("https://@example.com/", "user info"),
        ("https://example.com@10.0.0.1/", "user info"),
        ("https://example.com:443@10.0.0.1/", "user info"),
        # Ports.
        ("https://example.com:/", "port"),
        ("https://example.com:0/", "port"),
        ("https://example.com:0443/", "port"),
        ("https://example.com:65536/", "port"),
        ("https://example.com:99999999999/", "port"),
        ("https://example.com:-1/", "port"),
        ("https://example.com:+443/", "port"),
        ("https://example.com:443x/", "port"),
        ("https://example.com:４４３/", "port"),
        ("https://example.com:80/", "port 80 is not allowed; allowed: 443"),
        ("https://example.com:22/", "egress.ports"),
        ("https://example.com:443:443/", "two colons"),
        # Names.
        ("https://localhost/", "special name"),
        ("https://LOCALHOST/", "special name"),
        ("https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "stand for others; write 'localhost'"),
        ("https://ｅxample.com/", "stand for others; write 'example.com'"),
        ("https://example。com/", "stand for others"),
        ("https://example．com/", "stand for others"),
        ("https://ﬁle.example.com/", "stand for others; write 'file.example.com'"),
        ("https://①.example.com/", "stand for others"),
        ("https://ℌooks.example.com/", "stand for others"),
        ("https://metadata.goog/", "cloud platform's metadata"),
        ("https://x.metadata.tencentyun.com/", "cloud platform's metadata"),
        ("https://kubernetes.default.svc/", "special name"),
        ("https://foo.localhost/", "special name"),
        ("https://localhost.localdomain/", "special name"),
        ("https://printer.local/", "special name"),
        ("https://metadata.google.internal/", "special name"),
        ("https://router.home.arpa/", "special name"),
        ("https://1.0.0.127.in-addr.arpa/", "special name"),
        ("https://facebookcorewwwi.onion/", "special name"),
        ("https://a.test/", "special name"),
        ("https://a.invalid/", "special name"),
        ("https://a.example/", "special name"),
        ("https://a.alt/", "special name"),
        ("https://intranet/", "special name"),
        ("https://wiki.corp/", "special name"),
        ("https://nas.lan/", "special name"),
        ("https://fritz.home/", "special name"),
        ("https://a.private/", "special name"),
        ("https://a.intranet/", "special name"),
        ("https://metadata/", "single label"),
        ("https://com/", "single label"),
        ("https://example.com./", "dot"),
        ("https://example.com../", "dot"),
        ("https://example.com。/", "dot"),
        ("https://127.0.0.1./", "dot"),
        ("https://localhost./", "dot"),
        ("https://./", "dot"),
        ("https://.example.com/", "empty label"),
        ("https://example..com/", "empty label"),
        ("https://my_host.example.com/", "no host name"),
        ("https://_dmarc.example.com/", "no host name"),
        ("https://-a.example.com/", "no host name"),
        ("https://a-.example.com/", "no host name"),
        ("https://exam!ple.com/", "no host name"),
        ("https://a,b.com/", "no host name"),
        ("https://" + "a" * 64 + ".example.com/", "over 63"),
        ("https://" + "a." * 126 + "com/", "too long"),
        ("https://" + "é" * 300 + ".com/", "too long"),
        ("https://ex%61mple.com/", "percent"),
        ("https://%31%32%37.0.0.1/", "percent"),
        ("https://example.com%2f@10.0.0.1/", "user info"),
        ("https://example.com%00.evil.com/", "percent"),
        ("https://xn--/", "no host name"),
        ("https://xn--a.com/", "IDNA"),
        ("https://xn--example-.com/", "no host name"),
        ("https://xn--xn---epa.com/", "IDNA"),
        ("https://a\u2044b.com/", "internationalised"),
        ("https://example.com／x/", "internationalised"),
        ("https://example.com？x/", "internationalised"),
        ("https://℀.com/", "internationalised"),
        ("https://❤.ws/", "internationalised"),
        # Numbers.
        ("https://2130706433/", "number"),
        ("https://0x7f000001/", "number"),
        ("https://0X7F000001/", "number"),
        ("https://017700000001/", "number"),
        ("https://127.1/", "number"),
        ("https://127.0.1/", "number"),
        ("https://0177.0.0.1/", "number"),
        ("https://0x7f.0.0.1/", "number"),
        ("https://127.0.0.0x1/", "number"),
        ("https://127.0.0.01/", "number"),
        ("https://127.0.0.256/", "number"),
        ("https://127.0.0.1.1/", "number"),
        ("https://8.8.8.010/", "number"),
        ("https://134744072/", "number"),
        ("https://0/", "number"),
        ("https://0x/", "number"),
        ("https://example.1/", "number"),
        ("https://example.0x10/", "number"),
        ("https://１２７.0.0.1/", "number"),
        ("https://127。0。0。1/", "number"),
        ("https://①②⑦.0.0.1/", "number"),
        # Literals.
        ("https://127.0.0.1/", "loopback"),
        ("https://10.1.2.3/", "private"),
        ("https://0.0.0.0/", "this network"),
        ("https://169.254.169.254/latest/meta-data/", "metadata"),
        ("https://168.63.129.16/", "platform"),
        ("https://[::]/", "unspecified"),
        ("https://[::1]/", "loopback"),
        ("https://[fe80::1]/", "link-local"),
        ("https://[fe80::1%25eth0]/", "zone"),
        ("https://[fe80::1%eth0]/", "zone"),
        ("https://[::ffff:7f00:1]/", "IPv4-mapped"),
        ("https://[::ffff:127.0.0.1]/", "IPv4-mapped|canonical"),
        ("https://[0:0:0:0:0:ffff:7f00:1]/", "canonical"),
        ("https://[2606:4700:4700:0::1111]/", r"write \[2606:4700:4700::1111\]"),
        ("https://[2606:4700:4700::01]/", "canonical"),
        ("https://[v1.fe80::a]/", "no IPv6"),
        ("https://[127.0.0.1]/", "no IPv6"),
        ("https://[example.com]/", "no IPv6"),
        ("https://[]/", "no IPv6"),
        ("https://[::1/", "brackets"),
        ("https://[::1]x/", "brackets"),
        ("https://[::1].example.com/", "brackets"),
        ("https://::1/", "two colons"),
        ("https://2606:4700:4700::1111/", "two colons"),
    ],
)
def test_a_bad_url_is_refused_for_its_reason(url, why):
    with pytest.raises(UrlRefusedError, match=why):
        parse_target(url, STRICT)


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("169.254.169.254", "cloud metadata"),
        ("169.254.170.2", "ECS"),
        ("168.63.129.16", "Azure"),
        ("100.100.100.200", "Alibaba"),
        ("192.0.0.192", "Oracle"),
        ("fd00:ec2::254", "EC2"),
        ("fd20:ce::254", "Google"),
        ("192.0.0.9", "for protocols"),
        ("255.255.255.255", "broadcast"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("::ffff:169.254.169.254", "IPv4-mapped"),
        ("::127.0.0.1", "IPv4-compatible"),
        ("64:ff9b::10.0.0.1", "NAT64"),
        ("64:ff9b:1::1", "local NAT64"),
        ("2002:7f00:1::", "6to4"),
        ("2001:0:7f00:1::", "Teredo"),
        ("2a00::5efe:10.0.0.1", "ISATAP"),
        ("2a00::200:5efe:10.0.0.1", "ISATAP"),
        ("2001:1::1", "for protocols"),
        ("4000::1", "outside global unicast"),
        ("fec0::1", "site-local"),
    ],
)
def test_an_address_is_refused_by_its_name(address, what):
    target = parse_target("https://example.com/", STRICT)

    with pytest.raises(UrlRefusedError, match=what):
        judge_addresses(target, [address], STRICT)


@pytest.mark.parametrize(
    "address",
    [
        *("1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255"),
        *("128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255"),
        *("192.0.1.0", "192.0.3.0", "192.88.98.255", "192.167.255.255", "192.169.0.0", "198.17.255.255"),
        *("198.20.0.0", "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255"),
        *("168.63.129.15", "168.63.129.17"),
        *(
            "2000::",
            "2001:200::",
            "2001:db7:ffff::",
            "2001:db9::",
            "2003::",
            "2620:4f:7fff::",
            "2620:4f:8001::",
        ),
        *("2606:4700:4700::1111", "3ffd::", "2a00::5eff:0:1", "2a00::1200:5efe:1:1"),
    ],
)
def test_the_neighbours_of_special_networks_are_accepted(address):
    target = parse_target("https://example.com/", STRICT)

    assert [str(judged) for judged in judge_addresses(target, [address], STRICT)] == [address]


@pytest.mark.parametrize(("block", "what"), [*SPECIAL_IPV4, *SPECIAL_IPV6])
def test_each_block_is_known_from_its_first_address_to_its_last(block, what):
    """A wide block that stood before a narrow one would hide its name."""
    ends = [block.network_address, block.broadcast_address]

    assert None not in [special_kind(end) for end in ends]
    assert what in [special_kind(address) for address in [*ends, block[block.num_addresses // 2]]]


def test_no_address_at_all_is_refused():
    with pytest.raises(UrlRefusedError, match="no address"):
        judge_addresses(parse_target("https://example.com/", STRICT), [], STRICT)


@pytest.mark.parametrize("host", ["localhost", "receiver", "example.com", "a.internal", "127.0.0.1", "[::1]"])
@pytest.mark.parametrize("port", ["", ":8443"])
def test_what_is_free_passes_by_any_name_and_any_port(host, port):
    target = parse_target(f"https://{host}{port}/", LOOPBACK_FREE)

    addresses = [target.literal] if target.literal else ["127.0.0.1", "::1"]
    assert len(judge_addresses(target, addresses, LOOPBACK_FREE)) == len(addresses)


@pytest.mark.parametrize("host", ["localhost", "receiver", "a.internal"])
def test_a_freed_name_may_resolve_only_into_what_is_free(host):
    target = parse_target(f"https://{host}/", LOOPBACK_FREE)

    with pytest.raises(UrlRefusedError, match=r"special name|single label"):
        judge_addresses(target, ["127.0.0.1", "8.8.8.8"], LOOPBACK_FREE)


def test_a_freed_port_is_free_only_where_the_address_is():
    target = parse_target("https://example.com:8443/", LOOPBACK_FREE)

    with pytest.raises(UrlRefusedError, match="port 8443"):
        judge_addresses(target, ["8.8.8.8"], LOOPBACK_FREE)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/",
        "https://2130706433/",
        "https://127.1/",
        "https://localhost./",
        "https://user@localhost/",
        "https://local_host/",
        "https://10.0.0.1/",
        "https://[::ffff:7f00:1]/",
    ],
)
def test_nothing_else_becomes_free(url):
    with pytest.raises(UrlRefusedError):
        parse_target(url, LOOPBACK_FREE)


def test_deny_wins_over_what_is_free_also_inside_an_address_that_embeds():
    rules = EgressRules.parse(unsafe_allow="[64:ff9b::/96]:*,10.0.0.0/8:*", deny="10.1.0.0/16")
    target = parse_target("https://example.com/", rules)

    assert judge_addresses(target, ["10.2.0.1", "64:ff9b::a02:1"], rules)
    for address in ("10.1.0.1", "64:ff9b::a01:1"):
        with pytest.raises(UrlRefusedError, match=r"egress\.deny"):
            judge_addresses(target, [address], rules)


def test_allow_narrows_and_frees_nothing():
    rules = EgressRules.parse(allow="8.8.8.0/24,10.0.0.0/8")
    target = parse_target("https://example.com/", rules)

    assert judge_addresses(target, ["8.8.8.8"], rules)
    with pytest.raises(UrlRefusedError, match=r"egress\.allow"):
        judge_addresses(target, ["8.8.4.4"], rules)
    with pytest.raises(UrlRefusedError, match="private"):
        judge_addresses(target, ["10.0.0.1"], rules)


def test_more_ports_may_be_allowed():
    rules = EgressRules.parse(ports="443, 8443")

    assert parse_target("https://example.com:8443/", rules).authority == "example.com:8443"
    with pytest.raises(UrlRefusedError, match="443, 8443"):
        parse_target("https://example.com:80/", rules)


def test_a_target_has_what_a_request_needs_and_shows_no_path():
    rules = EgressRules.parse(unsafe_allow="[::1]:*")
    target = parse_target("https://[::1]:8443/token?x", rules)

    assert (target.host, target.port, target.literal) == ("::1", 8443, IPv6Address("::1"))
    assert (target.authority, target.origin) == ("[::1]:8443", "https://[::1]:8443")
    assert "token" not in repr(target)
    assert isinstance(target, Target)


def test_answers_may_be_text_or_addresses():
    target = parse_target("https://example.com/", STRICT)

    judged = judge_addresses(target, ["8.8.8.8", IPv4Address("8.8.4.4"), "8.8.8.8"], STRICT)

    assert judged == (IPv4Address("8.8.8.8"), IPv4Address("8.8.4.4"))


def test_entries_say_what_they_free():
    entries = EgressRules.parse(unsafe_allow="127.0.0.0/8:*,[::1]:8443").unsafe_allow

    assert [str(entry) for entry in entries] == ["127.0.0.0/8:*", "[::1/128]:8443"]
    assert all(isinstance(entry, EgressEntry) for entry in entries)


def test_deny_and_allow_may_name_one_port_alone():
    rules = EgressRules.parse(ports="443,8443", allow="8.8.8.0/24:8443,[2a00::/16]:443", deny="8.8.8.8:8443")
    at_443, at_8443 = (parse_target(f"https://example.com:{port}/", rules) for port in (443, 8443))

    assert judge_addresses(at_8443, ["8.8.8.9"], rules)
    assert judge_addresses(at_443, ["2a00::1"], rules)
    for target, address, setting in [
        (at_443, "8.8.8.9", "allow"),
        (at_8443, "2a00::1", "allow"),
        (at_8443, "8.8.8.8", "deny"),
    ]:
        with pytest.raises(UrlRefusedError, match=rf"egress\.{setting}"):
            judge_addresses(target, [address], rules)
