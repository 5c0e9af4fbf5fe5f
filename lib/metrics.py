"""Metrics for tables: pass@k and majority votes, ceilings, uncertainty, diversity.

    pass_at_k(n=16, c=3, k=4)                       # unbiased, for attempts drawn independently
    paired_bootstrap(cppo, pkpo, resamples=1000)    # gain, one-sided p, two-sided interval
    independent_ceiling([0.5, 0.3, 0.2], k=4)       # what no independent sampler can exceed

numpy alone. Outcomes are 0/1 or probabilities, one per problem, in the same order in every list.
"""

import math
import re
from ast import literal_eval
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

KAPPA_NEEDED, MACRO_F1_NEEDED = 0.6, 0.7    # F.2: below either, D_alg is not valid


# ----------------------------------------------------------------------------------------------
# Passing

def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n attempts, c of them correct, drawn without replacement, hold a correct
    one.

    Unbiased for pass@k when the n attempts are independent draws. Attempts of one tuple are not:
    for those every table shows the indicator of exactly K attempts.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def choose(n: int, k: int, rule: str = "first",
           rng: np.random.Generator | None = None) -> list[int]:
    """Which k of n ordered attempts count: the first (Table 20), or as in Appendix G's control the
    last or k at random."""
    if not 1 <= k <= n:
        raise ValueError(f"{k} attempts asked for where there are {n}: evaluate with more")
    if rule == "first":
        return list(range(k))
    if rule == "last":
        return list(range(n - k, n))
    if rule == "random":
        rng = rng or np.random.default_rng(0)
        return sorted(rng.choice(n, size=k, replace=False).tolist())
    raise ValueError(f"no rule is called {rule!r}: take first, last or random")


def posterior_pass(outcomes: Sequence[str | None], classes: dict[str, float]) -> float:
    """Pass@K of one problem averaged over what its statement may have meant: the mass of the
    classes hit.

    outcomes: the outcome of each attempt; classes: outcome -> posterior. The same attempts have
    about nine times less variance than with their verdicts under one drawn truth.
    """
    return sum(classes.get(outcome, 0.0) for outcome in set(outcomes))


def canonical_answer(text: str | None) -> str | None:
    """One spelling of equal Python values: `[1,2]` and `[1, 2]`, `{2, 1}` and `{1, 2}`, 1 and 1.0
    vote together. Other text is stripped; no text is no answer."""
    if text is None:
        return None
    try:
        return _spell(literal_eval(text.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text.strip() or None


def _spell(value: object) -> str:
    """repr, but for what Python calls equal: no order in dicts and sets, no difference between 1,
    1.0 and True."""
    if isinstance(value, dict):
        items = [f"{_spell(key)}: {_spell(item)}" for key, item in value.items()]
        return "{" + ", ".join(sorted(items)) + "}"
    if isinstance(value, set) and value:
        return "{" + ", ".join(sorted(map(_spell, value))) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spell, value)) + "]"
    if isinstance(value, tuple):
        comma = "," if len(value) == 1 else ""
        return "(" + ", ".join(map(_spell, value)) + comma + ")"
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    return repr(value)


def majority(votes: Sequence[str | None]) -> int | None:
    """maj@K (section 4.6): place of the first attempt with the most frequent vote; ties go to the
    vote seen first. None is no vote; None if nobody votes."""
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return None
    # a Counter keeps the order in which votes were seen, and max takes the first of equals
    return votes.index(max(counts, key=counts.__getitem__))


# ----------------------------------------------------------------------------------------------
# Ceilings: the best possible pass@k when a statement leaves open which of several outcomes is right

def constant_ceiling(posteriors: Sequence[dict[str, float]], inputs: Sequence[Hashable],
                     k: int) -> float:
    """Highest mean pass@k of k programs that never read a statement.

    posteriors: outcome -> probability per problem; inputs: what the programs read. A program sees
    its input, so problems with equal inputs are one family, and the best for a family are the k
    outcomes of largest total mass.
    """
    families: dict[Hashable, Counter] = defaultdict(Counter)
    for posterior, seen in zip(posteriors, inputs, strict=True):
        families[seen].update(posterior)
    total = 0.0
    for masses in families.values():
        for _, mass in masses.most_common(k):
            total += mass
    return total / len(posteriors)


