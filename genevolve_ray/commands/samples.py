"""`genevolve samples`: a folder of rows with which every command can be tried."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.samples import Row, bench_rows, knowgen_rows, request_rows, sft_rows, wise_rows
from genevolve_ray.errors import UserFault
from genevolve_ray.records.published.files import write_bytes

README = """\
# Sample rows

`genevolve samples` wrote these files. They are rows of the embedded world (atlas) in the published shapes, about a
dozen in each file. A second call writes the same bytes. Replace a file by your own in the same shape, and the same
commands work on it.

| file | rows | read by |
|---|---|---|
| `requests.jsonl` | requests: `id`, `prompt` | `genevolve rollout`, `render` |
| `bench.jsonl` | held-out requests with a ground truth | `genevolve bench genevolve`, `rollout`, `render`; `heldout_paths` |
| `rl.jsonl`, `validation.jsonl` | training and validation requests with a ground truth | `paths`, `validation_paths` of a run |
| `sft.jsonl` | conversations: `messages`, `images` | `genevolve sft` |
| `knowgen.json` | a JSON array with KnowGen's categories | `genevolve bench knowgen` |
| `wise.json` | a JSON array in the shape of WISE, with prompts of this project | `genevolve bench wise` |
| `wise.yaml` | the atlas with WISE's judge; enter the address of your vision model | the same, as `--config` |
| `images/` | ground truths, `case_{prompt_pool_index}.png` | named by the rows; `--data` of `genevolve judge` |

The rows show the shapes. They are no benchmark: no figure of them can be compared with a published one.

The conversations of `sft.jsonl` begin with the system prompt of the `atlas` profile, because a policy works best under
the prompt on which it was trained. The tools of the `atlas` preset know the subjects of all rows but those of
`wise.json`.
"""
WISE_CONFIG = """\
# The atlas with WISE's judge: a vision model behind an OpenAI-style endpoint. Enter its address and its name.
extends: atlas
judge:
  type: genevolve_ray.bench.wise_endpoint:WiseJudge
  config: {url: "http://127.0.0.1:8002/v1", model: judge}
"""


def write_samples(folder: Path) -> list[Path]:
    """Write the sample rows into a folder and return their files. The same files may exist already.

    Raises:
        UserFault: for an existing file with other content; nothing is written then.
    """
    bench, truths = bench_rows()
    train, train_truths = bench_rows(Partition.TRAIN)
    validation, validation_truths = bench_rows(Partition.VALIDATION)
    files = {
        "README.md": README.encode(),
        "requests.jsonl": _lines(request_rows()),
        "bench.jsonl": _lines(bench),
        "rl.jsonl": _lines(train),
        "validation.jsonl": _lines(validation),
        "sft.jsonl": _lines(sft_rows()),
        "knowgen.json": _array(knowgen_rows(bench)),
        "wise.json": _array(wise_rows()),
        "wise.yaml": WISE_CONFIG.encode(),
    }
    pictures = truths | train_truths | validation_truths
    content = {folder / name: data for name, data in (files | pictures).items()}
    for path, data in content.items():
        if path.exists() and (not path.is_file() or path.read_bytes() != data):
            raise UserFault(f"genevolve samples {folder}: {path.name} exists with other content: name another folder")
    for path, data in content.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    return [folder / name for name in files]


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _array(rows: list[Row]) -> bytes:
    return (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode()
