"""A whole GRPO step, sampling and update, beside TRL's GRPOTrainer on the same work.

    python -m bench.step                                     # ours
    python -m bench.step --trl-python ../trl/bin/python      # and TRL's, where it is installed

One thread, fp32, CPU seconds of the process, medians over the steps after the first. The model is a
random Qwen3.5 with a tokenizer of bytes, the reward the share of letters in a completion. A step
samples 32 completions of each prompt, takes log-probs of the reference, and makes one AdamW update
with KL. Both sides do the same work, though not on the same samples: their random streams differ.
Each side sets what its training scripts set; ours treat numbers below 1e-38 as 0.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

GROUP, LR, BETA, CLIP = 32, 1e-4, 0.04, 0.2
PARTS = ("sampling", "reference", "forward", "backward", "optimizer")
SHOWN = (*PARTS, "step", "tokens", "reward", "grad_norm", "kl")
TASK = ("You are given an array of n integers. Print the {} of the array, modulo 1000000007. "
        "Input: n, then n integers. ")
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Case:
    prompts: list[str]
    new_tokens: int
    layers: int
    hidden: int


SHORT = [TASK.format(what) + "x" * 7 * i
         for i, what in enumerate(("sum", "product", "maximum", "median"))]
LONG = [TASK.format(what) * 3 + "x" * (30 + 7 * i) for i, what in enumerate(("sum", "median"))]
CASES = {"short": Case(SHORT, new_tokens=64, layers=8, hidden=256),
         "long": Case(LONG, new_tokens=128, layers=4, hidden=128)}


def make_model(folder: str, case: Case) -> None:
    """The random model and its tokenizer as a Hugging Face folder, which both sides load."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *alphabet])}
    bpe = Tokenizer(models.BPE(vocab=words, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>",
                                         padding_side="left").save_pretrained(folder)
    torch.manual_seed(0)
    width = case.hidden // 4
    # Alike for both sides: no words beyond the tokenizer's, for TRL would sample them and end
    # completions later; no pad id, for its embedding would start at zero, where RMSNorm has a slope
    # of 1,000 that transformers hides.
    transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig(
        vocab_size=len(words), hidden_size=case.hidden, intermediate_size=3 * case.hidden,
        num_hidden_layers=case.layers, num_attention_heads=4, num_key_value_heads=2, head_dim=width,
        linear_key_head_dim=width, linear_value_head_dim=width, linear_num_key_heads=2,
        linear_num_value_heads=4,
        tie_word_embeddings=True, pad_token_id=None, eos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
                         "mrope_section": [width // 16, width // 32, width // 32],
                         "mrope_interleaved": True},
    )).save_pretrained(folder)


def share_of_letters(text: str) -> float:
    return sum(c.isascii() and c.isalpha() for c in text) / max(1, len(text))


def ours(folder: str, case: Case, steps: int) -> list[dict]:
    import grpo
    import model
    import rollout
    grpo.clock = time.process_time
    torch.set_flush_denormal(True)      # as `lib.run.setup` does
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    policy, reference = model.load(folder), model.load(folder).requires_grad_(False)
    optimizer = grpo.make_optimizer(policy, LR)
    prompts, found = [tokenizer(text)["input_ids"] for text in case.prompts], []
    for step in range(steps):
        start = time.process_time()
        samples = rollout.sample(policy, tokenizer, prompts, GROUP, case.new_tokens, seed=step,
                                 slots=128)
        sampled = time.process_time()
        rewards = torch.zeros(len(prompts), GROUP)
        for p, group in enumerate(samples):
            for n, sample in enumerate(group):
                rewards[p, n] = share_of_letters(sample.text)
        advantages = grpo.across_tuple_advantages(rewards)
        rows = []
        for p, group in enumerate(samples):
            for n, sample in enumerate(group):
                rows.append(grpo.Row(prompts[p], sample.ids, 0, advantages[p, n].item(),
                                     1 / rewards.numel(), "solve", sample.logprobs))
        metrics = grpo.update(policy, reference, optimizer, rows, clip=CLIP, beta=BETA,
                              vocab=len(tokenizer))
        seconds = {name: metrics[f"seconds_{name}"] for name in PARTS[1:]}
        found.append({"sampling": sampled - start, **seconds,
                      "step": time.process_time() - start, "tokens": metrics["tokens"],
                      "reward": float(rewards.mean()), "grad_norm": metrics["grad_norm"],
                      "kl": metrics["solve/kl"]})
    return found


