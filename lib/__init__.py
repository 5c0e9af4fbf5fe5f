"""What any trainer has: runs, files, checkpoints, problems, metrics, memory, adapters."""
