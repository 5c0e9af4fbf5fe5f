"""Metrics against enumeration, brute force, other formulas and numbers worked by hand."""

from itertools import combinations, permutations
from math import comb, exp, isnan

import numpy as np
import pytest

import prompts
from lib import metrics

ZIPF = [1 / i for i in range(1, 9)]
POSTERIORS = [[0.25] * 4, [0.4, 0.3, 0.2, 0.1], [0.5, 0.2, 0.1, 0.1, 0.05, 0.05], [0.9, 0.05, 0.03],
              [p / sum(ZIPF) for p in ZIPF],
              [0.3, 0.2, 0.1]]  # 0.4 is left to outcomes that nobody writes


def test_pass_at_k_equals_enumeration_over_subsets():
    for n in range(1, 10):
        for c in range(n + 1):
            for k in range(1, n + 1):
                hits = [any(i < c for i in chosen) for chosen in combinations(range(n), k)]
                assert metrics.pass_at_k(n, c, k) == pytest.approx(sum(hits) / len(hits), abs=1e-15)


def test_pass_at_k_equals_the_published_product_for_many_attempts():
    n, c, k = 500, 37, 24
    published = 1 - np.prod(1 - k / np.arange(n - c + 1, n + 1))
    assert metrics.pass_at_k(n, c, k) == pytest.approx(published, abs=1e-12)


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_impossible_counts_are_refused_with_their_values(n, c, k):
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        metrics.pass_at_k(n, c, k)


def test_first_last_and_random_choose_exactly_k_of_the_attempts():
    assert metrics.choose(4, 2) == [0, 1] and metrics.choose(4, 2, "last") == [2, 3]
    rng = np.random.default_rng(0)
    drawn = [tuple(metrics.choose(4, 2, "random", rng)) for _ in range(600)]
    assert set(drawn) == set(combinations(range(4), 2))
    assert min(drawn.count(pair) for pair in set(drawn)) > 60  # 100 expected of each
    with pytest.raises(ValueError, match="5 attempts asked for where there are 4"):
        metrics.choose(4, 5)
    with pytest.raises(ValueError, match="'middle'"):
        metrics.choose(4, 2, "middle")


def test_posterior_pass_counts_each_class_hit_once_and_others_never():
    assert metrics.posterior_pass(["a", "a", None, "z"], {"a": 0.4, "b": 0.6}) == pytest.approx(0.4)
    assert metrics.posterior_pass(["a", "b"], {"a": 0.4, "b": 0.6}) == pytest.approx(1.0)


@pytest.mark.parametrize("answers, label, right", [
    (["1", "2", "2", "3"], "2", 1),
    (["1", "2", "2", "1"], "1", 1), (["1", "2", "2", "1"], "2", 0),  # a tie: first seen wins
    (["[1,2]", "[1, 2]", "3", "4"], "[1, 2]", 1), (["'a'", '"a"', "b", "c"], "'a'", 1),  # one value
    (["3", "3", "{8, 0}", "{0,8}", "{0, 8}"], "{8,0}", 1),
    (["{'b': 1, 'a': [2.0]}"], "{'a':[2],'b':True}", 1),
    (["(1,)"], "[1]", 0), (["set()"], "{}", 0),
    ([None, None, "", "7"], "7", 1), ([None] * 4, "7", 0), ([], "7", 0),  # no answer is no vote
    ([" abc", "abc ", "d", "d"], "abc", 1)])
def test_the_majority_is_the_most_frequent_answer_and_ties_go_to_the_first_seen(
        answers, label, right):
    votes = [metrics.canonical_answer(answer) for answer in answers]
    winner = metrics.majority(votes)
    is_right = winner is not None and votes[winner] == metrics.canonical_answer(label)
    assert is_right == bool(right)


@pytest.mark.parametrize("text", [
    "[" * 5000, "9" * 5000, "{[1]: 2}", "a\0b", "", "lambda: 1", "1 +"])
def test_any_text_has_a_canonical_spelling(text):
    assert metrics.canonical_answer(text) == (text.strip() or None)


