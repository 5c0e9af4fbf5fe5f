#!/usr/bin/env bash
# The claim over runs, and past the peak: run.sh with five seeds, each from base models of its own;
# then 480 steps of stage 5 from each warm-up with the paper's credit and with marginal credit, and
# on three seeds with credit by place and with a smaller solver weight. Checkpoints are evaluated on
# held-out problems every 60 steps.
#
#   bash miniature/claim.sh        # about 14 hours on two cores; stopped, it continues
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=miniature/settings.sh disable=SC2086
source miniature/settings.sh
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=
world=runs/miniature-world
runs=() stages=()
run_of() { if (($1)); then echo "miniature-base$1-seed$1"; else echo miniature-seed0; fi; }

# Two at a time, one process each. A stage that is done ends at once.
long() { # SEED FLAGS...
  local run flags=${*:2}; run=$(run_of "$1")
  python train_cppo.py --model "runs/$run/warmup/final" --gate "runs/$run/gate/final" \
    --run-name "$run" --seed "$1" --variant long --steps $((4 * STEPS)) --lr $LR --keep 0 \
    --prompts miniature/prompts.json --problems $world/train.jsonl $SAMPLING "${@:2}" \
    > "runs/$run/long${flags// /}.log" 2>&1
}

for seed in 0 1 2 3 4; do
  bash miniature/run.sh --paper --seed $seed --base-seed $seed
  long $seed & long $seed --solver-credit marginal
  wait $!
  runs+=("runs/$(run_of $seed)")
done
for seed in 0 1 2; do
  long $seed --planner-credit place & long $seed --solver-credit marginal --planner-credit place
  wait $!
  long $seed --solver-weight 0.1 & long $seed --solver-credit marginal --solver-weight 0.1
  wait $!
done
for run in "${runs[@]}"; do stages+=("$run"/*-long); done
python -m paper.tables table 8 "${runs[@]}"
python -m miniature.curve "${stages[@]}" --heldout $world/heldout.jsonl --every 60 \
  --picture results/curve.png
