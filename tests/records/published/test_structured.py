from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.agent import wire
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import QueryResult, TextHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.published.rejections import DataError
from genevolve_ray.records.published.structured import (
    FoundItem,
    SearchStep,
    SkillStep,
    StructuredTrajectory,
    ThinkStep,
    parse_structured,
    read_structured,
    structured_bytes,
    structured_of,
    write_structured,
)
from genevolve_ray.records.trajectory import Provenance, SampleKey, Trajectory, Turn, TurnKind

texts = st.text(max_size=30)
steps = st.one_of(
    st.builds(ThinkStep, content=texts, action=texts),
    st.builds(SearchStep, query=texts, results=st.lists(st.builds(FoundItem, id=texts, title=texts)).map(tuple)),
    st.builds(SkillStep, skill_name=texts, key_points=st.lists(texts).map(tuple), guidance_preview=texts),
)
trajectories = st.builds(
    StructuredTrajectory,
    case_id=texts,
    user_prompt=texts,
    gen_prompt=texts,
    steps=st.lists(steps, max_size=6).map(tuple),
    num_messages=st.integers(0, 2**31),
)


@given(trajectories)
def test_what_is_written_is_read_back(structured: StructuredTrajectory) -> None:
    assert parse_structured(structured_bytes(structured), "file") == structured


@given(st.dictionaries(st.text(min_size=1).map("x_".__add__), texts, max_size=3))
def test_unknown_fields_are_kept(more: dict[str, str]) -> None:
    values = {"case_id": 7, "user_prompt": "u", "steps": [{"content": "c", "action": "search", **more}], **more}
    read = parse_structured(json.dumps(values).encode(), "file")
    written = json.loads(structured_bytes(read))
    assert written["case_id"] == "7" and written["steps"][0]["type"] == "think"
    assert {k: written[k] for k in more} == {k: written["steps"][0][k] for k in more} == more


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.floats() | texts, st.lists).map(json.dumps)
)
def test_any_other_content_is_a_data_error(content: bytes | str) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    with pytest.raises(DataError, match=r"^file\.json: "):
        parse_structured(data, "file.json")


WHOLE = {"case_id": "a", "user_prompt": "u", "gen_prompt": "g", "steps": [], "num_messages": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"case_id": None}, "case_id: Input should be a valid string"),
        ({"steps": {}}, "steps: Input should be a valid tuple"),
        ({"steps": [7]}, "steps.0: is none of think, search_result and skill_result"),
        ({"steps": [{"type": "dance"}]}, "steps.0: is none of think"),
        ({"steps": [{"type": "think", "content": 3}]}, "steps.0.content: Input should be a valid string"),
        ({"steps": [{"query": "q", "results": ["a"]}]}, "steps.0.results.0: "),
        ({"num_messages": -1}, "num_messages: Input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_structured(json.dumps(WHOLE | change).encode(), "t.json")
    assert str(caught.value).startswith(f"t.json: {message}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"case_id": "a", "case_id": "b"}', "key 'case_id' is given twice"),
        (b"[" * 100_000, "is not JSON that can be read"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested more than"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[]", "holds a list, not the object of one trajectory"),
        (b"", "is not JSON that can be read"),
    ],
)
def test_a_file_of_another_kind_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_structured(data, "t.json")


def test_missing_and_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="none.json: cannot be read: No such file"):
        read_structured(tmp_path / "none.json")
    monkeypatch.setattr("genevolve_ray.records.published.structured.MAX_STRUCTURED_BYTES", 10)
    (tmp_path / "large.json").write_bytes(b" " * 11)
    with pytest.raises(DataError, match="has more than"):
        read_structured(tmp_path / "large.json")


def test_half_surrogate_pairs_survive() -> None:
    read = parse_structured(json.dumps(WHOLE | {"user_prompt": "a\ud800"}).encode(), "t.json")
    assert read.user_prompt == "a\ud800"
    assert parse_structured(structured_bytes(read), "t.json") == read


def episode() -> Trajectory:
    search = wire.text_block(
        [QueryResult(query="moon", hits=(TextHit(title="Gazetteer", url="u", snippet="s"),))], ("title", "url"), 80
    )
    skill = "# Counting\n- Say the number.\n- Place each object."
    calls = [("search", {"queries": ["moon"]}, search), ("query_knowledge", {"skill_name": "counting"}, skill)]
    turns = [
        Turn(
            kind=TurnKind.TOOL_CALL,
            text=f"<think>need {name}</think><tool_call>{{}}</tool_call>",
            tool=name,
            arguments=arguments,
            observation=wire.wrap(observation),
        )
        for name, arguments, observation in calls
    ]
    turns.append(Turn(kind=TurnKind.ANSWER, text="<think>done</think><answer>{}</answer>"))
    return Trajectory(
        key=SampleKey(step=1, request_id="case-1", sample=0),
        prompt="Show the moon\ud800.",
        ledger=TokenLedger(),
        provenance=Provenance(profile="atlas", engine="e"),
        turns=turns,
        program=Program(gen_prompt="Draw it.", reference_images=(ReferenceImage(img_id="IMG_001"),)),
    )


def test_a_trajectory_becomes_its_steps(tmp_path: Path) -> None:
    structured = structured_of(episode())
    assert [step.type for step in structured.steps] == ["think", "search_result", "think", "skill_result", "think"]
    assert [s.action for s in structured.steps if isinstance(s, ThinkStep)] == ["search", "query_knowledge", "answer"]
    assert structured.steps[1] == SearchStep(query="moon", results=(FoundItem(id="1", title="Gazetteer"),))
    skill = structured.steps[3]
    assert isinstance(skill, SkillStep)
    assert (skill.skill_name, skill.key_points) == ("counting", ("Say the number.", "Place each object."))
    assert (structured.case_id, structured.user_prompt, structured.gen_prompt) == (
        "case-1",
        "Show the moon?.",
        "Draw it.",
    )
    assert structured.num_messages == 2 + 3 + 2
    assert read_structured(write_structured(structured, tmp_path / "t.json")) == structured
