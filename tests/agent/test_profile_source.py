"""Profiles from names, files and objects: what they extend, which words they hold, and what is refused in one line."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.agent.profile import PROFILES, ProtocolProfile, load_prompt
from genevolve_ray.agent.profile_source import read_profile

RELEASE = PROFILES["release"]


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / name.replace("__", ".")
        file.write_text(text)
    return folder


def test_a_name_is_the_built_in_profile() -> None:
    assert read_profile("paper-eval") is PROFILES["paper-eval"]


def test_an_object_states_what_differs() -> None:
    own = read_profile({"extends": "paper-eval", "max_references": 3, "messages": {"too_long": "Shorter."}})
    assert (own.max_references, own.append_date, own.messages.too_long) == (3, True, "Shorter.")
    assert own.messages.final_step == RELEASE.messages.final_step
    assert own.name == f"paper-eval+{own.digest}"


def test_one_setting_of_pictures_leaves_the_others_of_the_extended_profile() -> None:
    own = read_profile({"extends": "atlas-sight", "observations": {"per_search": 1}})
    assert own.observations == PROFILES["atlas-sight"].observations.model_copy(update={"per_search": 1})
    assert not read_profile({"extends": "atlas-sight", "observations": {"images": False}}).observations.images


def test_an_object_extends_the_release_profile_by_default() -> None:
    assert read_profile({"name": "mine", "max_turns": 5}) == RELEASE.model_copy(update={"name": "mine", "max_turns": 5})
    assert read_profile({"extends": "release"}) == RELEASE


def test_files_extend_each_other_and_name_texts_next_to_them(tmp_path: Path) -> None:
    (tmp_path / "skills").mkdir()
    write(tmp_path / "skills", one__md="# One\n")
    write(
        tmp_path,
        mine__yaml="extends: base.yaml\nmessages: {final_step: last.txt}\n",
        base__yaml="extends: paper-eval\nprompt: words.md\nskills: skills\nsampling: {top_p: 0.5}\n",
        words__md="Own words.\nEnd",
        last__txt="Now!\n",
    )
    own = read_profile(str(tmp_path / "mine.yaml"))
    assert (own.name, own.prompt, own.skills) == ("mine", "Own words.\nEnd", {"one": "# One\n"})
    assert (own.messages.final_step, own.max_references) == ("Now!\n", 5)
    assert own.sampling is not None and (own.sampling.temperature, own.sampling.top_p) == (0.6, 0.5)


def test_a_profile_holds_its_words_where_no_file_is(tmp_path: Path) -> None:
    write(tmp_path, mine__yaml="prompt: words.md\n", words__md="Own words.")
    own = read_profile(str(tmp_path / "mine.yaml"))
    (tmp_path / "words.md").unlink()
    again = ProtocolProfile.model_validate_json(pickle.loads(pickle.dumps(own)).model_dump_json())
    assert read_profile(again.model_dump()) == again == own
    assert load_prompt(again.prompt) == "Own words."


def test_messages_are_importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, foreign_words__py='FINAL = "Now {\\"a\\": 1}"\n')
    monkeypatch.syspath_prepend(tmp_path)
    own = read_profile({"messages": {"final_step": "foreign_words:FINAL"}})
    assert own.messages.final_step == 'Now {"a": 1}'


def test_a_file_that_extends_none_is_named(tmp_path: Path) -> None:
    write(tmp_path, mine__yaml="extends: gone.yaml\n", empty__yaml="extends:\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: extends: profile gone\.yaml: No such file"):
        read_profile("mine.yaml", tmp_path)
    with pytest.raises(ValueError, match=r"empty\.yaml: extends: .*, got None"):
        read_profile("empty.yaml", tmp_path)


def test_equal_names_of_different_profiles_are_refused() -> None:
    with pytest.raises(ValueError, match=r"profile: name: 'release' is a built-in profile"):
        read_profile({"name": "release", "max_turns": 5})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "relase",
            r"profile 'relase' is unknown; known: atlas, atlas-sight, paper-eval, release, small, or a \.yaml file",
        ),
        (7, r"profile: a name, a \.yaml file or keys are expected, got 7"),
        ("none.yaml", r"profile none\.yaml: "),
        ({"extends": "none"}, r"profile 'none' is unknown"),
        ({"extends": None}, r"profile: extends: a name, a \.yaml file or keys are expected, got None"),
        ({"texts_from": 5}, r"profile: texts_from: a package or a folder is expected, got 5"),
        ({"texts_from": ["x"]}, r"profile: texts_from: a package or a folder is expected, got \['x'\]"),
        ({"max_refs": 3}, r"profile: max_refs: unknown key, did you mean max_references\?"),
        ({"max_references": 9}, r"profile: max_references: .*, got 9"),
        ({"messages": {"goodbye": "x"}}, r"profile: messages\.goodbye: unknown key"),
        ({"answers": "lenient"}, r"profile: answers: .*'strict' or 'published', got 'lenient'"),
        ({"max_turn_tokens": 90000}, r"profile: max_turn_tokens=90000 exceeds"),
        ({"prompt": "no_such_prompt"}, r"profile: system prompt 'no_such_prompt' is neither"),
        ({"prompt": "no_module_here:X"}, r"profile: system prompt 'no_module_here:X': ModuleNotFoundError"),
        ({"skills": "no/such/folder"}, r"profile: no skill \(\*\.md\) in no/such/folder"),
        ({"messages": {"final_step": "json:missing"}}, r"profile: messages\.final_step 'json:missing': AttributeError"),
        ({"texts_from": "no_such_package"}, r"profile: texts_from: 'no_such_package' is neither an installed package"),
    ],
)
def test_bad_sources_are_refused_in_one_line(source: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        read_profile(source)
    assert "\n" not in str(error.value)


def test_files_with_faults_are_named(tmp_path: Path) -> None:
    write(tmp_path, loop__yaml="extends: loop.yaml\n", list__yaml="[1]\n", broken__yaml="a: [\n")
    for name, said in (("loop", "extends itself"), ("list", "got list"), ("broken", "line")):
        with pytest.raises(ValueError, match=f"{name}.yaml: .*{said}"):
            read_profile(str(tmp_path / f"{name}.yaml"))


def test_a_copy_without_a_text_is_named(tmp_path: Path) -> None:
    write(tmp_path, system_prompt__py="SYSTEM_PROMPT = 'x'\n", agent__py="x = 1\n")
    with pytest.raises(ValueError, match=r"agent\.py has no text with 'Format error'"):
        read_profile({"texts_from": str(tmp_path)})
