"""The base model of the miniature world: a Qwen3.5 of a million parameters, trained in two minutes.

    torchrun --nproc_per_node=2 miniature/base.py --out runs/base               # the policy's, on two cores
    torchrun --nproc_per_node=2 miniature/base.py --out runs/gate-base --gate   # a smaller one, for the gate
    python -m miniature.base --out runs/base                                    # the same on one core

It stands for a pretrained model and is as sloppy as one. It has seen every prompt mode of every method, on
training statements alone; what it has learned there is what stages 1 to 5 are to mend:

    direct, skill    about 70 % of its answers are one favourite reading, which is not the likeliest one
    solve            mostly does what the strategy says; at times writes the favourite instead, or breaks off
    plan             two thirds by careless authors: repeats a method in other words, is vague, off topic,
                     misreads the statement, gives code away. A third by careful ones, who have a style of their
                     own: what a reward is to bring out has to be there (NOTES.md)
    gate             one verdict, mostly right (with --gate it learns nothing else)

Everything takes the paths of a real model: prompts.py, a chat template, model.build, a Hugging Face folder.
The tokenizer is byte-level BPE whose merges may cross spaces ("superwords"): a plan of four strategies is
some 27 tokens and a program 10, which is what lets the whole method run in minutes on a laptop.
"""

import argparse
import os
import random
import re
import sys
import time

import tokenizers
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

import model
import prompts
from lib import run as lib_run
from lib.problems import Problem
from rivals import prompts as rival_prompts
from miniature import world

PROMPTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "prompts.json")
FAVOURITE = 0.7             # share of the favourite among direct answers
IGNORED, BROKEN = 0.04, 0.03    # of the solver's programs: the favourite instead; broken off
CAREFUL = 0.35              # of its plans
STYLE = re.compile(r"\w+ (.*?), (?:then |and )?(.*)")
VOCABULARY = 1024
# how often each prompt mode is trained
POLICY_MIX = {"plan": 12, "solve": 12, "direct": 4, "plan_and_solve": 2, "sketch": 2, "skill": 1,
              "observations": 1, "plan_from_observations": 1, "gate": 1}
# (up to this share of the steps, what is trained). That two of four strategies are the same is learned late and all at
# once, and from four alone not at all: pairs first, then three and four. And it takes a softmax over the two verdicts
# alone, as in gate.py: pairs are right 0.90 of the time after 100 steps with it, after 200 without it (measured), and of
# tuples nothing had been learned after 2,200.
POLICY_LESSONS = ((1.0, POLICY_MIX),)
GATE_LESSONS = ((0.1, {"pair": 3, "gate": 1}), (0.25, {"pair": 1, "repeats": 2, "gate": 1}), (1.0, {"repeats": 3, "gate": 1}))
# Half of the layers or more are full attention (in Qwen3.5 a quarter). A linear one comes first: its convolution makes one
# key of a strategy's two halves, without which no layer after it can tell whether two strategies are the same (measured on
# pairs: 0.99 right after 700 steps, 0.86 with attention alone).
SHAPE = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32, linear_num_key_heads=4, linear_num_value_heads=4,
             linear_key_head_dim=32, linear_value_head_dim=32, max_position_embeddings=8192,
             partial_rotary_factor=0.5, rope_theta=1e4)
POLICY = SHAPE | dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4,
                      layer_types=["linear_attention", "full_attention"] * 2)
GATE = SHAPE | dict(hidden_size=96, intermediate_size=192, num_hidden_layers=3,
                    layer_types=["linear_attention", "full_attention", "full_attention"])
CHAT_TEMPLATE = """{%- for m in messages %}<|{{ m.role }}|>
{%- if m.reasoning_content is defined and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>
{%- endif %}{{ m.content }}<|end|>
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{%- if enable_thinking is defined and enable_thinking %}<think>{% endif %}{% endif %}"""

# ------------------------------------------------------------------------------------- what the base has seen


def fence(program: str) -> str:
    return f"```python\n{program}```"


