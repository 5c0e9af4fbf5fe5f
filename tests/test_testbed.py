"""miniature/tabular.py and testbed.py: enumerations agree with autograd, brute force and samples;
the findings hold."""

import itertools

import pytest
import torch

import grpo
import reward
from miniature import tabular, testbed
from rivals import advantages


def test_the_gradient_of_pass_at_k_equals_autograd_for_the_direct_policy():
    p, z = tabular.posterior("ratio 2.4"), tabular.start_direct().requires_grad_()
    (p * (1 - (1 - z.softmax(0)) ** tabular.K)).sum().backward()
    ours = tabular.pass_gradient_direct(z.detach().softmax(0), p)
    torch.testing.assert_close(ours, z.grad)


def test_probabilities_of_all_tuples_sum_to_one_and_scores_of_strategies_equal_autograd():
    places, named = tabular.start_planner()
    places, named = ((t + torch.randn_like(t)).requires_grad_() for t in (places, named))
    tuples = tabular.all_tuples()
    logp = tabular.planner_logprobs(places[None], named[None], tuples[None])[0]
    assert float(logp.detach().sum(-1).exp().sum()) == pytest.approx(1)
    some = torch.tensor([0, 77, 1234, 4095])
    scores = tabular.planner_scores(places.detach(), named.detach(), tuples[some])
    for row, i in enumerate(some):
        for place in range(tabular.K):
            by_autograd = torch.autograd.grad(logp[i, place], (places, named), retain_graph=True)
            expected = torch.cat([g.flatten() for g in by_autograd])
            torch.testing.assert_close(scores[row, place], expected)


def test_expected_estimates_of_solver_credits_equal_brute_force(monkeypatch):
    """Over everything that 3 strategies of 3 rules can be told and write."""
    monkeypatch.setattr(tabular, "R", 3)
    monkeypatch.setattr(tabular, "K", 3)
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    torch.manual_seed(1)
    logits = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    tuples = tabular.all_tuples()
    q = torch.rand(len(tuples), dtype=torch.float64)
    q /= q.sum()
    credits = {name: credit.own for name, credit in testbed.SOLVER_CREDITS.items()}
    credits["Eq. 11, scaled"] = grpo.within_tuple_advantages
    passed, estimates = 0.0, dict.fromkeys(credits, 0.0)
    for strategies, chance_of_tuple in zip(tuples, q, strict=True):
        for written in itertools.product(range(3), repeat=3):
            logp = logits.log_softmax(-1)[strategies, torch.tensor(written)]
            for y in range(3):
                r = torch.tensor([float(w == y) for w in written], dtype=torch.float64)
                chance = chance_of_tuple * p[y] * logp.sum().exp()
                passed = passed + chance * r.max()
                for name, credit in credits.items():
                    paid = chance.detach() * (credit(r) * logp).sum()
                    estimates[name] = estimates[name] + paid
    truth = torch.autograd.grad(passed, logits, retain_graph=True)[0]
    solver = logits.detach().softmax(-1)
    for name, credit in credits.items():
        ours = tabular.solver_gradient(q, solver, tuples, p, tabular.gain_of(credit))
        brute = torch.autograd.grad(estimates[name], logits, retain_graph=True)[0]
        torch.testing.assert_close(ours, brute, rtol=1e-5, atol=1e-7)
        if name == "marginal":
            torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("name", ["grpo", "passk", "pkpo"])
def test_enumerated_mean_and_variance_agree_with_the_sampled_estimator(name):
    torch.manual_seed(0)
    p, q = tabular.posterior("Zipf, ratio 8"), tabular.start_direct().softmax(0)
    draws, N = 40000, tabular.N
    right = torch.eye(tabular.R, dtype=q.dtype)
    scores = right - q
    mean, variance = tabular.enumerate_estimator(name, N, q, right, scores, p)
    truth = torch.multinomial(p, draws, replacement=True)
    written = torch.multinomial(q, draws * N, replacement=True).view(draws, N)
    r = (written == truth[:, None]).double()
    a = advantages.set_advantages(name, r, tabular.K)
    estimates = (a[..., None] * scores[written]).sum(1) / (1 if name == "pkpo" else N)
    standard_error = estimates.std(0) / draws ** 0.5
    assert ((estimates.mean(0) - mean).abs() < 4.5 * standard_error).all()
    assert float(estimates.var(0).sum()) == pytest.approx(variance, rel=0.03)


