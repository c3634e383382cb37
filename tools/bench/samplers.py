"""Few-step quality: sliced Wasserstein distance of every solver at equal numbers of network evaluations.

    python tools/bench/samplers.py --ddpm target/release/ddpm --run RUN --out samplers

writes samplers.csv, samplers.md.part (tables) and samplers.svg. Needs matplotlib for the plot. A row that exists in the
CSV is not measured again.
"""

import argparse
import csv
import json
import subprocess
from pathlib import Path

BUDGETS = (5, 10, 20, 50, 250)
SOLVERS = ("ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2s", "dpmpp_sde_2m", "dpmpp_sde_3m", "unipc", "lms")
TWICE = ("heun", "dpmpp_2s")  # evaluations per step, but for the first, out of nothing but noise, and the last


def steps(solver, budget):
    return (budget + 2) // 2 if solver in TWICE else budget


def measure(args, solver, levels, budget):
    command = [
        args.ddpm, "eval", args.run, "--metrics", "swd", "-n", str(args.samples), "--num-real", str(args.real), "--json",
        "--sampler", solver, "--noise-levels", levels, "--steps", str(steps(solver, budget)), "--batch-size", "128",
    ]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(found.stderr)
    (swd,) = [m for m in json.loads(found.stdout)["measurements"] if m["name"] == "swd"]
    return swd["value"], swd.get("standard_error") or 0.0


def table(rows, levels):
    lines = ["| solver | " + " | ".join(map(str, BUDGETS)) + " |", "|---" * (len(BUDGETS) + 1) + "|"]
    best = {b: min((r["swd"] for r in rows if r["budget"] == b and r["levels"] == levels), default=0) for b in BUDGETS}
    for solver in SOLVERS:
        cells = []
        for budget in BUDGETS:
            row = next((r for r in rows if (r["solver"], r["levels"], r["budget"]) == (solver, levels, budget)), None)
            text = "" if row is None else f"{row['swd']:.4f}"
            cells.append(f"**{text}**" if row and row["swd"] == best[budget] else text)
        lines.append(f"| `{solver}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows, path):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    all_levels = sorted({r["levels"] for r in rows})
    figure, axes = plt.subplots(1, len(all_levels), figsize=(6 * len(all_levels), 4.5), sharey=True, squeeze=False)
    for axis, levels in zip(axes[0], all_levels):
        for solver, marker in zip(SOLVERS, "osD^v<>Xp*h"):
            points = sorted((r["budget"], r["swd"]) for r in rows if (r["solver"], r["levels"]) == (solver, levels))
            axis.plot(*zip(*points), marker=marker, label=solver, linewidth=1.2, markersize=5)
        axis.set(xscale="log", yscale="log", title=f"noise levels: {levels}", xlabel="network evaluations per image")
        axis.set_xticks(BUDGETS, BUDGETS)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("sliced Wasserstein distance")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ddpm", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--out", required=True, help="path without ending")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--real", type=int, default=10_000)
    parser.add_argument("--levels", nargs="+", default=["trained", "log_snr"])
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS)
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, choices=SOLVERS)
    args = parser.parse_args()
    store = Path(args.out + ".csv")
    rows = []
    if store.exists():
        for row in csv.DictReader(store.open()):
            rows.append({**row, "budget": int(row["budget"]), "swd": float(row["swd"]), "error": float(row["error"])})
    done = {(r["solver"], r["levels"], r["budget"]) for r in rows}
    for budget in args.budgets:
        for levels in args.levels:
            for solver in args.solvers:
                if (solver, levels, budget) in done:
                    continue
                swd, error = measure(args, solver, levels, budget)
                rows.append({"solver": solver, "levels": levels, "budget": budget, "swd": swd, "error": error})
                print(f"{budget:4} {levels:8} {solver:16} {swd:.4f} +- {error:.4f}", flush=True)
                with store.open("w", newline="") as out:
                    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
    parts = [f"Noise levels `{levels}`:\n\n{table(rows, levels)}\n" for levels in args.levels]
    Path(args.out + ".md.part").write_text("\n".join(parts))
    plot(rows, args.out + ".svg")


if __name__ == "__main__":
    main()
