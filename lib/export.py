"""Write any checkpoint of a run as a bf16 Hugging Face folder with a model card.

    python -m lib.export runs/NAME/cppo --step 80 --out FOLDER      # step_000080/, see --keep
    python -m lib.export runs/NAME/cppo --step best --out FOLDER    # best/; by default final/

What a stage keeps for resuming is fp32, sharded, with Adam's moments; final/ and best/ are fp32.
bf16 is a third of the first and half of the second. It rounds away the smallest of what training
has moved: go on training from the run itself.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer

import model
from lib import checkpoints, errors, files, flags
from lib.errors import UserError
from lib.start import flags_of

METHODS = {
    "sft": "planner SFT on strict-K gold tuples (stage 1 of CPPO)",
    "gate": "validity gate: p(Pass | problem, plan) from two verdict tokens (stage 2 of CPPO)",
    "warmup": "planner warm-up, paid by the gate alone (stage 3 of CPPO)",
    "cppo": "Coordinated Pass@K Policy Optimization: one policy that plans K strategies and solves "
            "each of them (stage 5)",
    "grpo": "GRPO over independent attempts", "passk": "pass@K training (arXiv 2508.10751)",
    "pkpo": "PKPO (arXiv 2505.15201)", "upskill": "UpSkill (arXiv 2602.22296)",
}
SHOWN = ("R_out", "R_plan", "J", "pass_rate", "loss", "val_loss", "val_auc", "plan/kl", "solve/kl")


# ----------------------------------------------------------------------------------------------
# Any checkpoint of a stage

def load_step(stage: Path, step: int, dtype: torch.dtype = torch.float32,
              device: torch.device | str = "cpu") -> tuple[nn.Module, Path]:
    """The model after `step` steps of a stage, and the folder that its tokenizer is in. UserError
    if that checkpoint is not kept."""
    path = stage / checkpoints.name(step)
    kept = [int(found.name[5:]) for found in checkpoints.complete(stage)]
    if step not in kept:
        raise UserError(f"{stage} keeps steps {', '.join(map(str, kept)) or 'none'}, not {step}: "
                        f"train with --keep 0 to keep all")
    damage = checkpoints.damage(path)
    if damage:
        raise UserError(f"{path} is damaged ({damage}): take another --step")
    used = json.loads((stage / "config.json").read_text())["checkpoints"]
    start = Path((used.get("start") or used["model"])["path"])
    with errors.user_input():
        module = model.load(start, dtype, device)
    checkpoints.load_weights(path, module)
    return module, start


def load_any(stage: Path, step: str, dtype: torch.dtype) -> tuple[nn.Module, Path]:
    if step.isdigit():
        return load_step(stage, int(step), dtype)
    folder = stage / step
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is not there: name a step of {stage}, best or final")
    return model.load(folder, dtype), folder


# ----------------------------------------------------------------------------------------------
# The card

def card(stage: Path, step: int) -> str:
    """The README.md of an exported folder: method, data, metrics, commit, licence of the base."""
    config = json.loads((stage / "config.json").read_text())
    chain = stages_before(stage)
    base = chain[-1][1]["model"]
    kind = stage.name.partition("-")[0]
    license_name = license_of(base)
    lines = ["---", f"base_model: {base}", f"license: {license_name}",
             "library_name: transformers", "pipeline_tag: text-generation", "---", "",
             f"# {stage.parent.name}/{stage.name}, step {step}", "",
             f"Method: {METHODS.get(kind, kind)}.", "",
             f"Base: {base} (licence: {license_name}; it holds for this model as well).", "",
             f"Weights: bf16, rounded from fp32. Code: commit {config['commit']}"
             f"{' with uncommitted changes' if config['uncommitted_changes'] else ''}, "
             f"{', '.join(f'{name} {v}' for name, v in config['versions'].items())}.", "",
             "## Stages and data", "", "| stage | file | sha256 |", "|---|---|---|"]
    for folder, stage_flags in chain:
        for name in ("gold", "labels", "problems", "dev"):
            path = stage_flags.get(name)
            if path:
                lines.append(f"| {folder.name} | {name}: {path} | {files.tree_hash(path)[:16]} |")
    lines += ["", "## Metrics", "", *metric_lines(stage, step), "", "## Command", "",
              "```", " ".join(config["command"]), "```"]
    if config["warnings"]:
        lines += ["", "## What the run lacked", "", *(f"- {each}" for each in config["warnings"])]
    return "\n".join(lines) + "\n"


def stages_before(stage: Path) -> list[tuple[Path, dict]]:
    """(folder, flags) of this stage and of those that it started from, the newest first."""
    chain = []
    while stage and (stage / "config.json").exists():
        config = json.loads((stage / "config.json").read_text())
        chain.append((stage, config["flags"]))
        used = config["checkpoints"]
        start = Path((used.get("start") or used["model"])["path"])
        stage = start.parent if flags_of(start) else None
    return chain


def metric_lines(stage: Path, step: int) -> list[str]:
    """What the logs say of this step."""
    lines = []
    for file, names in (("metrics", SHOWN), ("dev", ("pass_at_k", "pass_at_1", "duplicate", "J"))):
        path = stage / f"{file}.jsonl"
        rows = [row for _, row in files.read_lines(path)] if path.exists() else []
        for row in rows:
            if row["step"] == step:
                shown = [f"{name} {row[name]:.4g}" for name in names if row.get(name) is not None]
                where = "one training step" if file == "metrics" else f"{row['problems']} problems"
                lines.append(f"- {file} ({where}): {', '.join(shown)}")
    return lines or ["not measured"]


def license_of(base: str) -> str:
    """What the base's own card says; "unknown" where it cannot be read."""
    readme = Path(base, "README.md")
    if not Path(base).is_dir():
        from huggingface_hub import hf_hub_download
        name, _, revision = base.partition("@")
        try:
            readme = Path(hf_hub_download(name, "README.md", revision=revision or None))
        except (OSError, ValueError):               # the hub's errors derive from these
            return "unknown"
    found = None
    if readme.exists():
        found = re.search(r"^license: *(\S+)", readme.read_text(encoding="utf-8"), re.M)
    return found[1] if found else "unknown"


# ----------------------------------------------------------------------------------------------

def step_name(text: str) -> str:
    if text in ("best", "final") or text.isdigit():
        return text
    raise argparse.ArgumentTypeError(f"must be a step, best or final, not {text}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser(__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("stage", type=Path, help="a stage's folder, e.g. runs/NAME/cppo")
    add("--step", type=step_name, default="final", metavar="N|best|final", help="which checkpoint")
    add("--out", type=Path, required=True, metavar="FOLDER", help="must not be there yet")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    with errors.one_line():
        if not (args.stage / "config.json").exists() or not (args.stage / "metrics.jsonl").exists():
            raise UserError(f"{args.stage} is no stage of a run: name one, e.g. runs/NAME/cppo")
        if args.out.exists():
            raise UserError(f"--out {args.out} is there already: name another folder")
        module, tokenizer_in = load_any(args.stage, args.step, torch.bfloat16)
        step = args.step
        if not step.isdigit():
            step = json.loads((args.stage / step / "notes.json").read_text())["step"]
        with errors.user_input(), files.published(args.out) as partial:
            model.save(module, partial, AutoTokenizer.from_pretrained(tokenizer_in))
            if (tokenizer_in / "gate.json").exists():       # without it a gate is none
                shutil.copyfile(tokenizer_in / "gate.json", partial / "gate.json")
            (partial / "README.md").write_text(card(args.stage, int(step)), encoding="utf-8")
        print(f"{args.out} written: step {step} of {args.stage}, bf16")
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
