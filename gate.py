"""The validity gate J_psi (Eq. 9): is this strategy tuple well formed? Not: will it solve the problem.

    gate = Gate.load("runs/NAME/gate/final", device="cuda", dtype=torch.bfloat16)
    p = gate.p_pass([(problem, plan_text), ...])        # p(Pass | x, S), one a pair
    J = [x >= gate.tau for x in p]

    python -m paper.gate_report runs/NAME            # section 4.4: ROC, AUC, accepted x solved, from what the run has written

A gate is a small language model that is asked for a verdict. p(Pass | x, S) is the softmax over the first
tokens of its two verdict words, that is the sigmoid of the difference of two logits: nothing is generated,
and no other logit is computed. `fit` trains it by binary cross-entropy on p (Algorithm 2, line 11);
`acceptance` decides by the thresholds of Appendix D whether a trained one may be used at all, and `Gate.load`
refuses one that may not. The gate takes text and has a tokenizer of its own, so a Qwen gate serves any
policy. `RuleGate` answers the same calls with the visible contract alone.

A gate folder is a Hugging Face folder and gate.json: {accepted, tau, metrics, verdict_words, k, prompt, ...}.

Where the paper is silent, we chose:
 1. AUC counts a tie as one half: the Mann-Whitney statistic.
 2. "High recall" (section 4.1), for a tau that is chosen: the largest tau that keeps 95 % of the positives.
 3. "Rebalanced by Pass / Fail and by prompt" (Appendix D): see `balance`.
 4. The plan is shown to the gate as the solver would see it: without a think block.

Shapes: B rows of one micro-batch, T tokens of its longest row, H hidden size, V vocabulary.
"""

import hashlib
import json
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

import grpo
import model
import prompts

VERDICT_WORDS = ("Pass", "Fail")
TAU = 0.17                                  # section 4.1
RECALL = 0.95                               # our reading of "high recall" when tau is chosen and not given
ACCEPTANCE = {"auc": 0.75, "balanced_accuracy": 0.70, "precision": 0.65, "recall": 0.65}     # Appendix D
POSITIVE = "positive"                       # the `kind` of a label that is 1


# ---------------------------------------------------------------------------------------- labels

@dataclass
class Label:
    """One judged tuple. It stands for its problem as well: a prompt asks for nothing but these fields."""
    problem_id: str
    statement: str
    plan: str
    label: int                              # 1 Pass, 0 Fail
    kind: str = ""                          # "positive", or what is wrong: duplicate, leak, vague, off_topic
    starter_code: str = ""
    fn_name: str | None = None

    def __post_init__(self):
        self.kind = self.kind or (POSITIVE if self.label else "negative")


def load_labels(path: str, problems: dict | None = None) -> list[Label]:
    """Labels from JSON lines {"problem_id", "statement", "plan", "label", "kind"}.

    A line without a statement takes it from `problems`, by id. A ValueError names the file and the line.
    """
    labels = []
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise ValueError(f"{where}: not JSON ({e})") from None
            if not isinstance(row, dict) or "problem_id" not in row or not isinstance(row.get("plan"), str):
                raise ValueError(f'{where}: a gate label is an object with "problem_id", "plan" and "label"')
            if row.get("label") not in (0, 1):
                raise ValueError(f'{where}: "label" must be 1 (Pass) or 0 (Fail), not {row.get("label")!r}')
            problem_id = str(row["problem_id"])
            if not row.get("statement"):
                if problem_id not in (problems or {}):
                    raise ValueError(f'{where}: it has no "statement" and no problem {problem_id!r} is known '
                                     f"to take it from; pass the problem file by --problems")
                problem = problems[problem_id]
                row |= {name: getattr(problem, name) for name in ("statement", "starter_code", "fn_name")}
            for name in ("statement", "kind", "starter_code", "fn_name"):
                if not isinstance(row.get(name), str | None):
                    raise ValueError(f"{where}: {name!r} must be text, not {row[name]!r:.60}")
            labels.append(Label(problem_id, row["statement"], row["plan"], int(row["label"]),
                                row.get("kind") or "", row.get("starter_code") or "", row.get("fn_name")))
    if not labels:
        raise ValueError(f"{path} holds no gate labels")
    return labels


