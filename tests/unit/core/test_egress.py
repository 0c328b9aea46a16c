"""The texts of the egress settings."""

from ipaddress import ip_network

import pytest

from pggit_reactor.core.egress import (
    ENTRIES_MAX,
    EgressEntry,
    EgressRules,
    parse_entries,
    parse_ports,
    parse_unsafe_allow,
)
from pggit_reactor.errors import ConfigurationError


def test_the_defaults_are_port_443_and_no_exception():
    assert EgressRules.parse() == EgressRules()
    assert EgressRules().ports == {443}


@pytest.mark.parametrize("text", ["443,8443", " 443 , 8443 ", "8443,443,", "443,443,8443"])
def test_ports_are_a_list(text):
    assert parse_ports(text) == {443, 8443}


@pytest.mark.parametrize(
    "text", ["", ",", "0", "65536", "0443", "-1", "443-445", "https", "*", "443 8443", "４４３"]
)
def test_what_is_no_port_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"egress\.ports"):
        parse_ports(text)


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("", []),
        ("10.0.0.0/8", ["10.0.0.0/8"]),
        ("10.0.0.1, fd00::/8", ["10.0.0.1/32", "fd00::/8"]),
        ("::1,", ["::1/128"]),
        ("10.0.0.0/255.0.0.0", ["10.0.0.0/8"]),
    ],
)
def test_networks_are_a_list(text, networks):
    expected = [EgressEntry(network=ip_network(network), port=None) for network in networks]

    assert list(parse_entries(text, setting="egress.deny")) == expected


def test_networks_may_be_meant_at_one_port():
    entries = parse_entries("10.0.0.0/8:8443,[2a00::/16]:443,[2a00::1]:*,2a00::2", setting="egress.allow")

    assert [str(entry) for entry in entries] == [
        "10.0.0.0/8:8443",
        "[2a00::/16]:443",
        "[2a00::1/128]:*",
        "[2a00::2/128]:*",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "example.com",
        "example.com:443",
        "10.0.0.0/8:0",
        "10.0.0.0/8:",
        "[2a00::1]",
        "10.0.0.1:https",
        "10.0.0.0/33",
        "10.0.0",
        "10.0.0.1/8",
        "fd00::1/8",
        "0x7f.1",
        "1",
        "*",
    ],
)
def test_what_is_no_network_is_refused_with_the_name_of_its_setting(text):
    with pytest.raises(ConfigurationError, match=r"egress\.deny"):
        parse_entries(text, setting="egress.deny")


def test_bits_after_the_prefix_are_asked_about():
    with pytest.raises(ConfigurationError, match=r"want 10\.0\.0\.0/8 or 10\.1\.2\.3"):
        parse_entries("10.1.2.3/8", setting="egress.allow")


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("", []),
        ("127.0.0.0/8:*,[::1]:*", ["127.0.0.0/8:*", "[::1/128]:*"]),
        ("10.0.0.1:8443", ["10.0.0.1/32:8443"]),
        ("[fd00::/8]:443", ["[fd00::/8]:443"]),
        ("[fd00::]/8:443", ["[fd00::/8]:443"]),
        (" [FD00::]:1 , 0.0.0.0/0:* ", ["[fd00::/128]:1", "0.0.0.0/0:*"]),
    ],
)
def test_unsafe_entries_are_networks_with_ports(text, entries):
    assert [str(entry) for entry in parse_unsafe_allow(text)] == entries


@pytest.mark.parametrize(
    "text",
    [
        "localhost:*",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:1-2",
        "127.0.0.1/8:*",
        "127.1:*",
        "::1:*",
        "[::1]",
        "[::1:*",
        "[::1/64]/64:*",
        "[127.0.0.1]:x",
        "[fe80::1%eth0]:*",
        "*:*",
        ":*",
    ],
)
def test_what_is_no_unsafe_entry_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"egress\.unsafe_allow"):
        parse_unsafe_allow(text)


def test_a_list_without_end_is_refused():
    with pytest.raises(ConfigurationError, match="at most"):
        parse_entries("10.0.0.1," * (ENTRIES_MAX + 1), setting="egress.deny")
