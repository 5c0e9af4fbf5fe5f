"""The tabular trial: enumerations agree with autograd, brute force and sampling; its two findings hold."""

import itertools

import pytest
import torch

import grpo
import reward
from miniature import testbed
from rivals import advantages


def test_the_gradient_of_pass_at_k_equals_autograd_for_the_direct_policy():
    p, z = testbed.posterior("ratio 2.4"), testbed.start_direct().requires_grad_()
    (p * (1 - (1 - z.softmax(0)) ** testbed.K)).sum().backward()
    torch.testing.assert_close(testbed.pass_gradient_direct(z.detach().softmax(0), p), z.grad)


def test_probabilities_of_all_tuples_sum_to_one_and_their_scores_equal_autograd():
    places, named = testbed.start_planner()
    places, named = ((t + torch.randn_like(t)).requires_grad_() for t in (places, named))
    tuples = testbed.all_tuples()
    logp = testbed.planner_logprobs(places[None], named[None], tuples[None])[0].sum(-1)
    assert float(logp.detach().exp().sum()) == pytest.approx(1)
    some = torch.tensor([0, 77, 1234, 4095])
    scores = testbed.planner_scores(places.detach(), named.detach(), tuples[some])
    for i, row in zip(some, scores):
        by_autograd = torch.autograd.grad(logp[i], (places, named), retain_graph=True)
        torch.testing.assert_close(row, torch.cat([g.flatten() for g in by_autograd]))


