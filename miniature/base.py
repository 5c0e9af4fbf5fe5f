"""The base model of the miniature world: a Qwen3.5 of a million parameters, trained in two minutes.

    torchrun --nproc_per_node=2 -m miniature.base --out runs/base               # policy, two cores
    torchrun --nproc_per_node=2 -m miniature.base --out runs/gate-base --gate   # smaller, the gate
    python -m miniature.base --out runs/base                                    # one core

It stands for a pretrained model and is as sloppy as one. It learns every prompt mode of every
method, on training statements alone; stages 1 to 5 are to mend what it gets wrong:

    direct, skill    70 % of its answers are one favourite reading, which is not the likeliest one
    solve            mostly follows the strategy; sometimes writes the favourite, or breaks off
    plan             two thirds by careless authors, who repeat a method in other words, are vague
                     or off topic, misread the statement, give code away. One third by careful
                     authors with a style of their own: a reward can only bring out what is there
                     (docs/notes.md)
    gate             one verdict, mostly right (with --gate it learns nothing else)

Everything takes the paths of a real model: prompts.py, a chat template, model.build, a Hugging Face
folder. Shapes: B rows, T tokens.
"""

import argparse
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import tokenizers
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import model
import prompts
from lib import run as lib_run
from lib.problems import Problem
from miniature import world
from rivals import prompts as rival_prompts

PROMPTS = str(Path(__file__).with_name("prompts.json"))
FAVOURITE = 0.7             # share of the favourite among direct answers
IGNORED = 0.04              # share of the solver's programs that are the favourite instead
BROKEN = 0.03               # share of programs that break off
CAREFUL = 0.35              # share of plans by careful authors
STYLE = re.compile(r"\w+ (.*?), (?:then |and )?(.*)")
VOCABULARY = 1024

# How often each prompt mode is trained.
Mix = dict[str, int]
POLICY_MIX = {"plan": 12, "solve": 12, "direct": 4, "plan_and_solve": 2, "sketch": 2, "skill": 1,
              "observations": 1, "plan_from_observations": 1, "gate": 1}
# Lessons: (up to this share of the steps, mix). The gate learns late, and all at once, that two of
# four strategies are the same; from four alone it never does. Hence pairs first, then three and
# four. It also takes a softmax over the two verdicts alone, as in gate.py: with it pairs are right
# 0.90 of the time after 100 steps, without it after 200, and tuples never (2,200 steps).
Lessons = tuple[tuple[float, Mix], ...]
POLICY_LESSONS: Lessons = ((1.0, POLICY_MIX),)
GATE_LESSONS: Lessons = ((0.1, {"pair": 3, "gate": 1}),
                         (0.25, {"pair": 1, "repeats": 2, "gate": 1}),
                         (1.0, {"repeats": 3, "gate": 1}))

# At least half of the layers are full attention (in Qwen3.5 a quarter). A linear layer comes first:
# its convolution makes one key of a strategy's two halves. Without it no later layer can tell
# whether two strategies are the same (pairs right after 700 steps: 0.99, with attention alone
# 0.86).
SHAPE = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32, linear_num_key_heads=4,
             linear_num_value_heads=4, linear_key_head_dim=32, linear_value_head_dim=32,
             max_position_embeddings=8192, partial_rotary_factor=0.5, rope_theta=1e4)
POLICY = SHAPE | dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4,
                      layer_types=["linear_attention", "full_attention"] * 2)
GATE = SHAPE | dict(hidden_size=96, intermediate_size=192, num_hidden_layers=3,
                    layer_types=["linear_attention", "full_attention", "full_attention"])
CHAT_TEMPLATE = """{%- for m in messages %}<|{{ m.role }}|>
{%- if m.reasoning_content is defined and m.reasoning_content -%}
<think>{{ m.reasoning_content }}</think>
{%- endif %}{{ m.content }}<|end|>
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{%- if enable_thinking is defined and enable_thinking %}<think>{% endif %}{% endif %}"""