def trl(folder: str, case: Case, steps: int) -> list[dict]:
    """TRL's trainer with its phases timed by wrapping the methods that do them."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    seconds, found, tokens = defaultdict(float), [], []

    def timed(owner, name: str, key: str) -> None:
        method = getattr(owner, name)

        def wrapped(*args, **kwargs):
            start = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                seconds[key] += time.process_time() - start
        setattr(owner, name, wrapped)

    def reward(completions, completion_ids, **_):
        tokens.append(sum(map(len, completion_ids)))
        return [share_of_letters(text) for text in completions]

    class Steps(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = getattr(self, "ended", None) or time.process_time()

        def on_pre_optimizer_step(self, *_, **__):
            self.optimizing = time.process_time()

        def on_optimizer_step(self, *_, **__):
            seconds["optimizer"] += time.process_time() - self.optimizing

        def on_step_end(self, *_, **__):
            self.ended = time.process_time()
            # what is left of "rollout" beside generation and reward is the reference's log-probs
            reference = seconds["rollout"] - seconds["sampling"] - seconds["reward"]
            found.append({**seconds, "reference": reference, "step": self.ended - self.began,
                          "tokens": tokens[-1]})
            seconds.clear()

    args = GRPOConfig(
        output_dir=folder + "/out", per_device_train_batch_size=GROUP, num_generations=GROUP,
        gradient_accumulation_steps=len(case.prompts), max_completion_length=case.new_tokens,
        learning_rate=LR, beta=BETA, epsilon=CLIP, loss_type="grpo", max_grad_norm=1.0,
        weight_decay=0.0, lr_scheduler_type="constant", temperature=1.0, top_k=0, top_p=1.0,
        max_steps=steps, logging_steps=1,
        save_strategy="no", report_to=[], bf16=False, use_cpu=True, gradient_checkpointing=False,
        disable_tqdm=True, shuffle_dataset=False, model_init_kwargs={"dtype": "float32"})
    trainer = GRPOTrainer(model=folder, reward_funcs=reward, args=args,
                          train_dataset=Dataset.from_dict({"prompt": case.prompts * 8}))
    timed(trainer, "_generate", "sampling")
    timed(trainer, "_calculate_rewards", "reward")
    timed(trainer, "_generate_and_score_completions", "rollout")
    timed(trainer, "compute_loss", "forward")
    timed(trainer.accelerator, "backward", "backward")
    trainer.add_callback(Steps())
    trainer.train()
    logs = [line for line in trainer.state.log_history if "grad_norm" in line]
    shown = ("reward", "grad_norm", "kl")
    return [step | {name: line.get(name) for name in shown} for step, line in zip(found, logs)]


def side(name: str, args: argparse.Namespace, python: str, case: str) -> dict:
    """Medians of one side, run in a process of its own."""
    command = [python, "-m", "bench.step", "--run", name, "--case", case,
               "--steps", str(args.steps)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    if ran.returncode:
        sys.exit(f"{' '.join(command)}\n{ran.stderr[-2000:]}")
    steps, versions = json.loads(ran.stdout.splitlines()[-1])
    medians = {key: statistics.median(step[key] for step in steps[1:]) for key in SHOWN}
    return {"versions": versions} | medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--case", choices=CASES, help="default: both")
    parser.add_argument("--steps", type=int, default=4, help="the first is not counted")
    parser.add_argument("--trl-python", metavar="PATH", help="python of an environment with trl")
    parser.add_argument("--run", choices=("ours", "trl"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        with tempfile.TemporaryDirectory() as folder:
            make_model(folder, CASES[args.case])
            steps = (ours if args.run == "ours" else trl)(folder, CASES[args.case], args.steps)
        used = [name for name in ("torch", "transformers", "trl") if name in sys.modules]
        versions = {name: sys.modules[name].__version__ for name in used}
        print(json.dumps([steps, versions]))
        return
    for case in [args.case] if args.case else CASES:
        mine = side("ours", args, sys.executable, case)
        theirs = side("trl", args, args.trl_python, case) if args.trl_python else None
        print(f"\n{case}: {len(CASES[case].prompts)} prompts x {GROUP} completions of up to "
              f"{CASES[case].new_tokens} tokens, CPU seconds\n{'ours':>22} {mine['versions']}")
        if theirs:
            print(f"{'TRL':>22} {theirs['versions']}")
        for key in SHOWN:
            beside = ""
            if theirs and mine[key]:
                beside = f"{theirs[key]:10.3f}{theirs[key] / mine[key]:8.2f}x"
            print(f"{key:12}{mine[key]:10.3f}{beside}")


if __name__ == "__main__":
    main()
