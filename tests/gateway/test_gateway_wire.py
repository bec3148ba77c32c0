"""Bodies from outside: whatever arrives, what comes out is a body or a refusal."""

from __future__ import annotations

import json
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.wire import (
    MAX_SPANS,
    MAX_TOKENS,
    LeaseOrder,
    Push,
    ToolOrder,
    compress,
    decompress,
    read_body,
    read_json,
    read_push,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(string.ascii_lowercase, max_size=8), inner),
    max_leaves=12,
)
LEDGER = {
    "tokens": [1, 2],
    "policy_mask": [False, True],
    "logprobs": [0.0, -0.5],
    "versions": [-1, 3],
    "spans": [{"kind": "prompt", "start": 0, "end": 1}, {"kind": "answer", "start": 1, "end": 2}],
}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_push_or_a_refusal(data: bytes) -> None:
    with pytest.raises(GatewayRefusal):
        read_push(data)


@settings(max_examples=300, deadline=None)
@given(JSON, st.sampled_from(sorted(LEDGER)))
def test_any_json_in_any_place_is_a_push_or_a_refusal(value: object, column: str) -> None:
    body = json.dumps({"ledger": {**LEDGER, column: value}}).encode()
    try:
        push = read_push(body)
    except GatewayRefusal as refusal:
        assert refusal.reason is RefusalReason.MALFORMED
    else:
        assert isinstance(push, Push)
        assert json.loads(push.model_dump_json())["ledger"][column] == value


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_order_is_read_or_refused(value: object) -> None:
    for kind in (LeaseOrder, ToolOrder):
        try:
            assert isinstance(read_body(kind, json.dumps(value).encode()), kind)
        except GatewayRefusal as refusal:
            assert refusal.reason is RefusalReason.MALFORMED


@pytest.mark.parametrize(
    "text",
    ['{"a": NaN}', '{"a": 1, "a": 2}', "[" * 2000, '{"a":' * 30 + "1" + "}" * 30, "\ud800".encode("utf-8", "replace")],
)
def test_json_that_others_read_differently_is_refused(text: str | bytes) -> None:
    with pytest.raises(GatewayRefusal) as refused:
        read_json(text if isinstance(text, bytes) else text.encode())
    assert refused.value.reason is RefusalReason.MALFORMED


@pytest.mark.parametrize("claim", ["reward", "verdict", "outcome", "score", "rendered", "termination"])
def test_what_is_made_inside_is_not_taken(claim: str) -> None:
    with pytest.raises(GatewayRefusal) as refused:
        read_push(json.dumps({"ledger": LEDGER, claim: 1.0}).encode())
    assert refused.value.reason is RefusalReason.REWARD_CLAIMED


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=5000))
def test_compression_goes_there_and_back(data: bytes) -> None:
    assert decompress(compress(data), len(data)) == data


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_rubbish_is_no_zstd(data: bytes) -> None:
    try:
        decompress(data, 1000)
    except GatewayRefusal as refusal:
        assert refusal.reason in (RefusalReason.MALFORMED, RefusalReason.OVERSIZED)


def test_a_bomb_is_read_no_further_than_its_limit() -> None:
    with pytest.raises(GatewayRefusal) as refused:
        decompress(compress(bytes(50 << 20)), 1 << 20)
    assert refused.value.reason is RefusalReason.OVERSIZED


@pytest.mark.parametrize("unit", [b"{},", b"[],", b'{"a":[]},', b"0,"])
def test_a_body_of_very_many_parts_is_refused_before_it_is_parsed(unit: bytes) -> None:
    bomb = b'{"ledger": [' + unit * ((12 << 20) // len(unit)) + b"0]}"
    began = time.process_time()
    with pytest.raises(GatewayRefusal) as refused:
        read_push(bomb)
    assert refused.value.reason is RefusalReason.OVERSIZED
    assert time.process_time() - began < 0.5


def test_the_longest_episode_is_within_the_number_of_parts() -> None:
    n = MAX_TOKENS
    ledger = {"tokens": [1] * n, "policy_mask": [True] * n, "logprobs": [-0.5] * n, "versions": [3] * n}
    spans = [{"kind": "answer", "start": i, "end": i + 1} for i in range(MAX_SPANS)]
    push = read_push(json.dumps({"ledger": {**ledger, "spans": spans}}).encode())
    assert len(push.ledger.tokens) == n


def test_bad_entries_cost_no_more_than_the_first() -> None:
    columns = {name: ["x"] * MAX_TOKENS for name in ("tokens", "policy_mask", "logprobs", "versions")}
    body = json.dumps({"ledger": {**columns, "spans": ["x"] * MAX_SPANS}}).encode()
    began = time.process_time()
    with pytest.raises(GatewayRefusal, match="ledger.tokens.0"):
        read_push(body)
    assert time.process_time() - began < 0.3
