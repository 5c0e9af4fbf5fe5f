"""The validity gate J_psi (Eq. 9): is this strategy tuple well formed? Not: will it solve the
problem.

    gate = Gate.load("runs/NAME/gate/final", device="cuda", dtype=torch.bfloat16)
    p = gate.p_pass([(problem, plan_text), ...])        # p(Pass | x, S) of each pair
    J = [x >= gate.tau for x in p]

A gate is a small language model that is asked for a verdict. p(Pass | x, S) is the softmax over the
first tokens of its two verdict words: nothing is generated, and no other logit is computed. `fit`
trains it by binary cross-entropy on p (Algorithm 2, line 11). `acceptance` decides by Appendix D
whether it may be used at all, and `Gate.load` refuses one that may not. The gate takes text and has
its own tokenizer, so a Qwen gate serves any policy. `RuleGate` checks the visible contract alone.

A gate folder is a Hugging Face folder with gate.json: {accepted, tau, metrics, k, prompt, ...}.

Where the paper is silent, we chose:
 1. AUC counts a tie as one half: the Mann-Whitney statistic.
 2. "High recall" (section 4.1), for a tau that is chosen: the largest tau that keeps 95 % of the
    positives.
 3. The gate sees the plan as the solver does: without a think block.

Shapes: B rows of one micro-batch, T tokens of its longest row, H hidden size, V vocabulary.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import grpo
import model
import prompts
from lib.schedule import learning_rate, schedule

VERDICT_WORDS = ("Pass", "Fail")
TAU = 0.17                      # section 4.1
RECALL = 0.95                   # our reading of "high recall" when tau is chosen
ACCEPTANCE = {"auc": 0.75, "balanced_accuracy": 0.70, "precision": 0.65, "recall": 0.65}
TOKEN_BUDGET = 16384            # padded tokens of a micro-batch


# --------------------------------------------------------------------------------------------------
# p(Pass | x, S)

def verdict_ids(tokenizer, words: tuple[str, str] = VERDICT_WORDS) -> tuple[int, int]:
    """The first token of each verdict word: the token that decides."""
    first = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
    if first[0] == first[1]:
        raise ValueError(f"the verdict words {words[0]!r} and {words[1]!r} begin with the same "
                         f"token in this tokenizer: the gate cannot tell them apart")
    return first[0], first[1]


def encode(tokenizer, problem, plan: str, k: int) -> list[int]:
    """The gate's prompt up to where its verdict begins. A problem has .statement, .starter_code and
    .fn_name."""
    return prompts.encode(tokenizer, prompts.gate(problem, prompts.cut_thought(plan), k))


def margin(module: nn.Module, rows: list[list[int]], verdict_ids: tuple[int, int]) -> Tensor:
    """logit(Pass) - logit(Fail) after each row, (B,). Its sigmoid is Eq. 9's p."""
    device = next(module.parameters()).device
    width = max(len(row) for row in rows)
    # padding on the right: with causal attention no row sees it
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    pass_and_fail = torch.tensor(verdict_ids, device=device)

    def head(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
        state = hidden[torch.arange(len(rows), device=device), last]        # (B, H)
        wide = torch.promote_types(state.dtype, torch.float32)
        logits = state.to(wide) @ weight[pass_and_fail].to(wide).T          # (B, 2)
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        return logits[:, 0] - logits[:, 1]

    return module(ids, head=head)


# --------------------------------------------------------------------------------------------------
# The two gates

class Gate:
    """A language model asked for a verdict (Eq. 9)."""

    def __init__(self, module: nn.Module, tokenizer, tau: float = TAU, k: int = 4,
                 token_budget: int = TOKEN_BUDGET):
        self.module, self.tokenizer = module, tokenizer
        self.tau, self.k, self.token_budget = tau, k, token_budget
        self.verdict_ids = verdict_ids(tokenizer)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu",
             dtype: torch.dtype = torch.float32) -> "Gate":
        """The frozen gate of a folder. ValueError if it was not accepted, or trained with another
        prompt."""
        from transformers import AutoTokenizer  # takes seconds, and nothing else here needs it
        path = Path(folder, "gate.json")
        if not path.exists():
            raise FileNotFoundError(f"{folder} is no gate: it has no gate.json (run train_rm.py)")
        card = json.loads(path.read_text(encoding="utf-8"))
        if not card["accepted"]:
            failed = "; ".join(card["metrics"]["failed"])
            raise ValueError(f"the gate {folder} was not accepted ({failed}) and is never used: "
                             f"train another (train_rm.py --fresh, with more or cleaner labels)")
        if card["prompt"] != prompts.TEMPLATES["gate"]:
            raise ValueError(f"the gate {folder} was trained with another gate prompt than the one "
                             f"in force: pass the --prompts file that it was trained with")
        module = model.load(folder, dtype=dtype, device=device).eval().requires_grad_(False)
        return cls(module, AutoTokenizer.from_pretrained(folder), card["tau"], card["k"])

    def write_card(self, folder: str | Path, metrics: dict, **more) -> None:
        """Write gate.json, the last file of a gate folder: a folder without it is no gate."""
        card = {"accepted": metrics["accepted"], "tau": self.tau, "metrics": metrics, "k": self.k,
                "verdict_words": VERDICT_WORDS, "prompt": prompts.TEMPLATES["gate"], **more}
        Path(folder, "gate.json").write_text(json.dumps(card, indent=1), encoding="utf-8")

    @torch.no_grad()
    def p_pass(self, pairs: list[tuple]) -> list[float]:
        """p(Pass | x, S) of each (problem, plan text)."""
        rows = [encode(self.tokenizer, problem, plan, self.k) for problem, plan in pairs]
        p = [0.0] * len(rows)
        for batch in grpo.pack([len(row) for row in rows], self.token_budget):
            m = margin(self.module, [rows[i] for i in batch], self.verdict_ids)
            for i, x in zip(batch, m.sigmoid().tolist(), strict=True):
                p[i] = x
        return p


