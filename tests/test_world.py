"""miniature/world.py: frozen and sound; exact ceilings; a judge and a teacher that agree."""

import collections
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

import prompts
from lib import metrics
from lib.problems import load_problems, outcome_hash
from miniature import world

ROOT = Path(__file__).resolve().parent.parent
FROZEN = "c0c81a0bb86b1301"      # change it only together with every published number
# frozen on 2026-11-28, before any run in them
FURTHER = {"settled": "188d71a8a6fff2bf", "uneven": "756dcadd76c1f38c"}


def test_the_world_is_frozen_and_its_command_writes_the_files_that_the_stages_read(tmp_path):
    command = [sys.executable, "-m", "miniature.world", "build", "--out", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and FROZEN in ran.stdout
    for split in ("train", "dev", "heldout"):
        loaded = load_problems(tmp_path / f"{split}.jsonl")
        assert len(loaded) == world.SIZES[split]
        assert loaded == world.problems(split)
    for name in ("gold", "labels_train", "labels_val"):
        assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == world.SIZES[name]
    row = json.loads((tmp_path / "labels_val.jsonl").read_text().splitlines()[1])
    assert set(row) == {"problem_id", "statement", "plan", "label", "kind"}


@pytest.mark.parametrize("setting", FURTHER)
def test_the_further_settings_are_frozen_with_their_ceilings_and_differ_as_they_say(setting):
    assert world.fingerprint(setting) == FURTHER[setting]
    best, plain = world.ceilings("heldout", setting=setting), world.ceilings("heldout")
    if setting == "settled":                # there is little left for coordination
        assert best["coordinated"] - best["independent"] < 0.08
        assert plain["coordinated"] - plain["independent"] > 0.25
        statement = world.statements("heldout", setting)[0]
        assert statement.posterior[statement.favourite] == max(statement.posterior.values())
    else:
        assert {name: best[name] for name in plain} == plain        # of a perfect solver
        hard = [sum(s.slip(combo) > 0 for combo in s.posterior) / len(s.posterior)
                for s in world.statements("heldout", setting)]
        assert 0.2 < sum(0 < share < 1 for share in hard) / len(hard)   # both kinds side by side


def test_the_ceilings_of_the_further_settings_are_those_of_a_search_over_policies():
    """By brute force on a few problems of each: every tuple, and a grid over distributions that is
    refined around its best point."""
    rng = random.Random(3)
    for setting in FURTHER:
        pool = [s for s in world.statements("heldout", setting) if len(s.posterior) == 4]
        for statement in rng.sample(pool, 2):
            p = list(statement.posterior.values())
            q = [1 - statement.slip(combo) for combo in statement.posterior]
            tuples = itertools.combinations_with_replacement(range(4), 4)
            best = max(sum(p[i] * (1 - (1 - q[i]) ** chosen.count(i)) for i in range(4))
                       for chosen in tuples)
            assert world.best_tuple(p, q, 4) == pytest.approx(best)
            found = best_by_search(p, q)
            assert found - 1e-9 <= world.best_distribution(p, q, 4) <= found + 1e-6
            ones = [1.0] * 4
            assert world.best_distribution(p, ones, 4) == pytest.approx(
                metrics.independent_ceiling(p, 4), abs=1e-9)


def best_by_search(p: list[float], q: list[float]) -> float:
    """pass@4 of the best of ever finer moves of mass between two classes."""
    def reached(s: list[float]) -> float:
        return sum(pi * (1 - (1 - si * qi) ** 4) for pi, qi, si in zip(p, q, s))

    s, step = [0.25] * 4, 0.25
    while step > 1e-6:
        moved = []
        for i, j in itertools.permutations(range(4), 2):
            if s[i] >= step:
                moved.append([*s])
                moved[-1][i] -= step
                moved[-1][j] += step
        best = max(moved, key=reached, default=s)
        if reached(best) > reached(s):
            s = best
        else:
            step /= 2
    return reached(s)


def test_programs_print_in_a_real_interpreter_what_the_table_of_outcomes_says():
    rng = random.Random(0)
    for statement in rng.sample(world.statements("heldout"), 12):
        combo = world.draw_truth(statement, rng)
        inputs = world.hidden_inputs(statement.family)
        for line, printed in list(zip(inputs, world.outputs(combo), strict=True))[:2]:
            command = [sys.executable, "-c", world.program(combo)]
            ran = subprocess.run(command, input=line, capture_output=True, text=True)
            assert ran.stdout.strip() == printed, (combo, ran.stderr)


def test_a_program_hits_at_most_one_class_of_a_statement_and_the_truth_is_one():
    for split in ("train", "dev", "heldout"):
        for p in world.problems(split):
            assert 4 <= len(p.classes) <= 9
            assert sum(p.classes.values()) == pytest.approx(1)
            assert 2 <= max(p.classes.values()) / min(p.classes.values()) <= 2.5
            assert outcome_hash([t["output"] for t in p.tests]) in p.classes


def test_truths_are_drawn_from_the_posterior():
    """As far as three standard errors over 1200 problems tell, of the likeliest class."""
    train = world.problems("train")
    ranks = [sorted(p.classes.values(), reverse=True) for p in train]
    truths = [p.classes[outcome_hash([t["output"] for t in p.tests])] for p in train]
    hit = [t == r[0] for t, r in zip(truths, ranks)]
    expected = sum(r.count(r[0]) * r[0] for r in ranks) / len(ranks)
    assert abs(sum(hit) / len(hit) - expected) < 3 * (expected * (1 - expected) / len(hit)) ** 0.5


def test_a_good_share_of_statements_has_exactly_four_classes():
    problems = world.problems("train") + world.problems("heldout")
    sizes = collections.Counter(len(p.classes) for p in problems)
    assert 0.55 <= sizes[4] / sizes.total() <= 0.75
    assert set(sizes) == {4, 6, 9}


def test_each_slot_has_a_dozen_readings_in_several_wordings_and_each_wording_one_meaning():
    for slot, family in itertools.product((world.CHOOSE, world.REPORT), ("numbers", "words")):
        assert len(slot[family]) >= 12
        wordings = {world.words(slot, family, name) for name in slot[family]}
        assert len(wordings) == len(slot[family])
    combo = ("numbers", "lt", "cnt", 5)
    wordings = {world.write_strategy(combo, random.Random(i)) for i in range(200)}
    assert len(wordings) == 9
    assert {world.read_strategy(text) for text in wordings} == {combo}


def test_hidden_inputs_are_diverse_and_leave_no_reading_empty():
    """A generator that was re-seeded for every element once hid half of the outcomes."""
    for family in world.CHOOSE:
        inputs = world.hidden_inputs(family)
        assert len(set(inputs)) == world.HIDDEN_TESTS + world.PUBLIC_TESTS
        assert all(len(set(line.split())) >= 8 for line in inputs)
        for choose, k in itertools.product(world.CHOOSE[family], world.CONSTANTS):
            combos = [world.combination(family, choose, report, k)
                      for report in world.REPORT[family]]
            assert len({world.outputs(combo) for combo in combos}) >= 8
    varied = []
    for family in world.CHOOSE:
        for choose, report in itertools.product(world.CHOOSE[family], world.REPORT[family]):
            outcome = world.outcome(world.combination(family, choose, report, 5))
            varied.append(len(set(outcome)) >= 4)
    assert sum(varied) / len(varied) > 0.7


def test_held_out_pairs_of_vague_words_never_met_in_training():
    pairs = {split: {(s.family, s.choose, s.report) for s in world.statements(split)}
             for split in ("train", "dev", "heldout")}
    for one, other in itertools.combinations(pairs.values(), 2):
        assert not one & other
    for place in (1, 2):
        words = collections.Counter((p[0], p[place]) for p in pairs["train"])
        assert set(words) == {(p[0], p[place]) for ps in pairs.values() for p in ps}
        assert min(words.values()) >= 4
    rows = world.gold() + world.labels("train") + world.labels("val")
    unseen = world.problems("heldout") + world.problems("dev")
    assert not {row["statement"] for row in rows} & {p.statement for p in unseen}


def test_the_ceilings_leave_room_for_the_claim():
    for split in ("train", "heldout"):
        best = world.ceilings(split)
        assert best["coordinated"] - best["independent"] >= 0.15
        assert best["independent"] - best["pass@1"] >= 0.2
        assert best["constant"] < 0.2 * best["independent"]


def test_the_constant_ceiling_is_that_of_a_greedy_search_that_no_swap_improves():
    """By other code: coverage counted problem by problem."""
    pool = [world.parse_statement(p.statement) for p in world.problems("heldout")]
    total = 0.0
    for family in world.CHOOSE:
        shares = []
        for statement in pool:
            if statement.family == family:
                posterior = statement.posterior
                shares.append({world.outcome(combo): p for combo, p in posterior.items()})

        def coverage(chosen):
            return sum(share.get(o, 0.0) for share in shares for o in set(chosen))  # noqa: B023

        candidates = sorted({outcome for share in shares for outcome in share})
        best: list = []
        for _ in range(4):
            gains = {o: coverage([*best, o]) for o in candidates}
            best.append(max(candidates, key=gains.get))
        for i in range(4):
            rest = best[:i] + best[i + 1:]
            assert max(coverage([*rest, o]) for o in candidates) <= coverage(best) + 1e-9
        total += coverage(best)
    assert world.ceilings("heldout")["constant"] == pytest.approx(total / len(pool))


def test_statements_are_understood_and_nothing_else_is():
    for s in world.statements("heldout")[::7]:
        assert world.parse_statement(str(s)) == s
    with pytest.raises(ValueError, match="not a statement"):
        world.parse_statement("Print the size of the heap.")


def test_every_strategy_is_read_back_whatever_its_words():
    rng = random.Random(1)
    for family in world.CHOOSE:
        for choose, report in itertools.product(world.CHOOSE[family], world.REPORT[family]):
            combo = world.combination(family, choose, report, rng.choice(world.CONSTANTS))
            wordings = [world.write_strategy(combo, rng) for _ in range(6)]
            assert {world.read_strategy(text) for text in wordings} == {combo}
    for text in ("First keep numbers below 5", "", ", count them.",
                 "Keep even numbers, count them.", "Now keep the first 5 words, add them up."):
        assert world.read_strategy(text) is None


def test_gold_tuples_pass_the_judge_and_the_rules_but_are_not_all_allowed_by_their_statement():
    allowed = []
    for row in world.gold():
        text = prompts.format_plan(row["strategies"])
        assert world.judge(row["statement"], text) == []
        assert prompts.check_plan(prompts.parse_plan(text, 4), text) == []
        posterior = world.parse_statement(row["statement"]).posterior
        allowed += [world.read_strategy(s) in posterior for s in row["strategies"]]
    assert 0.5 <= sum(allowed) / len(allowed) <= 0.7


def test_gate_labels_are_balanced_by_problem_and_the_judge_names_each_fault():
    seen = {}
    for split in ("train", "val"):
        rows = world.labels(split)
        by_problem = collections.defaultdict(list)
        for row in rows:
            by_problem[row["problem_id"]].append(row["label"])
            faults = [] if row["label"] else [row["kind"]]
            assert world.judge(row["statement"], row["plan"]) == faults, row
        assert all(sorted(v) == [0, 1] for v in by_problem.values())
        kinds = collections.Counter(row["kind"] for row in rows if not row["label"])
        assert set(kinds) == {"duplicate", "leak", "vague", "off_topic"}
        assert min(kinds.values()) >= 0.1 * kinds.total()
        seen[split] = {row["statement"] for row in rows}
    assert not seen["train"] & seen["val"]


def test_the_rule_gate_misses_most_spoiled_plans():
    """Its AUC, 1 - missed / 2 for a gate that says only yes or no, must stay at least 0.1 below a
    learned gate's."""
    rows = [row for row in world.labels("val") if not row["label"]]
    missed = collections.defaultdict(list)
    for row in rows:
        breaches = prompts.check_plan(prompts.parse_plan(row["plan"], 4), row["plan"])
        missed[row["kind"]].append(breaches == [])
    every = [m for kind in missed.values() for m in kind]
    assert 0.7 <= sum(every) / len(every) <= 0.95
    for kind in ("duplicate", "leak"):
        assert 0.3 < sum(missed[kind]) / len(missed[kind]) < 1


def test_the_judge_counts_what_breaks_the_contract_and_not_what_fails():
    rng = random.Random(2)
    asked = next(s for s in world.statements("heldout")
                 if s.family == "numbers" and s.choose == "small")
    lt, le = (world.combination("numbers", c, "sum", asked.k) for c in ("lt", "le"))
    wrong = world.combination("numbers", "last", "mid", asked.k)
    plan = [world.write_strategy(c, rng) for c in (lt, le, wrong)]

    def faults(last):
        return world.judge(str(asked), prompts.format_plan([*plan, last]))

    assert faults(f"Now keep numbers within {asked.k} of ten, count them.") == []
    assert faults(world.write_strategy(lt, rng, unlike=plan[0])) == ["duplicate"]
    assert faults(f"Here keep numbers below {asked.k + 1}, and count them.") == ["off_topic"]
    assert faults("First keep even numbers, print b[0].") == ["leak"]
    assert faults("First keep something, count something.") == ["vague"]
    assert faults("Now keep even words, join their first letters.") == ["off_topic"]
    assert world.judge(str(asked), "A: one\nB: two") == ["parse"]
    clean = prompts.format_plan([*plan, "Here keep even numbers, count them."])
    assert world.judge(str(asked), clean) == []
    assert world.judge(str(asked), clean + "\nprint(len(b))") == ["leak"]


def test_counting_duplicates_takes_other_words_for_the_same_method():
    even = "First keep even numbers, count them."
    same = "Here keep even numbers, and count them."
    odd = "First keep odd numbers, count them."
    assert world.duplicates([even, same]) == 1
    assert world.duplicates(["Try.", "try", even, odd]) == 1


def test_the_classifier_of_programs_agrees_with_what_they_print():
    rng = random.Random(0)
    for asked in rng.sample(world.statements("heldout"), 20):
        for combo in asked.posterior:
            name = " ".join(map(str, combo))
            assert world.category(world.program(combo)) == name
            assert world.category(world.write_strategy(combo, rng), str(asked)) == name
        categories = {world.category(world.program(combo)) for combo in asked.posterior}
        assert len(categories) == len(asked.posterior)
    assert world.category("Do what is asked.") == world.category("print(1)\n") == "other"
