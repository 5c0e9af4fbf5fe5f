#!/usr/bin/env bash
# A released small model on one laptop: its own tasks, rivals, the five stages of CPPO, one table.
#
#   bash examples/small_model.sh FOLDER --tasks mbpp.jsonl [--full] [--seed N] [--judge SPEC]
#                                [--teacher SPEC]
#
# FOLDER is any causal language model of 0.1 to 0.6 B with a chat template. TASKS are lines
# {"task_id", "text", "test_list", "code"}: MBPP as google-research publishes it. Tasks 601 to 974
# become the training pool, 511 to 600 the held-out one, as their authors split them. Without
# --teacher and --judge rules stand in for models: that tries the wiring and teaches little.
# The default is meant for 20 idle minutes on two cores, --full for a night (neither timed yet);
# docs/small_model.md has what was measured. DTYPE=bf16 halves the time of evaluation on a CPU that
# has products in bf16.
# A finished stage is not done again: the same command goes on where it was killed.
set -euo pipefail
cd "$(dirname "$0")/.."

usage="usage: bash examples/small_model.sh FOLDER --tasks FILE [--full] [--seed N] [--judge SPEC]"
folder=${1:?$usage}; shift
seed=0 full= tasks= judge=rule teacher=rule
while (($#)); do
  case $1 in
    --tasks) tasks=${2:?--tasks needs a file}; shift 2 ;;
    --seed) seed=${2:?--seed needs a number}; shift 2 ;;
    --judge) judge=${2:?--judge needs a spec}; shift 2 ;;
    --teacher) teacher=${2:?--teacher needs a spec}; shift 2 ;;
    --full) full=yes; shift ;;
    *) echo "error: unknown flag $1; $usage" >&2; exit 2 ;;
  esac
done
[[ -f $folder/config.json ]] || { echo "error: $folder holds no config.json" >&2; exit 2; }
[[ -f $tasks ]] || { echo "error: --tasks '$tasks': no such file; mbpp.jsonl is in mbpp/ of" \
  "github.com/google-research/google-research" >&2; exit 2; }

if [[ $full ]]; then
  train=${TRAIN:-200} heldout=${HELDOUT:-80} screen=${SCREEN:-8} steps=${STEPS:-60}
  problems=${PROBLEMS:-8} tuples=${TUPLES:-4} attempts=${ATTEMPTS:-16} tokens=${TOKENS:-256}
  k=${K:-4}
else
  train=${TRAIN:-24} heldout=${HELDOUT:-12} screen=${SCREEN:-2} steps=${STEPS:-3}
  problems=${PROBLEMS:-2} tuples=${TUPLES:-2} attempts=${ATTEMPTS:-8} tokens=${TOKENS:-128}
  k=${K:-4}
fi
lr=${LR:-1e-5}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
run=${RUN:-small-seed$seed}
data=runs/$run/data
prompts=$data/prompts.json
common="--seed $seed --prompts $prompts"
sampler="--dtype ${DTYPE:-auto} --workers 1"      # of evaluate.py
lengths="--max-plan-tokens 160 --max-solve-tokens $tokens --temperature 0.8"
rl="$common $lengths --problems $data/train.jsonl --lr $lr --steps $steps --save-every $steps
    --problems-per-step $problems --token-budget 2048"