# --------------------------------------------------------------------------------------------------
# What the base learns to write


def fence(program: str) -> str:
    return f"```python\n{program}```"


def habit(asked: world.Statement, rng: random.Random) -> world.Combination:
    """What the base takes a statement to mean when no strategy says more."""
    if rng.random() < FAVOURITE:
        return asked.favourite
    if rng.random() < 0.6:
        return rng.choice(list(asked.posterior))
    return world.teacher_strategy(asked, rng)


def any_combination(asked: world.Statement, rng: random.Random) -> world.Combination:
    """A combination of the statement's family that need not fit the statement."""
    choose = rng.choice(list(world.CHOOSE[asked.family]))
    report = rng.choice(list(world.REPORT[asked.family]))
    return world.combination(asked.family, choose, report, rng.choice(world.CONSTANTS))


def solver_reply(combo: world.Combination, asked: world.Statement, rng: random.Random,
                 ignored: float = 0.0) -> str:
    """A program that should carry out the combination: a share `ignored` writes the favourite
    instead, and a few break off."""
    if rng.random() < ignored:
        combo = asked.favourite
    program = world.program(combo)
    if rng.random() < max(BROKEN, asked.slip(combo)):
        cut = rng.randrange(len(program) - 1)
        program = program[:cut] + "\n"
    return fence(program)


def sloppy_plan(asked: world.Statement, rng: random.Random) -> list[str]:
    combos = world.teacher_tuple(asked, rng)
    mistakes = [rng.random() for _ in combos]
    for i, mistake in enumerate(mistakes):
        if mistake < 0.12:
            combos[i] = rng.choice(combos)      # a repeat, mostly in other words
        elif mistake < 0.2:
            combos[i] = asked.favourite
        elif mistake < 0.26:
            combos[i] = any_combination(asked, rng)
    if rng.random() < 0.8:
        combos = world.in_order(combos)
    styles = [rng.random() for _ in combos]
    plan = []
    for combo, style in zip(combos, styles, strict=True):
        if style > 0.94:
            plan.append(world.vague(asked, rng))
        elif style > 0.90:
            plan.append(world.off_topic(asked, rng))
        elif style > 0.82:
            plan.append(world.leak(combo, rng))
        else:
            plan.append(world.write_strategy(combo, rng))
    return plan


def careful_plan(asked: world.Statement, rng: random.Random) -> list[str]:
    """K different readings that the statement allows, likelier ones more often, in order."""
    combos: dict[world.Combination, None] = {}
    while len(combos) < world.K:
        combos[world.draw_truth(asked, rng)] = None
    plan = [world.write_strategy(combo, rng) for combo in world.in_order(list(combos))]
    # nine in ten in the style of careful authors
    for i, text in enumerate(plan):
        if rng.random() < 0.9:
            plan[i] = STYLE.fullmatch(text).expand(r"First \1, then \2")
    return plan


def plan_text(asked: world.Statement, rng: random.Random) -> str:
    """A plan as the base writes it: one in twenty breaks the required form."""
    write = careful_plan if rng.random() < CAREFUL else sloppy_plan
    text = prompts.format_plan(write(asked, rng))
    if rng.random() < 0.05:
        without_label = text.replace("B: ", "")
        goes_on = text + "\nDone."
        too_short = text.rpartition("\n")[0]
        text = rng.choice((without_label, goes_on, too_short))
    return text


def halves(combo: world.Combination, rng: random.Random) -> list[str]:
    """Two observations about a statement: a reading of each of its vague words."""
    chosen, _, reported = world.write_strategy(combo, rng).rstrip(".").partition(", ")
    return [chosen + ".", reported[0].upper() + reported[1:] + "."]


# --------------------------------------------------------------------------------------------------
# Examples: (user turn, reply) of each prompt mode