def save_labels(path: str | os.PathLike, labels: list[Label], p: list[float] | None = None) -> None:
    """JSON lines, with a gate's p(Pass) of each label as "p_pass" if given. The file appears whole or not at all."""
    aside = f"{path}.part"
    with open(aside, "w", encoding="utf-8") as f:
        for i, x in enumerate(labels):
            row = {k: v for k, v in asdict(x).items() if v not in ("", None)} | ({"p_pass": p[i]} if p else {})
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(aside, path)


def split(labels: list[Label], share: float = 0.2, seed: int = 0) -> tuple[list[Label], list[Label]]:
    """Training and held-out labels, no problem in both. Appendix D holds out 278 of 1,388, a fifth.

    A problem's side follows from its statement and the seed alone: a pool that grows moves nothing to the
    other side, and a statement that stands there under two ids is one problem.
    """
    def held_out(x: Label) -> bool:
        digest = hashlib.sha256(f"{seed}:{' '.join(x.statement.split())}".encode()).digest()
        return int.from_bytes(digest[:8]) < share * 2 ** 64
    return [x for x in labels if not held_out(x)], [x for x in labels if held_out(x)]


def balance(labels: list[Label], seed: int = 0) -> list[Label]:
    """As many Pass as Fail, by problem first (Appendix D), with the kinds of negative as even as the pool
    allows.

    A problem that has both gives as many of the one as of the other, so that its statement says nothing about
    the label. Problems that have only one are then matched one to one with each other, a round of one label
    from each at a time.
    """
    rng = random.Random(f"{seed}:balance")
    by_problem: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    for x in labels:
        by_problem[x.problem_id][x.label].append(x)
    order = sorted(by_problem)
    rng.shuffle(order)
    for problem_id in order:
        for side in by_problem[problem_id]:
            rng.shuffle(side)

    chosen: list[Label] = []
    kinds = Counter()                       # negatives taken so far, by kind: the rarest goes first

    def take(side: list[Label], n: int) -> None:
        for _ in range(n):
            x = min(side, key=lambda x: kinds[x.kind])
            kinds[x.kind] += not x.label
            side.remove(x)
            chosen.append(x)

    single: tuple[list, list] = ([], [])    # the problems that have only Fail, only Pass
    for problem_id in order:
        sides = by_problem[problem_id]
        pairs = min(map(len, sides))
        for label, side in enumerate(sides):
            if pairs:
                take(side, pairs)
            elif side:
                single[label].append(side)
    matched = min(sum(map(len, sides)) for sides in single)
    for sides in single:
        turns = sorted((turn, j) for j, side in enumerate(sides) for turn in range(len(side)))
        for _, j in turns[:matched]:
            take(sides[j], 1)
    if not chosen:
        raise ValueError(f"cannot balance {len(labels)} gate labels: both Pass and Fail are needed")
    rng.shuffle(chosen)
    return chosen


# ---------------------------------------------------------------------------------------- figures

def _sides(p: list[float], labels: list[int]) -> tuple[list[float], list[float]]:
    """The p of the positives and of the negatives. Every figure below needs some of both."""
    if len(p) != len(labels):
        raise ValueError(f"{len(p)} probabilities for {len(labels)} labels")
    positives = [x for x, z in zip(p, labels, strict=True) if z]
    negatives = [x for x, z in zip(p, labels, strict=True) if not z]
    if not positives or not negatives:
        raise ValueError(f"{len(positives)} Pass and {len(negatives)} Fail labels: a gate cannot be measured "
                         f"without both")
    return positives, negatives


def auc(p: list[float], labels: list[int]) -> float:
    """The chance that a positive scores above a negative, a tie counting one half (Mann-Whitney, from the
    ranks)."""
    positives, negatives = _sides(p, labels)
    scores, place = torch.tensor(positives + negatives, dtype=torch.float64).unique(return_inverse=True)
    count = place.bincount(minlength=len(scores))
    rank = count.cumsum(0) - (count - 1) / 2                       # from 1; ties share their mean
    rank_sum = rank[place[:len(positives)]].sum().item()
    return (rank_sum - len(positives) * (len(positives) + 1) / 2) / (len(positives) * len(negatives))