class RuleGate:
    """The visible contract alone: p is 1 if the plan parses and `prompts.check_plan` finds nothing,
    else 0.

    It sees no method repeated in other words, no vague strategy and none that is off topic.
    """
    tau = 0.5

    def __init__(self, k: int = 4):
        self.k = k

    def p_pass(self, pairs: list[tuple]) -> list[float]:
        return [float(self.keeps_contract(plan)) for _, plan in pairs]

    def keeps_contract(self, plan: str) -> bool:
        try:
            strategies = prompts.parse_plan(plan, self.k)
        except prompts.PlanError:
            return False
        return not prompts.check_plan(strategies, plan)


# --------------------------------------------------------------------------------------------------
# Acceptance (Appendix D)

def by_label(p: list[float], labels: list[int]) -> tuple[list[float], list[float]]:
    """The p of the positives and of the negatives. ValueError unless there are some of both."""
    positives = [x for x, label in zip(p, labels, strict=True) if label]
    negatives = [x for x, label in zip(p, labels, strict=True) if not label]
    if not positives or not negatives:
        raise ValueError(f"{len(positives)} Pass and {len(negatives)} Fail labels: a gate cannot "
                         f"be measured without both")
    return positives, negatives


def auc(p: list[float], labels: list[int]) -> float:
    """The chance that a positive scores above a negative, where a tie counts one half."""
    positives, negatives = by_label(p, labels)
    scores = torch.tensor(positives, dtype=torch.float64)
    others = torch.tensor(negatives, dtype=torch.float64).sort().values
    below = torch.searchsorted(others, scores).sum().item()
    below_or_equal = torch.searchsorted(others, scores, right=True).sum().item()
    return (below + below_or_equal) / (2 * len(positives) * len(negatives))


def roc(p: list[float], labels: list[int]) -> list[tuple[float, float, float]]:
    """(tau, false positive rate, recall) from tau = inf, where nothing is accepted, down through
    every p."""
    positives, negatives = by_label(p, labels)
    scores = torch.tensor(positives, dtype=torch.float64)
    others = torch.tensor(negatives, dtype=torch.float64)
    points = []
    for tau in [math.inf, *sorted(set(p), reverse=True)]:
        false_positive_rate = (others >= tau).double().mean().item()
        recall = (scores >= tau).double().mean().item()
        points.append((tau, false_positive_rate, recall))
    return points


def choose_tau(p: list[float], labels: list[int], recall: float = RECALL) -> float:
    """The largest tau at which at least `recall` of the positives are accepted: the p of one of
    them."""
    positives, _ = by_label(p, labels)
    # 0.95 * 20 is 19, whatever the last bit of the product
    needed = max(1, math.ceil(recall * len(positives) - 1e-9))
    return sorted(positives, reverse=True)[needed - 1]