def independent_ceiling(p: Sequence[float], k: int) -> float:
    """Highest pass@k of k independent draws of one outcome each: max over q of
    sum p_i (1 - (1 - q_i)^k).

    p: posterior of each outcome class; what it lacks to 1 cannot be hit.
    """
    return _best_allocation(p, budget=1.0, exponent=k)


def coordinated_ceiling(p: Sequence[float], k: int, tuple_size: int = 4) -> float:
    """Highest pass@k of coordinated attempts.

    One tuple, or a part of it, takes the k likeliest outcomes. k / tuple_size independent tuples
    have marginals pi with sum pi = tuple_size, and the exponent is k / tuple_size.
    """
    if k > tuple_size and k % tuple_size:
        raise ValueError(f"no exact ceiling for {k} attempts: pool whole tuples of {tuple_size}")
    if k <= tuple_size:
        return _best_allocation(p, budget=k, exponent=1)
    return _best_allocation(p, budget=tuple_size, exponent=k // tuple_size)


def _best_allocation(p: Sequence[float], budget: float, exponent: int) -> float:
    """max of sum p_i (1 - (1 - q_i)^e) over 0 <= q_i <= 1, sum q = budget, exactly, by
    water-filling.

    At the optimum p_i (1 - q_i)^(e - 1) is one level for all outcomes in use, and those are the m
    likeliest.
    """
    p = np.sort(np.asarray(p, dtype=float))[::-1]
    if p.size and (p[-1] < 0 or p.sum() > 1 + 1e-9):
        raise ValueError(f"a posterior holds probabilities of sum at most 1, got {p.tolist()}")
    p = p[p > 0]
    if len(p) <= budget:
        return float(p.sum())
    if exponent == 1:
        return float(p[:int(budget)].sum())
    # with the m likeliest in use, 1 - q_i = level_m * inverse_i
    inverse = p ** (-1 / (exponent - 1))
    used = np.arange(1, len(p) + 1)
    level = (used - budget) / inverse.cumsum()
    # the largest m at which all m get something
    gets_something = (level * inverse < 1) & (used > budget)
    m = int(used[gets_something].max())
    missed = np.minimum(level[m - 1] * inverse, 1.0)
    return float((p * (1 - missed**exponent)).sum())


# ----------------------------------------------------------------------------------------------
# Uncertainty

class Comparison(NamedTuple):
    gain: float     # mean of a less mean of b
    p: float        # one-sided, for a above b
    low: float      # two-sided interval of the gain
    high: float


def _over_seeds(outcomes: Sequence) -> np.ndarray:
    """(problems,) or (seeds, problems) -> (problems,): training seeds are held fixed (section
    4.3)."""
    return np.atleast_2d(np.asarray(outcomes, dtype=float)).mean(axis=0)


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(problems,) -> (resamples,)"""
    if values.size == 0 or resamples < 1:
        raise ValueError(f"a bootstrap needs problems and resamples, got {values.size} and "
                         f"{resamples}")
    rng = np.random.default_rng(seed)
    n = values.size
    at_once = max(1, 1_000_000 // n)    # bounds the memory of an index matrix
    means = []
    for done in range(0, resamples, at_once):
        size = min(at_once, resamples - done)
        means.append(values[rng.integers(n, size=(size, n))].mean(axis=1))
    return np.concatenate(means)


def _interval(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(outcomes: Sequence, resamples: int = 1000, seed: int = 0,
                       level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over problems, for methods without training seeds."""
    return _interval(_resampled_means(_over_seeds(outcomes), resamples, seed), level)


def paired_bootstrap(a: Sequence, b: Sequence, resamples: int = 1000, seed: int = 0,
                     level: float = 0.95) -> Comparison:
    """Does a beat b on the same problems? a, b: (problems,) or (seeds, problems).

    Problems are resampled in pairs; p counts the resamples without a gain,
    (count + 1) / (resamples + 1).
    """
    a, b = _over_seeds(a), _over_seeds(b)
    if a.shape != b.shape:
        raise ValueError(f"a paired comparison needs the same problems: {a.size} outcomes beside "
                         f"{b.size}")
    means = _resampled_means(a - b, resamples, seed)
    no_gain = np.count_nonzero(means <= 1e-12)      # seed averages that cancel leave rounding
    low, high = _interval(means, level)
    return Comparison(float((a - b).mean()), (no_gain + 1) / (resamples + 1), low, high)


def seed_mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased standard deviation over training seeds; of one seed the latter is nan."""
    values = np.asarray(values, dtype=float)
    std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return float(values.mean()), std


# ----------------------------------------------------------------------------------------------
# Diversity of a tuple (Appendix F.1); for methods without a plan, of its programs

def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _ngrams(tokens: Sequence[str], n: int) -> Counter:
    # the texts shifted by 0 .. n-1, side by side: a fifth faster than slices in D_surf
    return Counter(zip(*[tokens[i:] for i in range(n)], strict=False))


def bleu4(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """BLEU-4, one reference, no smoothing: 0 without a common 4-gram. A text equals itself, however
    short."""
    if list(candidate) == list(reference):
        return 1.0
    log_precisions = 0.0
    for n in range(1, 5):
        ours, theirs = _ngrams(candidate, n), _ngrams(reference, n)
        matched = (ours & theirs).total()
        if matched == 0:
            return 0.0
        log_precisions += math.log(matched / ours.total())
    brevity = min(0.0, 1 - len(reference) / len(candidate))
    return math.exp(log_precisions / 4 + brevity)


def _mean_distance(items: Sequence, similarity: Callable) -> float:
    """1 - the mean similarity over ordered pairs."""
    similarities = []
    for i, a in enumerate(items):
        for j, b in enumerate(items):
            if i != j:
                similarities.append(similarity(a, b))
    if not similarities:
        raise ValueError(f"diversity needs at least two texts, got {len(items)}")
    return 1 - sum(similarities) / len(similarities)


def d_surf(texts: Sequence[str]) -> float:
    """Eq. 14: 1 - mean BLEU-4 over ordered pairs. 0: token-identical; 1: no 4-gram shared."""
    return _mean_distance([words(text) for text in texts], bleu4)


def d_sem(texts: Sequence[str], encoder: Callable[[Sequence[str]], np.ndarray]) -> float:
    """Eq. 15: mean cosine distance over ordered pairs; encoder: K texts -> (K, d), no zero row."""
    vectors = np.asarray(encoder(texts), dtype=float)
    return _mean_distance(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.dot)


def d_alg(categories: Sequence[str], k: int | None = None) -> float:
    """Eq. 16: distinct algorithmic categories over K, in [0, 1]. K is larger than the number of
    categories where an attempt has no text to classify."""
    return len(set(categories)) / (k or len(categories))


def is_literal_duplicate(strategies: Sequence[str]) -> bool:
    """Two strategies of the tuple are the same but for case, white space and final punctuation."""
    plain = {" ".join(strategy.casefold().split()).rstrip(".!?;, ") for strategy in strategies}
    return len(plain) < len(strategies)


# ----------------------------------------------------------------------------------------------
# Validity of the classifier behind D_alg (F.2)

def accuracy(labels: Sequence[str], predictions: Sequence[str]) -> float:
    if len(labels) != len(predictions) or not labels:
        raise ValueError(f"labels and predictions go in pairs, got {len(labels)} and "
                         f"{len(predictions)}")
    return sum(a == b for a, b in zip(labels, predictions, strict=True)) / len(labels)


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Agreement of two annotators beyond chance; nan if both gave one and the same label to all."""
    observed = accuracy(first, second)
    first_counts, second_counts = Counter(first), Counter(second)
    by_chance = sum(first_counts[label] * second_counts[label] for label in first_counts)
    chance = by_chance / len(first)**2
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def macro_f1(labels: Sequence[str], predictions: Sequence[str]) -> float:
    """Mean F1 over every category that occurs among labels or predictions."""
    scores = []
    for category in set(labels) | set(predictions):
        hits = sum(a == b == category for a, b in zip(labels, predictions, strict=True))
        scores.append(2 * hits / (labels.count(category) + predictions.count(category)))
    return sum(scores) / len(scores)


def is_validated(kappa: float, f1: float) -> bool:
    """F.2's bar for showing D_alg without the mark "unvalidated"; nan does not clear it."""
    return kappa >= KAPPA_NEEDED and f1 >= MACRO_F1_NEEDED
