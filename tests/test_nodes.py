"""grpo.shard over two nodes of two ranks each: one gradient, few collectives, the mesh that was
asked for. Four ranks import this file and do `work`; tests read what they found."""

from unittest import mock

import pytest
import ranks
import torch
from test_grpo import SETTINGS, TOLERANCE, Collectives, apart, gradient_of_update, some_rows, tiny

import grpo
from lib import run as lib_run

pytestmark = pytest.mark.slow           # four processes: 30 s where two cores are busy


def work(out):
    """What each of the four ranks does; the main one writes down the results."""
    group = lib_run.setup()
    grpo.REPLICATE_BELOW = 0                            # shards, tiny as they are
    rows, found = some_rows(), {}
    mine = [rows[:3], rows[3:5], [], rows[5:]][group.rank]
    with mock.patch.dict("os.environ", LOCAL_WORLD_SIZE="2"):
        policy = grpo.shard(tiny(1, torch.float32, True), torch.float64)
        meshes = [p.device_mesh for p in policy.parameters() if hasattr(p, "device_mesh")]
        found["meshes"] = {tuple(mesh.shape) for mesh in meshes}
        with Collectives() as seen:
            found["step"] = a_step(policy, mine)
        found["collectives"] = seen.counts
        for dtype in TOLERANCE:
            found[dtype] = gradient_of_update(mine, dtype, token_budget=150)
    if group.main:
        torch.save(found, out)


def a_step(policy, rows):
    """A step of AdamW in several micro-batches: its length, the gradient's norm, the number of
    micro-batches; then the weights."""
    optimizer = grpo.make_optimizer(policy, 1e-2)
    metrics = grpo.update(policy, None, optimizer, rows, want_step_norm=True, token_budget=150,
                          **SETTINGS)
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in policy.parameters()]
    numbers = [metrics[name] for name in ("step_norm", "grad_norm", "micro_batches")]
    return numbers, torch.cat([p.detach().flatten() for p in whole])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    out = tmp_path_factory.mktemp("nodes") / "found.pt"
    ranks.run(4, "import test_nodes, torch._dynamo", f"test_nodes.work({str(out)!r})")
    return torch.load(out, weights_only=False)


def test_weights_are_sharded_within_a_node(nodes):
    assert nodes["meshes"] == {(2, 2)}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_two_nodes_of_two_ranks_have_the_gradient_of_one_process(nodes, dtype):
    """The rows are uneven: one rank has none."""
    gradient, metrics = nodes[dtype]
    expected, alone = gradient_of_update(some_rows(), dtype)
    assert apart(gradient, expected) < TOLERANCE[dtype]
    for name in ("loss", "grad_norm", "tokens", "plan/kl", "solve/entropy"):
        assert metrics[name] == pytest.approx(alone[name], rel=20 * TOLERANCE[dtype])


def test_two_nodes_make_the_step_of_one_process(nodes):
    """Its length counts every shard once, though each node has it."""
    (length, norm, _), weights = nodes["step"]
    (length_alone, norm_alone, _), weights_alone = a_step(tiny(1, torch.float64), some_rows())
    assert length == pytest.approx(length_alone, rel=1e-6)
    assert norm == pytest.approx(norm_alone, rel=1e-6)
    assert apart(weights, weights_alone) < 1e-6


def test_gradients_travel_between_nodes_once_a_step(nodes):
    """Of three units, two blocks and the root. The other sums are of numbers."""
    (_, _, micro_batches), _ = nodes["step"]
    assert micro_batches > 1
    assert nodes["collectives"]["_reduce_scatter_base_"] == 3 * micro_batches
    assert nodes["collectives"]["allreduce_"] <= 3 + 10