def independent_by_bisection(p, k):
    """Water level found numerically, to set beside the closed form."""
    p = np.array(p)
    low, high = 0.0, k * p.max()
    for _ in range(200):
        level = (low + high) / 2
        q = np.clip(1 - (level / (k * p)) ** (1 / (k - 1)), 0, 1)
        low, high = (level, high) if q.sum() > 1 else (low, level)
    return (p * (1 - (1 - q) ** k)).sum()


@pytest.mark.parametrize("p", POSTERIORS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 8, 24])
def test_no_independent_sampler_beats_the_ceiling_and_one_reaches_it(p, k):
    ceiling = metrics.independent_ceiling(p, k)
    rng = np.random.default_rng(0)
    q = np.concatenate([rng.dirichlet(np.full(len(p), a), size=2000) for a in (0.1, 0.5, 1, 5)])
    assert ((1 - (1 - q) ** k) @ np.array(p)).max() <= ceiling + 1e-12
    assert ceiling == pytest.approx(max(p) if k == 1 else independent_by_bisection(p, k), abs=1e-9)


def test_of_four_equal_readings_independent_draws_reach_0_68_and_a_tuple_all():
    assert metrics.independent_ceiling([0.25] * 4, 4) == pytest.approx(1 - 0.75**4)
    assert metrics.coordinated_ceiling([0.25] * 4, 4) == pytest.approx(1.0)


def test_the_constant_ceiling_takes_the_k_heaviest_outcomes_of_problems_with_equal_inputs():
    posteriors = [{"a": 0.7, "b": 0.3}, {"b": 0.8, "c": 0.2}, {"a": 1.0}]
    inputs = ["1 2", "1 2", "3 4"]          # the first two problems cannot be told apart
    assert metrics.constant_ceiling(posteriors, inputs, 1) == pytest.approx((1.1 + 1.0) / 3)
    assert metrics.constant_ceiling(posteriors, inputs, 2) == pytest.approx((1.8 + 1.0) / 3)


def test_the_coordinated_ceiling_of_one_tuple_is_its_likeliest_outcomes():
    assert metrics.coordinated_ceiling([0.1, 0.4, 0.2, 0.3], 2) == pytest.approx(0.7)
    assert metrics.coordinated_ceiling([0.3, 0.25, 0.2, 0.15, 0.1], 4) == pytest.approx(0.9)


@pytest.mark.parametrize("p", [p for p in POSTERIORS if len(p) > 4])
@pytest.mark.parametrize("tuples", [2, 4])
def test_no_distribution_over_tuples_beats_the_pooled_ceiling(p, tuples):
    rng = np.random.default_rng(0)
    subsets = list(combinations(range(len(p)), 4))
    member = np.zeros((len(subsets), len(p)))
    for row, subset in zip(member, subsets):
        row[list(subset)] = 1
    weights = np.concatenate([
        rng.dirichlet(np.full(len(subsets), a), size=2000) for a in (0.05, 0.3, 1, 5)])
    reached = ((1 - (1 - weights @ member) ** tuples) @ np.array(p)).max()
    ceiling = metrics.coordinated_ceiling(p, 4 * tuples)
    assert reached <= ceiling + 1e-12 and reached > ceiling - 0.05


def test_two_pooled_tuples_over_five_outcomes_reach_the_worked_ceiling():
    """Leave outcome i out with probability w_i: sum p w^2 is least at w ~ 1/p, where it is
    1 / sum(1/p)."""
    p = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    assert metrics.coordinated_ceiling(p, 8) == pytest.approx(1 - 1 / (1 / p).sum(), abs=1e-12)


