"""The paper in miniature: every method, ablation and rival on several seeds, then the results.

    world, bases -> per seed: stage 1, the gate, stage 3
                 -> on one seed: stage 5 and every rival at each learning rate of one grid,
                    measured on the dev problems; a fourth and a fifth rate where the best one lies
                    at an edge
                 -> per seed: stage 5, ablations, rivals at the learning rate that was best;
                    evaluations; diversity

`bash miniature/reproduce.sh` runs it. jobs.py runs the jobs, report.py writes the results. An
ablation takes CPPO's learning rate. All seeds share one base model.

With --setting, one of the further settings of the world (world.SETTINGS): stages 1 to 5 with both
credits, GRPO and PKPO on three seeds, without a sweep, into one table: results/SETTING.md.
"""

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

from lib import errors, flags
from miniature import report, results, world
from miniature.jobs import Job, Queue
from paper import attempts

SEEDS, QUICK_SEEDS = (0, 1, 2, 3, 4), (0,)
FEWER_SEEDS = 3             # for all but stages 1 to 3 and these
ON_ALL_SEEDS = ("cppo", "cppo-marginal", "cppo-marginal-place", "pkpo")
MORE_RATES = 2              # at most so many beyond an edge of the grid
K = results.K
MANY = attempts.SWEEP       # K of direct, CPPO and PKPO (Table 20)
PROMPTS, JUDGE = "miniature/prompts.json", "miniature.world:judge"
BASELINES = ("direct", "plan-and-solve", "plansearch", "sketch", "self-consistency", "fixed")
# stage -> method of evaluate.py; these are swept
TRAINED = {"cppo": "tuple", "cppo-marginal": "tuple", "cppo-marginal-place": "tuple",
           "grpo": "direct", "maxrl": "direct", "passk": "direct", "pkpo": "direct",
           "pkpo-loo": "direct", "upskill": "skills", "upskill-a0.5": "skills",
           "upskill-a0.1": "skills", "upskill-sequence": "skills"}
# flags of UpSkill beside the paper's alpha of 5 and our mean over tokens
UPSKILL = {"a0.5": ("--alpha-mi", "0.5"), "a0.1": ("--alpha-mi", "0.1"),
           "sequence": ("--alpha-mi", "0.5", "--aggregate", "sequence")}
# CPPO's credits (docs/credit.md) and ablations (Table 6) -> (flags, solver attempts per step
# relative to CPPO's)
MARGINAL = ("--solver-credit", "marginal")
CREDITS = {"cppo": ((), 1), "cppo-marginal": (MARGINAL, 1),
           "cppo-marginal-place": ((*MARGINAL, "--planner-credit", "place"), 1)}
VARIANTS = {"cppo-outcome": (("--reward", "outcome"), 1),
            "cppo-gate": (("--reward", "gate"), 1),
            "cppo-m4": (("--num-tuples", "4"), 1 / 2),
            "cppo-m2": (("--num-tuples", "2"), 1 / 4),
            "cppo-m1": (("--num-tuples", "1"), 1 / 8)}
# measured, in CPU seconds: a step of 256 solver attempts; one attempt of an evaluation
STEP_SECONDS = {"tuple": 3.3, "direct": 2.0, "skills": 2.6}
ATTEMPT_SECONDS = 0.017


def rates(grid: list[str], more: int) -> tuple[list[str], list[str]]:
    """`more` learning rates below the grid and as many above, nearest first, in the grid's outer
    ratios."""
    values = [float(word) for word in grid]
    below = [values[0] * (values[0] / values[1]) ** i for i in range(1, more + 1)]
    above = [values[-1] * (values[-1] / values[-2]) ** i for i in range(1, more + 1)]
    return [short(rate) for rate in below], [short(rate) for rate in above]


