"""Numbers for tables: pass@k and majority votes, what can be reached at best, uncertainty,
diversity.

    pass_at_k(n=16, c=3, k=4)                        # unbiased, for attempts drawn independently
    paired_bootstrap(cppo, pkpo, resamples=1000)     # gain, one-sided p, two-sided interval
    independent_ceiling([0.5, 0.3, 0.2], k=4)        # no independent sampler of one answer each
    does better

numpy alone. Outcomes are 0/1 or probabilities, one for each problem, in the same order in every
list.
"""

import re
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Sequence
from math import comb, exp, log
from typing import NamedTuple

import numpy as np

KAPPA_NEEDED, MACRO_F1_NEEDED = 0.6, 0.7  # F.2: below either, D_alg says nothing

# ----------------------------------------------------------------------------------------------
# Passing


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n attempts, c of them correct, drawn without replacement, hold a correct
    one.

    Unbiased for pass@k when the n attempts are independent draws. Attempts of one tuple are not:
    those take `solved`, the indicator of exactly K attempts, which every table shows unless it
    says otherwise.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1 - comb(n - c, k) / comb(n, k)


def choose(n: int, k: int, rule: str = "first", rng: np.random.Generator | None = None) -> list[int]:
    """Which k of n ordered attempts count: the first (Table 20), or as in the control of Appendix
    G."""
    if not 1 <= k <= n:
        raise ValueError(f"{k} attempts asked for where there are {n}: evaluate with more")
    if rule == "random":
        return sorted((rng or np.random.default_rng(0)).choice(n, size=k, replace=False).tolist())
    if rule not in ("first", "last"):
        raise ValueError(f"no rule is called {rule!r}: take first, last or random")
    return list(range(k)) if rule == "first" else list(range(n - k, n))


def solved(passed: Sequence[bool], chosen: Sequence[int]) -> float:
    """Eq. 1 on exactly the chosen attempts of one problem."""
    return float(any(passed[i] for i in chosen))


def posterior_pass(outcomes: Sequence[str | None], classes: dict[str, float]) -> float:
    """Pass@K of one problem averaged over what its statement may have meant: the mass of the
    classes hit.

    The same attempts, about nine times less variance than their verdicts under one drawn truth.
    """
    return sum(classes.get(outcome, 0.0) for outcome in set(outcomes))


def canonical_answer(text: str | None) -> str | None:
    """One spelling of equal Python values: `[1,2]` and `[1, 2]`, `{2, 1}` and `{1, 2}`, 1 and 1.0
    vote together. Other text is stripped; nothing is no answer."""
    if text is None:
        return None
    try:
        return _spelled(literal_eval(text.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text.strip() or None


def _spelled(value: object) -> str:
    """repr, but for what Python calls equal: no order in dicts and sets, no difference between 1,
    1.0 and True."""
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{_spelled(key)}: {_spelled(of)}" for key, of in value.items())) + "}"
    if isinstance(value, set) and value:
        return "{" + ", ".join(sorted(map(_spelled, value))) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_spelled, value)) + "," * (len(value) == 1) + ")"
    is_whole = isinstance(value, bool) or isinstance(value, float) and value.is_integer()
    return repr(int(value) if is_whole else value)


def majority(votes: Sequence[str | None]) -> int | None:
    """Place of the first attempt with the most frequent vote, ties going to the vote seen first.
    None is no vote; where nobody votes, None."""
    counts = Counter(vote for vote in votes if vote is not None)  # keeps the order in which votes were seen
    return votes.index(max(counts, key=counts.__getitem__)) if counts else None


def maj_at_k(answers: Sequence[str | None], label: str) -> float:
    """Section 4.6: 1 where the most frequent of K answers is the label, ties broken by sample
    order."""
    votes = [canonical_answer(answer) for answer in answers]
    winner = majority(votes)
    return float(winner is not None and votes[winner] == canonical_answer(label))


