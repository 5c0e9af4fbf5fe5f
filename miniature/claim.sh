#!/usr/bin/env bash
# The paper's claim on three seeds: run.sh for each, and beside CPPO, at the same steps and learning
# rate, its two counterparts: no gate (--reward outcome), and no tuples (plain GRPO). Then two long
# runs, past the peak.
#
#   bash miniature/claim.sh        # about 50 minutes on two cores; stopped, it continues
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=miniature/settings.sh disable=SC2086
source miniature/settings.sh
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
cores=$(env -u OMP_NUM_THREADS nproc)
processes=${PROCESSES:-$((cores > 1 ? 2 : 1))}
world=runs/miniature-world
prompts=miniature/prompts.json
judge=miniature.world:judge
runs=()
parallel() { torchrun --standalone --nproc_per_node="$processes" "$@"; }
common=(--prompts $prompts --problems $world/train.jsonl $SAMPLING --lr $LR --show-every 0)
evaluate() {
  python evaluate.py --problems $world/heldout.jsonl --prompts $prompts $SAMPLING --workers 1 "$@"
}

for seed in 0 1 2; do
  run=miniature-seed$seed
  gate=runs/$run/gate/final
  runs+=("runs/$run")
  bash miniature/run.sh --seed $seed
  parallel train_cppo.py "${common[@]}" --model "runs/$run/warmup/final" --judge $judge \
    --gate "$gate" --run-name $run --seed $seed --reward outcome --steps "$STEPS"
  parallel -m rivals.train_rivals "${common[@]}" --method grpo --model runs/miniature-base \
    --run-name $run --seed $seed --steps "$STEPS"
  evaluate --model "runs/$run/cppo-outcome/final" --method tuple --judge $judge --gate "$gate" \
    --seed $seed &
  evaluate --model "runs/$run/grpo/final" --method direct --seed $seed
  wait $!
done

# past the peak, as the paper has it and with the solver held back
run=miniature-seed0
gate=runs/$run/gate/final
for weight in 1 0.1; do
  parallel train_cppo.py "${common[@]}" --model runs/$run/warmup/final --judge $judge \
    --gate $gate --run-name miniature-long --seed 0 --steps $((4 * STEPS)) --solver-weight $weight
done
for stage in cppo cppo-sw0.1; do
  evaluate --model runs/miniature-long/$stage/final --method tuple --judge $judge --gate $gate \
    --seed 0
done
python -m paper.tables table 8 "${runs[@]}"
python -m paper.tables table 6 "${runs[@]}"
python -m miniature.results "${runs[@]}"
python -m miniature.curve "${runs[@]}" runs/miniature-long
