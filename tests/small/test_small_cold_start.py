"""The adapter that ships: small, of this model, without a path of the machine that made it, and packed as the code packs."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

import pytest
from tiny_gguf import write_gguf

from genevolve_ray.data.sft_config import SftRowsConfig
from genevolve_ray.data.sft_folder import PROVENANCE_FILE
from genevolve_ray.learning.config import LoraConfig
from genevolve_ray.learning.lora import attach_adapter, publish_adapter
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.models.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE, read_adapter
from genevolve_ray.small.convert import convert_policy
from genevolve_ray.small.notices import PROVENANCE
from genevolve_ray.small.training.cold_start import BASE, SETTINGS, pack_cold_start

SHIPPED = Path(str(resources.files("genevolve_ray.small") / "prebuilt" / "cold_start"))
MOST_BYTES = 3 << 20


def test_the_shipped_adapter_fits_every_linear_layer_of_the_policy() -> None:
    adapter = read_adapter(SHIPPED)
    assert len(adapter.factors) == 7 * 30
    shapes = {(f.up_O_R.shape[0], f.down_R_I.shape[1]) for f in adapter.factors.values()}
    assert shapes == {(576, 576), (192, 576), (1536, 576), (576, 1536)}
    assert (SHIPPED / ADAPTER_FILE).stat().st_size < MOST_BYTES


def test_its_provenance_has_the_hashes_of_its_files_and_the_settings_of_the_recipe() -> None:
    provenance = json.loads((SHIPPED / PROVENANCE).read_text())
    for name, digest in provenance["sha256"].items():
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == digest
    recipe = SftRowsConfig.model_validate(SETTINGS).model_dump(mode="json")
    for key in ("lora", "lr", "betas", "global_batch", "max_rows", "epochs", "final_lr_fraction", "warmup_fraction"):
        assert provenance["settings"][key] == recipe[key], key
    assert json.loads((SHIPPED / ADAPTER_CONFIG_FILE).read_text())["base_model_name_or_path"] == BASE


def test_a_trained_adapter_is_packed_in_bfloat16_under_the_name_of_its_base(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    policy = convert_policy(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "policy")
    model = load_policy(policy, "bfloat16")
    description = attach_adapter(model, LoraConfig(rank=2, alpha=4))
    publish_adapter(model.state_dict(), description, tmp_path / "trained", "bfloat16")
    settings = {"global_batch": 4, "lora": {"start": None}}
    record = {"settings": settings, "trained_on": 8, "steps": 2, "loss": [0.5, 0.25], "heldout": [], "package": "0"}
    (tmp_path / "trained" / PROVENANCE_FILE).write_text(json.dumps(record))
    rows = tmp_path / "train.jsonl"
    rows.write_text("{}\n")
    packed = pack_cold_start(tmp_path / "trained", tmp_path, policy, tmp_path / "packed")
    assert {path.name for path in packed.iterdir()} == {ADAPTER_CONFIG_FILE, ADAPTER_FILE, PROVENANCE}
    first = next(iter(read_adapter(packed).factors.values()))
    assert str(first.down_R_I.dtype) == "torch.bfloat16"
    assert str(tmp_path) not in (packed / ADAPTER_CONFIG_FILE).read_text() + (packed / PROVENANCE).read_text()
    provenance = json.loads((packed / PROVENANCE).read_text())
    assert (provenance["steps"], provenance["loss"]) == (2, [0.5, 0.25])
    assert provenance["rows_sha256"] == hashlib.sha256(b"{}\n").hexdigest()