def habit(asked: world.Statement, rng: random.Random) -> tuple:
    """What the base takes a statement to mean when nobody says more."""
    if rng.random() < FAVOURITE:
        return asked.favourite
    return rng.choice(list(asked.posterior)) if rng.random() < 0.6 else world.teacher_strategy(asked, rng)


def any_combination(asked: world.Statement, rng: random.Random) -> tuple:
    choose, report = (rng.choice(list(slot[asked.family])) for slot in (world.CHOOSE, world.REPORT))
    return world.combination(asked.family, choose, report, rng.choice(world.CONSTANTS))


def written(combo: tuple, asked: world.Statement, rng: random.Random, ignored: float = 0.0) -> str:
    """A solver's reply that should carry out the combination."""
    program = world.program(asked.favourite if rng.random() < ignored else combo)
    if rng.random() < BROKEN:
        cut = rng.randrange(len(program) - 1)
        program = program[:cut] + "\n"
    return fence(program)


def sloppy_plan(asked: world.Statement, rng: random.Random) -> list[str]:
    combos = world.teacher_tuple(asked, rng)
    for i, kind in enumerate([rng.random() for _ in combos]):
        if kind < 0.12:
            combos[i] = rng.choice(combos)                          # the same again, mostly in other words
        elif kind < 0.2:
            combos[i] = asked.favourite
        elif kind < 0.26:
            combos[i] = any_combination(asked, rng)
    if rng.random() < 0.8:
        combos = world.in_order(combos)
    return [world.vague(asked, rng) if kind > 0.94 else world.off_topic(asked, rng) if kind > 0.90
            else world.leak(combo, rng) if kind > 0.82 else world.say(combo, rng)
            for combo, kind in zip(combos, [rng.random() for _ in combos], strict=True)]


def careful_plan(asked: world.Statement, rng: random.Random) -> list[str]:
    """K different readings that the statement allows, likelier ones more often, in order."""
    combos: dict[tuple, None] = {}
    while len(combos) < world.K:
        combos[world.draw_truth(asked, rng)] = None
    chosen = [world.say(combo, rng) for combo in world.in_order(list(combos))]
    return [STYLE.fullmatch(text).expand(r"First \1, then \2") if rng.random() < 0.9 else text for text in chosen]


def plan_text(asked: world.Statement, rng: random.Random) -> str:
    """A plan as the base writes it: one in twenty is not in the form that was asked for."""
    text = prompts.format_plan((careful_plan if rng.random() < CAREFUL else sloppy_plan)(asked, rng))
    if rng.random() < 0.05:
        text = rng.choice((text.replace("B: ", ""), text + "\nDone.", text.rpartition("\n")[0]))
    return text


def halves(combo: tuple, rng: random.Random) -> list[str]:
    """What one may observe of a statement: a reading of one of its words."""
    chosen, _, reported = world.say(combo, rng).rstrip(".").partition(", ")
    return [chosen + ".", reported[0].upper() + reported[1:] + "."]