def acceptance(p: list[float], labels: list[int], tau: float) -> dict:
    """Appendix D's metrics at tau, and whether they pass, jointly.

    {"auc", "balanced_accuracy", "precision", "recall", "specificity", "positives", "negatives",
    "tau", "accepted", "failed"}: `accepted` is the decision, `failed` names each metric below its
    threshold. Raw accuracy is left out, as in the paper.
    """
    positives, negatives = by_label(p, labels)
    kept = sum(x >= tau for x in positives)
    leaked = sum(x >= tau for x in negatives)
    recall, specificity = kept / len(positives), 1 - leaked / len(negatives)
    metrics = {"auc": auc(p, labels), "recall": recall, "specificity": specificity,
               "precision": kept / (kept + leaked) if kept + leaked else 0.0,
               "balanced_accuracy": (recall + specificity) / 2}
    failed = []
    for name, least in ACCEPTANCE.items():
        if not metrics[name] >= least:
            failed.append(f"{name} {metrics[name]:.3f} < {least:.2f}")
    return metrics | {"tau": tau, "accepted": not failed, "failed": failed,
                      "positives": len(positives), "negatives": len(negatives)}


# --------------------------------------------------------------------------------------------------
# Training

def fit(module: nn.Module, tokenizer, labels: list, optimizer: torch.optim.Optimizer, *,
        k: int = 4, epochs: int = 3, batch_size: int = 32, lr: float = 1e-5,
        max_grad_norm: float = 1.0, seed: int = 0, token_budget: int = TOKEN_BUDGET,
        first_step: int = 0, last_step: int | None = None) -> Iterator[dict]:
    """Train on labels by binary cross-entropy on p(Pass | x, S), Algorithm 2, line 11. Collective.

    labels: lib.labels.Label, or what else has .plan, .label (1 Pass, 0 Fail) and what `encode`
        needs of a problem. batch_size: labels per step, over all ranks.
    first_step continues a run, given the weights and the optimizer of that moment; last_step ends
        it early. Under several ranks `module` comes from grpo.shard.
    Yields per step {"step" (from 1), "loss", "correct" (share decided rightly at p = 0.5, before
    the step), "grad_norm", "lr", "skipped" (1 if loss or gradient were not finite)}.
    """
    words = verdict_ids(tokenizer)
    rows = [encode(tokenizer, label, label.plan, k) for label in labels]
    steps = schedule(len(labels), epochs, batch_size, seed)[:last_step]
    for step in range(first_step, len(steps)):
        batch = [rows[i] for i in steps[step]]
        targets = [labels[i].label for i in steps[step]]
        loss, correct = backward(module, batch, targets, words, token_budget)
        rate = learning_rate(step, len(steps), lr)
        norm, stepped = grpo.apply_gradients(module, optimizer, loss, max_grad_norm, rate)
        yield {"step": step + 1, "loss": loss.item(), "correct": correct.item(), "grad_norm": norm,
               "lr": rate, "skipped": int(not stepped)}


def backward(module: nn.Module, rows: list[list[int]], targets: list[int],
             verdict_ids: tuple[int, int], token_budget: int) -> Tensor:
    """Gradient of the mean cross-entropy of rows over all ranks; returns (loss, share decided
    rightly). Collective: every rank knows all rows and takes each world-th micro-batch."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    world = grpo.world_size()
    batches = grpo.pack([len(row) for row in rows], token_budget)
    # FSDP's collectives must match: ranks that run out compute the first one at weight 0
    padding = batches[:1] * (-len(batches) % world)
    sums = torch.zeros(2, dtype=torch.float64, device=next(module.parameters()).device)
    for i, part in list(enumerate(batches + padding))[rank::world]:
        m = margin(module, [rows[j] for j in part], verdict_ids)
        z = torch.tensor([targets[j] for j in part], dtype=m.dtype, device=m.device)
        loss = F.binary_cross_entropy_with_logits(m, z, reduction="sum") / len(rows)
        weight = world if i < len(batches) else 0       # gradients are averaged over ranks
        (loss * weight).backward()
        if weight:
            sums[0] += loss.detach()
            sums[1] += ((m > 0) == (z > 0)).sum() / len(rows)
    return grpo.all_reduce(sums)
