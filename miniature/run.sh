#!/usr/bin/env bash
# The whole method on a laptop: world, base model, stages 1 to 5, evaluation on held-out problems,
# one table, one page. Stage 5 takes marginal credit; --paper trains it with the paper's as well.
#
#   bash miniature/run.sh [--paper] [--seed N] [--base-seed N] [--fresh]
#
# A finished stage is not done again; a killed one continues from its newest checkpoint. --fresh
# starts the run over, but keeps the world and the base models, which do not depend on --seed.
# --base-seed trains other base models. PROCESSES (default: 2, or 1 on one core) share the work;
# results are the same for any number, up to the order of summation.
set -euo pipefail
cd "$(dirname "$0")/.."

usage="usage: bash miniature/run.sh [--paper] [--seed N] [--base-seed N] [--fresh]"
seed=0 base_seed=0 paper=0 fresh=()
while (($#)); do
  case $1 in
    --seed) seed=${2:?--seed needs a number}; shift 2 ;;
    --base-seed) base_seed=${2:?--base-seed needs a number}; shift 2 ;;
    --paper) paper=1; shift ;;
    --fresh) fresh=(--fresh); shift ;;
    *) echo "error: unknown flag $1; $usage" >&2; exit 2 ;;
  esac
done
[[ $seed =~ ^[0-9]+$ && $base_seed =~ ^[0-9]+$ ]] ||
  { echo "error: seeds must be whole numbers, not $seed and $base_seed" >&2; exit 2; }

# shellcheck source=miniature/settings.sh disable=SC2086
source miniature/settings.sh
# no GPU: two processes cannot share one, and so small a model needs none
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=
cores=$(env -u OMP_NUM_THREADS nproc)
processes=${PROCESSES:-$((cores > 1 ? 2 : 1))}
suffix=""
((base_seed == 0)) || suffix=-base$base_seed
world=runs/miniature-world base=runs/miniature-base$suffix gate_base=runs/miniature-gate-base$suffix
run=miniature$suffix-seed$seed
prompts=miniature/prompts.json
judge=miniature.world:judge
SECONDS=0
stage() { printf '\n== %s  (%d:%02d)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

# Two jobs that need nothing of each other share the cores: one on the screen, one, in a process
# group of its own that ends with this script, in a file.
beside=0
begin_beside() { # FILE COMMAND...
  local log=$1; shift
  ((processes > 1)) || { "$@" 2>&1 | tee "$log"; return; }
  set -m; "$@" > "$log" 2>&1 & beside=$!; set +m
  trap 'kill -- -$beside 2>/dev/null || true' EXIT
}
wait_beside() { # FILE
  ((processes > 1)) || return 0
  local second
  for ((second = 0; ; second++)); do
    kill -0 $beside 2>/dev/null || break
    ((second % 10)) || echo "beside it: $(tail -n 1 "$1")"
    sleep 1
  done
  wait $beside || { cat "$1" >&2; exit 3; }
  trap - EXIT
}
train() { # PROCESSES FLAGS...
  local n=$1; shift
  if ((n > 1)); then torchrun --standalone --nproc_per_node="$n" train_cppo.py "$@"
  else python train_cppo.py "$@"; fi
}
evaluate() {
  python evaluate.py "$@" --problems $world/heldout.jsonl --prompts $prompts $SAMPLING \
    --seed "$seed" --workers 1 "${fresh[@]}"
}

stage "the world; the base model, then stage 1; beside them the gate's base, then stage 2"
[[ -f $world/heldout.jsonl ]] || python -m miniature.world build --out "$world"
mkdir -p "runs/$run"
gate() {
  [[ -f $gate_base/config.json ]] ||
    python -m miniature.base $GATE_BASE --seed "$base_seed" --out "$gate_base"
  python train_rm.py --model "$gate_base" --run "$run" --seed "$seed" --prompts $prompts \
    "${fresh[@]}" --labels $world/labels_train.jsonl --val $world/labels_val.jsonl $GATE
}
begin_beside "runs/$run/gate.log" gate
[[ -f $base/config.json ]] || python -m miniature.base $BASE --seed "$base_seed" --out "$base"
python train_sft.py --model "$base" --run "$run" --seed "$seed" --prompts $prompts "${fresh[@]}" \
  --gold $world/gold.jsonl $SFT
# the other core still trains the gate
evaluate --model "$base" --run-name "$run" --method direct
evaluate --model "runs/$run/sft/final" --method tuple --judge $judge
wait_beside "runs/$run/gate.log"

stage "stage 3: RM-guided warm-up"
common=(--model "$base" --run-name "$run" --seed "$seed" --prompts $prompts
        --problems $world/train.jsonl --judge $judge $SAMPLING "${fresh[@]}")
train "$processes" "${common[@]}" --stage warmup $WARMUP

stage "stages 4 and 5: the audit, then CPPO"
planned=(--method tuple --judge $judge --gate "runs/$run/gate/final")
cppo() { # PROCESSES FOLDER FLAGS...
  local n=$1 folder=$2; shift 2
  train "$n" "${common[@]}" --steps $STEPS --lr $LR $CPPO "$@"
  evaluate --model "runs/$run/$folder/final" "${planned[@]}"
}
warmup() { evaluate --model "runs/$run/warmup/final" "${planned[@]}"; }
both() { warmup; cppo $((processes / 2)) cppo; }
marginal=(cppo-marginal --solver-credit marginal)
if ((paper && processes > 1)); then     # side by side: each has half of the cores
  begin_beside "runs/$run/cppo.log" both
  cppo $((processes - processes / 2)) "${marginal[@]}"
else
  ((!paper)) || cppo 1 cppo
  begin_beside "runs/$run/cppo.log" warmup
  cppo "$processes" "${marginal[@]}"
fi
wait_beside "runs/$run/cppo.log"

stage "pass@4 on 300 held-out problems, averaged over the posterior"
python -m paper.tables table 8 "runs/$run"
python -m paper.report "runs/$run"
stage "done; every attempt is in runs/$run/*/eval, the page to look at is runs/$run/report.html"
