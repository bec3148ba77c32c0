"""YAML without surprises: what PyYAML takes in silence is an error with key and line, or the text that was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from genevolve_ray.records.base import Config
from genevolve_ray.records.strict_text import YamlFault, key_lines, load_yaml, read_yaml, unique_keys


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml: line 3: key 'a' is given twice"),
        ("loop:\n  steps: 1\n  steps: 2\n", "x.yaml: line 3: key 'steps' is given twice"),
        ("list:\n- {a: 1, a: 1}\n", "x.yaml: line 2: key 'a' is given twice"),
        ("{1: a, 1: b}", "x.yaml: line 1: key 1 is given twice"),
        ("base: &b {a: 1}\nmade: {<<: *b, c: 1, c: 2}\n", "x.yaml: line 2: key 'c' is given twice"),
        ("a: 1\nsteps: 010\n", "x.yaml: line 2: 010 starts with 0, as octal numbers do: write 10, or '010' for a text"),
        ("steps: -007", "x.yaml: line 1: -007 starts with 0"),
        ("steps: 08", "x.yaml: line 1: 08 starts with 0"),
        ("steps: 0_8", "x.yaml: line 1: 0_8 starts with 0"),
        ("a: [1\nb: 2", "x.yaml: line 2: "),
        ("a: b: c", "x.yaml: line 1: mapping values are not allowed here"),
        ("? [a]\n: 1", "x.yaml: line 1: found unhashable key"),
        ("a: !!python/object:os.system x", "x.yaml: line 1: could not determine a constructor"),
        ("a: \x07", "x.yaml: "),
    ],
)
def test_a_fault_is_one_line_with_the_line_number(text: str, told: str) -> None:
    with pytest.raises(YamlFault) as caught:
        load_yaml(text, "x.yaml")
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("aspect: 16:9", {"aspect": "16:9"}),
        ("time: 12:30:45", {"time": "12:30:45"}),
        ("a: '010'", {"a": "010"}),
        ("a: 0\nb: 10\nc: -3\nd: 0x10\ne: 1_000", {"a": 0, "b": 10, "c": -3, "d": 16, "e": 1000}),
        ("a: 0.5\nb: 1.0e-5\nc: .5\nd: -.inf", {"a": 0.5, "b": 1e-5, "c": 0.5, "d": float("-inf")}),
        ("a: true\nb: False\nc: yes\nd: off", {"a": True, "b": False, "c": "yes", "d": "off"}),
        ("base: &b {a: 1}\nmade: {<<: *b, a: 2}", {"base": {"a": 1}, "made": {"a": 2}}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: ~\nb:", {"a": None, "b": None}),
        ("", None),
    ],
)
def test_values_are_what_was_written(text: str, value: Any) -> None:
    assert load_yaml(text, "x.yaml") == value


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1}
    (tmp_path / "b.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(YamlFault, match=r"b\.yaml: is not UTF-8"):
        read_yaml(tmp_path / "b.yaml")


def test_every_key_has_its_line() -> None:
    text = "loop:\n  steps: 1\nlist:\n- a: 1\n- b: 2\nsame: &x [*x]\n"
    assert key_lines(text) == {
        ("loop",): 1,
        ("loop", "steps"): 2,
        ("list",): 3,
        ("list", "0"): 4,
        ("list", "0", "a"): 4,
        ("list", "1"): 5,
        ("list", "1", "b"): 5,
        ("same",): 6,
        ("same", "0"): 6,
    }


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_was_dumped_is_read_again(value: Any) -> None:
    assert load_yaml(yaml.safe_dump(value, allow_unicode=True), "x") == value


@given(st.text(max_size=60))
def test_any_text_is_a_value_or_a_fault(text: str) -> None:
    try:
        load_yaml(text, "x")
    except YamlFault as fault:
        assert str(fault).startswith("x:")


def test_json_objects_have_each_key_once() -> None:
    assert unique_keys([("a", 1), ("b", 2)]) == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="key 'a' is given twice"):
        unique_keys([("a", 1), ("a", 1)])


class Inner(Config):
    """A group."""

    size: int = 1


class Settings(Config):
    """Fields of every kind."""

    steps: int = 1
    rate: float | None = None
    ports: tuple[int, ...] = ()
    flag: bool = False
    name: str = ""
    either: str | bool | int = 0
    inner: Inner = Inner()
    bounded: float = Field(default=1, ge=0)


@pytest.mark.parametrize("value", [True, False, "010", "-007", "00"])
@pytest.mark.parametrize("field", ["steps", "rate", "ports", "inner", "bounded"])
def test_a_number_is_no_truth_value_and_has_no_leading_zero(field: str, value: Any) -> None:
    given = {"ports": [value], "inner": {"size": value}}.get(field, value)
    with pytest.raises(ValidationError, match="a number"):
        Settings.model_validate({field: given})


def test_numbers_truth_values_and_texts_stay() -> None:
    made = Settings.model_validate(
        {"steps": 3, "rate": "1e-4", "ports": [1], "flag": True, "name": "010", "either": True, "inner": {"size": "7"}}
    )
    assert (made.steps, made.rate, made.ports, made.flag, made.name, made.either, made.inner.size) == (
        *(3, 1e-4, (1,), True, "010", True, 7),
    )
    assert Settings.model_validate({"rate": None, "flag": "yes"}).flag
