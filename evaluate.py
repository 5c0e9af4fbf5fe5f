"""Evaluation: attempts by any inference method, verified, written down and scored.

    python evaluate.py --model runs/mini/cppo/final --problems test.jsonl --method tuple --k 1 2 4 8
    torchrun --nproc_per_node=8 evaluate.py --model runs/Qwen3.5-2B/cppo/final --benchmark lcb \
        --method tuple
    python evaluate.py --method file --programs theirs.jsonl --problems test.jsonl  # another system

Attempts go to runs/NAME/STAGE/eval/<benchmark>-<method>.jsonl, one `Attempt` per line; what they
were made with goes to the .json beside it. A problem is on disk as soon as it is verified: after an
interruption the same command continues, on any number of processes, and comes to the same attempts
up to rounding, which depends on the batch.

K below a tuple's size counts its first K attempts; above, whole tuples are drawn independently and
pooled (Table 20). rivals/methods.py says what we chose where the paper is silent, paper/attempts.py
defines the scores.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import model
import prompts
from gate import Gate, RuleGate
from lib import errors, export, flags, memory, weights
from lib import run as lib_run
from lib.errors import UserError
from lib.parts import Parts
from lib.problems import Problem, load_problems
from lib.progress import progress, sampling
from paper import attempts, cards
from prepare.ask import Cache, Responder
from prepare.corpora import is_erratum
from prepare.judge import Judge, open_source
from rivals.inference import Grader, attempts_at
from rivals.methods import (
    METHODS,
    Setting,
    attempts_per_draw,
    draws_per_problem,
    expected_rows,
    most_rows,
    shuffled_donors,
)
from rivals.programs import grade_programs, read_programs
from rollout import COMPILE, Engine
from verifier import SandboxError, Verifier

VERIFIER_MODE = "strict"            # a process per test: nothing is left over from the last one
SLOWEST_RANK = timedelta(days=2)    # problems are dealt out beforehand: ranks may end hours apart


@dataclass
class Task:
    """What is evaluated, once it has been read."""
    problems: list[Problem]
    setting: Setting
    programs: dict[str, list[dict]] | None      # --method file: rows per problem id
    parts: Parts                                # where attempts are written

    @property
    def out(self) -> Path:
        return self.parts.out


# ----------------------------------------------------------------------------------------------
# What is read

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser(__doc__.split("\n\n")[0])
    add = parser.add_argument_group("what is evaluated").add_argument
    add("--method", required=True, choices=[*METHODS, "file"])
    add("--model", metavar="FOLDER", help="checkpoint folder, or hub id")
    add("--step", type=flags.count, metavar="N",
        help="--model is a stage's folder: its checkpoint of this step")
    add("--revision", help="branch, tag or commit of a hub model; the newest by default")
    add("--programs", metavar="FILE", help="--method file: lines of problem_id, index, program")
    add("--problems", metavar="FILE", help="JSON lines; by default corpora/BENCHMARK.jsonl")
    add("--benchmark", metavar="NAME", help="its name in tables; by default the problem file's")
    add("--limit", type=flags.count, metavar="N", help="the first N problems; by default all")
    add("--shuffle-strategies", action="store_true",
        help="control: solve every problem with the tuples of another one")
    add = parser.add_argument_group("budget").add_argument
    add("--k", type=flags.count, nargs="+", default=[4], metavar="K",
        help="attempts that pass@K counts")
    add("--attempts", type=flags.count, metavar="N",
        help="attempts per problem; by default the largest K")
    add("--num-strategies", type=flags.count, default=4, metavar="K",
        help="strategies per tuple; skills")
    add("--select", choices=("first", "last", "random"), default="first",
        help="which K of the attempts count")
    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=flags.weight, default=0.7, help="0: greedy")
    add("--top-k", type=flags.at_least(0), default=0, help="0: off")
    add("--top-p", type=float, default=1.0, help="1: off")
    add("--max-plan-tokens", type=flags.count, default=512, metavar="N", help="new tokens per plan")
    add("--max-solve-tokens", type=flags.count, default=2048, metavar="N",
        help="new tokens per attempt")
    add("--slots", type=flags.count, default=256, help="rows decoded together per rank")
    add("--compile", choices=COMPILE, default="auto",
        help="decoding steps on a GPU; auto: compiled and in CUDA graphs; graphs: those alone")
    add("--with-think", action="store_true",
        help="the tuple planner thinks first, as train_sft.py --with-think has taught it")
    add("--prompts", metavar="FILE", help="JSON {name: text} that replaces prompts")
    add("--seed", type=flags.at_least(0), default=0, help="seed of sampling")
    add("--dtype", choices=("auto", "bf16", "fp32"), default="auto",
        help="auto: bf16 on a GPU, fp32 on a CPU")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add = parser.add_argument_group("verifying").add_argument
    add("--workers", type=flags.count,
        help="verifier processes per rank; by default the cores shared by the ranks")
    add("--official-limits", action="store_true",
        help="each problem's own time limit instead of 10 s per test")
    add("--outcomes", action="store_true", help="run every test and keep a hash of the outputs")
    add = parser.add_argument_group("labels and comparisons").add_argument
    add("--gate", metavar="FOLDER", help="record its p(Pass) per tuple; rule: the rule gate")
    add("--judge", metavar="SPEC", help="count faults of plans: rule, module:name, "
        "http://host/v1#model (key in JUDGE_API_KEY), a model's folder or hub id")
    add("--against", metavar="FILE", nargs="+", default=[], help="attempts files to compare with")
    add = parser.add_argument_group("output").add_argument
    add("--run", "--run-name", metavar="NAME",
        help="folder under runs/; by default the checkpoint's. Behind torchrun write --run-name")
    add("--out", metavar="FILE", type=Path, help="attempts file; by default in the run's eval/")
    add("--fresh", action="store_true", help="start over and delete the attempts made so far")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together."""
    if args.num_strategies > len(prompts.LABELS):
        raise UserError(f"--num-strategies {args.num_strategies}: there are only "
                        f"{len(prompts.LABELS)} labels, use as many at most")
    if args.attempts and args.attempts < max(args.k):
        raise UserError(f"--attempts {args.attempts} is less than --k {max(args.k)}: "
                        f"make as many attempts as you count")
    from_file = args.method == "file"
    if from_file != bool(args.programs) or from_file == bool(args.model):
        raise UserError("--method file takes --programs FILE and no --model, "
                        "every other method the reverse")
    if args.method != "tuple" and (args.gate or args.shuffle_strategies):
        raise UserError(f"--gate and --shuffle-strategies are for --method tuple, "
                        f"not for {args.method}")
    if args.with_think and not args.method.startswith("tuple"):
        raise UserError(f"--with-think is for --method tuple and tuple-iid, not for {args.method}")
    if not args.problems and not args.benchmark:
        raise UserError("no problems: pass --problems FILE, "
                        "or --benchmark NAME for corpora/NAME.jsonl")
    if args.out and args.out.suffix != ".jsonl":
        raise UserError(f"--out {args.out}: call it *.jsonl (settings go to a .json beside it)")


