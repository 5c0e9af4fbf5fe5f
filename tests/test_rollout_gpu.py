"""What rollout.py does on a GPU, tried without one."""

from types import SimpleNamespace

import pytest
import tiny
import torch

import model
import rollout
from bench.rollout import NoWords
from lib import kernels
from rollout import Engine, Job


def sampled(engine: Engine) -> dict:
    jobs = [Job(list(range(3, 20 + i)), (0, i), 4, 4, tag=i) for i in range(3)]
    return {job.tag: sample.ids for job, sample in engine.run(jobs)}


def test_a_compiled_step_is_one_graph_and_samples_the_same():
    """`fullgraph`: a wait for the host, or python that the compiler cannot follow, is an error."""
    module = model.build(tiny.QWEN | {"num_hidden_layers": 2, "full_attention_interval": 2})
    engine = Engine(module, NoWords(500), 3)
    want = sampled(engine)
    compiled = dict(dynamic=True, fullgraph=True, backend="eager")     # traced, then run as it is
    module.decode_block = torch.compile(model.Block.run, **compiled)
    engine.sample_token = torch.compile(engine._sample_token, **compiled)
    assert sampled(engine) == want


@pytest.mark.slow
def test_the_compiler_copies_no_S_and_leaves_few_kernels(monkeypatch):
    """As it groups operations on a CPU, without the 30 kernels or so around the blocks. The plain
    step of the 2B shape is 1,731 kernels."""
    grouped = []

    def codegen(scheduler):             # instead of writing and compiling code
        kernels = [n for n in scheduler.nodes if type(n).__name__ != "NopKernelSchedulerNode"]
        grouped.append([n for n in kernels if type(n.node).__name__ != "MultiOutput"])
        raise RuntimeError("counted")
    monkeypatch.setattr("torch._inductor.scheduler.Scheduler.codegen", codegen)
    module = model.build(tiny.QWEN, torch.bfloat16)
    linear, full = module.layers[0], module.layers[3]
    linear.mixer.delta_step, full.mixer.attend_row = kernels.delta_step, kernels.attend_row
    state, engine = module.new_state(8, 128), Engine(module, NoWords(500), 8)
    engine._allocate(8)
    engine.queue.append(Job([0], (0,), 1))
    engine._make_room()
    at = state.pos.unsqueeze(1)
    span = model.Span(tuple(t[at] for t in state.rope), None, None, model.buffer_index(at, 2), 128)
    x = torch.zeros(8, 1, 64, dtype=torch.bfloat16)
    for function, *inputs in ((model.Block.run, linear, [x], [span], state.layers[0]),
                              (model.Block.run, full, [x], [span], state.layers[3]),
                              (engine._sample_token, engine.index, torch.zeros(8, 512))):
        with torch.inference_mode(), pytest.raises(Exception, match="counted"):
            torch.compile(function, dynamic=True, fullgraph=True)(*inputs)
    delta, attention, draw = (len(kernels) for kernels in grouped)
    assert 18 * delta + 6 * attention + draw <= 630
    sizes = set()
    for kernel in grouped[0]:
        for part in kernel.get_nodes():
            sizes |= {str(getattr(output.node.layout, "size", "")) for output in part.get_outputs()}
    assert len(sizes) > 5 and not any(size.endswith("4, 16, 16]") for size in sizes)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma4])
def test_a_step_of_another_architecture_can_be_captured(make, tmp_path):
    """It forks and shares prompts as well: tests/test_adapter.py."""
    module = model.load(make(tmp_path / "a"))
    assert module.can_fork and module.can_capture


def test_a_step_that_reads_a_number_on_the_host_is_not_captured(tmp_path):
    module = model.load(tiny.llama(tmp_path / "a"))
    assert module.can_fork
    forward = module.hf.model.norm.forward
    module.hf.model.norm.forward = lambda x: forward(x) if x.sum().item() < 1e9 else x
    with pytest.warns(UserWarning, match="LlamaForCausalLM: .*captured.*_local_scalar_dense"):
        assert not module.can_capture


class Small(torch.nn.Module):
    """What the engine asks of a module, and a block that could be compiled."""
    can_fork, can_capture, eos_ids = True, True, set()
    config = SimpleNamespace(vocab_size=2)
    decode_block = None

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def new_state(self, rows, capacity):
        return torch.zeros(rows, capacity)

    def fork(self, *_):
        pass

    def segment(self, ids, lengths, state):
        return torch.zeros(len(ids), 2)

    def step(self, ids, state, limit):
        return torch.zeros(len(ids), 2)


def test_where_the_compiler_fails_decoding_goes_on_captured_and_says_so(monkeypatch, capsys):
    def compile(engine):
        raise RuntimeError("Cannot find a working triton installation.\nmore")
    captured = []
    monkeypatch.setattr(Engine, "_compile", compile)
    monkeypatch.setattr(Engine, "_replay", lambda self, n: captured.append(n) or self._advance(n))
    engine = Engine(Small(), NoWords(2), 8)
    engine._warm_up("auto")
    first, second = capsys.readouterr().err.splitlines()
    assert first == ("decoding with a step that is not compiled: Cannot find a working triton "
                     "installation.")
    assert second.startswith("decoding is ready after 0 s (--compile graphs")
    assert captured and engine.captures and engine.stats == rollout.Stats()