def short(rate: float) -> str:
    """7.5e-5, as the grid writes it."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def settings() -> dict[str, list[str]]:
    """The flags that run.sh uses too: lines NAME="flags" of settings.sh."""
    text = Path(__file__).with_name("settings.sh").read_text(encoding="utf-8")
    lines = re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE)
    return {name: shlex.split(words) for name, words in lines}


class Reproduction:
    """All jobs, in the order in which they are wanted. Runs are runs/NAME-seedN, of the sweep
    runs/NAME-lrX. `quick`: the same jobs with one seed, two learning rates, and tiny steps, pools
    and bases. `setting`: of the world."""

    def __init__(self, name: str, quick: bool, setting: str = "open"):
        self.name, self.quick, self.setting = name, quick, setting
        self.flags = settings()
        self.pool, self.base = f"runs/{name}-world", f"runs/{name}-base"
        self.seeds = QUICK_SEEDS if quick else SEEDS
        self.grid = self.flags["LR_GRID"][:2] if quick else self.flags["LR_GRID"]
        self.jobs: list[Job] = []
        self.add_preparation()
        if setting != "open":
            for seed in self.seeds[:FEWER_SEEDS]:
                self.add_first_stages(seed)
                self.add_few_methods(seed)
            return
        for seed in self.seeds:
            self.add_first_stages(seed)
        self.add_sweep()
        for seed in self.seeds:
            self.add_methods(seed)

    def add(self, job: str, *command, after: tuple[str, ...] = (), minutes: float = 0.2,
            passes: tuple[int, ...] = (0,), only_if: str = "") -> None:
        if self.quick:
            minutes = 0.12
        words = [str(word) for word in command]
        self.jobs.append(Job(job, words, after, minutes, passes, only_if))

    def if_quick(self, *words) -> tuple:
        return words if self.quick else ()

    def run(self, seed: int) -> str:
        return f"{self.name}-seed{seed}"

    def gate(self, seed: int) -> str:
        # ten steps make no gate that is accepted
        return "rule" if self.quick else f"runs/{self.run(seed)}/gate/final"

    def add_training(self, job: str, run: str, seed: int, stage: str, lr: str,
                     after: tuple[str, ...], only_if: str = "") -> None:
        """A run of stage 5 or of a rival. CPPO and its ablations start from the seed's warm-up,
        rivals from the base."""
        # an ablation with fewer tuples takes fewer attempts, for as many steps
        more, share = (CREDITS | VARIANTS).get(stage, ((), 1))
        if stage.startswith("cppo"):
            script = ("train_cppo.py", "--model", f"runs/{self.run(seed)}/warmup/final",
                      *self.flags["CPPO"], "--judge", JUDGE, "--gate", self.gate(seed),
                      *self.if_quick("--skip-audit"), *more)
        else:
            script = ("rivals.train_rivals", "--method", stage, "--model", self.base)
            if stage.startswith("upskill-"):
                method, _, variant = stage.partition("-")
                script = ("rivals.train_rivals", "--method", method, "--model", self.base,
                          *UPSKILL[variant], "--variant", variant)
        steps = int(self.flags["STEPS"][0])
        self.add(job, *script, "--run-name", run, "--seed", seed, "--prompts", PROMPTS,
                 "--problems", f"{self.pool}/train.jsonl", *self.flags["SAMPLING"], "--lr", lr,
                 "--steps", 2 if self.quick else steps, *self.if_quick("--problems-per-step", 2),
                 "--keep", 1, after=after, only_if=only_if,
                 minutes=steps * share * STEP_SECONDS[TRAINED.get(stage, "tuple")] / 60)

    def add_evaluation(self, job: str, seed: int, model: str, method: str, *more,
                       ks: tuple[int, ...] = (1, 2, K), split: str = "heldout",
                       after: tuple[str, ...] = (), only_if: str = "") -> None:
        judge = ("--judge", JUDGE) if method in attempts.PLANNED else ()
        seconds = world.SIZES[split] * max(ks) * ATTEMPT_SECONDS
        self.add(job, "evaluate.py", "--method", method, "--model", model,
                 "--problems", f"{self.pool}/{split}.jsonl", "--prompts", PROMPTS,
                 *self.flags["SAMPLING"], "--seed", seed, "--k", *ks, *judge,
                 "--workers", 1, *more, *self.if_quick("--limit", 6), after=after, only_if=only_if,
                 minutes=0.15 + seconds / 60)

    def add_preparation(self) -> None:
        """The world and the two bases."""
        setting = () if self.setting == "open" else ("--setting", self.setting)
        self.add("world", "miniature.world", "build", "--out", self.pool, *setting)
        self.add("base", "miniature.base", "--out", self.base, *self.flags["BASE"], *setting,
                 *self.if_quick("--steps", 300), minutes=4)
        self.add("gate-base", "miniature.base", "--out", f"{self.base}-gate",
                 *self.flags["GATE_BASE"], *self.if_quick("--steps", 10), minutes=5)

    def add_first_stages(self, seed: int) -> None:
        """Stages 1, 2 and 3 of a seed."""
        run = self.run(seed)
        common = ("--seed", seed, "--prompts", PROMPTS, "--keep", 1)
        self.add(f"gate-{seed}", "train_rm.py", "--model", f"{self.base}-gate", "--run", run,
                 *common, *self.flags["GATE"], "--labels", f"{self.pool}/labels_train.jsonl",
                 "--val", f"{self.pool}/labels_val.jsonl", *self.if_quick("--steps", 2),
                 after=("world", "gate-base"), minutes=2.5,
                 passes=(0, 3) if self.quick else (0,))     # 3: the gate was not accepted
        self.add(f"sft-{seed}", "train_sft.py", "--model", self.base, "--run", run, *common,
                 *self.flags["SFT"], "--gold", f"{self.pool}/gold.jsonl",
                 *self.if_quick("--steps", 12), after=("world", "base"), minutes=1.5)
        self.add(f"warmup-{seed}", "train_cppo.py", "--model", self.base, "--run-name", run,
                 *common, "--problems", f"{self.pool}/train.jsonl", "--judge", JUDGE,
                 *self.flags["SAMPLING"], "--stage", "warmup", *self.flags["WARMUP"],
                 *self.if_quick("--steps", 2, "--problems-per-step", 2, "--gate", "rule"),
                 after=(f"gate-{seed}", f"sft-{seed}"), minutes=0.8)

    def add_sweep(self) -> None:
        """Every trained method at every learning rate, on seed 0; then beyond the edge where its
        best rate lies, if it lies at one."""
        below, above = rates(self.grid, 1 if self.quick else MORE_RATES)
        for stage in TRAINED:
            for lr in self.grid:
                self.add_swept(stage, lr)
            inside = tuple(f"dev-{stage}-{lr}" for lr in self.grid)
            for edge, further in ((self.grid[0], below), (self.grid[-1], above)):
                before = inside
                for lr in further:
                    self.add_swept(stage, lr, before, only_if=f"{stage} is best at {edge}")
                    before, edge = (f"dev-{stage}-{lr}",), lr

    def swept(self, stage: str) -> tuple[str, ...]:
        """The jobs that must be done before a method's best learning rate is known."""
        pattern = rf"dev-{stage}-[\d.e-]+"
        return tuple(job.name for job in self.jobs if re.fullmatch(pattern, job.name))

    def add_swept(self, stage: str, lr: str, before: tuple[str, ...] = (),
                  only_if: str = "") -> None:
        """Training at one learning rate, and pass@4 on the dev problems."""
        run = f"{self.name}-lr{lr}"
        after = ("warmup-0",) if stage in CREDITS else ("base", "world")
        self.add_training(f"sweep-{stage}-{lr}", run, 0, stage, lr, (*after, *before), only_if)
        self.add_evaluation(f"dev-{stage}-{lr}", 0, f"runs/{run}/{stage}/final", TRAINED[stage],
                            "--out", f"runs/{run}/dev/{stage}.jsonl", ks=(K,), split="dev",
                            after=(f"sweep-{stage}-{lr}", *before), only_if=only_if)

    def add_methods(self, seed: int) -> None:
        """Every method on a seed, evaluated on the held-out problems."""
        run, is_early = self.run(seed), seed < FEWER_SEEDS

        def evaluate(job: str, model: str, method: str, *more, ks=(1, 2, K), after=()) -> None:
            self.add_evaluation(f"eval-{seed}-{job}", seed, model, method, *more, ks=ks,
                                after=after)

        for method in BASELINES if is_early else ("direct",):
            evaluate(f"base-{method}", self.base, method, "--run-name", run,
                     ks=MANY if method == "direct" else (1, 2, K), after=("base", "world"))
        sft = f"runs/{run}/sft/final"
        # four plans, for iid inference that takes any of their strategies
        evaluate("sft", sft, "tuple", ks=(1, 2, K, 4 * K), after=(f"sft-{seed}",))
        evaluate("warmup", f"runs/{run}/warmup/final", "tuple", after=(f"warmup-{seed}",))
        evaluate("sft-iid", sft, "tuple-iid", after=(f"sft-{seed}",))
        for stage, method in TRAINED.items():
            if not is_early and stage not in ON_ALL_SEEDS:
                continue
            self.add_best(seed, stage)
            gate = ("--gate", self.gate(seed)) if stage in CREDITS else ()
            final, after = f"runs/{run}/{stage}/final", (f"{stage}-{seed}",)
            evaluate(stage, final, method, *gate,
                     ks=MANY if stage in (*CREDITS, "pkpo") else (1, 2, K), after=after)
            if stage in CREDITS:
                evaluate(f"{stage}-iid", final, "tuple-iid", after=after)
        cppo, after = f"runs/{run}/cppo/final", (f"cppo-{seed}",)
        evaluate("cppo-shuffled", cppo, "tuple", "--shuffle-strategies", after=after)
        for stage in VARIANTS if is_early else ():
            self.add_training(f"{stage}-{seed}", run, seed, stage, "{lr:cppo}", after)
            evaluate(stage, f"runs/{run}/{stage}/final", "tuple", after=(f"{stage}-{seed}",))
        self.add_diversity(seed)

    def add_few_methods(self, seed: int) -> None:
        """In a further setting: no sweep, so CPPO at run.sh's learning rate and the rivals at the
        one that was best for them in the open setting, the lowest of the grid."""
        run = self.run(seed)
        self.add_evaluation(f"eval-{seed}-base-direct", seed, self.base, "direct", "--run-name",
                            run, after=("base", "world"))
        self.add_evaluation(f"eval-{seed}-sft", seed, f"runs/{run}/sft/final", "tuple",
                            after=(f"sft-{seed}",))
        for stage in (*CREDITS, "grpo", "pkpo"):
            lr = self.flags["LR"][0] if stage in CREDITS else self.grid[0]
            after = (f"warmup-{seed}",) if stage in CREDITS else ("base", "world")
            self.add_training(f"{stage}-{seed}", run, seed, stage, lr, after)
            self.add_evaluation(f"eval-{seed}-{stage}", seed, f"runs/{run}/{stage}/final",
                                TRAINED[stage], after=(f"{stage}-{seed}",))

    def add_best(self, seed: int, stage: str) -> None:
        """A trained method at the learning rate that the sweep found best: {lr:STAGE}, filled in
        when the job starts."""
        swept = self.swept(stage)
        best, run = f"{{lr:{stage}}}", self.run(seed)
        if seed == 0:               # the sweep has trained it
            self.add(f"{stage}-{seed}", "cp", "-rT", f"runs/{self.name}-lr{best}/{stage}",
                     f"runs/{run}/{stage}", after=swept, minutes=0.01)
            return
        after = (*swept, f"warmup-{seed}") if stage in CREDITS else swept
        self.add_training(f"{stage}-{seed}", run, seed, stage, best, after)

    def add_diversity(self, seed: int) -> None:
        """paper/diversity.py on every attempts file of a seed; the shell finds them."""
        run = f"runs/{self.run(seed)}"
        script = (f"exec {{python}} -m paper.diversity {run}/eval/*.jsonl {run}/*/eval/*.jsonl "
                  f"--problems {self.pool}/heldout.jsonl --classifier miniature.world:category "
                  f"--encoder {self.base}")
        evaluated = tuple(job.name for job in self.jobs if job.name.startswith(f"eval-{seed}-"))
        self.add(f"diversity-{seed}", "sh", "-c", script, after=evaluated, minutes=1)

    def fill(self, word: str) -> str:
        """A word of a command with what was not known when the jobs were listed."""
        word = word.replace("{python}", shlex.quote(sys.executable))
        return re.sub(r"\{lr:([^}]+)\}", lambda m: report.best_lr(self.name, m[1]), word)

    def wanted(self, condition: str) -> bool:
        """Whether a method is best, so far, at a learning rate: "pkpo is best at 1.5e-4"."""
        stage, _, lr = condition.partition(" is best at ")
        return report.best_lr(self.name, stage) == lr