# ----------------------------------------------------------------------------------------------
# What can be reached when a statement leaves open which of several outcomes is right


def independent_ceiling(p: Sequence[float], k: int) -> float:
    """Highest pass@k of k independent draws of one outcome each: max over q of sum p_i (1 - (1 -
    q_i)^k).

    p: posterior of each outcome class; what it lacks to 1 cannot be hit.
    """
    return _best_allocation(p, budget=1.0, exponent=k)


def coordinated_ceiling(p: Sequence[float], k: int, tuple_size: int = 4) -> float:
    """Highest pass@k of coordinated attempts: the k likeliest outcomes for one tuple or a part of
    it; for k / tuple_size independent tuples, marginals pi with sum pi = tuple_size and exponent
    k / tuple_size.
    """
    if k > tuple_size and k % tuple_size:
        raise ValueError(f"no exact ceiling for {k} attempts: pool whole tuples of {tuple_size}")
    if k <= tuple_size:
        return _best_allocation(p, budget=k, exponent=1)
    return _best_allocation(p, budget=tuple_size, exponent=k // tuple_size)


def _best_allocation(p: Sequence[float], budget: float, exponent: int) -> float:
    """max of sum p_i (1 - (1 - q_i)^e) over 0 <= q_i <= 1, sum q = budget, exactly, by
    water-filling.

    Stationary where p_i (1 - q_i)^(e - 1) is one level for all outcomes in use, which are the
    likeliest m."""
    p = np.sort(np.asarray(p, dtype=float))[::-1]
    if p.size and (p[-1] < 0 or p.sum() > 1 + 1e-9):
        raise ValueError(f"a posterior holds probabilities of sum at most 1, got {p.tolist()}")
    p = p[p > 0]
    if len(p) <= budget:
        return float(p.sum())
    if exponent == 1:
        return float(p[: int(budget)].sum())
    inverse = p ** (-1 / (exponent - 1))
    used = np.arange(1, len(p) + 1)
    level = (used - budget) / inverse.cumsum()  # of 1 - q_i = level * inverse_i, were the likeliest m in use
    m = int(used[(level * inverse < 1) & (used > budget)].max())  # the most that all get something
    missed = np.minimum(level[m - 1] * inverse, 1.0)
    return float((p * (1 - missed**exponent)).sum())


# ----------------------------------------------------------------------------------------------
# Uncertainty


class Comparison(NamedTuple):
    gain: float  # mean of a less mean of b
    p: float  # one-sided, for a above b
    low: float  # two-sided interval of the gain
    high: float


def _over_seeds(outcomes: Sequence) -> np.ndarray:
    """(problems,) or (seeds, problems) -> (problems,): training seeds are held fixed (section
    4.3)."""
    return np.atleast_2d(np.asarray(outcomes, dtype=float)).mean(axis=0)


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    if values.size == 0 or resamples < 1:
        raise ValueError(f"a bootstrap needs problems and resamples, got {values.size} and {resamples}")
    rng, n = np.random.default_rng(seed), values.size
    at_once = max(1, 1_000_000 // n)
    sizes = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    return np.concatenate([values[rng.integers(n, size=(size, n))].mean(axis=1) for size in sizes])


def bootstrap_interval(outcomes: Sequence, resamples: int = 1000, seed: int = 0,
                       level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over problems, for methods without training seeds."""
    means = _resampled_means(_over_seeds(outcomes), resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(a: Sequence, b: Sequence, resamples: int = 1000, seed: int = 0,
                     level: float = 0.95) -> Comparison:
    """Does a beat b on the same problems? a, b: (problems,) or (seeds, problems).

    Problems are resampled in pairs; p counts the resamples without a gain, (count + 1) /
    (resamples + 1)."""
    difference = _paired(_over_seeds(a), _over_seeds(b))
    means = _resampled_means(difference, resamples, seed)
    p = (np.count_nonzero(means <= 1e-12) + 1) / (resamples + 1)  # 1e-12: a sum of seed averages that cancel
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Comparison(float(difference.mean()), float(p), float(low), float(high))


def _paired(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.shape != b.shape:
        raise ValueError(f"a paired comparison needs the same problems: {a.size} outcomes beside {b.size}")
    return a - b


def seed_mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased standard deviation over training seeds; of one seed the latter is nan."""
    values = np.asarray(values, dtype=float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


# ----------------------------------------------------------------------------------------------
# Diversity of a tuple (Appendix F.1); methods without a plan put their programs in


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def bleu4(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """BLEU-4, one reference, no smoothing: 0 without a common 4-gram. A text equals itself,
    however short."""
    if list(candidate) == list(reference):
        return 1.0
    logs = 0.0
    for n in range(1, 5):
        ours, theirs = (Counter(zip(*(text[i:] for i in range(n)))) for text in (candidate, reference))
        matched = (ours & theirs).total()
        if not matched:
            return 0.0
        logs += log(matched / ours.total())
    brevity = min(0.0, 1 - len(reference) / len(candidate))
    return exp(logs / 4 + brevity)


def _pairwise(items: Sequence, similarity: Callable) -> float:
    pairs = [(a, b) for i, a in enumerate(items) for j, b in enumerate(items) if i != j]
    if not pairs:
        raise ValueError(f"diversity needs at least two texts, got {len(items)}")
    return 1 - sum(similarity(a, b) for a, b in pairs) / len(pairs)


def d_surf(texts: Sequence[str]) -> float:
    """Eq. 14: one less the mean BLEU-4 over ordered pairs. 0: token-identical; 1: no 4-gram
    shared."""
    return _pairwise([words(text) for text in texts], bleu4)


def d_sem(texts: Sequence[str], encoder: Callable[[Sequence[str]], np.ndarray]) -> float:
    """Eq. 15: mean cosine distance over ordered pairs; encoder: K texts -> (K, d), none of length
    0."""
    vectors = np.asarray(encoder(texts), dtype=float)
    return _pairwise(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.dot)


def d_alg(categories: Sequence[str]) -> float:
    """Eq. 16: share of distinct algorithmic categories, in (0, 1]."""
    return len(set(categories)) / len(categories)


def is_literal_duplicate(strategies: Sequence[str]) -> bool:
    """Two strategies of the tuple are the same but for case, white space and final punctuation."""
    plain = {" ".join(strategy.casefold().split()).rstrip(".!?;, ") for strategy in strategies}
    return len(plain) < len(strategies)


# ----------------------------------------------------------------------------------------------
# Is the classifier behind D_alg to be believed? (F.2)


def accuracy(labels: Sequence[str], predictions: Sequence[str]) -> float:
    if len(labels) != len(predictions) or not labels:
        raise ValueError(f"labels and predictions go in pairs, got {len(labels)} and {len(predictions)}")
    return sum(a == b for a, b in zip(labels, predictions)) / len(labels)


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Agreement of two annotators beyond chance; nan if both gave everything one and the same
    label."""
    n, observed = len(first), accuracy(first, second)
    first_counts, second_counts = Counter(first), Counter(second)
    chance = sum(first_counts[label] * second_counts[label] for label in first_counts) / n**2
    return (observed - chance) / (1 - chance) if chance < 1 else float("nan")


def macro_f1(labels: Sequence[str], predictions: Sequence[str]) -> float:
    """Mean F1 over every category that occurs among labels or predictions."""
    accuracy(labels, predictions)  # the same demands
    scores = []
    for category in set(labels) | set(predictions):
        hits = sum(a == b == category for a, b in zip(labels, predictions))
        scores.append(2 * hits / (labels.count(category) + predictions.count(category)))
    return sum(scores) / len(scores)


def is_validated(kappa: float, f1: float) -> bool:
    """F.2's bar for showing D_alg without the mark "unvalidated"; nan does not clear it."""
    return kappa >= KAPPA_NEEDED and f1 >= MACRO_F1_NEEDED