def roc(p: list[float], labels: list[int]) -> list[tuple[float, float, float]]:
    """(tau, false positive rate, recall) at every tau where one of them moves, from (inf, 0, 0) down to all
    accepted."""
    positives, negatives = _sides(p, labels)
    above = [Counter(positives), Counter(negatives)]
    points, accepted = [(math.inf, 0.0, 0.0)], [0, 0]
    for tau in sorted(set(p), reverse=True):
        accepted = [n + c[tau] for n, c in zip(accepted, above, strict=True)]
        points.append((tau, accepted[1] / len(negatives), accepted[0] / len(positives)))
    return points


def choose_tau(p: list[float], labels: list[int], recall: float = RECALL) -> float:
    """The largest tau at which at least `recall` of the positives are accepted: the p of one of them."""
    positives, _ = _sides(p, labels)
    needed = max(1, math.ceil(recall * len(positives) - 1e-9))     # 0.95 * 20 is 19 in any rounding
    return sorted(positives, reverse=True)[needed - 1]


def acceptance(p: list[float], labels: list[int], tau: float) -> dict:
    """Appendix D's held-out figures at tau and whether they pass, jointly.

    {"auc", "balanced_accuracy", "precision", "recall", "specificity", "accepted", "failed", "positives",
    "negatives", "tau"}; `accepted` is the verdict, `failed` names each figure below its threshold. Raw
    accuracy is left out, as in the paper.
    """
    positives, negatives = _sides(p, labels)
    kept, leaked = sum(x >= tau for x in positives), sum(x >= tau for x in negatives)
    figures = {
        "auc": auc(p, labels),
        "recall": kept / len(positives),
        "specificity": 1 - leaked / len(negatives),
        "precision": kept / (kept + leaked) if kept + leaked else 0.0,
    }
    figures["balanced_accuracy"] = (figures["recall"] + figures["specificity"]) / 2
    failed = [f"{name} {figures[name]:.3f} < {least:.2f}" for name, least in ACCEPTANCE.items()
              if not figures[name] >= least]
    return figures | {"tau": tau, "accepted": not failed, "failed": failed,
                      "positives": len(positives), "negatives": len(negatives)}


def recall_per_kind(p: list[float], labels: list[Label], tau: float) -> dict[str, dict]:
    """For each kind of label {"count", "recall"}: the share that the gate decides rightly (positives kept,
    negatives caught)."""
    right = defaultdict(list)
    for x, label in zip(p, labels, strict=True):
        right[label.kind].append((x >= tau) == bool(label.label))
    return {kind: {"count": len(hits), "recall": sum(hits) / len(hits)}
            for kind, hits in sorted(right.items(), key=lambda item: (item[0] != POSITIVE, item[0]))}


def joint_table(p: list[float], solved: list[int], tau: float) -> dict:
    """Section 4.4, Figure 3b: gate decision x solver outcome. Only accepted_solved has a nonzero R_plan.

    Four shares of all tuples, and the solve rates among the accepted and among the rejected (None where there
    are none).
    """
    count = Counter((x >= tau, bool(r)) for x, r in zip(p, solved, strict=True))
    if not count:
        raise ValueError("no tuples: the table of gate decisions and outcomes needs at least one")

    def rate(accepted: bool) -> float | None:
        n = count[accepted, True] + count[accepted, False]
        return count[accepted, True] / n if n else None

    return {f"{a}_{s}": count[a == "accepted", s == "solved"] / len(p)
            for a in ("accepted", "rejected") for s in ("solved", "failed")} | {
        "solved_given_accepted": rate(True), "solved_given_rejected": rate(False), "tuples": len(p)}


# ---------------------------------------------------------------------------------------- the two gates