def test_ceilings_do_not_fall_with_more_attempts_and_coordination_never_costs():
    for p in POSTERIORS:
        independent = [metrics.independent_ceiling(p, k) for k in (1, 2, 4, 8, 16, 20, 24)]
        coordinated = [metrics.coordinated_ceiling(p, k) for k in (1, 2, 4, 8, 16, 20, 24)]
        assert independent == sorted(independent) and coordinated == sorted(coordinated)
        assert all(i <= c + 1e-12 for i, c in zip(independent, coordinated))
    with pytest.raises(ValueError, match="6 attempts"):
        metrics.coordinated_ceiling(POSTERIORS[0], 6)
    with pytest.raises(ValueError, match="at most 1"):
        metrics.independent_ceiling([0.9, 0.9], 4)


def sign_flip_p(difference):
    """Exact one-sided test of paired 0/1 outcomes: each discordant pair is as likely to go either
    way."""
    wins, discordant = int((difference > 0).sum()), int((difference != 0).sum())
    return sum(comb(discordant, i) for i in range(wins, discordant + 1)) / 2**discordant


@pytest.mark.parametrize("discordance", [0.1, 0.3])
def test_the_paired_bootstrap_has_its_size_under_the_null_and_agrees_with_sign_flips(discordance):
    rng = np.random.default_rng(1)
    rejected = excluded = difference = 0.0
    trials, problems = 600, 300
    for trial in range(trials):
        sign = np.where(rng.random(problems) < discordance, rng.choice([-1, 1], problems), 0)
        result = metrics.paired_bootstrap(sign > 0, sign < 0, resamples=500, seed=trial)
        rejected += result.p <= 0.05
        excluded += not result.low <= 0 <= result.high
        difference += abs(result.p - sign_flip_p(sign))
    assert 0.02 <= rejected / trials <= 0.08
    assert 0.02 <= excluded / trials <= 0.08
    assert difference / trials <= 0.05


def test_the_paired_bootstrap_sees_a_real_gain_and_not_its_opposite():
    rng = np.random.default_rng(0)
    b = rng.random(300) < 0.4
    a = b | (rng.random(300) < 0.1)
    forward, backward = metrics.paired_bootstrap(a, b), metrics.paired_bootstrap(b, a)
    assert forward.p == pytest.approx(1 / 1001) and backward.p == 1
    assert forward.low > 0 and backward.high < 0
    assert forward.gain == pytest.approx(a.mean() - b.mean()) == -backward.gain
    assert metrics.paired_bootstrap(a, b, seed=0) == forward
    assert metrics.paired_bootstrap(a, b, seed=1) != forward


def test_equal_outcomes_are_no_evidence():
    assert metrics.paired_bootstrap([1, 0, 1], [1, 0, 1]) == (0.0, 1.0, 0.0, 0.0)


def test_seeds_are_averaged_for_each_problem_before_problems_are_resampled():
    seeds = np.random.default_rng(0).integers(2, size=(3, 50))
    zeros = np.zeros(50)
    averaged = metrics.paired_bootstrap(seeds.mean(0), zeros)
    assert metrics.paired_bootstrap(seeds, zeros) == averaged


