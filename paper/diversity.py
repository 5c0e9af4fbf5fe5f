"""D_sem and D_alg of attempts files (Appendix F), by any sentence encoder and any model as classifier.

    python -m paper.diversity FILE... --problems FILE --classifier Qwen/Qwen3.5-9B \
        --encoder sentence-transformers/all-mpnet-base-v2
    python -m paper.diversity --labels FILE --classifier Qwen/Qwen3.5-9B      # F.2: can it be believed?

Writes NAME.diversity.json beside each attempts file; tables 14 and 16 read it (D_surf needs none). A model
is a folder, an id, or MODULE:NAME, a function: (text, statement or None) -> category, or texts -> vectors.
--labels takes lines of "text", "first", "second" (two annotators' categories) and, for a plan, "statement";
it writes them with "predicted" to NAME.predicted.jsonl, which tables 13 and 14 read.

Where the paper is silent: a reply that names no category, or several, counts as "other"; the vector of a text
is the mean over its tokens; a tuple of fewer than two texts has neither figure.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lib import errors, files, metrics
from lib import run as lib_run
from lib.problems import load_problems
from prepare import prompts as judge_prompts
from lib.run import plug_in
from paper import attempts

Classifier = Callable[[list[tuple[str, str | None]]], list[str]]    # (text, statement) -> categories
Encoder = Callable[[list[str]], np.ndarray]
BATCH = 64


def load_classifier(spec: str, device: torch.device) -> Classifier:
    if ":" in spec:
        one = plug_in(spec)
        return lambda pairs: [one(text, statement) for text, statement in pairs]
    from transformers import AutoTokenizer

    import model
    import rollout
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    module = model.load(spec, dtype, device).eval()
    tokenizer = AutoTokenizer.from_pretrained(spec)

    def classify(pairs: list[tuple[str, str | None]]) -> list[str]:
        asked = [judge_prompts.classify(text, statement) for text, statement in pairs]
        replies = rollout.sample(module, tokenizer, asked, max_new_tokens=16, temperature=0)
        return [judge_prompts.parse_category(reply.text) or "other" for [reply] in replies]

    return classify


def load_encoder(spec: str, device: torch.device) -> Encoder:
    if ":" in spec:
        return plug_in(spec)
    from transformers import AutoModel, AutoTokenizer
    module = AutoModel.from_pretrained(spec).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(spec)

    @torch.no_grad()
    def encode(texts: list[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), BATCH):
            some = texts[start: start + BATCH]
            batch = tokenizer(some, padding=True, truncation=True, return_tensors="pt").to(device)
            hidden, mask = module(**batch).last_hidden_state, batch["attention_mask"][..., None]
            vectors.append(((hidden * mask).sum(1) / mask.sum(1)).float().cpu().numpy())
        return np.concatenate(vectors)

    return encode


def measure(evaluation: attempts.Evaluation, statements: dict[str, str], classify: Classifier | None,
            encode: Encoder | None) -> list[dict]:
    """A record a tuple: its categories and D_alg, its D_sem, as far as there is a model for them."""
    found = [(group[0], attempts.texts(evaluation, group)) for group in attempts.tuples(evaluation)]
    found = [(first, texts) for first, texts in found if len(texts) > 1]
    records = [{"problem_id": first["problem_id"], "tuple": first["tuple"]} for first, _ in found]
    if classify:
        # each text once: the statement goes with a plan, a program is classified by itself
        planned = evaluation.method in attempts.PLANNED
        pairs = [[(text, statements[first["problem_id"]] if planned else None) for text in texts]
                 for first, texts in found]
        distinct = list(dict.fromkeys(pair for group in pairs for pair in group))
        category = dict(zip(distinct, classify(distinct), strict=True))
        for record, group in zip(records, pairs, strict=True):
            record["categories"] = [category[pair] for pair in group]
            record["D_alg"] = metrics.d_alg(record["categories"])
    if encode:
        distinct = list(dict.fromkeys(text for _, texts in found for text in texts))
        vector = dict(zip(distinct, encode(distinct), strict=True))
        for record, (_, texts) in zip(records, found, strict=True):
            record["D_sem"] = metrics.d_sem(texts, lambda texts: [vector[text] for text in texts])
    return records


def main(args: argparse.Namespace) -> int:
    with errors.explain():
        if not args.classifier and not args.encoder:
            raise ValueError("nothing to do: pass --classifier, --encoder, or both")
        if args.files and not args.problems:
            raise ValueError("pass --problems FILE: a plan is classified together with its statement")
        device = lib_run.setup(device=args.device).device
        evaluations = [attempts.load(path) for path in args.files]
        statements = {p.id: p.statement for p in load_problems(args.problems)} if args.problems else {}
        classify = load_classifier(args.classifier, device) if args.classifier else None
        encode = load_encoder(args.encoder, device) if args.encoder else None
        if args.labels:
            if not classify:
                raise ValueError("--labels needs the --classifier that is to be measured")
            rows = [json.loads(line) for line in Path(args.labels).read_text(encoding="utf-8").splitlines()]
            guesses = classify([(row["text"], row.get("statement")) for row in rows])
            out = Path(args.labels).with_suffix(".predicted.jsonl")
            files.write_file(out, "".join(json.dumps(row | {"predicted": guess}) + "\n"
                                           for row, guess in zip(rows, guesses, strict=True)))
            print(f"{len(rows)} labels classified: {out}")
        for evaluation in evaluations:
            missing = evaluation.problems.keys() - statements.keys()
            if missing:
                raise ValueError(f"{evaluation.path}: problem {min(missing)!r} is not in {args.problems}")
            groups = measure(evaluation, statements, classify, encode)
            out = attempts.beside(evaluation.path, ".diversity.json")
            files.write_file(out, json.dumps({"classifier": args.classifier, "encoder": args.encoder,
                                               "groups": groups}) + "\n")
            means = {name: float(np.mean([group[name] for group in groups])) for name in ("D_alg", "D_sem")
                     if groups and name in groups[0]}
            print(f"{out}: {len(groups)} tuples", *(f"{name} {value:.3f}" for name, value in means.items()))
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help="attempts files")
    parser.add_argument("--problems", metavar="FILE", help="the problems that were attempted")
    parser.add_argument("--classifier", metavar="SPEC", help="model, or MODULE:NAME (D_alg)")
    parser.add_argument("--encoder", metavar="SPEC", help="sentence encoder, or MODULE:NAME (D_sem)")
    parser.add_argument("--labels", metavar="FILE", help="annotators' labels, to measure the classifier")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(parse_args()))
