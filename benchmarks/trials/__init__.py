"""The parts of `benchmarks/faults.py`: what is done to the project, and how it is judged."""

import os

# Before numpy and torch are imported: a process that forks must have one thread.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
