#!/usr/bin/env bash
# The whole method on a laptop: world, base model, stages 1 to 5, evaluation on held-out problems, one table.
#
#   bash miniature/run.sh [--seed N] [--fresh]
#
# A stage that is finished is not done again; a killed one goes on from its newest checkpoint. --fresh starts the run over
# (the world and the base model are kept: they depend on no seed). PROCESSES (default: 2, or 1 on one core) share the work
# of sampling and training; results are the same for any number, up to the order of summation.
set -euo pipefail
cd "$(dirname "$0")/.."

seed=0 fresh=()
while (($#)); do
  case $1 in
    --seed) seed=${2:?--seed needs a number}; shift 2 ;;
    --fresh) fresh=(--fresh); shift ;;
    *) echo "error: unknown flag $1; usage: bash miniature/run.sh [--seed N] [--fresh]" >&2; exit 2 ;;
  esac
done
[[ $seed =~ ^[0-9]+$ ]] || { echo "error: --seed must be a whole number, not $seed" >&2; exit 2; }

# shellcheck source=miniature/settings.sh disable=SC2086
source miniature/settings.sh
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
processes=${PROCESSES:-$(($(env -u OMP_NUM_THREADS nproc) > 1 ? 2 : 1))}
world=runs/miniature-world base=runs/miniature-base gate_base=runs/miniature-gate-base
run=miniature-seed$seed
prompts=miniature/prompts.json
SECONDS=0
stage() { printf '\n== %s  (%d:%02d)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }
evaluate() {
  python evaluate.py "$@" --problems $world/heldout.jsonl --prompts $prompts $SAMPLING --seed "$seed" \
    --workers 1 "${fresh[@]}" >> "runs/$run/evaluation.log"
}
parallel() { torchrun --standalone --nproc_per_node="$processes" "$@"; }

stage "the world; the base model, then stage 1; beside them the gate's base, then stage 2"
[[ -f $world/heldout.jsonl ]] || python -m miniature.world build --out "$world"
mkdir -p "runs/$run"
: > "runs/$run/evaluation.log"
gate() { # what it prints goes to a file: two bars on one screen are none
  [[ -f $gate_base/config.json ]] || python -m miniature.base $GATE_BASE --out "$gate_base"
  python train_rm.py --model $gate_base --run "$run" --seed "$seed" --prompts $prompts "${fresh[@]}" \
    --labels $world/labels_train.jsonl --val $world/labels_val.jsonl $GATE
}
set -m      # a process group of its own, so that it ends with this script
gate > "runs/$run/gate.log" 2>&1 &
beside=$!
set +m
trap 'kill -- -$beside 2>/dev/null || true' EXIT
[[ -f $base/config.json ]] || python -m miniature.base $BASE --out "$base"
python train_sft.py --model $base --run "$run" --seed "$seed" --prompts $prompts "${fresh[@]}" \
  --gold $world/gold.jsonl $SFT
evaluate --model $base --run-name "$run" --method direct        # the other core still has the gate to do
while kill -0 $beside 2>/dev/null; do
  echo "waiting for the gate: $(tail -n 1 "runs/$run/gate.log")"
  sleep 10
done
wait $beside || { cat "runs/$run/gate.log" >&2; exit 3; }
tail -n 12 "runs/$run/gate.log"

common=(--model $base --run-name "$run" --seed "$seed" --prompts $prompts --problems $world/train.jsonl --judge miniature.world:judge
        $SAMPLING $RL "${fresh[@]}")
stage "stage 3: RM-guided warm-up"
parallel train_cppo.py "${common[@]}" --stage warmup $WARMUP

stage "stages 4 and 5: the audit, then CPPO"
parallel train_cppo.py "${common[@]}" --steps $STEPS --lr $LR $CPPO

stage "evaluation on held-out problems"
planned=(--method tuple --judge miniature.world:judge --gate "runs/$run/gate/final")
{ evaluate --model "runs/$run/sft/final" "${planned[@]}"
  evaluate --model "runs/$run/warmup/final" "${planned[@]}"; } &
evaluate --model "runs/$run/cppo/final" "${planned[@]}"
evaluate --model "runs/$run/cppo/final" "${planned[@]}" --shuffle-strategies
wait $!

stage "pass@4 on 300 held-out problems, averaged over the posterior"
python -m paper.tables table 8 "runs/$run"
stage "done; every attempt is in runs/$run/*/eval, what was printed in runs/$run/evaluation.log"