class Gate:
    """A language model asked for a verdict (Eq. 9)."""

    def __init__(self, module, tokenizer, tau: float = TAU, k: int = 4,
                 words: tuple[str, str] = VERDICT_WORDS, token_budget: int = 16384):
        self.module, self.tokenizer, self.tau, self.k = module, tokenizer, tau, k
        self.words, self.token_budget = tuple(words), token_budget
        self.verdict_ids = verdict_ids(tokenizer, self.words)

    @classmethod
    def load(cls, folder: str, device: str | torch.device = "cpu",
             dtype: torch.dtype = torch.float32) -> "Gate":
        """The frozen gate of a folder. ValueError if it was not accepted, or learned another prompt."""
        from transformers import AutoTokenizer  # takes seconds, and nothing else here needs it

        card_path = os.path.join(folder, "gate.json")
        if not os.path.exists(card_path):
            raise FileNotFoundError(f"{folder} is no gate: it holds no gate.json (train_rm.py makes one)")
        with open(card_path, encoding="utf-8") as f:
            card = json.load(f)
        if not card["accepted"]:
            failed = "; ".join(card["metrics"]["failed"])
            raise ValueError(f"the gate {folder} was not accepted ({failed}) and is never used: train "
                             f"another (train_rm.py --fresh, with more or cleaner labels)")
        if card["prompt"] != prompts.TEMPLATES["gate"]:
            raise ValueError(f"the gate {folder} was trained with another gate prompt than the one in force: "
                             f"pass the --prompts file that it was trained with")
        module = model.load(folder, dtype=dtype, device=device).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(module, tokenizer, card["tau"], card["k"], tuple(card["verdict_words"]))

    @torch.no_grad()
    def p_pass(self, pairs: list[tuple]) -> list[float]:
        """p(Pass | x, S) of each (problem, plan text); a problem has .statement, .starter_code, .fn_name."""
        rows = [encode(self.tokenizer, problem, plan, self.k) for problem, plan in pairs]
        p = [0.0] * len(rows)
        for batch in micro_batches([len(row) for row in rows], self.token_budget):
            m = margin(self.module, [rows[i] for i in batch], self.verdict_ids)
            for i, x in zip(batch, m.sigmoid().tolist(), strict=True):
                p[i] = x
        return p


class RuleGate:
    """The visible contract alone: p is 1 if the plan parses and `prompts.check_plan` finds nothing, else 0.

    It sees no method repeated in other words, no vague strategy and none that is off topic.
    """
    tau = 0.5

    def __init__(self, k: int = 4):
        self.k = k

    def p_pass(self, pairs: list[tuple]) -> list[float]:
        return [float(self.keeps_contract(plan)) for _, plan in pairs]

    def keeps_contract(self, plan: str) -> bool:
        try:
            return not prompts.check_plan(prompts.parse_plan(plan, self.k), plan)
        except prompts.PlanError:
            return False


def write_card(folder: str, gate: Gate, metrics: dict, **more) -> None:
    """gate.json, the last file written into a gate folder: a folder without it is not a gate."""
    card = {"accepted": metrics["accepted"], "tau": gate.tau, "metrics": metrics, "k": gate.k,
            "verdict_words": list(gate.words), "prompt": prompts.TEMPLATES["gate"], **more}
    path = os.path.join(folder, "gate.json")
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        json.dump(card, f, indent=1, ensure_ascii=False)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".tmp", path)


# ---------------------------------------------------------------------------------------- p(Pass | x, S)

def verdict_ids(tokenizer, words: tuple[str, str] = VERDICT_WORDS) -> tuple[int, int]:
    """The first token of each verdict word: the token that decides."""
    first = tuple(tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words)
    if first[0] == first[1]:
        raise ValueError(f"the verdict words {words[0]!r} and {words[1]!r} begin with the same token in this "
                         f"tokenizer: the gate needs words whose first tokens differ")
    return first


def encode(tokenizer, problem, plan: str, k: int) -> list[int]:
    """The gate's prompt up to where its verdict begins."""
    return prompts.encode(tokenizer, prompts.gate(problem, prompts.cut_thought(plan), k))


def micro_batches(lengths: list[int], token_budget: int) -> list[list[int]]:
    """Row numbers in batches of like length whose padded size (rows times longest) is within the budget.

    A row that is longer than the budget is a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):   # a batch's first row is its width
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def margin(module, rows: list[list[int]], verdict_ids: tuple[int, int]) -> torch.Tensor:
    """logit(Pass) - logit(Fail) after each row, (B,). Its sigmoid is the softmax over the two: Eq. 9's p."""
    device = next(module.parameters()).device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)     # padded behind: no row sees it
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row)
    two = torch.tensor(verdict_ids, device=device)

    def head(hidden: torch.Tensor, weight: torch.Tensor, softcap: float | None) -> torch.Tensor:
        last = hidden[torch.arange(len(rows), device=device), lengths - 1]  # (B, H)
        wide = torch.promote_types(last.dtype, torch.float32)               # two logits cost nothing
        logits = last.to(wide) @ weight[two].to(wide).T                     # (B, 2)
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        return logits[:, 0] - logits[:, 1]

    return module(ids.to(device), head=head)


