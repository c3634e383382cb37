#!/usr/bin/env python3
"""`ddpm fid` against pytorch-fid 0.3.0 on the same machine: time and memory, interleaved.

Weights come from the formula of tools/parity/golden_inception.py (speed does not depend on what a network knows), images
likewise. Both sides compute features of 2048 dimensions for a folder of PNG files in one process of its own each; time to start and to
read weights is taken off by a run on two images. Prints every round, medians and the median of ratios.

    pip install -r tools/parity/requirements-eval.txt
    python tools/bench/fid.py --ddpm target/release/ddpm --images 64 --rounds 5 --threads 2
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "parity"))

TORCH = """
import sys, torch
sys.path.insert(0, {parity!r})
torch.set_num_threads({threads})
from pytorch_fid import fid_score, inception
state = torch.load({weights!r})
inception.load_state_dict_from_url = lambda *_, **__: state
net = inception.InceptionV3([3])
fid_score.compute_statistics_of_path({folder!r}, net, {batch}, 2048, "cpu", 0)
"""


def measured(command):
    """Seconds and peak resident MiB of a child process."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(error.decode())
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ddpm", required=True)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=50, help="of pytorch-fid; 50 is its default")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch
    from golden_inception import network, write_folder

    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        _, _, state = network()
        weights = root / "weights.pth"
        torch.save(state, weights)
        write_folder(root / "all", 0, (3, args.size, args.size), args.images)
        write_folder(root / "two", 0, (3, args.size, args.size), 2)

        def ours(folder):
            out = root / "out.npz"
            return [args.ddpm, "stats", str(root / folder), "-o", str(out), "--force", "--no-cache", "--threads", str(args.threads),
                    "--inception", str(weights), "--unverified-inception"]  # fmt: skip

        def theirs(folder):
            parity = str(Path(__file__).resolve().parents[1] / "parity")
            code = TORCH.format(
                parity=parity, threads=args.threads, weights=str(weights), folder=str(root / folder), batch=args.batch
            )
            return [sys.executable, "-c", code]

        rows = []
        for round_ in range(args.rounds):
            row = {}
            for name, command in [("ddpm", ours), ("pytorch-fid", theirs)]:
                start, _ = measured(command("two"))
                whole, memory = measured(command("all"))
                row[name] = {"ms_per_image": (whole - start) / (args.images - 2) * 1e3, "start_s": start, "mib": memory}
            row["ratio"] = row["pytorch-fid"]["ms_per_image"] / row["ddpm"]["ms_per_image"]
            rows.append(row)
            print(f"round {round_ + 1}: {json.dumps(row)}", file=sys.stderr)
    print("| round | ddpm, ms/image | pytorch-fid, ms/image | ratio | ddpm, MiB | pytorch-fid, MiB |")
    print("|---|---|---|---|---|---|")
    for number, row in enumerate(rows, 1):
        print(f"| {number} | {row['ddpm']['ms_per_image']:.0f} | {row['pytorch-fid']['ms_per_image']:.0f} | {row['ratio']:.2f} "
              f"| {row['ddpm']['mib']:.0f} | {row['pytorch-fid']['mib']:.0f} |")  # fmt: skip
    print(f"\nmedian of ratios {statistics.median(row['ratio'] for row in rows):.2f}")


if __name__ == "__main__":
    main()
