#!/usr/bin/env bash
# The paper in miniature: every method, ablation and rival, five seeds or three, every table and
# figure -> docs/results.md, results/.
#
#   bash miniature/reproduce.sh            # 5 to 7 hours on two cores; stopped, it goes on
#   bash miniature/reproduce.sh --list     # the jobs, what is done, estimated minutes
#   bash miniature/reproduce.sh --quick    # all jobs with tiny steps -> runs/quick/docs/results.md
#   bash miniature/reproduce.sh --setting settled    # few methods in another world: 1 hour
#   bash miniature/reproduce.sh --report   # the page of what is done, or of the archives in results/
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=
exec python -m miniature.reproduce "$@"