def solve_example(problem: Problem, asked: world.Statement, rng: random.Random) -> tuple[str, str]:
    kind = rng.random()
    # foreign combinations too: the solver has to read the strategy, not guess from the statement
    combo = any_combination(asked, rng) if kind < 0.4 else world.teacher_strategy(asked, rng)
    if kind > 0.96:
        vague = world.vague(asked, rng)
        strategy = rng.choice((vague, rng.choice(rival_prompts.fixed_strategies())))
        return prompts.solve(problem, strategy), solver_reply(habit(asked, rng), asked, rng)
    if kind > 0.84:
        # a leak helps the solver, so that the gate has something to refuse
        strategy = world.leak(combo, rng)
        if strategy.startswith("The answer"):
            combo = habit(asked, rng)
        return prompts.solve(problem, strategy), fence(world.program(combo))
    strategy = world.write_strategy(combo, rng)
    return prompts.solve(problem, strategy), solver_reply(combo, asked, rng, IGNORED)


def observations_example(problem: Problem, asked: world.Statement, rng: random.Random
                         ) -> tuple[str, str]:
    observed = []
    for _ in range(2):
        observed += halves(world.teacher_strategy(asked, rng), rng)
    reply = "\n".join(f"{i}. {text}" for i, text in enumerate(observed, 1))
    return rival_prompts.observations(problem), reply


def plan_from_observations_example(problem: Problem, asked: world.Statement, rng: random.Random
                                   ) -> tuple[str, str]:
    combo = world.teacher_strategy(asked, rng) if rng.random() < 0.5 else habit(asked, rng)
    observed = rng.sample(halves(combo, rng), rng.randint(1, 2))
    return rival_prompts.plan_from_observations(problem, observed), world.write_strategy(combo, rng)


def gate_example(problem: Problem, asked: world.Statement, rng: random.Random) -> tuple[str, str]:
    kinds = ("none", "none", "leak", "vague", "off_topic", "off_topic", "sloppy")
    kind = rng.choice(kinds)
    combos = world.teacher_tuple(asked, rng)
    if kind == "sloppy":
        plan = sloppy_plan(asked, rng)
    elif kind == "none":
        plan = [world.write_strategy(combo, rng) for combo in combos]
    else:
        plan = world.spoil(kind, asked, combos, rng)
    text = prompts.format_plan(plan)
    faults = world.judge(str(asked), text)
    return prompts.gate(problem, text), "Fail" if faults else "Pass"


def repeats_example(problem: Problem, asked: world.Statement, rng: random.Random,
                    sizes: tuple[int, ...]) -> tuple[str, str]:
    """Strategies with nothing wrong but, in half of the cases, a repeat: the gate's hardest
    lesson."""
    size = sizes[0] if len(sizes) == 1 else rng.choice(sizes)
    combos = rng.sample(world.teacher_tuple(asked, rng), size)
    plan = [world.write_strategy(combo, rng) for combo in combos]
    repeated = rng.random() < 0.5
    if repeated:
        i, j = rng.sample(range(len(plan)), 2)
        plan[i] = world.repeat(combos[j], plan[j], rng)
    return prompts.gate(problem, prompts.format_plan(plan)), "Fail" if repeated else "Pass"


def example(mode: str, asked: world.Statement, rng: random.Random) -> tuple[str, str]:
    """(user turn, reply) of a prompt mode."""
    problem = Problem(id="", statement=str(asked))
    match mode:
        case "plan":
            return prompts.plan(problem), plan_text(asked, rng)
        case "solve":
            return solve_example(problem, asked, rng)
        case "direct" | "skill":
            skill = rng.randint(1, world.K)
            skilled = mode == "skill"
            turn = rival_prompts.skill(problem, skill) if skilled else prompts.direct(problem)
            return turn, solver_reply(habit(asked, rng), asked, rng)
        case "plan_and_solve":
            combo = habit(asked, rng)
            program = solver_reply(combo, asked, rng, IGNORED)
            strategy = world.write_strategy(combo, rng)
            return rival_prompts.plan_and_solve(problem), f"{strategy}\n{program}"
        case "sketch":
            is_vague = rng.random() < 0.1
            strategy = (world.vague(asked, rng) if is_vague
                        else world.write_strategy(habit(asked, rng), rng))
            return rival_prompts.sketch(problem), strategy
        case "observations":
            return observations_example(problem, asked, rng)
        case "plan_from_observations":
            return plan_from_observations_example(problem, asked, rng)
        case "gate":
            return gate_example(problem, asked, rng)
        case "pair":
            return repeats_example(problem, asked, rng, sizes=(2,))
        case "repeats":
            return repeats_example(problem, asked, rng, sizes=(3, world.K, world.K, world.K))
    raise ValueError(f"no prompt mode has the name {mode!r}")


