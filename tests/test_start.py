"""lib/start.py: what a stage starts from is checked before anything is trained."""

import json
from types import SimpleNamespace

import pytest
import tiny
import torch

from lib.errors import UserError
from lib.start import flags_of, load_start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.qwen(tmp_path_factory.mktemp("start") / "model")


def run(folder):
    return SimpleNamespace(folder=folder, device=torch.device("cpu"), say=print, warn=print)


def test_a_start_is_loaded_in_fp32_with_its_tokenizer_and_its_place(folder, tmp_path):
    policy, tokenizer, start = load_start(run(tmp_path), str(folder))
    assert {p.dtype for p in policy.parameters()} == {torch.float32} and start == folder
    assert len(tokenizer) == len(tiny.tokenizer()) and not policy.checkpointing


def test_gemma_s_tables_stay_as_they_are(tmp_path):
    policy, _, _ = load_start(run(tmp_path / "runs"), tiny.gemma4(tmp_path / "gemma"))
    frozen = [name for name, p in policy.named_parameters() if not p.requires_grad]
    assert frozen and all("per_layer" in name for name in frozen)


def test_weights_that_are_not_finite_are_named(tmp_path):
    """They used to end as "no sampled plan parses"."""
    bad = tiny.qwen(tmp_path / "bad")

    def spoil(tensors):
        tensors["model.language_model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan

    tiny.edit(bad, spoil)
    with pytest.raises(UserError, match="a NaN or an infinity in .*1.mlp.up_proj"):
        load_start(run(tmp_path / "runs"), bad)


def test_a_stage_does_not_start_from_the_folder_that_it_writes(folder):
    with pytest.raises(UserError, match="which this stage writes: name another --run"):
        load_start(run(folder.parent), folder)


def test_the_flags_of_the_stage_that_wrote_a_checkpoint_are_known(folder, tmp_path):
    assert flags_of(folder) == {}
    stage = tmp_path / "sft"
    (stage / "final").mkdir(parents=True)
    (stage / "config.json").write_text(json.dumps({"flags": {"with_think": True}}))
    assert flags_of(stage / "final") == {"with_think": True}
