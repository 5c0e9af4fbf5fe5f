"""D_sem and D_alg of attempts files (Appendix F), with any sentence encoder and any classifier.

    python -m paper.diversity FILE... --problems FILE --classifier Qwen/Qwen3.5-9B \
        --encoder sentence-transformers/all-mpnet-base-v2
    python -m paper.diversity --labels FILE --classifier Qwen/Qwen3.5-9B    # F.2: is it valid?

Writes NAME.diversity.json beside each attempts file; tables 14 and 16 read it (D_surf needs none).
A model is a folder, a hub id, or MODULE:NAME, a function: (text, statement or None) -> category, or
texts -> vectors. --labels takes lines of "text", "first", "second" (two annotators' categories)
and, for a plan, "statement"; it adds "predicted" and writes NAME.predicted.jsonl, which tables 13
and 14 read.

Where the paper is silent: a reply that names no category, or several, counts as "other"; the vector
of a text is the mean over its tokens; a tuple of fewer than two texts is not written: it has no
D_sem, and the tables know its D_alg, which is of all K attempts (Eq. 16), without a classifier.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lib import errors, files, flags, metrics
from lib import run as lib_run
from lib.errors import UserError
from lib.problems import load_problems
from paper import attempts
from paper.runs import algorithmic, semantic
from prepare import prompts as judge_prompts

Pair = tuple[str, str | None]                   # a text, and the statement if the text is a plan
Classifier = Callable[[list[Pair]], list[str]]  # -> categories
Encoder = Callable[[list[str]], np.ndarray]     # N texts -> (N, d)
BATCH = 64              # texts encoded together
CATEGORY_TOKENS = 16    # new tokens for the name of a category


# ----------------------------------------------------------------------------------------------
# Models

def load_classifier(spec: str, device: torch.device) -> Classifier:
    if ":" in spec:
        classify_one = lib_run.plug_in(spec)
        return lambda pairs: [classify_one(text, statement) for text, statement in pairs]
    from transformers import AutoTokenizer

    import model
    import rollout
    with errors.user_input():
        module = model.load(spec, lib_run.compute_dtype("auto", device), device).eval()
        tokenizer = AutoTokenizer.from_pretrained(spec)

    def classify(pairs: list[Pair]) -> list[str]:
        texts = [judge_prompts.classify(text, statement) for text, statement in pairs]
        replies = rollout.sample(module, tokenizer, texts, max_new_tokens=CATEGORY_TOKENS,
                                 temperature=0)
        return [judge_prompts.parse_category(reply.text) or "other" for [reply] in replies]

    return classify


def load_encoder(spec: str, device: torch.device) -> Encoder:
    if ":" in spec:
        return lib_run.plug_in(spec)
    from transformers import AutoModel, AutoTokenizer
    with errors.user_input():
        module = AutoModel.from_pretrained(spec).to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(spec)

    @torch.no_grad()
    def encode(texts: list[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start:start + BATCH], padding=True, truncation=True,
                              return_tensors="pt").to(device)
            hidden = module(**batch).last_hidden_state              # (B, T, d)
            mask = batch["attention_mask"][..., None]               # (B, T, 1)
            means = (hidden * mask).sum(1) / mask.sum(1)            # (B, d)
            vectors.append(means.float().cpu().numpy())
        return np.concatenate(vectors)

    return encode


# ----------------------------------------------------------------------------------------------
# Measuring

def measure(evaluation: attempts.Evaluation, statements: dict[str, str],
            classify: Classifier | None, encode: Encoder | None) -> list[dict]:
    """A record per tuple of two texts or more: their categories, their D_sem, as far as there are
    models."""
    records, groups = [], []
    for group in attempts.tuples(evaluation):
        texts = attempts.texts(evaluation, group)
        if len(texts) > 1:
            groups.append(texts)
            records.append({"problem_id": group[0]["problem_id"], "tuple": group[0]["tuple"]})
    if classify:
        add_categories(records, groups, statements, evaluation.method in attempts.PLANNED, classify)
    if encode:
        add_d_sem(records, groups, encode)
    return records


def add_categories(records: list[dict], groups: list[list[str]], statements: dict[str, str],
                   planned: bool, classify: Classifier) -> None:
    """planned: the texts are plans, which are classified together with their statements."""
    pairs = []
    for record, texts in zip(records, groups, strict=True):
        statement = statements[record["problem_id"]] if planned else None
        pairs.append([(text, statement) for text in texts])
    distinct = list(dict.fromkeys(pair for group in pairs for pair in group))
    categories = dict(zip(distinct, classify(distinct), strict=True))
    for record, group in zip(records, pairs, strict=True):
        record["categories"] = [categories[pair] for pair in group]


def add_d_sem(records: list[dict], groups: list[list[str]], encode: Encoder) -> None:
    distinct = list(dict.fromkeys(text for texts in groups for text in texts))
    vectors = dict(zip(distinct, encode(distinct), strict=True))
    for record, texts in zip(records, groups, strict=True):
        record["D_sem"] = metrics.d_sem(texts, lambda texts: [vectors[text] for text in texts])


def measure_file(evaluation: attempts.Evaluation, statements: dict[str, str],
                 classify: Classifier | None, encode: Encoder | None, models: dict) -> None:
    """Write NAME.diversity.json and print the means. models: what is recorded of the models."""
    groups = measure(evaluation, statements, classify, encode)
    evaluation.diversity = models | {"groups": groups}
    out = attempts.beside(evaluation.path, ".diversity.json")
    files.write_file(out, json.dumps(evaluation.diversity) + "\n")
    means = []
    for name, of_tuples in (("D_alg", algorithmic(evaluation)), ("D_sem", semantic(evaluation))):
        known = of_tuples[~np.isnan(of_tuples)]
        if len(known):
            means.append(f"{name} {known.mean():.3f} of {len(known)} tuples")
    print(f"{out}:", ", ".join(means) or "no tuple has two texts")


def classify_labels(path: Path, classify: Classifier) -> None:
    """Add the classifier's categories to annotators' labels: NAME.predicted.jsonl."""
    rows = [row for _, row in files.read_lines(path)]
    guesses = classify([(row["text"], row.get("statement")) for row in rows])
    out = path.with_suffix(".predicted.jsonl")
    files.save_lines(out, [row | {"predicted": guess}
                           for row, guess in zip(rows, guesses, strict=True)])
    print(f"{len(rows)} labels classified: {out}")


# ----------------------------------------------------------------------------------------------
# The script

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser(__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="attempts files")
    add("--problems", metavar="FILE", help="the problems that were attempted")
    add("--classifier", metavar="SPEC", help="model, or MODULE:NAME (D_alg)")
    add("--encoder", metavar="SPEC", help="sentence encoder, or MODULE:NAME (D_sem)")
    add("--labels", metavar="FILE", type=Path,
        help="annotators' labels, to validate the classifier")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def read_statements(args: argparse.Namespace,
                    evaluations: list[attempts.Evaluation]) -> dict[str, str]:
    """Problem id -> statement, of every problem that was attempted."""
    with errors.user_input():
        problems = load_problems(args.problems)
    statements = {problem.id: problem.statement for problem in problems}
    for evaluation in evaluations:
        missing = evaluation.problems.keys() - statements.keys()
        if missing:
            raise UserError(f"{evaluation.path}: problem {min(missing)!r} is not in "
                            f"{args.problems}")
    return statements


def main(args: argparse.Namespace) -> int:
    with errors.one_line():
        if not args.classifier and not args.encoder:
            raise UserError("nothing to do: pass --classifier, --encoder, or both")
        if args.files and not args.problems:
            raise UserError("pass --problems FILE: a plan is classified together with its "
                            "statement")
        if args.labels and not args.classifier:
            raise UserError("--labels needs the --classifier that is to be validated")
        device = lib_run.setup(device=args.device).device
        evaluations = [attempts.load(path) for path in args.files]
        statements = read_statements(args, evaluations) if args.files else {}
        classify = load_classifier(args.classifier, device) if args.classifier else None
        encode = load_encoder(args.encoder, device) if args.encoder else None
        if args.labels:
            classify_labels(args.labels, classify)
        models = {"classifier": args.classifier, "encoder": args.encoder}
        for evaluation in evaluations:
            measure_file(evaluation, statements, classify, encode, models)
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