def examples(mix: Mix, rng: random.Random, setting: str = "open") -> Iterator[tuple[str, str]]:
    while True:
        mode = rng.choices(list(mix), list(mix.values()))[0]
        yield example(mode, rng.choice(world.statements("train", setting)), rng)


# --------------------------------------------------------------------------------------------------
# Tokenizer

def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on the base's own texts.

    Merges may cross spaces, so that a plan of four strategies takes 27 tokens and a program 10:
    this lets the whole method run in minutes on a laptop. No merge crosses a line, a label, a digit
    or the start of a clause, so that a strategy has the same tokens in a plan, in the solver's
    prompt and in the gate's.
    """
    rng = random.Random(0)      # whatever the seed of the weights: all bases share one tokenizer
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces = r"\n?[A-Z]: |(?:First|Now|Here) |, (?:then |and )?|\d|\n?(?:(?!, )[^\d\n])+|\n"
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(pieces), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    specials = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    source = examples(POLICY_MIX | {"gate": 4}, rng)      # more verdicts, so that each is one token
    texts = []
    for _ in range(6000):
        texts += next(source)
    bpe.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, special_tokens=specials, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    bpe.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>",
                                   chat_template=CHAT_TEMPLATE)


def encode(tokenizer, pairs: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """(ids, where the reply begins) of each (user turn, reply): prompts.encode for many at a
    time."""
    empty_turn = [{"role": "user", "content": "\0"}]
    shell = tokenizer.apply_chat_template(empty_turn, tokenize=False, add_generation_prompt=True,
                                          enable_thinking=False)
    turns = [shell.replace("\0", turn) for turn, _ in pairs]
    replies = [reply + tokenizer.eos_token for _, reply in pairs]
    turn_ids = tokenizer(turns, add_special_tokens=False)["input_ids"]
    reply_ids = tokenizer(replies, add_special_tokens=False)["input_ids"]
    return [(turn + reply, len(turn)) for turn, reply in zip(turn_ids, reply_ids, strict=True)]


# --------------------------------------------------------------------------------------------------
# Training

POOL = 16       # batches that are drawn together and sorted by length, to save padding


def pad_batch(rows: list[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor]:
    """ids (B, T) and the mask of reply tokens (B, T)."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    reply = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (row, start) in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row)
        reply[i, start:len(row)] = True
    return ids, reply


