"""Runs `ddpm bench` and the reference in turn, so that whatever else the machine does hits both, and prints the ratios.

    run.py --ddpm target/release/ddpm [--configs s,m] [--rounds 7] [--torch eager|bf16|best|best-bf16] [--out docs/performance.md]
    run.py --ddpm target/release/ddpm --device cuda --configs m128,g

Each round runs both, in alternating order: one `ddpm bench --config C --rounds 1 --json` and one round of the reference
(bench_reference.py, kept alive between rounds and idle while ddpm runs). On a GPU, ddpm is kept alive as well (`ddpm bench --on-request`): each start
compiles its kernels anew. A ratio is reference time / our time of the same round, above 1 where we are faster. Progress goes to stderr, each
configuration's Markdown table to stdout as soon as it is there (and to --out).
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
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEYS = {"train_step_ms": "train step", "forward_ms": "forward"}


class Worker:
    """A process that says in a line of JSON when it is ready, and then answers each line with the numbers of a round."""

    def __init__(self, command, env=None):
        self.command = command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.ready = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: {shlex.join(self.command)} ended with code {self.process.wait()}")
        return json.loads(line)

    def round(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Fresh:
    """`ddpm bench`, a new process for each round."""

    def __init__(self, command):
        self.command = [*command, "--rounds", "1", "--json"]

    def round(self):
        found = subprocess.run(self.command, stdout=subprocess.PIPE, text=True)
        if found.returncode:
            sys.exit(f"error: {shlex.join(self.command)} ended with code {found.returncode}")
        return json.loads(found.stdout)

    def close(self):
        pass


def said_threads(args):
    """The threads that --ddpm-args ask for, if they do."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--threads")
    return parser.parse_known_args(shlex.split(args.ddpm_args))[0].threads


def ours(args, config):
    command = [args.ddpm, "bench", "--config", config, "--device", args.device, *shlex.split(args.ddpm_args)]
    if args.device == "cpu" and not said_threads(args):
        command += ["--threads", str(args.threads)]
    return Fresh(command) if args.device == "cpu" else Worker([*command, "--on-request"])


def theirs(args, config):
    command = [args.python, str(HERE / "bench_reference.py"), "--config", config, "--torch", args.torch]
    command += ["--threads", str(args.threads), "--device", args.device]
    return Worker(command, os.environ | {"OMP_NUM_THREADS": str(args.threads)})


def measure(args, config):
    """All rounds of one configuration: a list of (ours, reference)."""
    own, reference = ours(args, config), theirs(args, config)
    turns = {"ours": own.round, "reference": reference.round}
    rounds = []
    for i in range(args.rounds):
        order = ["ours", "reference"] if i % 2 == 0 else ["reference", "ours"]
        result = {name: turns[name]() for name in order}
        rounds.append((result["ours"], result["reference"]))
        line = "  ".join(f"{text} {result['ours'][k]:.1f} / {result['reference'][k]:.1f} ms" for k, text in KEYS.items())
        print(f"{config} round {i + 1}/{args.rounds}: ours / reference: {line}", file=sys.stderr, flush=True)
    own.close()
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
    lines.append(f"| training throughput | {images[0]:.0f} images/s | {images[1]:.0f} images/s | {images[0] / images[1]:.2f} (ours / reference) | |")
    # On a GPU what each side has reserved there.
    key, text = ("device_memory_mib", "device memory") if ready["device"] != "cpu" else ("peak_rss_mib", "peak memory")
    peaks = [[r[side].get(key) for r in rounds] for side in (0, 1)]
    if all(value for side in peaks for value in side):
        x, y = map(max, peaks)
        lines.append(f"| {text} | {x:.0f} MiB | {y:.0f} MiB | {y / x:.3g} | |")
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
    parser.add_argument("--torch", choices=["eager", "bf16", "best", "best-bf16", "graphs"], default="eager")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch and, unless --ddpm-args say otherwise, of ddpm on a CPU")
    parser.add_argument("--out", type=Path, help="also write the Markdown here")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")

    date = datetime.date.today().isoformat()
    own = said_threads(args) or (str(args.threads) if args.device == "cpu" else "its default number of")
    parts = [f"{machine(args.device)}; ddpm with {own} threads, torch with {args.threads}; {args.rounds} rounds in alternating order; {date}. Medians; ratios are medians of per-round ratios."]
    if args.ddpm_args:
        parts[0] += f" `ddpm bench {args.ddpm_args.strip()}`."
    print(parts[0], flush=True)
    for config in args.configs.split(","):
        parts.append(table(config, *measure(args, config)))
        print(f"\n{parts[-1]}", flush=True)
    if args.out:
        args.out.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
