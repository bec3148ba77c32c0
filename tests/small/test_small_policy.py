"""SmolLM2 as a policy: the real weights, tokenizer and template through the conversion, the learner and vLLM."""

from __future__ import annotations

import hashlib
import statistics
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.agent.chat import ChatFormat, load_tokenizer
from genevolve_ray.engines.ban import banned_token_ids
from genevolve_ray.small.convert import convert_policy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ADAPTER = {"rank": 4, "alpha": 16}
CONVERSATION = [
    {"role": "system", "content": "Each turn is one tool call or the answer."},
    {"role": "user", "content": "Two cats in front of the flag of Kenya."},
    {
        "role": "assistant",
        "content": '<tool_call>{"name": "image_search", "arguments": {"query": "flag of Kenya"}}</tool_call>',
    },
    {"role": "user", "content": "<tool_response>\nIMG_001: title: Flag of Kenya\n</tool_response>"},
    {"role": "assistant", "content": '<think>Take IMG_001.</think>\n<answer>{"gen_prompt": "Two cats."}</answer>'},
]


@pytest.fixture(scope="module")
def smollm(smollm_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    gguf = smollm_package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return convert_policy(gguf, tmp_path_factory.mktemp("smollm") / "policy")


@pytest.fixture(scope="module")
def chat(smollm: Path) -> ChatFormat:
    return ChatFormat(load_tokenizer(smollm))


@pytest.fixture(scope="module")
def banned(chat: ChatFormat) -> tuple[int, ...]:
    return banned_token_ids(chat.tokenizer, 49152, chat.end_of_turn_id)


def turns_of(chat: ChatFormat) -> tuple[list[int], list[bool]]:
    """Return the conversation as an episode leaves it in its ledger: tokens, and the mask of the policy's."""
    tokens, mask = chat.prompt_ids(CONVERSATION[:2]), list[bool]()
    mask += [False] * len(tokens)
    for message in CONVERSATION[2:]:
        if message["role"] == "assistant":
            said = [*chat.text_ids(message["content"]), chat.end_of_turn_id]
        else:
            said = chat.observation_ids(message["content"], ended=True)
        tokens += said
        mask += [message["role"] == "assistant"] * len(said)
    return tokens, mask


def test_its_greedy_continuation_is_a_right_sentence(smollm: Path, chat: ChatFormat) -> None:
    import torch

    from genevolve_ray.learning.policy import load_policy

    prompt = chat.prompt_ids([{"role": "user", "content": "What is the capital of France?"}])
    model: Any = load_policy(smollm)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": chat.end_of_turn_id}
    with torch.inference_mode():
        (tokens,) = model.generate(torch.tensor([prompt]), **options).tolist()
    assert chat.decode(tokens[len(prompt) :]) == "The capital of France is Paris.<|im_end|>"


def test_its_tokenizer_is_the_one_that_was_measured(smollm: Path) -> None:
    found = hashlib.sha256((smollm / "tokenizer.json").read_bytes()).hexdigest()
    assert found == "e9f1b9eb29e5f4fc508736f874cc7d1321834fb5610e169fb1acae231472321b"


def test_turns_have_the_tokens_of_the_template(chat: ChatFormat) -> None:
    tokens, mask = turns_of(chat)
    rendered = chat.tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert chat.decode(tokens) + "\n" == rendered
    assert chat.text_ids(rendered)[: len(tokens)] == tokens
    assert mask[-1] and tokens[-1] == chat.end_of_turn_id


def test_a_system_message_replaces_that_of_the_template(chat: ChatFormat) -> None:
    assert "SmolLM" not in chat.decode(chat.prompt_ids(CONVERSATION[:2]))
    assert "SmolLM" not in chat.decode(chat.observation_ids("More.", ended=True))


def test_only_the_end_of_a_turn_may_be_sampled_of_its_control_tokens(banned: tuple[int, ...]) -> None:
    assert banned == (0, 1, *range(3, 17))


@pytest.mark.parametrize(
    ("dtype", "lora", "rate"),
    [("float32", ADAPTER, 2e-3), ("bfloat16", ADAPTER, 2e-3), ("bfloat16", None, 1e-4)],
    ids=["adapter float32", "adapter bfloat16", "all weights bfloat16"],
)
def test_it_learns_from_two_rows(smollm: Path, chat: ChatFormat, dtype: str, lora: Any, rate: float) -> None:
    from genevolve_ray.learning.build import build_policy
    from genevolve_ray.learning.config import LearnerConfig
    from genevolve_ray.learning.distributed import Ranks, lone_rank
    from genevolve_ray.learning.sft import SftConfig, SftExample, train_sft

    settings = LearnerConfig.model_validate({"dtype": dtype, "lora": lora})
    ranks = lone_rank("cpu") if settings.shards else Ranks()
    model, _ = build_policy(smollm, settings, ranks)
    tokens, mask = turns_of(chat)
    other = [*tokens[:40], *tokens[60:]], [*mask[:40], *mask[60:]]
    rows = [SftExample(tokens, mask), SftExample(*other)]
    config = SftConfig.model_validate({"steps": 3, "lr": rate, "warmup_fraction": 0.0, "dtype": dtype})
    first, _, last = (step.loss for step in train_sft(model, [rows] * 3, config, ranks=ranks))
    assert last < 0.8 * first


@pytest.mark.parametrize(
    ("dtype", "lora", "rate", "limit"),
    [("float32", ADAPTER, 1e-3, 1e-4), ("bfloat16", ADAPTER, 1e-3, 0.05), ("bfloat16", None, 1e-5, 0.05)],
    ids=["adapter float32", "adapter bfloat16", "all weights bfloat16"],
)
async def test_vllm_and_the_learner_agree_before_and_after_an_update(
    smollm: Path,
    chat: ChatFormat,
    banned: tuple[int, ...],
    dtype: str,
    lora: Any,
    rate: float,
    limit: float,
    tmp_path: Path,
) -> None:
    from genevolve_ray.engines.config import VllmConfig
    from genevolve_ray.engines.protocol import Probe, SamplingParams
    from genevolve_ray.engines.vllm import VllmEngine
    from genevolve_ray.learning.batch import TrainSequence
    from genevolve_ray.learning.config import LearnerConfig
    from genevolve_ray.learning.step import Learner

    settings = {"dtype": dtype, "lr": rate, "temperature": 0.7, "lora": lora}
    learner = Learner(smollm, LearnerConfig.model_validate(settings), banned)
    engine = await VllmEngine.create(
        smollm, dtype=dtype, banned=banned, max_model_len=256, max_num_seqs=4, config=VllmConfig(threads=1)
    )
    prompt = chat.prompt_ids(CONVERSATION[:2])

    async def sampled(version: int) -> tuple[list[TrainSequence], float]:
        sequences, gaps = [], []
        for seed in range(2):
            sampling = SamplingParams(temperature=0.7, max_tokens=24, seed=seed, stop_token_ids=(chat.end_of_turn_id,))
            made = await engine.generate(prompt, sampling, f"{version}-{seed}")
            mask = [False] * len(prompt) + [True] * len(made.tokens)
            logprobs = [0.0] * len(prompt) + list(made.logprobs)
            sequences.append(TrainSequence([*prompt, *made.tokens], mask, logprobs, advantage=1.0 - 2 * seed))
            (scored,) = learner.score(sequences[-1:])
            gaps += [abs(ours - theirs) for ours, theirs in zip(scored, made.logprobs, strict=True)]
        return sequences, statistics.mean(gaps)

    try:
        sequences, gap = await sampled(0)
        assert gap < limit
        learner.train_step(sequences, 0)
        learner.write_weights(tmp_path / "version")
        ids = tuple(sequences[0].tokens)
        probe = Probe(token_ids=ids, logprobs=tuple(learner.raw_logprobs(ids)), tolerance=limit)
        assert await engine.update(str(tmp_path / "version"), 1, probe) < limit
        _, gap = await sampled(1)
        assert gap < limit
    finally:
        await engine.close()