def make_queue(name: str, quick: bool, setting: str = "open") -> Queue:
    reproduction = Reproduction(name, quick, setting)
    return Queue(name, reproduction.jobs, reproduction.fill, reproduction.wanted)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("The paper in miniature, from a queue on disk.")
    parser.add_argument("--list", action="store_true",
                        help="print the jobs with expected minutes, and end")
    parser.add_argument("--report", action="store_true",
                        help="write the results of what is done so far, and end")
    parser.add_argument("--quick", action="store_true",
                        help="a smoke run of all jobs; its results go to runs/NAME")
    parser.add_argument("--setting", choices=world.SETTINGS, default="open",
                        help="of the small world: a few methods in a setting that does not flatter")
    parser.add_argument("--name", help="of the runs, runs/NAME-seedN: reproduce, or the setting's; "
                        "with --quick quick")
    parser.add_argument("--workers", type=flags.count, default=os.cpu_count(),
                        help="jobs at a time, one core each")
    args = parser.parse_args(argv)
    full = "reproduce" if args.setting == "open" else args.setting
    args.name = args.name or ("quick" if args.quick else full)
    return args


@errors.one_line()
def main(args: argparse.Namespace) -> int:
    queue = make_queue(args.name, args.quick, args.setting)
    if args.list:
        print(queue.listing())
        return 0
    queue.check()
    left = [] if args.report else queue.work(args.workers)
    out = Path("runs") / args.name if args.quick else Path(".")
    done = [queue.mark(job) for job in queue.done()]
    missing = [job.name for job in queue.missing()]
    if args.setting == "open":
        page = report.write_report(args.name, out, done, missing)
    else:
        page = report.write_setting(args.name, args.setting, out, missing)
    print(f"written: {page}")
    for job in left:
        print(f"not done: {job.name} (see {queue.folder / job.name}.log)", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
