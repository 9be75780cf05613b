"""torchrun over the workers of a job, with one difference: it ends, and they with it, when its parent is killed.

``python -m tasks.ml.jobs.agent [TORCHRUN-OPTIONS] JOB``. Across machines that share the job's directory, the same
command is given on each of them, with ``--nnodes``, ``--rdzv-backend c10d`` and ``--rdzv-endpoint``.
"""

from __future__ import annotations

import sys

from torch.distributed.run import main as torchrun

from tasks.ml import machine

if __name__ == "__main__":
    machine.end_with_parent()
    torchrun([*sys.argv[1:-1], "-m", "tasks.ml.jobs.worker", sys.argv[-1]])