SECONDS=0
mkdir -p "$data"
stage() { printf '\n== %s  (%d:%02d)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }
# shellcheck disable=SC2086
evaluate() { # MODEL METHOD: attempts, raw replies too, in runs/RUN/*/eval
  python evaluate.py --model "$1" --method "$2" --problems $data/heldout.jsonl --k 1 $k \
    --attempts $k $common $lengths $sampler ${3:+--run $3} | tee -a "runs/$run/evaluation.log"
}

stage "pools: converted, their reference solutions run"
# the solver's prompt shows one assert, as MBPP's own does
cat > $prompts <<'JSON'
{"problem": "{statement}\n\nExample:\n{examples}"}
JSON
if [[ ! -f $data/train.jsonl ]]; then
  python -m prepare.convert "$tasks" $data/tasks.jsonl --ids 601 974
  head -n "$train" $data/tasks.jsonl > $data/some.jsonl
  python -m prepare.convert "$tasks" $data/others.jsonl --ids 511 600
  head -n "$heldout" $data/others.jsonl > $data/heldout0.jsonl
  grep -Ff <(grep -o '"id": "[^"]*"' $data/some.jsonl | sed 's/"id"/"problem_id"/') \
    $data/tasks.solutions.jsonl > $data/some.solutions.jsonl
  grep -Ff <(grep -o '"id": "[^"]*"' $data/heldout0.jsonl | sed 's/"id"/"problem_id"/') \
    $data/others.solutions.jsonl > $data/heldout.solutions.jsonl
  python -m prepare.check $data/heldout0.jsonl --solutions $data/heldout.solutions.jsonl \
    --keep $data/heldout.jsonl --workers 1
  python -m prepare.check $data/some.jsonl --solutions $data/some.solutions.jsonl \
    --keep $data/pool.jsonl --workers 1
fi

stage "screening: $screen attempts of the model at every training problem"
# shellcheck disable=SC2086
if [[ ! -f $data/train.jsonl ]]; then
  python evaluate.py --model "$folder" --method direct --problems $data/pool.jsonl \
    --k 1 "$screen" $common $lengths $sampler --out $data/screening.jsonl
  # without --full there are too few attempts to tell hard from impossible: all stay
  bounds=(0 1); [[ -z $full ]] || bounds=(0.05 0.95)
  # --own: whether the pool holds evaluation problems is known here, from the tasks' numbers
  python -m prepare.check $data/pool.jsonl --attempts $data/screening.jsonl \
    --pass-rate "${bounds[@]}" --keep $data/train.jsonl --own
fi

stage "the model itself, direct"
evaluate "$folder" direct "$run"

# shellcheck disable=SC2086
for method in grpo pkpo; do
  stage "plain GRPO and PKPO: $method"
  python -m rivals.train_rivals --model "$folder" --run "$run" --method $method $rl \
    --num-attempts "$attempts"
  evaluate runs/$run/$method/final direct
done

stage "gold tuples and gate labels ($teacher proposes, $judge judges)"
if [[ ! -f $data/labels_val.jsonl ]]; then
  python -m prepare.teacher gold --teacher "$teacher" --judge "$judge" --prompts $prompts \
    --problems $data/train.jsonl --out $data --gold "$train"
  python -m prepare.teacher labels --teacher "$teacher" --judge "$judge" --prompts $prompts \
    --problems $data/train.jsonl --out $data --train $((2 * train)) --val $((train / 2))
fi

stage "stage 1"
# shellcheck disable=SC2086
python train_sft.py --model "$folder" --run "$run" $common --gold $data/gold.jsonl \
  --problems $data/train.jsonl --batch-size 8 --epochs 2 --lr 2e-5 --token-budget 2048 \
  --max-solve-tokens "$tokens"
evaluate runs/$run/sft/final tuple
stage "stage 2"
# shellcheck disable=SC2086
python train_rm.py --model "$folder" --run "$run" $common --labels $data/labels_train.jsonl \
  --val $data/labels_val.jsonl --problems $data/train.jsonl --batch-size 8 --epochs 2 --lr 2e-5 \
  --token-budget 2048 || [[ $? -eq 3 ]]     # 3: not accepted
gate=()
if ! grep -q '"accepted": true' "runs/$run/gate/final/gate.json"; then
  echo "the trained gate does not reach the thresholds of Appendix D: the rule gate in its place"
  gate=(--gate rule)
fi
stage "stage 3"
# shellcheck disable=SC2086
python train_cppo.py --model "$folder" --run "$run" --stage warmup $rl --num-tuples "$tuples" "${gate[@]}"
# shellcheck disable=SC2086
for credit in siblings marginal; do
  stage "stages 4 and 5, solver credit $credit"
  # few problems: the audit may find none solved, which the table shows as well
  python train_cppo.py --model "$folder" --run "$run" $rl --num-tuples "$tuples" --skip-audit \
    --solver-credit $credit --judge "$judge" "${gate[@]}"
  name=cppo-m$tuples; [[ $credit = siblings ]] || name=$name-$credit
  evaluate runs/$run/$name/final tuple
done

stage "tables; every plan and reply is in runs/$run/*/samples.jsonl and runs/$run/*/eval/*.jsonl"
python -m paper.tables show $(find "runs/$run" -path '*/eval/*.jsonl' | sort) --k 1 $k
