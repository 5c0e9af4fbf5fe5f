"""Evaluation: attempts by any inference method, judged, written down and counted.

    python evaluate.py --model runs/mini/cppo/final --problems test.jsonl --method tuple --k 1 2 4 8
    torchrun --nproc_per_node=8 evaluate.py --model runs/Qwen3.5-2B/cppo/final --benchmark lcb --method tuple
    python evaluate.py --method file --programs theirs.jsonl --problems test.jsonl      # another system's

Attempts go to runs/NAME/STAGE/eval/<benchmark>-<method>.jsonl, a `methods.Attempt` a line, and what they were
made with to the .json beside it. A problem is on disk as soon as it is judged: the same command goes on where
it was interrupted, on any number of processes, and comes to the same attempts (on a CPU in fp32; a GPU's
rounding depends on the batch). The attempts file itself appears when all of them are there.

K below a tuple's size counts its first K attempts; above, whole tuples are drawn independently and pooled
(Table 20). What we chose where the paper is silent is in methods.py; the figures are in attempts.py.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

import gate as gates
import model
import prompts
from lib import errors, files, metrics, progress
from lib import run as lib_run
from lib.problems import Problem, load_problems
from paper import attempts
from prepare.ask import Cache, Responder
from prepare.judge import Judge, judge_plans, open_source
from rivals.methods import METHODS, Attempt, Grader, Reply, Setting, attempts_a_draw, attempts_at
from rollout import Engine
from verifier import SandboxError, Verifier

SWEEP = (1, 2, 4, 8, 16, 20, 24)    # Table 20: the K whose ceilings are kept with the attempts
SLOWEST_RANK = timedelta(days=2)    # problems are dealt out beforehand, so ranks may end hours apart


# ------------------------------------------------------------------------------------------ from elsewhere

def load_programs(path: str, problems: list[Problem]) -> dict[str, list[dict]]:
    """JSON lines {"problem_id", "index", "program"} -> rows by problem id, in order of index. A whole reply,
    "response" in the place of "program", has its program taken out as everybody's is."""
    kinds = {problem.id: problem.kind for problem in problems}
    rows: dict[str, dict[int, dict]] = {problem.id: {} for problem in problems}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                name, index = row["problem_id"], row["index"]
                text = row["response"] if "response" in row else row["program"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise ValueError(f"{path} line {number}: an attempt is a JSON object with problem_id, index "
                                 f"and program (or response)") from None
            wrong = (f"no problem {name!r} is being evaluated" if name not in rows else
                     f"index {index!r} is no whole number" if type(index) is not int else
                     f"problem {name!r} has an attempt {index} already" if index in rows[name] else
                     f"{text!r:.40} is neither text nor null" if not isinstance(text, str | None) else
                     f"problem {name!r} asks for an output: give the reply as response"
                     if kinds[name] != "code" and "response" not in row else None)
            if wrong:
                raise ValueError(f"{path} line {number}: {wrong}")
            rows[name][index] = row
    # a problem that nobody wrote a program for has failed, and is counted
    return {name: [found[index] for index in sorted(found)] or [{"index": 0, "program": None}]
            for name, found in rows.items()}


def judge_programs(programs: dict[str, list[dict]], problems: list[Problem], seed: int,
                   grader: Grader) -> Iterator[list[Attempt]]:
    """--method file: the attempts at each problem, of what another system wrote."""
    def reply(problem: Problem, row: dict) -> Reply:
        if "response" in row:
            return grader.grade(problem, row["response"] or "")
        return grader.run(problem, row["program"])

    replies = {problem.id: [reply(problem, row) for row in programs[problem.id]] for problem in problems}
    for problem in problems:
        yield [grader.finish(problem, reply, seed=seed, tuple=0, index=row["index"])
               for row, reply in zip(programs[problem.id], replies[problem.id], strict=True)]


# ------------------------------------------------------------------------------------------ files

def parts(out: Path) -> list[Path]:
    """What ranks have written so far, each its own file, of an evaluation that is not finished."""
    return sorted(path for path in out.parent.glob("*.part") if path.name.startswith(f"{out.name}."))


def part(out: Path, rank: int) -> Path:
    return out.with_name(f"{out.name}.{rank}.part")


def collect(out: Path, expected: dict[str, int]) -> dict[str, list[dict]]:
    """The attempts in the parts, by problem in order, of problems of which every attempt is there."""
    found: dict[str, dict] = {name: {} for name in expected}
    for path in parts(out):
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:      # what has no line end was cut
            attempt = json.loads(line)
            found[attempt["problem_id"]][attempt["tuple"], attempt["index"]] = attempt
    return {name: [attempts[place] for place in sorted(attempts)] for name, attempts in found.items()
            if len(attempts) == expected[name]}


def write(path: Path, problems: dict[str, list[dict]]) -> None:
    files.write_file(path, "".join(json.dumps(a) + "\n" for attempts in problems.values() for a in attempts))


def refuse_another(out: Path, setting: dict) -> None:
    """Raises ValueError if `out` holds, or is about to hold, attempts that were made in another way."""
    card = out.with_suffix(".json")
    if out.exists() and not card.exists():
        raise ValueError(f"{out} is there without {card.name}: name another --out, or start over by --fresh")
    was = json.loads(card.read_text())["setting"] if card.exists() else setting
    for name in setting | was:
        if was.get(name) != setting.get(name):
            raise ValueError(f"{out} was begun with {name} {was.get(name)!r}, now it is "
                             f"{setting.get(name)!r}: name another --out, or start over by --fresh")


def begin(out: Path, card: dict, expected: dict[str, int]) -> None:
    """The card beside `out`, and one part with what an interrupted evaluation left."""
    files.write_file(out.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    write(part(out, 0), collect(out, expected))
    for path in set(parts(out)) - {part(out, 0)}:
        path.unlink()


# ------------------------------------------------------------------------------------------ the script

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    g = parser.add_argument_group("what is evaluated")
    g.add_argument("--method", required=True, choices=[*METHODS, "file"])
    g.add_argument("--model", metavar="FOLDER", help="checkpoint folder, or id on the hub")
    g.add_argument("--revision", help="branch, tag or commit of a model on the hub (default: the newest)")
    g.add_argument("--programs", metavar="FILE", help="--method file: lines of problem_id, index, program")
    g.add_argument("--problems", metavar="FILE", help="JSON lines (default: corpora/BENCHMARK.jsonl)")
    g.add_argument("--benchmark", metavar="NAME", help="its name in tables (default: the problem file's)")
    g.add_argument("--limit", type=int, metavar="N", help="the first N problems (default: all)")
    g.add_argument("--shuffle-strategies", action="store_true",
                   help="control: solve every problem by the tuples of another one")
    g = parser.add_argument_group("budget")
    g.add_argument("--k", type=int, nargs="+", default=[4], metavar="K",
                   help="attempts that pass@K counts (default: 4)")
    g.add_argument("--attempts", type=int, metavar="N", help="made at a problem (default: the largest K)")
    g.add_argument("--num-strategies", type=int, default=4, metavar="K",
                   help="strategies a tuple; skills (default: 4)")
    g.add_argument("--select", choices=("first", "last", "random"), default="first",
                   help="which K of the N count (default: first)")
    g = parser.add_argument_group("sampling")
    g.add_argument("--temperature", type=float, default=0.7, help="0: greedy (default: 0.7)")
    g.add_argument("--top-k", type=int, default=0, help="0: off (default)")
    g.add_argument("--top-p", type=float, default=1.0, help="1: off (default)")
    g.add_argument("--max-plan-tokens", type=int, default=512, metavar="N",
                   help="new tokens a plan (default: 512)")
    g.add_argument("--max-solve-tokens", type=int, default=2048, metavar="N",
                   help="new tokens an attempt (default: 2048)")
    g.add_argument("--slots", type=int, default=256, help="rows decoded together on a rank (default: 256)")
    g.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto",
                   help="auto: bf16 on a GPU, fp32 on a CPU (default)")
    g.add_argument("--with-think", action="store_true",
                   help="tuple planner thinks first, as stage 1 --with-think has taught it")
    g.add_argument("--prompts", metavar="FILE", help="JSON {name: text} that replaces prompts")
    g.add_argument("--seed", type=int, default=0, help="of sampling (default: 0)")
    g.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    g.add_argument("--threads", type=int, default=1, help="CPU threads a process (default: 1)")
    g = parser.add_argument_group("judging")
    g.add_argument("--workers", type=int, help="verifier processes of a rank (default: cores / ranks)")
    g.add_argument("--verifier-mode", choices=("batch", "strict"), default="strict", help="(default: strict)")
    g.add_argument("--official-limits", action="store_true",
                   help="a problem's own time limit instead of 10 s a test")
    g.add_argument("--outcomes", action="store_true", help="run every test, keep a hash of what was printed")
    g.add_argument("--gate", metavar="FOLDER", help="record its p(Pass) of each tuple; `rule`: the rule gate")
    g.add_argument("--judge", metavar="SPEC", help="names faults of plans: rule, module:name, http://host/v1#model "
                   "(key in JUDGE_API_KEY), a model's folder or hub id")
    g.add_argument("--against", metavar="FILE", nargs="+", default=[], help="attempts files to compare with")
    g = parser.add_argument_group("output")
    g.add_argument("--run", "--run-name", metavar="NAME",
                   help="folder under runs/ (default: the checkpoint's); behind torchrun, --run-name")
    g.add_argument("--out", metavar="FILE", type=Path, help="attempts file (default: in the run's eval/)")
    g.add_argument("--fresh", action="store_true", help="start over, deleting the attempts made so far")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    for flag in ("k", "num_strategies", "attempts", "limit", "max_plan_tokens", "max_solve_tokens", "slots",
                 "workers"):
        value = getattr(args, flag)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            raise ValueError(f"--{flag.replace('_', '-')} must be 1 or more, not {value}")
    if args.num_strategies > len(prompts.LABELS):
        raise ValueError(f"--num-strategies {args.num_strategies}: there are {len(prompts.LABELS)} labels")
    if args.attempts and args.attempts < max(args.k):
        raise ValueError(f"--attempts {args.attempts} is less than --k {max(args.k)}: make what is counted")
    from_file = args.method == "file"
    if from_file != bool(args.programs) or from_file == bool(args.model):
        raise ValueError("--method file takes --programs FILE and no --model, every other method the reverse")
    if args.method != "tuple" and (args.gate or args.shuffle_strategies):
        raise ValueError(f"--gate and --shuffle-strategies are for --method tuple, not for {args.method}")
    if args.with_think and not args.method.startswith("tuple"):
        raise ValueError(f"--with-think is for --method tuple and tuple-iid, not for {args.method}")
    if not args.problems and not args.benchmark:
        raise ValueError("no problems: pass --problems FILE, or --benchmark NAME for corpora/NAME.jsonl")
    if args.out and args.out.suffix != ".jsonl":
        raise ValueError(f"--out {args.out}: call it *.jsonl (settings go to a .json beside it)")


def default_out(args: argparse.Namespace) -> Path:
    """eval/<benchmark>-<method>.jsonl in the checkpoint's run folder, or in runs/NAME."""
    path = Path(args.model or args.programs)
    folder = lib_run.run_folder(str(path if args.model else path.with_suffix("")), args.run)
    if path.name == "final" and not args.run:
        folder = path.parent
    shuffled, seed = "-shuffled" * args.shuffle_strategies, f"-seed{args.seed}" * bool(args.seed)
    return folder / "eval" / f"{args.benchmark}-{args.method}{shuffled}{seed}.jsonl"


def made_with(args: argparse.Namespace, dtype: str) -> dict:
    """Everything that the attempts depend on, files by their hash as well."""
    names = ("method", "benchmark", "problems", "limit", "model", "revision", "programs", "prompts", "gate",
             "seed", "num_strategies", "attempts", "shuffle_strategies", "temperature", "top_k", "top_p",
             "max_plan_tokens", "max_solve_tokens", "verifier_mode", "official_limits", "outcomes")
    files = {name: getattr(args, name) for name in ("problems", "model", "programs", "prompts", "gate")}
    if args.model:
        files["model"] = model.find(args.model, args.revision)      # of a hub id the snapshot that is loaded
    return ({name: getattr(args, name) for name in names} | {"dtype": dtype, "with_think": args.with_think or None}
            | {f"{name}_sha256": files.tree_hash(path) for name, path in files.items() if path})


def donors(problems: list[Problem], seed: int) -> dict[str, Problem]:
    """--shuffle-strategies: each problem gets the tuples of the next one in a random round, never its own."""
    order = random.Random(f"{seed} strategies").sample(problems, len(problems))
    return {problem.id: order[(i + 1) % len(order)] for i, problem in enumerate(order)}


def ceilings(problems: list[Problem], ks: Iterable[int], size: int) -> dict[str, dict[str, float]] | None:
    """K -> mean over problems of the best possible pass@K of each policy class, where a world knows it.

    constant: K programs that never read a statement. A program sees its input, so problems with equal inputs
    are one family, and a family's best are the K classes of largest total mass."""
    if not all(problem.classes for problem in problems):
        return None
    posteriors = [list(problem.classes.values()) for problem in problems]
    families: dict[tuple, Counter] = defaultdict(Counter)
    for problem in problems:
        families[tuple(test["input"] for test in problem.tests)].update(problem.classes)

    def best(k: int) -> dict[str, float]:
        constant = sum(mass for family in families.values() for _, mass in family.most_common(k))
        return {"constant": constant / len(problems),
                "independent": float(np.mean([metrics.independent_ceiling(p, k) for p in posteriors])),
                "coordinated": float(np.mean([metrics.coordinated_ceiling(p, k, size) for p in posteriors]))}

    return {str(k): best(k) for k in sorted(set(ks)) if k <= size or k % size == 0}


def faults(evaluation: attempts.Evaluation, problems: list[Problem], size: int,
           judge: Responder | Judge) -> dict[str, float]:
    """Share of tuples with each fault that the judge names, and with any. Not to have parsed is a fault; tuples for which a
    model gave no usable answer are left out."""
    known = {problem.id: problem for problem in problems}
    groups = [(known[group[0]["problem_id"]], [attempt["strategy"] for attempt in group])
              for group in attempts.tuples(evaluation)]
    pairs = [(problem, "" if None in plan else prompts.format_plan(plan)) for problem, plan in groups]
    found = [names for names in judge_plans(judge, pairs, size) if names is not None]
    shares = {name: sum(name in names for names in found) / max(1, len(found)) for name in prompts.FAULTS}
    return shares | {"any": sum(map(bool, found)) / max(1, len(found))}


def commit() -> str:
    here = Path(__file__).resolve().parent
    said = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


def main(args: argparse.Namespace) -> int:
    # ---- what is asked for
    with errors.explain():
        check(args)
        if args.prompts:
            prompts.load(args.prompts)
        args.problems = args.problems or f"corpora/{args.benchmark}.jsonl"
        args.benchmark = args.benchmark or Path(args.problems).stem
        args.attempts = args.attempts or max(args.k)
        problems = load_problems(args.problems)[: args.limit]
        silent = [p.id for p in problems if p.kind == "code" and not p.public_tests]
        if args.method == "self-consistency" and silent:
            raise ValueError(f"self-consistency votes on public tests, and problem {silent[0]!r} has none")
        if args.shuffle_strategies and len(problems) < 2:
            raise ValueError("--shuffle-strategies needs two problems or more")
        setting = Setting(args.num_strategies, args.attempts, args.seed,
                          donors(problems, args.seed) if args.shuffle_strategies else {}, args.with_think)
        a_draw = attempts_a_draw(args.method, setting)
        expected = {problem.id: -(-setting.n // a_draw) * a_draw for problem in problems}
        if args.method == "file":
            programs = load_programs(args.programs, problems)
            expected = {name: len(rows) for name, rows in programs.items()}
            short = sum(count < max(args.k) for count in expected.values())
            if short:
                print(f"{short} of {len(problems)} problems have fewer than {max(args.k)} programs: what is "
                      f"missing has failed", file=sys.stderr)
        rivals = [attempts.load(path) for path in args.against]
        out = args.out or default_out(args)
        ranks = lib_run.setup(args.seed, args.device, args.threads, timeout=SLOWEST_RANK)
        judge = open_source(args.judge, "judge", Cache(out.parent / "answers"), k=args.num_strategies,
                            temperature=0.0, device=args.device, progress=progress.progress
                            ) if args.judge and ranks.main else None
        dtype = args.dtype if args.dtype != "auto" else "bf16" if ranks.device.type == "cuda" else "fp32"
        if ranks.main:
            card = {"setting": made_with(args, dtype)}
            if not args.fresh:
                refuse_another(out, card["setting"])
        ranks.barrier()

    # ---- attempts
    if args.fresh or not out.exists():
        with errors.explain():
            compute = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
            gate = None
            if args.gate:
                gate = (gates.RuleGate(setting.k) if args.gate == "rule" else
                        gates.Gate.load(args.gate, ranks.device, compute))
            if args.model:
                module = model.load(args.model, compute, ranks.device, args.revision).eval()
                tokenizer = AutoTokenizer.from_pretrained(args.model, revision=args.revision)
                if args.with_think:
                    prompts.thought_mark(tokenizer)     # raises where there is no thinking
                engine = Engine(module, tokenizer, args.slots, args.temperature, args.top_k, args.top_p)
            cores, here = len(os.sched_getaffinity(0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            verifier = Verifier(args.workers or max(1, cores // here), mode=args.verifier_mode)
        ranks.barrier()         # nobody fails any more: now files are touched
        if ranks.main:
            for path in (out, *parts(out)) if args.fresh else ():
                path.unlink(missing_ok=True)
            card["ceilings"] = ceilings(problems, (*SWEEP, *args.k), setting.k)
            begin(out, card, expected)
        ranks.barrier()
        done = collect(out, expected)
        mine = [problem for problem in problems[ranks.rank::ranks.world] if problem.id not in done]
        if ranks.main and done:
            print(f"{len(done)} of {len(problems)} problems are done already", file=sys.stderr)
        started = time.perf_counter()
        grader = Grader(verifier, args.outcomes, args.method == "self-consistency", args.official_limits)
        if args.method == "file":
            attempted = judge_programs(programs, mine, args.seed, grader)
        else:
            limits = (args.max_plan_tokens, args.max_solve_tokens)
            attempted = attempts_at(mine, args.method, setting, engine, limits, grader, gate)
        try:
            with verifier, errors.explain(), open(part(out, ranks.rank), "a", encoding="utf-8") as file:
                for made in progress.progress(attempted, f"{args.benchmark}, {args.method}", len(mine)):
                    file.write("".join(json.dumps(asdict(attempt)) + "\n" for attempt in made))
                    file.flush()
        except SandboxError as error:       # a fault of the machinery is no verdict; what was judged is kept
            print(f"error: {error}; the same command goes on from here", file=sys.stderr)
            return 1
        ranks.barrier()
        if ranks.main:
            card |= {"command": sys.argv, "commit": commit(), "processes": ranks.world,
                     "verifier": verifier.report | {"tier": verifier.tier}, "tau": gate.tau if gate else None,
                     "seconds": time.perf_counter() - started,
                     "seconds_for_problems": len(problems) - len(done)}
            files.write_file(out.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
            write(out, collect(out, expected))
            for path in parts(out):
                path.unlink()

    # ---- figures
    if ranks.main:
        evaluation = attempts.load(out)
        if judge and args.method in attempts.PLANNED:
            with errors.explain():
                evaluation.card["faults"] = faults(evaluation, problems, setting.k, judge)
            files.write_file(out.with_suffix(".json"), json.dumps(evaluation.card, indent=1) + "\n")
        print(f"{args.benchmark}, {args.method}: {len(evaluation.problems)} problems, {out}")
        print(attempts.render([{"K": k} | attempts.figures(evaluation, k, args.select) for k in args.k]))
        with errors.explain():
            compared = [attempts.compare(evaluation, rival, k, args.select)
                        for rival in rivals for k in args.k]
        for rows in ([attempts.tuple_figures(evaluation)], compared):
            if any(rows):
                print(attempts.render(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