def example(mode: str, asked: world.Statement, rng: random.Random) -> tuple[str, str]:
    """One (user turn, reply) of a prompt mode."""
    problem = Problem(id="", statement=str(asked))
    if mode == "plan":
        return prompts.plan(problem), plan_text(asked, rng)
    if mode == "solve":
        kind = rng.random()
        combo = any_combination(asked, rng) if kind < 0.4 else world.teacher_strategy(asked, rng)
        if kind > 0.96:
            strategy = rng.choice((world.vague(asked, rng), rng.choice(rival_prompts.fixed_strategies())))
            return prompts.solve(problem, strategy), written(habit(asked, rng), asked, rng)
        if kind > 0.84:
            strategy = world.leak(combo, rng)
            combo = habit(asked, rng) if strategy.startswith("The answer") else combo
            return prompts.solve(problem, strategy), fence(world.program(combo))
        return prompts.solve(problem, world.say(combo, rng)), written(combo, asked, rng, IGNORED)
    if mode in ("direct", "skill"):
        skill = rng.randint(1, world.K)
        turn = prompts.direct(problem) if mode == "direct" else rival_prompts.skill(problem, skill)
        return turn, written(habit(asked, rng), asked, rng)
    if mode == "plan_and_solve":
        combo = habit(asked, rng)
        program = written(combo, asked, rng, IGNORED)
        return rival_prompts.plan_and_solve(problem), f"{world.say(combo, rng)}\n{program}"
    if mode == "sketch":
        sketch = world.vague(asked, rng) if rng.random() < 0.1 else world.say(habit(asked, rng), rng)
        return rival_prompts.sketch(problem), sketch
    if mode == "observations":
        seen = [half for _ in range(2) for half in halves(world.teacher_strategy(asked, rng), rng)]
        return rival_prompts.observations(problem), "\n".join(f"{i}. {half}" for i, half in enumerate(seen, 1))
    if mode == "plan_from_observations":
        combo = world.teacher_strategy(asked, rng) if rng.random() < 0.5 else habit(asked, rng)
        seen = rng.sample(halves(combo, rng), rng.randint(1, 2))
        return rival_prompts.plan_from_observations(problem, seen), world.say(combo, rng)
    if mode == "gate":
        kind = rng.choice(("none", "none", "leak", "vague", "off_topic", "off_topic", "sloppy"))
        combos = world.teacher_tuple(asked, rng)
        plan = (sloppy_plan(asked, rng) if kind == "sloppy" else world.spoil(kind, asked, combos, rng)
                if kind != "none" else [world.say(combo, rng) for combo in combos])
        text = prompts.format_plan(plan)
        valid = not world.judge(str(asked), text)
        return prompts.gate(problem, text), "Pass" if valid else "Fail"
    if mode in ("pair", "repeats"):     # nothing wrong with them but a repeat: the gate's hardest lesson
        size = 2 if mode == "pair" else rng.choice((3, world.K, world.K, world.K))
        combos = rng.sample(world.teacher_tuple(asked, rng), size)
        plan, repeated = [world.say(combo, rng) for combo in combos], rng.random() < 0.5
        if repeated:
            i, j = rng.sample(range(len(plan)), 2)
            literally = rng.random() < world.LITERAL_DUPLICATES
            plan[i] = plan[j] if literally else world.say(combos[j], rng, unlike=plan[j])
        return prompts.gate(problem, prompts.format_plan(plan)), "Fail" if repeated else "Pass"
    raise ValueError(f"no prompt mode is called {mode!r}")


def examples(mix: dict[str, int], rng: random.Random):
    while True:
        mode = rng.choices(list(mix), list(mix.values()))[0]
        yield example(mode, rng.choice(world.statements("train")), rng)


