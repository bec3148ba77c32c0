"""`--policy`: a run, a model folder, an endpoint, or none at all."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from genevolve_ray.agent.trained_prompt import prompt_warning
from genevolve_ray.config import RunConfig, explain
from genevolve_ray.doctor.preflight import check_final_step, check_sampled, model_folder
from genevolve_ray.doctor.sight import check_sight
from genevolve_ray.engines.openai import OpenAIPolicyConfig
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inference import PolicySource, folder_digest
from genevolve_ray.evolution.layers import LayerFault, merge_layers, read_layers
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.models.hub import is_hub_id, local_model, pinned

DIRECT = "direct"
_LOG = logging.getLogger(__name__)
_ENDPOINT = re.compile(r"openai:(?P<model>[^@\s]+)@(?P<url>https?://\S+)")


@contextmanager
def named_policy(text: str | None, config: RunConfig) -> Iterator[PolicySource | None]:
    """Lend the policy that `--policy` names, None for `direct`; by default the configuration's `policy.model`.

    Raises:
        UserFault: naming the invalid value.
    """
    if text == DIRECT:
        yield None
    elif text is not None and (text.startswith("openai:") or text.endswith((".yaml", ".yml"))):
        endpoint = _endpoint(text)
        yield PolicySource(identity=f"openai:{endpoint.model}", endpoint=endpoint)
    else:
        key = "--policy" if text else "policy.model"
        named = pinned(text or config.policy.model, key)
        with policy_folder(model_folder(named, key)) as folder:
            try:
                check_sight(folder, config.protocol, config.engine)
                check_sampled(folder, config.engine)
                check_final_step(folder, config.protocol)
                if warning := prompt_warning(folder, config.protocol):
                    _LOG.warning("%s", warning)
            except (OSError, ValueError) as error:
                raise UserFault(f"{key}: {error}") from error
            identity = f"{Path(named).name}:{folder_digest(folder)}"
            yield PolicySource(identity=identity, model=folder.resolve())


def _endpoint(text: str) -> OpenAIPolicyConfig:
    found = _ENDPOINT.fullmatch(text)
    try:
        if found:
            return OpenAIPolicyConfig(url=found["url"], model=found["model"])
        if text.startswith("openai:"):
            raise UserFault(f"--policy {text!r}: write openai:MODEL@URL, as openai:my-model@http://127.0.0.1:8000/v1")
        return OpenAIPolicyConfig.model_validate(merge_layers(read_layers(text)))
    except ValidationError as error:
        raise UserFault(f"--policy {text}: {explain(error, kind=OpenAIPolicyConfig)}") from error
    except LayerFault as error:
        raise UserFault(f"--policy {error}") from error


@contextmanager
def policy_folder(policy: Path) -> Iterator[Path]:
    """Lend the model folder that a policy names: itself, or a run's best checkpoint (the latest where none is best).

    An adapter is merged into the base that it names.
    """
    if not (policy / "run.json").is_file():
        with _whole(policy) as folder:
            yield folder
        return
    store = RunStore.read(str(policy))
    checkpoint = store.best_checkpoint() or store.latest_checkpoint()
    if checkpoint is None:
        raise UserFault(f"run {policy} has no checkpoint yet")
    with store.open_checkpoint(checkpoint.step) as kept, _whole(kept) as folder:
        yield folder


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Lend a folder of whole weights: the given one, or for an adapter a merged one that is deleted afterwards."""
    if not (folder / "adapter_config.json").is_file():
        yield folder
        return
    from genevolve_ray.learning.lora import export_merged

    # An exported adapter may name its base by a hub id.
    base = str(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path"))
    known = local_model(base, "base_model_name_or_path") if is_hub_id(base) else None
    with TemporaryDirectory(prefix="genevolve-merged-") as merged:
        yield export_merged(folder, merged, known)
