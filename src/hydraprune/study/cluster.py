"""A study on a Ray cluster whose machines see the same folder."""

from __future__ import annotations

from pathlib import Path

from hydraprune.core.extras import extra
from hydraprune.study.schema import Study
from hydraprune.study.settle import State, standing
from hydraprune.study.work import prepare, run_study


def run_on_ray(study: Study, out: Path, address: str) -> dict[str, State]:
    """Run `study` with a worker for every GPU of the cluster at `address`, or for every core if it has none.

    Raises:
        SpecError: if ray is not installed, or for what `run_study` refuses.
    """
    with extra("ray", "--ray"):
        import ray
    cells = study.cells()
    prepare(study, cells, out)
    ray.init(address=address, ignore_reinit_error=True)
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    worker = ray.remote(num_gpus=min(1, gpus), num_cpus=1)(run_study)
    workers = min(len(cells), gpus or int(resources.get("CPU", 1)))
    ray.get([worker.remote(study, str(out.resolve())) for _ in range(workers)])
    return standing(cells, out)
