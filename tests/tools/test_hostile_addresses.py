"""Addresses that must never be asked, in every spelling: each its own case. No server answers here."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.tools.addresses import FetchRefused, check_address, check_url
from genevolve_ray.tools.fetch import FetchConfig, Fetcher

CLOSED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:7f00:1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::10.0.0.1",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:c0a8:1::1",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "2a00:1450:4001:81a:0:5efe:127.0.0.1",
    "2a00:1450:4001:81a:200:5efe:c0a8:1",
]
OPEN = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", CLOSED)
def test_a_closed_address_is_refused(address: str) -> None:
    with pytest.raises(FetchRefused, match="not on the public internet"):
        check_address(ip_address(address))


@pytest.mark.parametrize("address", [*OPEN, "64:ff9b::8.8.8.8"])
def test_a_public_address_passes(address: str) -> None:
    check_address(ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "127.0.1",
        "2130706433",
        "017700000001",
        "0177.0.0.1",
        "0177.0.0.01",
        "0x7f000001",
        "0x7f.0.0.1",
        "0x7f.1",
        "127.0.0.0x1",
        "127.0.0.1.",
        "127.0.0.1..",
        "127.000.000.001",
        "0",
        "0x",
        "1.2.3.4.5",
        "localhost:80@example.com",
        "example.com@127.0.0.1",
        ":@127.0.0.1",
        "a\\@127.0.0.1",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:7f00:1]",
        "[::1%25lo]",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[127.0.0.1]",
        "[::1",
        "%31%32%37.0.0.1",
        "127%2e0%2e0%2e1",
        "127。0。0。1",
        "127．0．0．1",
        "１２７.0.0.1",
        "①②⑦.⓪.⓪.①",
        "𝟏𝟐𝟕.𝟎.𝟎.𝟏",
        "127.0.0.1\u200b",
        "loc\u200balhost",
        "loc\u00adalhost",
        "ⓛocalhost",
        "exa mple.com",
        "exam\tple.com",
        "example.com\r\nHost: evil",
        "example..com",
        ".example.com",
        "-example.com",
        "exa$mple.com",
        "a" * 64 + ".com",
        ".".join(["abcdef"] * 40),
        "",
    ],
)
async def test_an_odd_spelling_of_a_host_is_refused_before_any_look_up(host: str) -> None:
    looked_up: list[str] = []

    async def resolver(name: str, port: int) -> Sequence[str]:
        looked_up.append(name)
        return ["127.0.0.1"]

    with pytest.raises(FetchRefused):
        await Fetcher(FetchConfig(), resolver=resolver).fetch(f"http://{host}/a.png")
    assert looked_up == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/a.png",
        "gopher://example.com/",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "unix:///run/docker.sock",
        "jar:http://example.com!/a",
        "//example.com/a.png",
        "/a.png",
        "a.png",
        "",
        "http:",
        "http:///a.png",
        "http:a.png",
        "https:///127.0.0.1/",
        "HtTp+x://example.com/",
        "http://user:secret@example.com/a.png",
        "http://token@example.com/a.png",
        "http://example.com:22/",
        "http://example.com:6379/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:80:80/",
        "http://example.com:-80/",
        "http://example.com/" + "a" * 5000,
        "http://example.com/\x00",
        "http://example.com/\n",
    ],
)
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(FetchRefused) as error:
        check_url(url)
    assert "secret" not in str(error.value) and "token" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("beside", [[], ["93.184.216.34"]])
async def test_a_name_with_a_closed_address_among_its_own_is_refused_whole(address: str, beside: list[str]) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return [*beside, address]

    with pytest.raises(FetchRefused, match="not on the public internet"):
        await Fetcher(FetchConfig(), resolver=resolver).fetch("http://rebind.example/a.png")


@pytest.mark.parametrize("address", ["2606:4700::1%eth0", "fe80::1%2", "not an address", "127.0.0.1 "])
async def test_an_odd_answer_of_a_name_server_is_refused(address: str) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return [address]

    with pytest.raises(FetchRefused):
        await Fetcher(FetchConfig(), resolver=resolver).fetch("http://odd.example/a.png")


async def test_the_name_of_this_machine_is_refused() -> None:
    with pytest.raises(FetchRefused, match="not on the public internet"):
        await Fetcher().fetch("http://localhost/a.png")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTP://Example.COM/A.png", "http://example.com/A.png"),
        ("http://example.com./a#b", "http://example.com/a"),
        ("http://münchen.example/ä", "http://xn--mnchen-3ya.example/%C3%A4"),
        ("https://a_b.example/x y", "https://a_b.example/x%20y"),
        ("http://[2606:4700::1111]/", "http://[2606:4700::1111]/"),
        ("https://example.com/../../etc/passwd", "https://example.com/etc/passwd"),
    ],
)
def test_a_plain_url_is_kept_in_one_spelling(url: str, expected: str) -> None:
    checked = check_url(url)
    assert f"{checked.scheme}://{checked.netloc.decode()}{checked.raw_path.decode()}" == expected


@given(st.text(max_size=40))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    for url in (text, f"http://{text}", f"http://example.com/{text}"):
        with contextlib.suppress(FetchRefused):
            assert check_url(url).scheme in ("http", "https")


@given(st.ip_addresses())
def test_no_address_that_python_calls_private_passes(address: object) -> None:
    try:
        check_address(address)  # type: ignore[arg-type]
    except FetchRefused:
        return
    mapped = getattr(address, "ipv4_mapped", None) or address
    assert mapped.is_global and not mapped.is_multicast


# What `is_global` and the packages compared in the docstring of `tools.addresses` let pass.
STRICTER = ("168.63.129.16", "192.88.99.1", "224.0.1.1", "2002:a00:1::1", "3fff::1", "2001:4860:4860::5efe:a00:1")


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6, network="2000::/3"))
def test_no_address_passes_that_the_standard_library_calls_private(address: IPv4Address | IPv6Address) -> None:
    with contextlib.suppress(FetchRefused):
        check_address(address)
        assert address.is_global


@pytest.mark.parametrize("text", STRICTER)
def test_addresses_that_only_these_tables_refuse(text: str) -> None:
    with pytest.raises(FetchRefused):
        check_address(ip_address(text))


EMBEDDED = [
    "fd00::5efe:808:808",  # ISATAP in a unique-local network
    "fd00::200:5efe:808:808",
    "fe80::5efe:808:808",
    "fec0::5efe:8.8.8.8",
    "2001:db8::5efe:8.8.8.8",
    "2606:4700::5efe:10.0.0.1",  # and the other way round
    "2002:808:808::1",  # 6to4 goes to a relay
    "2002:a00:1::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
    "64:ff9b:1::808:808",  # local translation
    "::ffff:0:808:808",  # IPv4-translated
    "::808:808",  # IPv4-compatible
]


@pytest.mark.parametrize("address", EMBEDDED)
def test_the_outer_and_the_inner_address_must_be_public(address: str) -> None:
    with pytest.raises(FetchRefused, match="not on the public internet"):
        check_address(ip_address(address))


@pytest.mark.parametrize("address", ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2606:4700::5efe:8.8.8.8"])
def test_a_notation_of_a_public_address_passes(address: str) -> None:
    check_address(ip_address(address))


def test_an_allowed_outer_network_allows_no_inner_address() -> None:
    outer = (IPv6Network("fd00::/8"), IPv6Network("2002::/16"))
    check_address(ip_address("fd00::1"), outer)
    check_address(ip_address("fd00::5efe:808:808"), outer)
    for address in ("fd00::5efe:10.0.0.1", "2002:a00:1::1"):
        with pytest.raises(FetchRefused, match="inside it 10.0.0.1"):
            check_address(ip_address(address), outer)
    with pytest.raises(FetchRefused):
        check_address(ip_address("fd00::5efe:10.0.0.1"), (IPv4Network("10.0.0.0/8"),))
