"""Trains a small network for a few steps on the CPU and on another device, and compares losses and norms of gradients.

    gpu_check.py target/release/ddpm cuda

Noise, order of the data and first weights are the same on every device, so that losses agree but for rounding: in f32 (TF32 on GPUs that have it) to
1 %, in bf16 to 5 %. With --device-graph the losses are those of launches, to the bit, and something is recorded: `ddpm train` only warns where it
cannot.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = 8
# What `ddpm train` warns of if it launches the steps that it was to record.
REFUSED = "--device-graph has no effect"
NETWORK = ["--dim", "32", "--dim-mults", "1,2", "--batch-size", "16", "--log-every", "1", "--sample-every", "1000", "--held-out", "0"]


def losses(ddpm, folder, device, flags):
    """(loss, norm of gradients) of every step."""
    run = Path(folder) / "-".join([device, *flags]).replace("/", "_")
    command = [ddpm, "train", "digits", *NETWORK, "--steps", str(STEPS), "--device", device, "--out", str(run), *flags]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode or REFUSED in done.stderr:
        sys.exit(f"error: {' '.join(command)}\n{done.stderr}")
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [(r["loss"], r["grad_norm"]) for r in records if r["kind"] == "step"]


def furthest(one, other):
    return max(abs(a - b) / abs(b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y))


def main():
    ddpm, device = sys.argv[1:]
    failed = False

    def report(what, distance, most):
        nonlocal failed
        failed |= not distance <= most
        print(f"{what}: {distance:.2e} apart, at most {most:.0e}: {'ok' if distance <= most else 'WRONG'}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        cpu = losses(ddpm, folder, "cpu", [])
        plain = losses(ddpm, folder, device, [])
        report(f"{device}, f32", furthest(plain, cpu), 1e-2)
        report(f"{device}, bf16", furthest(losses(ddpm, folder, device, ["--precision", "bf16"]), cpu), 5e-2)
        report(f"{device}, recorded", furthest(losses(ddpm, folder, device, ["--device-graph"]), plain), 0.0)
    sys.exit(failed)


if __name__ == "__main__":
    main()