def check_writable(out: Path) -> None:
    """UserError before anything is loaded, and without writing, if `out` could not be written."""
    folder = out.resolve().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{out} cannot be written: {folder} is no folder that you may write to")


def read_task(args: argparse.Namespace) -> Task:
    """Read what the flags name, and put what follows from it into args."""
    args.problems = args.problems or f"corpora/{args.benchmark}.jsonl"
    args.benchmark = args.benchmark or Path(args.problems).stem
    args.attempts = args.attempts or max(args.k)
    with errors.user_input():
        if args.prompts:
            prompts.load(args.prompts)
        problems = load_problems(args.problems)[: args.limit]
    if args.method == "self-consistency":
        for problem in problems:
            if problem.kind == "code" and not problem.public_tests:
                raise UserError(f"self-consistency votes on public tests, "
                                f"and problem {problem.id!r} has none")
    if args.shuffle_strategies and len(problems) < 2:
        raise UserError("--shuffle-strategies needs two problems or more")

    donors = shuffled_donors(problems, args.seed) if args.shuffle_strategies else {}
    setting = Setting(args.num_strategies, args.attempts, args.seed, args.max_plan_tokens,
                      args.max_solve_tokens, args.with_think, donors)
    if args.method == "file":
        programs = read_programs(args.programs, problems)
        expected = {name: len(rows) for name, rows in programs.items()}
        warn_of_few(expected, max(args.k))
    else:
        programs = None
        made = draws_per_problem(args.method, setting) * attempts_per_draw(args.method, setting)
        expected = {problem.id: made for problem in problems}
    out = args.out or default_out(args)
    check_writable(out)
    return Task(problems, setting, programs, Parts(out, expected))


def warn_of_few(expected: dict[str, int], k: int) -> None:
    few = sum(count < k for count in expected.values())
    if few:
        print(f"{few} of {len(expected)} problems have fewer than {k} programs: "
              f"missing ones count as failed", file=sys.stderr)


