"""miniature/run.sh and examples/slurm.sh, with commands that only say what they were called
with."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FAKE = """#!/bin/bash
echo "${CUDA_VISIBLE_DEVICES-all GPUs}|$(basename "$0") $*" >> "$CALLS"
"""


def run(script, folder, **variables):
    """Run it with fake commands -> [(what CUDA_VISIBLE_DEVICES was, the command line)]."""
    for name in ("python", "torchrun", "srun"):
        (folder / name).write_text(FAKE)
        (folder / name).chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(folder / "calls")}
    subprocess.run(["bash", *script], env=env | variables, check=True, cwd=folder,
                   capture_output=True, timeout=60)
    return [line.split("|") for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize("flags", [[], ["--paper"]])
def test_the_quick_start_hides_gpus_from_every_stage(flags, tmp_path):
    """It starts two processes, which on a machine with one GPU was an error at stage 3."""
    for file in ("run.sh", "settings.sh"):
        copy = tmp_path / "miniature" / file
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((ROOT / "miniature" / file).read_text())
    calls = run([tmp_path / "miniature/run.sh", *flags], tmp_path, PROCESSES="2")
    assert {devices for devices, _ in calls} == {""}
    assert any(call.startswith("torchrun") for _, call in calls)
    for script in ("miniature.base", "train_sft.py", "train_rm.py", "train_cppo.py", "evaluate.py"):
        assert any(script in call for _, call in calls)
    evaluated = {call.split("--model ")[1].split()[0] for _, call in calls if "evaluate.py" in call}
    assert ("runs/miniature-seed0/cppo/final" in evaluated) == bool(flags)
    assert "runs/miniature-seed0/cppo-marginal/final" in evaluated


def test_the_slurm_script_starts_torchrun_on_every_node_with_one_meeting_point(tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho node7; echo node8\n")
    (tmp_path / "scontrol").chmod(0o755)
    (_, call), = run([ROOT / "examples/slurm.sh", "--model", "M"], tmp_path, SLURM_NNODES="2",
                     SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_NODELIST="node[7-8]",
                     SLURM_JOB_ID="5")
    assert call.startswith("srun torchrun --nnodes=2 --nproc_per_node=8 ")
    assert "--rdzv_endpoint=node7:29500 " in call and call.endswith(" train_cppo.py --model M")
