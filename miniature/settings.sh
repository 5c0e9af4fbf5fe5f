# Flags of the miniature runs, for run.sh and claim.sh (bash) and reproduce.py, which reads only
# lines of this form.
SAMPLING="--temperature 0.8 --max-plan-tokens 64 --max-solve-tokens 48"
BASE=""
GATE_BASE="--gate"
SFT="--epochs 1 --batch-size 32 --lr 3e-4"
GATE="--tau auto --epochs 4 --batch-size 32 --lr 5e-4"
WARMUP="--steps 12 --lr 1e-4"
CPPO=""
STEPS="120"
LR="3e-4"
LR_GRID="1.5e-4 3e-4 6e-4"
