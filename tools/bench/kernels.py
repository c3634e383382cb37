"""Times each kernel against the same operation in torch, in turn, and prints a table.

    kernels.py [--roofline PATH] [--rounds 7] [--threads 2] [--only TEXT] [--all] [--out kernels.md]

Our side is the bench program `roofline` of the kernels' crate, kept alive with --serve; without --roofline it is built first. It
also says which kernels there are, at which sizes. A round runs every kernel for some 0.15 s on each side, in an order
that alternates from round to round. Per round the fastest call counts, ours and torch's, and for torch the faster of its variants
(kernels_torch.py). A ratio is torch time / our time of the same round, above 1 where we are faster.

How to read it: times and ratios are medians over the rounds, with the smallest and the largest ratio. A ratio whose extremes lie on both
sides of 1 says nothing: run it again when the machine is quiet. Convolutions and attention have GFLOP/s, counted as if computed
directly, the others GB/s of all inputs and outputs, once each. The share is that of the bound: the time that the operations take at the
machine's peak, or the bytes at the rate of a copy, whichever is more, divided by our time. It says how much could be gained at most. It
may exceed 100 % for 3 x 3 convolutions, as Winograd's method takes a quarter of the operations; the share in brackets counts only those.
The first line says how much of the processor other programs took: torch's threads wait for each other at the end of every loop and
lose far more to a busy machine than ours do, so trust no ratio from a run where that is more than a few percent.
Every call works on the same memory, so small operations find it in the cache, on both sides.
Progress goes to stderr, the Markdown to stdout and to --out. Needs torch in the interpreter that runs this.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from kernels_torch import fastest_ms, variants
from run import machine

CRATE = "denoising-diffusion-kernels"
ROOT = Path(__file__).resolve().parents[2]


class Ours:
    """The bench program, which answers line by line."""

    def __init__(self, path, args):
        env = os.environ | {"RAYON_NUM_THREADS": str(args.threads)}
        command = [path, "--serve", "--only", args.only, *(["--all"] if args.all else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.ready = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: the bench program ended with code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            sys.exit(f"error: {answer['error']}")
        return answer

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Others:
    """The processor time of other programs since this was made."""

    def __init__(self):
        self.start, self.begin = self.seconds(), time.perf_counter()

    @staticmethod
    def seconds():
        """Of all programs and of what the host took, less ours and that of our processes that have ended. Linux only, else 0."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return 0.0
        user, nice, system, _, _, *interrupts_and_stolen = map(int, stat.read_text().split()[1:9])
        busy = user + nice + system + sum(interrupts_and_stolen)
        return busy / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])

    def share(self):
        """Of all cores."""
        taken = self.seconds() - self.start
        return max(0.0, taken / (time.perf_counter() - self.begin) / os.cpu_count())


def build():
    command = ["cargo", "bench", "-p", CRATE, "--bench", "roofline", "--no-run", "--message-format=json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} ended with code {done.returncode}")
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "roofline")


def measure(ours, rounds):
    """Per kernel the rounds as (our answer, torch's times by variant), and the peaks."""
    cases = ours.ready["cases"]
    found = {case["name"]: [] for case in cases}
    peaks = ours.ready
    for i in range(rounds):
        peaks = ours.ask("peaks")
        for case in cases:
            turns = {
                "ours": lambda: ours.ask(case["name"]),
                "torch": lambda: {name: fastest_ms(call) for name, call in variants(case).items()},
            }
            result = {side: turns[side]() for side in (turns if i % 2 == 0 else reversed(turns))}
            found[case["name"]].append((result["ours"], result["torch"]))
            a, b = result["ours"]["ms"], min(result["torch"].values())
            print(f"round {i + 1}/{rounds}: {case['name']}: {a:.3f} / {b:.3f} ms", file=sys.stderr, flush=True)
    return found, peaks


def row(rounds):
    """A line of the table from the rounds of a kernel."""
    last = rounds[-1][0]
    ours = statistics.median(a["ms"] for a, _ in rounds)
    variant = min(rounds[0][1], key=lambda name: statistics.median(b[name] for _, b in rounds))
    torchs = statistics.median(min(b.values()) for _, b in rounds)
    ratios = [min(b.values()) / a["ms"] for a, b in rounds]
    rate = statistics.median(a["rate"] for a, _ in rounds)
    share = f"{last['bound_ms'] / ours:.0%} {last['bound']}"
    if last["winograd_bound_ms"]:
        share += f" ({last['winograd_bound_ms'] / ours:.0%})"
    cells = [
        last["kernel"],
        last["shape"],
        f"{ours:.3f}",
        f"{torchs:.3f} {variant}",
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{rate:.1f} {last['unit']}",
        share,
    ]
    return f"| {' | '.join(cells)} |"


def report(found, peaks, others, args):
    date = datetime.date.today().isoformat()
    lines = [
        f"{machine('cpu')}; {args.threads} threads on both sides; torch {torch.__version__}; {args.rounds} rounds in alternating order; {date}; "
        f"other programs took {others:.0%} of the processor. "
        f"Peaks: {peaks['peak_gflops']:.0f} GFLOP/s ({peaks['arithmetic']}), {peaks['memory_gbs']:.1f} GB/s in memory, "
        f"{peaks['cache_gbs']:.1f} GB/s in the cache.",
        "",
        "| kernel | shape | ours, ms | torch, ms | torch / ours | smallest to largest | rate | share of the bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(row(rounds) for rounds in found.values())]) + "\n"


def main():
    parser = argparse.ArgumentParser(description="Interleaved benchmark of the kernels and torch.")
    parser.add_argument("--roofline", help="path of the bench program (default: build it)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="threads of each side")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--all", action="store_true", help="more sizes")
    parser.add_argument("--out", type=Path, help="also write the Markdown here")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    torch.set_num_threads(args.threads)

    path = args.roofline or build()
    others = Others()
    ours = Ours(path, args)
    if not ours.ready["cases"]:
        parser.error(f"no kernel's name contains {args.only!r}")
    found, peaks = measure(ours, args.rounds)
    ours.close()
    text = report(found, peaks, others.share(), args)
    print(text, end="")
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