def default_out(args: argparse.Namespace) -> Path:
    """eval/<benchmark>-<method>.jsonl in the checkpoint's run folder, or in runs/NAME."""
    if args.model:
        folder = lib_run.run_folder(args.model, args.run)
    else:
        folder = lib_run.run_folder(str(Path(args.programs).with_suffix("")), args.run)
    if args.step:
        folder = Path(args.model)
    elif args.model and Path(args.model).name in ("final", "best") and not args.run:
        folder = Path(args.model).parent        # of a stage
    name = f"{args.benchmark}-{args.method}"
    if args.step:
        name += f"-step{args.step}"
    if args.model and Path(args.model).name == "best":
        name += "-best"
    if args.shuffle_strategies:
        name += "-shuffled"
    if args.seed:
        name += f"-seed{args.seed}"
    return folder / "eval" / f"{name}.jsonl"


def open_judge(args: argparse.Namespace, out: Path) -> Responder | Judge:
    cache = Cache(out.parent / "answers")
    with errors.user_input():
        return open_source(args.judge, "judge", cache, k=args.num_strategies, temperature=0.0,
                           device=args.device, progress=progress)


def load_gate(args: argparse.Namespace, ranks: lib_run.Ranks) -> Gate | RuleGate | None:
    if args.gate == "rule":
        return RuleGate(args.num_strategies)
    if not args.gate:
        return None
    with errors.user_input():
        return Gate.load(args.gate, ranks.device, lib_run.compute_dtype(args.dtype, ranks.device))


def load_engine(args: argparse.Namespace, task: Task, mine: list[Problem],
                ranks: lib_run.Ranks) -> Engine:
    """The engine for the problems of this rank: no more slots than rows that may decode at once."""
    dtype = lib_run.compute_dtype(args.dtype, ranks.device)
    with errors.user_input():
        if args.step:
            module, folder = export.load_step(Path(args.model), args.step, dtype, ranks.device)
        else:
            folder = model.find(args.model, args.revision)
            module = model.load(folder, dtype, ranks.device)
        tokenizer = weights.load_tokenizer(folder)
        if args.with_think:
            prompts.thought_mark(tokenizer)     # raises where the template has no thinking
        longest = check_context(args, module, tokenizer, mine)
    slots = max(1, min(args.slots, len(mine) * most_rows(args.method, task.setting)))
    total = len(mine) * expected_rows(args.method, task.setting)
    if ranks.main and mine:
        say = [*weights.doubts(module, tokenizer),
               memory.decoding_line(module, slots, longest, args.max_solve_tokens)]
        print("\n".join(say), file=sys.stderr)
    with errors.user_input():
        return Engine(module.eval(), tokenizer, slots, args.temperature, args.top_k, args.top_p,
                      progress=sampling(total) if ranks.main else None,
                      compile=args.compile)


def check_context(args: argparse.Namespace, module, tokenizer, mine: list[Problem]) -> int:
    """Tokens of the longest prompt. UserError if one leaves too little of the model's context."""
    context = getattr(module.config, "max_position_embeddings", None)
    planned = args.method in attempts.PLANNED
    replies = args.max_solve_tokens + planned * args.max_plan_tokens
    longest = 1
    for problem in mine:
        prompt = len(prompts.encode(tokenizer, prompts.direct(problem)))
        longest = max(longest, prompt)
        if context and prompt + replies > context:
            lower = "--max-solve-tokens or --max-plan-tokens" if planned else "--max-solve-tokens"
            raise UserError(f"problem {problem.id!r}: a prompt of {prompt} tokens and replies of "
                            f"{replies} exceed the model's context of {context}: lower {lower}")
    return longest


# ----------------------------------------------------------------------------------------------
# What is made