def test_enumerated_planner_estimate_agrees_with_sampled_tuples():
    torch.manual_seed(0)
    start, draws = testbed.Start.of("ratio 2.4"), 20000
    gate, scores = tabular.valid(start.tuples), start.scores.sum(1)
    paid = tabular.coverage(start.solver, start.tuples) * gate
    mean, variance = tabular.enumerate_estimator("cppo", testbed.M, start.q, paid, scores, start.p)
    truth = torch.multinomial(start.p, draws, replacement=True)[:, None, None]
    drawn = torch.multinomial(start.q, draws * testbed.M, replacement=True)
    written = torch.multinomial(start.solver[start.tuples[drawn].flatten()], 1)
    solved = reward.outcome_reward((written.view(draws, testbed.M, -1) == truth).double())
    A = grpo.across_tuple_advantages(reward.planner_reward(gate[drawn].view(draws, -1), solved))
    estimates = torch.einsum("dm,dmk->dk", A, scores[drawn].view(draws, testbed.M, -1)) / testbed.M
    error = estimates.std(0) / draws ** 0.5
    assert ((estimates.mean(0) - mean).abs() < 4.5 * error + 1e-12).all()
    assert float(estimates.var(0).sum()) == pytest.approx(variance, rel=0.03)


def test_credits_in_samples_agree_with_enumeration_and_only_two_are_unbiased():
    rows = {row[0]: row[1:] for row in testbed.credit_table("Zipf, ratio 8", seed=0)}
    for name, (_, _, _, off, _, _) in rows.items():
        assert off < 2, name
    for name in ("marginal", "by place"):
        assert rows[name][:2] == [pytest.approx(1), pytest.approx(1)]
    for name in ("siblings (Eq. 11)", "Shapley", "marginal, within", "leave-one-out"):
        assert rows[name][0] < 0.999, name
    noise = {name: row[2] for name, row in rows.items()}
    assert noise["marginal"] < 0.9 * noise["siblings (Eq. 11)"]
    assert noise["by place"] < 0.95 * noise["tuple (Eq. 12)"]
    assert noise["leave-one-out"] < 0.7 * noise["tuple (Eq. 12)"]


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
    start, n = testbed.Start.of("ratio 1.5"), 40000
    exact = float((start.q * (start.p @ tabular.coverage(start.solver, start.tuples))).sum())
    strategies = tabular.sample_tuples(*[t[None] for t in tabular.start_planner()], n)[0]
    written = torch.multinomial(start.solver[strategies.flatten()], 1).view(n, tabular.K)
    truth = torch.multinomial(start.p, n, replacement=True)[:, None]
    solved = (written == truth).any(1).double().mean()
    assert abs(float(solved) - exact) < 4 * (0.25 / n) ** 0.5


def test_where_the_credits_settle(monkeypatch):
    """Under Eq. 11 the solver stops listening (steep posterior, not frozen); under marginal credit
    it does not."""
    monkeypatch.setattr(testbed, "SEEDS", 1)
    kept = ("Eq. 11, Eq. 12", "  solver frozen", "marginal")
    monkeypatch.setattr(testbed, "TUPLES", {name: testbed.TUPLES[name] for name in kept})
    curve = testbed.learn_tuples(seed=1)
    first, last = curve[0], curve[testbed.STEPS]
    best = torch.stack([measured["pass"] for measured in curve.values()]).amax(0)
    eq11, frozen, marginal = range(3)
    column = list(testbed.POSTERIORS).index
    steep, flat = column("Zipf, ratio 8"), column("uniform")
    peak = best[eq11, steep, 0]
    assert peak > first["pass"][eq11, steep, 0] + 0.1 > last["pass"][eq11, steep, 0] + 0.1
    assert last["obeyed"][eq11, steep, 0] < 0.4 < 0.7 < last["obeyed"][eq11, flat, 0]
    assert last["pass"][frozen, steep, 0] > 0.6 and last["pass"][eq11, flat, 0] > 0.55
    assert last["obeyed"][marginal, steep, 0] > 0.9
    assert last["pass"][marginal, steep, 0] > max(0.72, best[marginal, steep, 0] - 0.02)


def test_grpo_collapses_from_a_ratio_of_2_4_on(monkeypatch):
    monkeypatch.setattr(testbed, "SEEDS", 1)
    curve = torch.stack(list(testbed.learn_direct("grpo", seed=1).values()))[..., 0]
    column = list(testbed.POSTERIORS).index
    for name in ("uniform", "ratio 1.5"):
        assert curve[-1, column(name)] > 0.47
    for name in ("ratio 2.4", "Zipf, ratio 8"):
        assert curve.amax(0)[column(name)] > curve[-1, column(name)] + 0.1


def test_the_command_prints_its_tables_and_draws_or_says_why_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(testbed, "SEEDS", 1)
    monkeypatch.setattr(testbed, "STEPS", 50)
    monkeypatch.setattr(testbed, "DRAWS", testbed.CHUNK)
    monkeypatch.setattr("sys.argv", ["testbed.py", "--out", str(tmp_path / "x.png")])
    testbed.main()
    printed = capsys.readouterr().out
    assert printed.count("best independent") == len(testbed.POSTERIORS)
    assert printed.count("leave-one-out") >= len(testbed.POSTERIORS)
    assert (tmp_path / "x.png").exists() or "matplotlib is not installed" in printed
