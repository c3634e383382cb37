#!/usr/bin/env python3
"""`ddpm fid` against pytorch-fid 0.3.0 on the same machine: time and memory, interleaved.

Weights come from the formula of tools/parity/golden_inception.py (speed does not depend on what a network knows), images
likewise. Both sides compute features of 2048 dimensions for a folder of PNG files in one process of its own each; time to start and to
read weights is taken off by a run on two images. Prints every round, medians and the median of ratios. --frechet times the distance of two Gaussians
of 2048 dimensions instead: `ddpm fid a.npz b.npz` (the whole process) against pytorch-fid's calculate_frechet_distance (the call alone).

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

PARITY = str(Path(__file__).resolve().parents[1] / "parity")

PREPARE = """
import sys, pathlib, torch
sys.path.insert(0, {parity!r})
from golden_inception import network, write_folder
torch.save(network()[2], {weights!r})
for name, count in (("all", {images}), ("two", 2)):
    write_folder(pathlib.Path({root!r}) / name, 0, (3, {size}, {size}), count)
"""

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


def frechet(args):
    """The distance alone, statistics of 4,000 draws on each side."""
    import numpy as np
    from pytorch_fid.fid_score import calculate_frechet_distance

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        paths, gaussians = [], []
        for side in (0, 1):
            mix = rng.standard_normal((2048, 2048)) * np.exp(-np.arange(2048) / 400)
            features = rng.standard_normal((4000, 2048)) @ mix.T / 30 + 0.05 * side
            gaussians.append((features.mean(axis=0), np.cov(features, rowvar=False)))
            paths.append(f"{root}/{side}.npz")
            np.savez(paths[-1], mu=gaussians[-1][0], sigma=gaussians[-1][1])
        rows = []
        for _ in range(args.rounds):
            command = [args.ddpm, "fid", *paths, "--json", "--threads", str(args.threads)]
            start = time.perf_counter()
            ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["fid"]
            middle = time.perf_counter()
            theirs = calculate_frechet_distance(*gaussians[0], *gaussians[1])
            rows.append((middle - start, time.perf_counter() - middle, abs(ours - theirs) / theirs))
    print("| round | ddpm, s | scipy, s | ratio | relative difference |\n|---|---|---|---|---|")
    for number, (ours, theirs, difference) in enumerate(rows, 1):
        print(f"| {number} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} | {difference:.1e} |")
    print(f"\nmedian of ratios {statistics.median(theirs / ours for ours, theirs, _ in rows):.2f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ddpm", required=True)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=50, help="of pytorch-fid; 50 is its default")
    parser.add_argument("--frechet", action="store_true", help="time the distance of two Gaussians instead")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    if args.frechet:
        return frechet(args)
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        weights = root / "weights.pth"
        # In a process of its own: a child's peak memory counts what its parent had when it was forked.
        code = PREPARE.format(parity=PARITY, weights=str(weights), root=str(root), size=args.size, images=args.images)
        subprocess.run([sys.executable, "-c", code], check=True)

        def ours(folder):
            out = root / "out.npz"
            return [args.ddpm, "stats", str(root / folder), "-o", str(out), "--force", "--no-cache", "--threads", str(args.threads),
                    "--inception", str(weights), "--unverified-inception"]  # fmt: skip

        def theirs(folder):
            code = TORCH.format(
                parity=PARITY, threads=args.threads, weights=str(weights), folder=str(root / folder), batch=args.batch
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