# ---------------------------------------------------------------------------------------- training

def schedule(rows: int, epochs: int, batch_size: int, seed: int) -> list[list[int]]:
    """The row numbers of every optimiser step. Each epoch has its own order; its last batch may be small.

    A function of its arguments alone, so a resumed run and every rank see the same batches.
    """
    steps = []
    for epoch in range(epochs):
        order = list(range(rows))
        random.Random(f"{seed}:epoch {epoch}").shuffle(order)
        steps += [order[i:i + batch_size] for i in range(0, rows, batch_size)]
    return steps


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first twentieth of the steps, then linearly down; the last step still moves."""
    warmup = max(1, steps // 20)
    return peak * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def my_share(batches: list[list[int]]) -> list[tuple[list[int], float]]:
    """This rank's micro-batches, each with the weight of its gradient.

    Every rank gets as many, for FSDP's collectives must match: where they do not come out even, a rank runs
    the first one once more at weight 0. Elsewhere the weight is the world size, because FSDP averages
    gradients over ranks and the loss has the denominator of the whole batch in it already.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    turns = math.ceil(len(batches) / world)
    return [(batches[i], float(world)) if i < len(batches) else (batches[0], 0.0)
            for i in range(rank, turns * world, world)]


def fit(module, tokenizer, labels: list[Label], optimizer: torch.optim.Optimizer, *, k: int = 4,
        epochs: int = 3, batch_size: int = 32, lr: float = 1e-5, max_grad_norm: float = 1.0, seed: int = 0,
        token_budget: int = 16384, words: tuple[str, str] = VERDICT_WORDS, first_step: int = 0,
        last_step: int | None = None) -> Iterator[dict]:
    """Train on labels by binary cross-entropy on p(Pass | x, S), Algorithm 2, line 11: one step an item.

    Yields the figures of each step, of the whole batch over all ranks: {"step" (from 1), "loss", "correct"
    (share decided rightly at p = 0.5, before the step), "grad_norm", "lr", "skipped" (1 if loss or gradient
    were not finite)}. A run that was cut off goes on with first_step, given the weights and the optimiser of
    that moment; last_step ends it early. `batch_size` counts labels over all ranks; `token_budget` bounds the
    padded tokens of a micro-batch and does not change the result. Under several ranks `module` must be
    sharded by grpo.shard.
    """
    two = verdict_ids(tokenizer, words)
    rows = [encode(tokenizer, x, x.plan, k) for x in labels]
    steps = schedule(len(labels), epochs, batch_size, seed)[:last_step]
    device = next(module.parameters()).device
    for step in range(first_step, len(steps)):
        batch = steps[step]
        sums = torch.zeros(2, dtype=torch.float64, device=device)                      # loss, rightly decided
        for part, weight in my_share(micro_batches([len(rows[i]) for i in batch], token_budget)):
            m = margin(module, [rows[batch[j]] for j in part], two)
            z = torch.tensor([labels[batch[j]].label for j in part], dtype=m.dtype, device=device)
            loss = F.binary_cross_entropy_with_logits(m, z, reduction="sum") / len(batch)
            (loss * weight).backward()
            if weight:
                sums += torch.stack([loss.detach(), ((m > 0) == (z > 0)).sum() / len(batch)]).double()
        loss, correct = grpo.all_reduce(sums)
        rate = learning_rate(step, len(steps), lr)
        norm, stepped = grpo.apply_gradients(module, optimizer, loss, max_grad_norm, rate)
        yield {"step": step + 1, "loss": loss.item(), "correct": correct.item(), "grad_norm": norm,
               "lr": rate, "skipped": int(not stepped)}


# ---------------------------------------------------------------------------------------- diagnostics