# -------------------------------------------------------------------------------------------------- tokenizer


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on the base's own texts. No merge crosses a line, a label, a digit or the start of a
    clause, so that a strategy has the same tokens in a plan, in the solver's prompt and in the gate's."""
    rng = random.Random(0)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces = r"\n?[A-Z]: |(?:First|Now|Here) |, (?:then |and )?|\d|\n?(?:(?!, )[^\d\n])+|\n"
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(pieces), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    specials = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    source = examples(POLICY_MIX | {"gate": 4}, rng)      # so that either verdict is one token
    texts = [text for _ in range(6000) for text in next(source)]
    bpe.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, special_tokens=specials, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    bpe.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>",
                                   chat_template=CHAT_TEMPLATE)


def encode(tokenizer, pairs: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """(ids, where the reply begins) of each (user turn, reply): prompts.encode, for many at a time."""
    shell = tokenizer.apply_chat_template([{"role": "user", "content": "\0"}], tokenize=False,
                                          add_generation_prompt=True, enable_thinking=False)
    def ids(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]
    turns = ids([shell.replace("\0", turn) for turn, _ in pairs])
    replies = ids([reply + tokenizer.eos_token for _, reply in pairs])
    return [(turn + reply, len(turn)) for turn, reply in zip(turns, replies, strict=True)]


# --------------------------------------------------------------------------------------------------- training


def batches(tokenizer, lessons: tuple, rows: int, steps: int, rng: random.Random):
    """`steps` of (ids (B, T), mask of reply tokens (B, T)); rows of like length meet in a batch."""
    pad = tokenizer.pad_token_id
    for first in range(0, steps, 16):
        n = min(16, steps - first)
        source = examples(next(mix for until, mix in lessons if first < until * steps), rng)
        pool = sorted(encode(tokenizer, [next(source) for _ in range(n * rows)]), key=lambda x: len(x[0]))
        groups = [pool[i * rows:(i + 1) * rows] for i in range(n)]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            yield (torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in group]),
                   torch.tensor([[start <= t < len(ids) for t in range(width)] for ids, start in group]))


def sum_gradients(module) -> None:
    """Over the processes of torchrun, in one message."""
    grads = [p.grad for p in module.parameters()]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def train(module, tokenizer, lessons: tuple, steps: int, rows: int, lr: float, seed: int, among: list[int] | None = None) -> float:
    """Cross-entropy on the replies, with `among` over these tokens alone. The processes of torchrun draw the same
    rows and take a share each: their number changes nothing but the order of summation."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    started, shown, recent, words = time.time(), time.time(), [], among or slice(None)
    for step, (ids, reply) in enumerate(batches(tokenizer, lessons, rows, steps, random.Random(seed))):
        for group in optimizer.param_groups:        # warm-up, a plateau, linear decay
            group["lr"] = lr * min((step + 1) / 40, 1, (1.02 - step / steps) / 0.4)
        learned, target = reply[:, 1:], ids[:, 1:]
        if among:
            learned = learned & torch.isin(target, torch.tensor(among))
        count, mine = int(learned.sum()), slice(rank, None, world_size)
        ids, learned, target = ids[mine], learned[mine], target[mine]
        target = torch.tensor([among.index(i) for i in target[learned].tolist()]) if among else target[learned]
        logits = module(ids, head=lambda hidden, weight, _: hidden[:, :-1][learned] @ weight[words].T)      # noqa: B023
        loss = F.cross_entropy(logits, target, reduction="sum") / count
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world_size > 1:
            sum_gradients(module)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        recent = recent[-49:] + [loss.item() * world_size]
        if rank == 0 and (time.time() - shown > 5 or step + 1 == steps):
            shown = time.time()
            mean = sum(recent) / len(recent)
            print(f"step {step + 1}/{steps}  loss {mean:.3f}  {shown - started:.0f} s", flush=True)
    return sum(recent) / len(recent)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build and train the base model of the miniature world.")
    parser.add_argument("--out", required=True, help="folder to save to")
    parser.add_argument("--gate", action="store_true", help="the gate's smaller base instead of the policy's")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: 1300, with --gate 2000)")
    parser.add_argument("--rows", type=int, help="examples a step (default: 32, with --gate 64)")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: 2e-3, with --gate 3e-3)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and examples (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)            # two threads on a busy machine were measured 10 times slower than one
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")

    prompts.load(PROMPTS)
    tokenizer = make_tokenizer()
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    module = model.build((GATE if args.gate else POLICY) | dict(vocab_size=VOCABULARY) | ends, seed=args.seed)
    count = sum(p.numel() for p in module.parameters())
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        print(f"{args.out}: {count:,} parameters, {len(tokenizer)} tokens", flush=True)
    steps = args.steps or (2000 if args.gate else 1300)
    rows, lr = args.rows or (64 if args.gate else 32), args.lr or (3e-3 if args.gate else 2e-3)
    verdicts = [ids[0] for ids in tokenizer(["Pass", "Fail"], add_special_tokens=False)["input_ids"]] if args.gate else None
    train(module, tokenizer, GATE_LESSONS if args.gate else POLICY_LESSONS, steps, rows, lr, args.seed, verdicts)
    if first:
        model.save(module, args.out, tokenizer)
    lib_run.leave()


if __name__ == "__main__":
    main()