def test_solver_gradients_equal_brute_force_over_everything_that_can_be_written(monkeypatch):
    monkeypatch.setattr(testbed, "R", 3)
    monkeypatch.setattr(testbed, "K", 3)
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    torch.manual_seed(1)
    logits, tuples = torch.randn(3, 3, dtype=torch.float64, requires_grad=True), testbed.all_tuples()
    q = torch.rand(len(tuples), dtype=torch.float64)
    q /= q.sum()
    passed, estimate = 0.0, 0.0
    for told, q_told in zip(tuples, q):
        for wrote in itertools.product(range(3), repeat=3):
            logp = logits.log_softmax(-1)[told, torch.tensor(wrote)]
            for y in range(3):
                r = torch.tensor([float(w == y) for w in wrote], dtype=torch.float64)
                chance = q_told * p[y] * logp.sum().exp()
                passed = passed + chance * r.max()
                estimate = estimate + chance.detach() * (grpo.within_tuple_advantages(r) * logp).sum()
    truth, eq11 = testbed.solver_gradients(q, logits.detach().softmax(-1), tuples, p)
    torch.testing.assert_close(truth, torch.autograd.grad(passed, logits, retain_graph=True)[0])
    torch.testing.assert_close(eq11, torch.autograd.grad(estimate, logits)[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["grpo", "passk", "pkpo"])
def test_enumerated_mean_and_variance_agree_with_the_sampled_estimator(name):
    torch.manual_seed(0)
    p, q, draws = testbed.posterior("Zipf, ratio 8"), testbed.start_direct().softmax(0), 40000
    scores = torch.eye(testbed.R, dtype=q.dtype) - q
    right = torch.eye(testbed.R, dtype=q.dtype)
    mean, variance = testbed.enumerate_estimator(name, testbed.N, q, right, scores, p)
    truth = torch.multinomial(p, draws, replacement=True)
    wrote = torch.multinomial(q, draws * testbed.N, replacement=True).view(draws, testbed.N)
    a = advantages.set_advantages(name, (wrote == truth[:, None]).double(), testbed.K)
    estimates = (a[..., None] * scores[wrote]).sum(1) / (1 if name == "pkpo" else testbed.N)
    standard_error = estimates.std(0) / draws ** 0.5
    assert ((estimates.mean(0) - mean).abs() < 4.5 * standard_error).all()
    assert float(estimates.var(0).sum()) == pytest.approx(variance, rel=0.03)


def test_enumerated_planner_estimate_agrees_with_sampled_tuples():
    torch.manual_seed(0)
    p, tuples = testbed.posterior("ratio 2.4"), testbed.all_tuples()
    (places, named), solver = testbed.start_planner(), testbed.start_solver().softmax(-1)
    q = testbed.planner_logprobs(places[None], named[None], tuples[None])[0].sum(-1).exp()
    scores, gate, draws = testbed.planner_scores(places, named, tuples), testbed.valid(tuples), 20000
    paid = testbed.coverage(solver, tuples) * gate
    mean, variance = testbed.enumerate_estimator("cppo", testbed.M, q, paid, scores, p)
    truth = torch.multinomial(p, draws, replacement=True)[:, None, None]
    drawn = torch.multinomial(q, draws * testbed.M, replacement=True)
    wrote = torch.multinomial(solver[tuples[drawn].flatten()], 1).view(draws, testbed.M, testbed.K)
    solved = reward.outcome_reward((wrote == truth).double())
    A = grpo.across_tuple_advantages(reward.planner_reward(gate[drawn].view(draws, -1), solved))
    estimates = torch.einsum("dm,dmk->dk", A, scores[drawn].view(draws, testbed.M, -1)) / testbed.M
    assert ((estimates.mean(0) - mean).abs() < 4.5 * estimates.std(0) / draws ** 0.5 + 1e-12).all()
    assert float(estimates.var(0).sum()) == pytest.approx(variance, rel=0.03)


def test_pkpo_is_unbiased_and_grpo_is_not():
    for name in testbed.POSTERIORS:
        rows = {row[0]: row for row in testbed.estimator_table(name)}
        assert rows["PKPO"][1:3] == [pytest.approx(1), pytest.approx(1)]
        assert rows["GRPO"][1] < 0.95


def test_eq_11_teaches_the_solver_not_to_listen_where_pass_at_k_would_have_it_listen():
    true, eq11 = testbed.listening("ratio 2.4")
    assert true > 0 > eq11
    true, eq11 = testbed.listening("uniform")
    assert true > 0 and eq11 > 0


def test_pass_at_4_of_the_tables_is_that_of_simulated_tuples():
    torch.manual_seed(0)
    tables = [t[None] for t in testbed.start_planner()]
    p, solver = testbed.posterior("ratio 1.5"), testbed.start_solver().softmax(-1)
    tuples, n = testbed.all_tuples(), 40000
    q = testbed.planner_logprobs(*tables, tuples[None])[0].sum(-1).exp()
    exact = float((q * (p @ testbed.coverage(solver, tuples))).sum())
    told = testbed.sample_tuples(*tables, n)[0]
    wrote = torch.multinomial(solver[told.flatten()], 1).view(n, testbed.K)
    solved = (wrote == torch.multinomial(p, n, replacement=True)[:, None]).any(1).double().mean()
    assert abs(float(solved) - exact) < 4 * (0.25 / n) ** 0.5


def test_the_two_findings(monkeypatch):
    """A solver that stops listening (steep posterior, not frozen); GRPO's collapse from a ratio of 2.4 on."""
    monkeypatch.setattr(testbed, "SEEDS", 1)
    curve = testbed.learn_tuples(seed=1)
    first, last = curve[0], curve[testbed.STEPS]
    best = torch.stack([v["pass"] for v in curve.values()]).amax(0)
    row, column = list(testbed.TUPLES).index, list(testbed.POSTERIORS).index
    cppo, frozen = row("CPPO"), row("CPPO, frozen solver")
    steep, flat = column("Zipf, ratio 8"), column("uniform")
    assert best[cppo, steep, 0] > first["pass"][cppo, steep, 0] + 0.1 > last["pass"][cppo, steep, 0] + 0.1
    assert last["obeyed"][cppo, steep, 0] < 0.4 < 0.7 < last["obeyed"][cppo, flat, 0]
    assert last["pass"][frozen, steep, 0] > 0.6 and last["pass"][cppo, flat, 0] > 0.55
    grpo_curve = torch.stack(list(testbed.learn_direct("grpo", seed=1).values()))[..., 0]
    for name in ("uniform", "ratio 1.5"):
        assert grpo_curve[-1, column(name)] > 0.47
    for name in ("ratio 2.4", "Zipf, ratio 8"):
        assert grpo_curve.amax(0)[column(name)] > grpo_curve[-1, column(name)] + 0.1


def test_the_command_prints_both_tables_and_draws_or_says_why_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(testbed, "SEEDS", 1)
    monkeypatch.setattr(testbed, "STEPS", 50)
    monkeypatch.setattr("sys.argv", ["testbed.py", "--out", str(tmp_path / "x.png")])
    testbed.main()
    printed = capsys.readouterr().out
    assert printed.count("best independent") == len(testbed.POSTERIORS)
    assert (tmp_path / "x.png").exists() or "matplotlib is not installed" in printed