def make_attempts(args: argparse.Namespace, task: Task, ranks: lib_run.Ranks, card: dict) -> None:
    """Every attempt that is not on disk yet, and the card beside them. Collective."""
    gate = load_gate(args, ranks)
    # before anything of this run is on disk: what is left to do may only shrink
    done = {} if args.fresh else task.parts.done()
    mine = [p for p in task.problems[ranks.rank::ranks.world] if p.id not in done]
    engine = load_engine(args, task, mine, ranks) if args.model else None
    with errors.user_input():
        verifier = Verifier(args.workers or lib_run.local_workers(), mode=VERIFIER_MODE)
    ranks.barrier()             # all ranks passed their checks: safe to write
    parts = task.parts
    if ranks.main:
        if args.fresh:
            parts.clear()
        card["ceilings"] = cards.ceilings(task.problems, (*attempts.SWEEP, *args.k), task.setting.k)
        with errors.user_input():
            parts.begin(card)
    ranks.barrier()
    if ranks.main and done:
        print(f"{len(done)} of {len(task.problems)} problems are done already", file=sys.stderr)

    started = time.perf_counter()
    votes = args.method == "self-consistency"
    grader = Grader(verifier, args.outcomes, votes, args.official_limits)
    if task.programs is not None:
        made = grade_programs(task.programs, mine, args.seed, grader)
    else:
        made = attempts_at(mine, args.method, task.setting, engine, grader, gate)
    with verifier, parts.open(ranks.rank) as file:
        for of_problem in progress(made, f"{args.benchmark}, {args.method}", len(mine)):
            # one write per problem: an interruption leaves whole problems but for the last one
            file.write("".join(json.dumps(asdict(attempt)) + "\n" for attempt in of_problem))
            file.flush()
    ranks.barrier()
    if ranks.main:
        card["command"], card["commit"] = sys.argv, lib_run.commit()
        card["processes"] = ranks.world
        card["verifier"] = verifier.report | {"tier": verifier.tier, "mode": VERIFIER_MODE}
        card["tau"] = gate.tau if gate else None
        card["seconds"] = time.perf_counter() - started
        card["seconds_for_problems"] = len(task.problems) - len(done)
        parts.finish(card)


# ----------------------------------------------------------------------------------------------
# What is printed

def statuses(evaluation: attempts.Evaluation) -> str:
    """How the attempts ended, the most frequent first."""
    counts = Counter(attempt["status"] for made in evaluation.problems.values() for attempt in made)
    listed = ", ".join(f"{status} {count}" for status, count in counts.most_common())
    line = f"{counts.total()} attempts: {listed}"
    for status, flag in (("cut", "--max-solve-tokens"), ("plan_cut", "--max-plan-tokens")):
        if counts[status] > counts.total() / 2:
            line += f"\nmost replies were cut: does the model end its turn? else raise {flag}"
    return line


def print_scores(args: argparse.Namespace, problems: list[Problem],
                 evaluation: attempts.Evaluation, others: list[attempts.Evaluation]) -> None:
    print(f"{args.benchmark}, {args.method}: {len(evaluation.problems)} problems, "
          f"{evaluation.path}")
    rows = [{"K": k} | attempts.scores(evaluation, k, args.select) for k in args.k]
    errata = {problem.id for problem in problems if is_erratum(problem)} & set(evaluation.problems)
    if 0 < len(errata) < len(evaluation.problems):
        print(f"{len(errata)} of them are published errata; below the line without those")
        rest = attempts.without(evaluation, errata)
        rows += [{"K": k} | attempts.scores(rest, k, args.select) for k in args.k]
    print(attempts.render(rows))
    print(statuses(evaluation))
    reply_scores = attempts.reply_scores(evaluation)
    if reply_scores:
        print(attempts.render([reply_scores]))
    tuple_scores = attempts.tuple_scores(evaluation)
    if tuple_scores:
        print(attempts.render([tuple_scores]))
    compared = [attempts.compare(evaluation, other, k, args.select)
                for other in others for k in args.k]
    if compared:
        print(attempts.render(compared))


def main(args: argparse.Namespace) -> int:
    with errors.one_line():
        check(args)
        task = read_task(args)
        others = [attempts.load(path) for path in args.against]
        ranks = lib_run.setup(args.seed, args.device, timeout=SLOWEST_RANK)
        judge = open_judge(args, task.out) if args.judge and ranks.main else None
        if args.dtype == "auto":
            args.dtype = "bf16" if ranks.device.type == "cuda" else "fp32"
        card = {}
        if ranks.main:
            with errors.user_input():
                card["setting"] = cards.made_with(args)
            if not args.fresh:
                task.parts.refuse_another(card["setting"])
        # every rank looks for the file before the main one can write it
        ranks.barrier()

        if args.fresh or not task.out.exists():
            try:
                make_attempts(args, task, ranks, card)
            except SandboxError as error:
                # a fault of the machinery is no verdict; what was verified is on disk
                print(f"error: {error}; the same command goes on from here", file=sys.stderr)
                return errors.FAILED
        if ranks.main:
            evaluation = attempts.load(task.out)
            if judge and args.method in attempts.PLANNED:
                faults = cards.fault_shares(evaluation, task.problems, args.num_strategies, judge)
                evaluation.card["faults"] = faults
                task.parts.save_card(evaluation.card)
            print_scores(args, task.problems, evaluation, others)
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
