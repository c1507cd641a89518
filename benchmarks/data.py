"""What it costs to shuffle and augment CIFAR-10, against a TRADES-10 step of `vgg4` on the same batch.

python benchmarks/data.py --path CIFAR_FOLDER --out benchmarks/data.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from hydraprune import TRADES, MaskView, Net, Optim, ThreatModel, fit, load_data
from hydraprune.train import OneProcess
from machine import publish, synchronize
from train_step import Repeated, Stopwatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="folder of CIFAR-10 parquet files")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    began = time.perf_counter()
    data = load_data("cifar10", path=args.path)
    load = time.perf_counter() - began
    batches = data.train.batches(
        args.batch, seed=0, augment=True, shuffle=True, drop_last=True, device="cuda" if cuda else "cpu"
    )
    began = time.perf_counter()
    *_, batch = batches.epoch(0)
    synchronize()
    per_batch = (time.perf_counter() - began) / len(batches)
    net, watch = Net(kind="vgg4").build(10), Stopwatch()
    fit(
        net,
        MaskView(net).train("weights"),
        Repeated(batch, 5),
        TRADES(),
        epochs=1,
        optim=Optim(lr=1e-3),
        threat=ThreatModel(eps="8/255"),
        fabric=OneProcess("cuda:0" if cuda else "cpu", bf16=True),
        hooks=[watch],
    )
    step = statistics.median(watch.seconds[1:])
    epochs = 220  # of the paper's three stages; the load is paid once
    share = (per_batch + load / (epochs * len(batches))) / step
    report = {
        "batch": args.batch,
        "load_seconds": load,
        "batch_milliseconds": 1000 * per_batch,
        "step_seconds": step,
        "share_of_step": share,
    }
    publish(report, args.out)


if __name__ == "__main__":
    main()
