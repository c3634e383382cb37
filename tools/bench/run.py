"""Runs `ddpm bench` and the reference in turn, so that whatever else the machine does hits both, and prints the ratios.

    run.py --ddpm target/release/ddpm [--configs s,m] [--rounds 7] [--torch eager|bf16|best] [--out docs/performance.md]
    run.py --ddpm target/release/ddpm --device cuda --configs m128,g

Each round runs both, in alternating order: one `ddpm bench --config C --rounds 1 --json` and one round of the reference
(bench_reference.py, kept alive between rounds and idle while ddpm runs). A ratio is reference time / our time of the same
round, above 1 where we are faster. Progress goes to stderr, the Markdown table to stdout (and to --out).
The interpreter that runs this must have tools/parity/requirements.txt installed, or be named with --python.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEYS = {"train_step_ms": "train step", "forward_ms": "forward"}


class Reference:
    """The worker process of the reference."""

    def __init__(self, python, config, mode, threads, device):
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [python, str(HERE / "bench_reference.py"), "--config", config, "--torch", mode, "--threads", str(threads), "--device", device]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.ready = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: the reference's worker ended with code {self.process.wait()}")
        return json.loads(line)

    def round(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def ours(ddpm, config, device, extra):
    """One round. On a GPU the first step compiles and tunes kernels, which the round's own first steps pay for; its peak memory is what
    nvidia-smi sees of the process."""
    command = [ddpm, "bench", "--config", config, "--rounds", "1", "--json", "--device", device, *extra]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0.0
    while device != "cpu" and process.poll() is None:
        peak = max(peak, gpu_memory_mib(process.pid))
        time.sleep(0.2)
    found = process.communicate()[0]
    if process.returncode:
        sys.exit(f"error: {shlex.join(command)} ended with code {process.returncode}")
    result = json.loads(found)
    return result | {"peak_rss_mib": peak} if device != "cpu" else result


def gpu_memory_mib(pid):
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    rows = [line.split(",") for line in lines if "," in line]
    return sum(float(used) for p, used in rows if int(p) == pid and used.strip().isdigit())


def measure(args, config):
    """All rounds of one configuration: a list of (ours, reference)."""
    reference = Reference(args.python, config, args.torch, args.threads, args.device)
    turns = {"ours": lambda: ours(args.ddpm, config, args.device, shlex.split(args.ddpm_args)), "reference": reference.round}
    rounds = []
    for i in range(args.rounds):
        order = ["ours", "reference"] if i % 2 == 0 else ["reference", "ours"]
        result = {name: turns[name]() for name in order}
        rounds.append((result["ours"], result["reference"]))
        line = "  ".join(f"{text} {result['ours'][k]:.1f} / {result['reference'][k]:.1f} ms" for k, text in KEYS.items())
        print(f"{config} round {i + 1}/{args.rounds}: ours / reference: {line}", file=sys.stderr, flush=True)
    reference.close()
    return reference.ready, rounds


def table(config, ready, rounds):
    mode = ready["mode"] + (f" ({', '.join(ready['with'])})" if ready["with"] else "")
    lines = [
        f"### Configuration {config}, batch {ready['batch']}, torch {ready['torch']} {mode}",
        "",
        "| | ours | reference | reference / ours | every round's ratio |",
        "|---|---|---|---|---|",
    ]
    for key, text in KEYS.items():
        a, b = [r[0][key] for r in rounds], [r[1][key] for r in rounds]
        ratios = [y / x for x, y in zip(a, b)]
        every = ", ".join(f"{r:.2f}" for r in ratios)
        lines.append(
            f"| {text} | {statistics.median(a):.1f} ms | {statistics.median(b):.1f} ms | {statistics.median(ratios):.2f} | {every} |"
        )
    images = [ready["batch"] / statistics.median(r[side]["train_step_ms"] for r in rounds) * 1e3 for side in (0, 1)]
    peaks = [max(r[side]["peak_rss_mib"] for r in rounds) for side in (0, 1)]
    for text, (x, y), unit in [("training throughput", images, "images/s"), ("peak memory", peaks, "MiB")]:
        lines.append(f"| {text} | {x:.0f} {unit} | {y:.0f} {unit} | {y / x:.3g} | |")
    return "\n".join(lines)


def machine(device):
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return "GPU " + subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.strip().replace(", ", ", driver ")
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = found[0] if found else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def main():
    parser = argparse.ArgumentParser(description="Interleaved benchmark of ddpm and the reference.")
    parser.add_argument("--ddpm", default=str(HERE.parents[1] / "target" / "release" / "ddpm"), help="path of the binary")
    parser.add_argument("--ddpm-args", default="", help="more flags for `ddpm bench`")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the reference installed")
    parser.add_argument("--configs", default="s,m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", choices=["eager", "bf16", "best"], default="eager")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--out", type=Path, help="also write the Markdown here")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")

    date = datetime.date.today().isoformat()
    parts = [f"{machine(args.device)}; {args.threads} torch threads; {args.rounds} rounds in alternating order; {date}. Medians; ratios are medians of per-round ratios."]
    for config in args.configs.split(","):
        parts.append(table(config, *measure(args, config)))
    text = "\n\n".join(parts) + "\n"
    print(text, end="")
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