def test_a_comparison_of_different_problem_sets_is_refused():
    with pytest.raises(ValueError, match="3 outcomes beside 2"):
        metrics.paired_bootstrap([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="0 and 1000"):
        metrics.bootstrap_interval([])


def test_the_bootstrap_interval_has_the_width_of_the_normal_one():
    outcomes = np.arange(400) < 120
    low, high = metrics.bootstrap_interval(outcomes, resamples=4000)
    half = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert low == pytest.approx(0.3 - half, abs=0.006)
    assert high == pytest.approx(0.3 + half, abs=0.006)


def test_seed_std_is_unbiased_and_unknown_for_one_seed():
    assert metrics.seed_mean_std([0.1, 0.2, 0.3]) == pytest.approx((0.2, 0.1))
    assert isnan(metrics.seed_mean_std([0.5])[1])


def test_bleu_gives_a_number_worked_by_hand():
    reference, candidate = "the cat is on the mat now".split(), "the cat is on a mat".split()
    # five words, three pairs, two triples, and "the cat is on"
    precisions = [5 / 6, 3 / 5, 2 / 4, 1 / 3]
    by_hand = np.prod(precisions) ** 0.25 * exp(1 - 7 / 6)
    assert metrics.bleu4(candidate, reference) == pytest.approx(by_hand)


def test_bleu_clips_counts_and_a_longer_candidate_pays_no_brevity_penalty():
    assert metrics.bleu4(["the"] * 7, "the cat is on the mat".split()) == 0
    clipped = [4 / 8, 3 / 7, 2 / 6, 1 / 5]
    by_hand = np.prod(clipped) ** 0.25
    assert metrics.bleu4(list("abcdabcd"), list("abcd")) == pytest.approx(by_hand)


def test_bleu_is_0_without_a_4_gram_to_share():
    assert metrics.bleu4(["sort", "it"], ["sort", "it", "then", "scan"]) == 0


def test_surface_diversity_is_0_for_equal_texts_and_1_without_a_common_4_gram():
    assert metrics.d_surf(["Sort, then scan the list."] * 4) == pytest.approx(0)
    assert metrics.d_surf(["greedy"] * 2) == metrics.d_surf(["", ""]) == 0
    distinct = ["one two three four", "five six seven eight", "one two three nine"]
    assert metrics.d_surf(distinct) == 1
    texts = ["keep the small numbers and add them", "keep the small numbers and count them",
             "sort all"]
    pairs = [metrics.bleu4(metrics.words(a), metrics.words(b)) for a, b in permutations(texts, 2)]
    assert metrics.d_surf(texts) == pytest.approx(1 - sum(pairs) / 6) and 0 < sum(pairs) < 6
    with pytest.raises(ValueError, match="at least two"):
        metrics.d_surf(["alone"])


def test_semantic_diversity_is_the_mean_cosine_distance_over_pairs():
    vectors = {"a": [1.0, 0.0], "b": [0.0, 2.0], "c": [3.0, 3.0]}

    def encode(texts):
        return np.array([vectors[text] for text in texts])

    assert metrics.d_sem(["a", "a"], encode) == pytest.approx(0)
    assert metrics.d_sem(["a", "b", "c"], encode) == pytest.approx(1 - (0 + 2 * 0.5**0.5) / 3)


def test_algorithmic_diversity_is_the_share_of_distinct_categories():
    assert metrics.d_alg(["dp", "dp", "greedy", "graph"]) == 0.75
    assert metrics.d_alg(["dp"] * 4) == 0.25
    assert metrics.d_alg(["dp", "greedy"], k=4) == 0.5      # two attempts without a text


def test_literal_duplicates_differ_only_in_case_white_space_and_final_punctuation():
    assert metrics.is_literal_duplicate(["Count them.", "add them", " count  them"])
    pair = ["Sort ALL;", "sort all"]
    assert metrics.is_literal_duplicate(pair)
    assert len({prompts.normalise(text) for text in pair}) == 1             # one rule for all
    assert not metrics.is_literal_duplicate(["Count them.", "Count them all."])


def test_kappa_accuracy_and_macro_f1_give_worked_numbers():
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert metrics.cohen_kappa(first, second) == pytest.approx((0.7 - 0.5) / 0.5)
    assert metrics.accuracy(first, second) == pytest.approx(0.7)
    f1_yes, f1_no = 2 * 20 / (2 * 20 + 10 + 5), 2 * 15 / (2 * 15 + 5 + 10)
    assert metrics.macro_f1(first, second) == pytest.approx((f1_yes + f1_no) / 2)
    # b was never right
    assert metrics.macro_f1(["a", "a"], ["a", "b"]) == pytest.approx((2 / 3 + 0) / 2)


def test_a_classifier_is_validated_only_above_both_bars():
    assert metrics.is_validated(0.6, 0.7)
    assert not metrics.is_validated(0.59, 0.9) and not metrics.is_validated(0.9, 0.69)
    one_label = metrics.cohen_kappa(["dp"] * 3, ["dp"] * 3)  # agreement by chance is 1
    assert isnan(one_label) and not metrics.is_validated(one_label, 1.0)
    with pytest.raises(ValueError, match="2 and 1"):
        metrics.accuracy(["a", "b"], ["a"])
