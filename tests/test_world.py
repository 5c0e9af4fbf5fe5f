"""The miniature world: frozen, sound, hard for whoever does not read the statement, judged by its oracle."""

import collections
import itertools
import json
import random
import subprocess
import sys

import pytest

import prompts
from lib.problems import load_problems, outcome_hash
from miniature import world

FROZEN = "c0c81a0bb86b1301"      # change it only together with every published number


def test_the_world_is_frozen_and_its_command_writes_the_files_that_the_stages_read(tmp_path):
    command = [sys.executable, world.__file__, "build", "--out", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and FROZEN in ran.stdout
    for split in ("train", "dev", "heldout"):
        read = load_problems(tmp_path / f"{split}.jsonl")
        assert len(read) == world.SIZES[split]
        assert read == world.problems(split)
    for name in ("gold", "labels_train", "labels_val"):
        assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == world.SIZES[name]
    row = json.loads((tmp_path / "labels_val.jsonl").read_text().splitlines()[1])
    assert set(row) == {"problem_id", "statement", "plan", "label", "kind"}


def test_programs_print_in_a_real_interpreter_what_the_table_of_outcomes_says():
    rng = random.Random(0)
    for combo in [world.draw_truth(s, rng) for s in rng.sample(world.statements("heldout"), 12)]:
        for line, printed in zip(world.hidden_inputs(combo[0])[:2], world.outputs(combo)[:2]):
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
    """The likeliest class is the truth as often as it says: three standard errors over 1200 problems."""
    train = world.problems("train")
    ranks = [sorted(p.classes.values(), reverse=True) for p in train]
    truths = [p.classes[outcome_hash([t["output"] for t in p.tests])] for p in train]
    hit = [t == r[0] for t, r in zip(truths, ranks)]
    expected = sum(r.count(r[0]) * r[0] for r in ranks) / len(ranks)
    assert abs(sum(hit) / len(hit) - expected) < 3 * (expected * (1 - expected) / len(hit)) ** 0.5


def test_a_good_share_of_statements_has_exactly_four_classes():
    sizes = collections.Counter(len(p.classes) for p in world.problems("train") + world.problems("heldout"))
    assert 0.55 <= sizes[4] / sizes.total() <= 0.75
    assert set(sizes) == {4, 6, 9}


def test_each_slot_has_a_dozen_readings_in_several_wordings_and_each_wording_one_meaning():
    for slot, family in itertools.product((world.CHOOSE, world.REPORT), ("numbers", "words")):
        assert len(slot[family]) >= 12
        assert len({world.words(slot, family, name) for name in slot[family]}) == len(slot[family])
    combo = ("numbers", "lt", "cnt", 5)
    said = {world.say(combo, random.Random(i)) for i in range(200)}
    assert len(said) == 9 and {world.read(s) for s in said} == {combo}


def test_hidden_inputs_are_diverse_and_leave_no_reading_empty():
    """Inputs from a generator that was re-seeded for every element once hid half of the outcomes."""
    for family in world.CHOOSE:
        inputs = world.hidden_inputs(family)
        assert len(set(inputs)) == world.HIDDEN_TESTS + world.PUBLIC_TESTS
        assert all(len(set(line.split())) >= 8 for line in inputs)
        for choose, k in itertools.product(world.CHOOSE[family], world.CONSTANTS):
            combos = [world.combination(family, choose, report, k) for report in world.REPORT[family]]
            assert len({world.outputs(combo) for combo in combos}) >= 8
    every = [world.outcome(world.combination(family, choose, report, 5)) for family in world.CHOOSE
             for choose in world.CHOOSE[family] for report in world.REPORT[family]]
    assert sum(len(set(o)) >= 4 for o in every) / len(every) > 0.7


def test_held_out_pairs_of_vague_words_never_met_in_training():
    pairs = {split: {(s.family, s.choose, s.report) for s in world.statements(split)}
             for split in ("train", "dev", "heldout")}
    for one, other in itertools.combinations(pairs.values(), 2):
        assert not one & other
    for place in (1, 2):
        words = collections.Counter((p[0], p[place]) for p in pairs["train"])
        assert set(words) == {(p[0], p[place]) for ps in pairs.values() for p in ps}
        assert min(words.values()) >= 4
    trained_on = {row["statement"] for row in world.gold() + world.labels("train") + world.labels("val")}
    assert not trained_on & {p.statement for p in world.problems("heldout") + world.problems("dev")}


def test_the_ceilings_leave_room_for_the_claim():
    for split in ("train", "heldout"):
        best = world.ceilings(split)
        assert best["coordinated"] - best["independent"] >= 0.15
        assert best["independent"] - best["pass@1"] >= 0.2
        assert best["constant"] < 0.2 * best["independent"]


def test_the_constant_ceiling_equals_a_search_over_all_tuples_and_swaps_cannot_improve_it():
    """By other code: coverage counted problem by problem, a greedy choice, and no swap improves it."""
    asked = [world.understand(p.statement) for p in world.problems("heldout")]
    total = 0.0
    for family in world.CHOOSE:
        shares = [{world.outcome(c): p for c, p in s.posterior.items()} for s in asked if s.family == family]
        candidates = sorted({o for share in shares for o in share})
        covered = lambda chosen: sum(sum(share.get(o, 0.0) for o in set(chosen)) for share in shares)
        chosen: list = []
        for _ in range(4):
            chosen.append(max(candidates, key=lambda o: covered(chosen + [o])))
        for i in range(4):
            rest = chosen[:i] + chosen[i + 1:]
            assert max(covered(rest + [o]) for o in candidates) <= covered(chosen) + 1e-9
        total += covered(chosen)
    assert world.ceilings("heldout")["constant"] == pytest.approx(total / len(asked))


def test_statements_are_understood_and_nothing_else_is():
    for s in world.statements("heldout")[::7]:
        assert world.understand(str(s)) == s
    with pytest.raises(ValueError, match="not a statement"):
        world.understand("Print the size of the heap.")


def test_every_strategy_is_read_back_whatever_its_words():
    rng = random.Random(1)
    for family in world.CHOOSE:
        for choose, report in itertools.product(world.CHOOSE[family], world.REPORT[family]):
            combo = world.combination(family, choose, report, rng.choice(world.CONSTANTS))
            assert {world.read(world.say(combo, rng)) for _ in range(6)} == {combo}
    for text in ("First keep numbers below 5", "", ", count them.", "Keep even numbers, count them.",
                 "Now keep the first 5 words, add them up."):
        assert world.read(text) is None


def test_gold_tuples_pass_the_judge_and_the_rules_but_are_not_all_allowed_by_their_statement():
    allowed = []
    for row in world.gold():
        text = prompts.format_plan(row["strategies"])
        assert world.judge(row["statement"], text) == []
        assert prompts.check_plan(prompts.parse_plan(text, 4), text) == []
        posterior = world.understand(row["statement"]).posterior
        allowed += [world.read(s) in posterior for s in row["strategies"]]
    assert 0.5 <= sum(allowed) / len(allowed) <= 0.7


def test_gate_labels_are_balanced_by_problem_and_the_judge_names_each_fault():
    seen = {}
    for split in ("train", "val"):
        rows = world.labels(split)
        by_problem = collections.defaultdict(list)
        for row in rows:
            by_problem[row["problem_id"]].append(row["label"])
            assert world.judge(row["statement"], row["plan"]) == ([] if row["label"] else [row["kind"]]), row
        assert all(sorted(v) == [0, 1] for v in by_problem.values())
        kinds = collections.Counter(row["kind"] for row in rows if not row["label"])
        assert set(kinds) == {"duplicate", "leak", "vague", "off_topic"}
        assert min(kinds.values()) >= 0.1 * kinds.total()
        seen[split] = {row["statement"] for row in rows}
    assert not seen["train"] & seen["val"]


def test_the_rule_gate_misses_most_spoiled_plans():
    """Its AUC must stay at least 0.1 below a learned gate's: with yes or no alone it is 1 - missed / 2."""
    rows = [row for row in world.labels("val") if not row["label"]]
    missed = [prompts.check_plan(prompts.parse_plan(row["plan"], 4), row["plan"]) == [] for row in rows]
    assert 0.7 <= sum(missed) / len(missed) <= 0.95
    for kind in ("duplicate", "leak"):
        of_kind = [m for m, row in zip(missed, rows) if row["kind"] == kind]
        assert 0.3 < sum(of_kind) / len(of_kind) < 1


def test_the_judge_counts_what_breaks_the_contract_and_not_what_fails():
    rng = random.Random(2)
    asked = next(s for s in world.statements("heldout") if s.family == "numbers" and s.choose == "small")
    lt, le = (world.combination("numbers", c, "sum", asked.k) for c in ("lt", "le"))
    wrong = world.combination("numbers", "last", "mid", asked.k)
    plan = [world.say(c, rng) for c in (lt, le, wrong)]
    faults = lambda last: world.judge(str(asked), prompts.format_plan([*plan, last]))
    assert faults(f"Now keep numbers within {asked.k} of ten, count them.") == []
    assert faults(world.say(lt, rng, unlike=plan[0])) == ["duplicate"]
    assert faults(f"Here keep numbers below {asked.k + 1}, and count them.") == ["off_topic"]
    assert faults("First keep even numbers, print b[0].") == ["leak"]
    assert faults("First keep something, count something.") == ["vague"]
    assert faults("Now keep even words, join their first letters.") == ["off_topic"]
    assert world.judge(str(asked), "A: one\nB: two") == ["parse"]
    clean = prompts.format_plan([*plan, "Here keep even numbers, count them."])
    assert world.judge(str(asked), clean) == []
    assert world.judge(str(asked), clean + "\nprint(len(b))") == ["leak"]


def test_counting_duplicates_takes_other_words_for_the_same_method():
    asked = str(world.statements("train")[0])
    even, same, odd = ("First keep even numbers, count them.", "Here keep even numbers, and count them.",
                       "First keep odd numbers, count them.")
    assert world.duplicates(asked, [even, same]) == 1
    assert world.duplicates(asked, ["Try.", "try", even, odd]) == 1


def test_the_classifier_of_programs_agrees_with_what_they_print():
    rng = random.Random(0)
    for asked in rng.sample(world.statements("heldout"), 20):
        for combo in asked.posterior:
            name = world.category(world.program(combo))
            assert name == world.category(world.say(combo, rng), str(asked)) == " ".join(map(str, combo))
        assert len({world.category(world.program(combo)) for combo in asked.posterior}) == len(asked.posterior)
    assert world.category("Do what is asked.") == world.category("print(1)\n") == "other"
