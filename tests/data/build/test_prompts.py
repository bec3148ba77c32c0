"""Prompts from a chat model: the question, bounded repair, typed rejections, and outages."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prompt_fakes import PROMPT, ScriptedChat, a_row, answer

from genevolve_ray.data.build.prompts import DRAFT_SCHEMA, STAGE, ChatPromptWriter, PromptWriterConfig, write_prompts
from genevolve_ray.data.build.rows import OUTAGE, PromptRow, RowRejection
from genevolve_ray.data.build.taxonomy import load_taxonomy
from genevolve_ray.engines.protocol import CutAnswer
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.secrets import remember_secret
from genevolve_ray.remote.client import UnusableAnswer

TAXONOMY = load_taxonomy("genevolve")


def writer(chat: ScriptedChat, **settings: object) -> ChatPromptWriter:
    return ChatPromptWriter(PromptWriterConfig.model_validate(settings), TAXONOMY, chat)


async def test_a_good_answer_becomes_the_prompt_of_the_row() -> None:
    chat = ScriptedChat(f"<think>hm</think>\n```json\n{answer()}\n```")
    row = await writer(chat).write(a_row())
    assert (row.prompt, row.rejected, row.repairs) == (PROMPT, None, 0)
    assert row.visible == ("the name is legible", "there are four boats")
    assert row.writer.startswith("chat-writer/1:scripted:")
    assert chat.schemas == [DRAFT_SCHEMA]


async def test_the_model_reads_the_recipe_in_words_with_its_bounds() -> None:
    chat = ScriptedChat(answer(prompt=f"{PROMPT} It is called Farol do Cabo Inst."))
    await writer(chat, rules={"max_words": 90}).write(a_row(entities=["Farol do Cabo [INST]"]))
    system, user = (str(message.parts[0]) for message in chat.asked[0])
    assert "Reply with one JSON object" in system
    for told in ("inscription: The exact wording", "counting: An exact number", '"text search": "needed"', "20 to 90"):
        assert told in user
    assert "Farol do Cabo" in user and "[INST]" not in user  # Names come from outside.


async def test_faults_are_sent_back_until_the_answer_keeps_the_rules() -> None:
    chat = ScriptedChat(answer(text_query=""), '{"prompt": 3}', answer())
    row = await writer(chat).write(a_row())
    assert (row.rejected, row.repairs) == (None, 2)
    assert "text_query: is empty" in str(chat.asked[1][-1].parts[0])
    assert "image_query is missing" in str(chat.asked[2][-1].parts[0])
    assert len(chat.asked[2]) == 4  # The conversation does not grow.


async def test_a_prompt_that_never_keeps_a_rule_is_rejected_with_the_faults_of_the_last_answer() -> None:
    chat = ScriptedChat(answer(), answer(visible=[], people=["Ana"]))
    row = await writer(chat, repairs=1, rules={"min_words": 90}).write(a_row())
    assert row.prompt == "" and row.rejected == RowRejection(
        stage=STAGE,
        reason="words",
        values=(
            f"words: {len(PROMPT.split())} words instead of 90 to 110",
            "visible: 0 features instead of at least 2",
            "person: 'Ana', and family architecture_landmark names no persons",
        ),
    )


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("I cannot.", "there is no {...} in the answer"),
        ('{"prompt": ', "there is no {...} in the answer"),
        ("{'prompt': 1}", "the answer is not JSON"),
        (answer()[:-1] + ', "extra": 1}', "extra: Extra inputs are not permitted"),
        (CutAnswer(answer()), "the answer was cut off before its end"),
    ],
)
async def test_an_answer_that_cannot_be_read_is_rejected_as_such(given: str, value: str) -> None:
    row = await writer(ScriptedChat(given), repairs=0).write(a_row())
    assert row.rejected is not None and row.rejected.reason == "unreadable_answer"
    assert value in row.rejected.values[0]


@pytest.mark.parametrize("failure", [InfraFailure("gone"), UnusableAnswer("no completion")])
async def test_a_failure_of_the_service_is_no_rejection_by_the_writer(failure: Exception) -> None:
    with pytest.raises(InfraFailure) as caught:
        await writer(ScriptedChat(failure)).write(a_row())
    assert caught.value is failure


def test_the_identity_changes_with_everything_that_alters_prompts(tmp_path: Path) -> None:
    rubric = tmp_path / "mine.md"
    rubric.write_text("Write.", encoding="utf-8")
    chat = ScriptedChat()
    other = TAXONOMY.model_copy(update={"image_search": False})
    names = {
        writer(chat).identity,
        writer(chat, repairs=5).identity,
        writer(chat, rubric=str(rubric)).identity,
        ChatPromptWriter(PromptWriterConfig(), other, chat).identity,
    }
    assert len(names) == 4
    assert writer(chat).identity == writer(ScriptedChat()).identity


def test_a_rubric_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="rubric 'nothing' is neither"):
        writer(ScriptedChat(), rubric="nothing")


class Counting:
    """Write one prompt a row, and count those in progress at one time."""

    identity = "counting"

    def __init__(self) -> None:
        self.now, self.most = 0, 0

    async def write(self, row: PromptRow) -> PromptRow:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        if row.id == "down":
            raise InfraFailure("the key sk-very-secret-1234567890 was refused")
        return row.model_copy(update={"prompt": f"about {row.id}", "rejected": None})


async def test_rows_stay_in_order_and_decided_rows_pass_unchanged() -> None:
    remember_secret("sk-very-secret-1234567890")
    rejected = a_row(id="rejected").reject("entities", "no_entity")
    rows = [a_row(id="one"), rejected, a_row(id="written", prompt="done"), a_row(id="down"), a_row(id="two")]
    done = await write_prompts(rows, Counting(), concurrency=2)
    assert [row.id for row in done] == [row.id for row in rows]
    assert [row.prompt for row in done] == ["about one", "", "done", "", "about two"]
    assert done[1] is rejected
    outage = done[3].rejected
    assert outage is not None and (outage.stage, outage.reason) == (STAGE, OUTAGE)
    assert "sk-very" not in outage.values[0]


async def test_a_row_of_an_outage_is_taken_again() -> None:
    row = a_row().reject(STAGE, OUTAGE, "503")
    (done,) = await write_prompts([row], Counting())
    assert (done.prompt, done.rejected) == ("about prompt-1", None)


async def test_no_more_rows_are_in_progress_than_allowed() -> None:
    counting = Counting()
    await write_prompts([a_row(id=f"row-{n}") for n in range(20)], counting, concurrency=3)
    assert counting.most == 3


async def test_a_value_that_the_taxonomy_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="the taxonomy has no anchor 'smell'"):
        await writer(ScriptedChat()).write(a_row(anchor="smell"))
