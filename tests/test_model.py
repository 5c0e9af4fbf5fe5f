"""model.py against transformers, and against itself."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import model

TINY = dict(vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, linear_key_head_dim=32, linear_value_head_dim=32,
            linear_num_key_heads=2, linear_num_value_heads=4)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Ours, and transformers' reading of the folder that ours was saved to."""
    ours = model.build(TINY)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p), alpha=0.05)
    folder = tmp_path_factory.mktemp("tiny")
    model.save(ours, folder)
    return ours, AutoModelForCausalLM.from_pretrained(folder).eval()


def test_full_forward_equals_transformers(pair):
    ours, theirs = pair
    ids = torch.randint(0, 512, (3, 200))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < 2e-5