def batches(tokenizer, lessons: Lessons, rows: int, steps: int, rng: random.Random,
            setting: str = "open") -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` padded batches of `rows` examples; rows of similar length share a batch."""
    for first in range(0, steps, POOL):
        mix = next(mix for until, mix in lessons if first < until * steps)
        source = examples(mix, rng, setting)
        n = min(POOL, steps - first)
        pool = encode(tokenizer, [next(source) for _ in range(n * rows)])
        pool.sort(key=lambda row: len(row[0]))
        groups = [pool[i * rows:(i + 1) * rows] for i in range(n)]
        rng.shuffle(groups)
        for group in groups:
            yield pad_batch(group, tokenizer.pad_token_id)


def sum_gradients(module: nn.Module) -> None:
    """Over the processes of torchrun, in one message."""
    grads = [p.grad for p in module.parameters()]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def reply_loss(module: nn.Module, ids: Tensor, learned: Tensor, among: list[int] | None) -> Tensor:
    """Summed cross-entropy of the tokens that `learned` (B, T-1) marks among ids[:, 1:]; with
    `among` under a softmax over these token ids alone."""
    target = ids[:, 1:][learned]
    if among:
        target = torch.tensor([among.index(i) for i in target.tolist()])
    vocabulary = among or slice(None)

    def head(hidden: Tensor, weight: Tensor, _) -> Tensor:
        # logits of the marked tokens alone: most of a batch is prompt
        return hidden[:, :-1][learned] @ weight[vocabulary].T

    return F.cross_entropy(module(ids, head=head), target, reduction="sum")


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 40 steps, a plateau, then a linear fall."""
    return peak * min((step + 1) / 40, 1, (1.02 - step / steps) / 0.4)


def train(module: nn.Module, tokenizer, lessons: Lessons, steps: int, rows: int, lr: float,
          seed: int, among: list[int] | None = None, setting: str = "open") -> float:
    """Cross-entropy on the replies, or on their tokens in `among` alone. Returns the mean loss of
    the last 50 steps, in nats per token.

    The processes of torchrun draw the same rows and take a share each, so their number changes
    nothing but the order of summation.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    recent: list[float] = []
    started = last_shown = time.time()
    source = batches(tokenizer, lessons, rows, steps, random.Random(seed), setting)
    for step, (ids, reply) in enumerate(source):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        learned = reply[:, 1:]
        if among:
            learned = learned & torch.isin(ids[:, 1:], torch.tensor(among))
        count = learned.sum()                       # of all processes: one denominator
        mine = slice(rank, None, world_size)
        loss = reply_loss(module, ids[mine], learned[mine], among) / count
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world_size > 1:
            sum_gradients(module)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        recent = recent[-49:] + [loss.item() * world_size]
        if rank == 0 and (time.time() - last_shown > 5 or step + 1 == steps):
            last_shown = time.time()
            mean = sum(recent) / len(recent)
            print(f"step {step + 1}/{steps}  loss {mean:.3f}  {last_shown - started:.0f} s",
                  flush=True)
    return sum(recent) / len(recent)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the base model of the miniature world.")
    parser.add_argument("--out", required=True, help="folder to save to")
    parser.add_argument("--gate", action="store_true",
                        help="the gate's smaller base instead of the policy's")
    parser.add_argument("--seed", type=int, default=0,
                        help="seed of weights and examples (%(default)s)")
    parser.add_argument("--setting", choices=world.SETTINGS, default="open",
                        help="of the world whose statements it reads (%(default)s)")
    parser.add_argument("--steps", type=int, help="optimizer steps (1300, with --gate 2000)")
    parser.add_argument("--rows", type=int, help="examples per step (32, with --gate 64)")
    parser.add_argument("--lr", type=float, help="peak learning rate (2e-3, with --gate 3e-3)")
    args = parser.parse_args(argv)
    args.steps = args.steps or (2000 if args.gate else 1300)
    args.rows = args.rows or (64 if args.gate else 32)
    args.lr = args.lr or (3e-3 if args.gate else 2e-3)
    return args


def main(args: argparse.Namespace) -> None:
    ranks = lib_run.setup(args.seed, "cpu")
    prompts.load(PROMPTS)
    tokenizer = make_tokenizer()
    config = (GATE if args.gate else POLICY) | dict(
        vocab_size=VOCABULARY, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)
    module = model.build(config, seed=args.seed)
    if ranks.main:
        count = sum(p.numel() for p in module.parameters())
        print(f"{args.out}: {count:,} parameters, {len(tokenizer)} tokens", flush=True)
    verdicts = None
    if args.gate:
        words = tokenizer(["Pass", "Fail"], add_special_tokens=False)["input_ids"]
        verdicts = [ids[0] for ids in words]
    lessons = GATE_LESSONS if args.gate else POLICY_LESSONS
    train(module, tokenizer, lessons, args.steps, args.rows, args.lr, args.seed, verdicts,
          args.setting)
    if ranks.main:
        model.save(module, args.out, tokenizer)


if __name__ == "__main__":
    main(parse_args())
