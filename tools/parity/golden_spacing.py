#!/usr/bin/env python3
"""Golden numbers of levels and times that the reference lacks: crates/denoising-diffusion/tests/golden/spacing.json.

From the equations of the papers, in float64, with numpy and Python's statistics alone (torch only for its quantile):
noise levels (Karras et al. 2022, arXiv:2206.00364), timesteps and zero terminal SNR (Lin et al. 2024, arXiv:2305.08891), dynamic
thresholding (Saharia et al. 2022, arXiv:2205.11487), time distributions and shift of rectified flow (Esser et al. 2024, arXiv:2403.03206).

    pip install -r tools/parity/requirements.txt && python tools/parity/golden_spacing.py
"""

import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch

OUT = Path(__file__).resolve().parents[2] / "crates/denoising-diffusion/tests/golden/spacing.json"
KARRAS = [(5, 0.002, 80.0, 7.0), (18, 0.002, 80.0, 7.0), (10, 0.0292, 14.6146, 7.0), (6, 0.03, 14.6, 3.0), (2, 0.002, 80.0, 7.0)]
# T = 1000 and n = 7, 26: not whole; T = 50 and n = 4, 20: ties, which go to the even number.
STEPS = [(1000, 50), (1000, 10), (1000, 7), (1000, 26), (1000, 1), (50, 4), (50, 20), (50, 10), (100, 90), (20, 20)]
BETAS = [("linear", 50), ("cosine", 50), ("sigmoid", 50), ("linear", 1000)]
PERCENTILES = [0.5, 0.9, 0.95, 0.995, 1.0]
U = [i / 20 for i in range(1, 20)]


# noise levels


def karras(n, sigma_min, sigma_max, rho):
    """Equation 5, without the zero at its end."""
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(top + i / (n - 1) * (bottom - top)) ** rho for i in range(n)]


def exponential(n, sigma_min, sigma_max):
    """Equal ratios; what k-diffusion calls exponential."""
    return [math.exp(math.log(sigma_max) + i / (n - 1) * math.log(sigma_min / sigma_max)) for i in range(n)]


# timesteps, table 2 of arXiv:2305.08891; the paper counts from 1, here from 0


def trailing(total, n):
    return [int(np.round(total - i * (total / n))) - 1 for i in range(n)]


def leading(total, n):
    return [i * (total // n) for i in reversed(range(n))]


def linspace(total, n):
    """None where the result depends on the number that counting starts from, which decides to where a tie is rounded."""
    times, from_zero = (np.round(np.linspace(start, total - 1 + start, n))[::-1] - start for start in (1, 0))
    return [int(t) for t in times] if (times == from_zero).all() else None


# zero terminal SNR


def betas_of(schedule, total):
    if schedule == "linear":
        return np.linspace(0.1 / total, 20 / total, total)
    u = np.arange(total + 1) / total
    if schedule == "cosine":
        abar = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    else:
        sigmoid = lambda x: 1 / (1 + np.exp(-x))
        abar = (sigmoid(3.0) - sigmoid(6 * u - 3)) / (sigmoid(3.0) - sigmoid(-3.0))
    abar = abar / abar[0]
    return np.clip(1 - abar[1:] / abar[:-1], 0, 0.999)


def zero_terminal_snr(betas):
    """Algorithm 1: sqrt(alphas_cumprod) is moved and stretched so that its last is 0 and its first stays. Gives alphas_cumprod and betas."""
    root = np.sqrt(np.cumprod(1 - betas))
    moved = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    abar = moved**2
    return abar, 1 - np.concatenate([abar[:1], abar[1:] / abar[:-1]])


# dynamic thresholding


def thresholding():
    torch.manual_seed(70)
    x = torch.randn(3, 2, 4, 6, dtype=torch.float32).double()
    x[0] *= 0.3  # largest below 1: nothing is divided
    x[2] *= 4
    out = {"shape": list(x.shape), "x": x.flatten().tolist(), "cases": []}
    for p in PERCENTILES:
        quantile = torch.quantile(x.flatten(1).abs(), p, dim=1)
        s = quantile.clamp(min=1).reshape(-1, 1, 1, 1)
        y = torch.minimum(torch.maximum(x, -s), s) / s
        out["cases"].append({"percentile": p, "quantile": quantile.tolist(), "output": y.flatten().tolist()})
    return out


# times of rectified flow, t = 1 is noise


def logit_normal(m, s):
    """t as a function of u is the inverse of the distribution function."""
    t = [1 / (1 + math.exp(-(m + s * NormalDist().inv_cdf(u)))) for u in U]
    normal = lambda t: math.exp(-((math.log(t / (1 - t)) - m) ** 2) / (2 * s * s))
    return t, [normal(t) / (s * math.sqrt(2 * math.pi) * t * (1 - t)) for t in t]


def mode(s):
    """Mode with heavy tails; s in [-1, 2 / (pi - 2)]. The density is 1 / |dt/du|."""
    t = [1 - u - s * (math.cos(math.pi / 2 * u) ** 2 - 1 + u) for u in U]
    return t, [1 / abs(1 + s * (1 - math.pi / 2 * math.sin(math.pi * u))) for u in U]


def cos_map():
    """The cosine schedule's log-SNR on the straight path."""
    t = [1 - 1 / (math.tan(math.pi / 2 * u) + 1) for u in U]
    return t, [2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t * t) for t in t]


def times():
    out = []
    for m, s in [(0.0, 1.0), (0.5, 0.6), (-1.0, 1.5)]:
        t, density = logit_normal(m, s)
        out.append({"kind": "logit_normal", "m": m, "s": s, "t": t, "density": density})
    for s in (-1.0, -0.5, 0.0, 0.81, 1.29):
        t, density = mode(s)
        out.append({"kind": "mode", "s": s, "t": t, "density": density})
    t, density = cos_map()
    return out + [{"kind": "cos_map", "t": t, "density": density}]


def shift(s):
    """s is sqrt(m / n) when images have m pixels and the schedule was made for n."""
    return [s * t / (1 + (s - 1) * t) for t in [0.0, *U, 1.0]]


def main():
    zero = []
    for schedule, total in BETAS:
        betas = betas_of(schedule, total)
        abar, rescaled = zero_terminal_snr(betas)
        case = {"beta_schedule": schedule, "timesteps": total}
        if total > 100:  # the formula of the betas is known
            at = [0, 1, 2, 10, 100, 250, 500, 750, 990, 997, 998, 999]
            case |= {"at": at, "alphas_cumprod": abar[at].tolist(), "betas": rescaled[at].tolist()}
        else:
            case |= {"original_betas": betas.tolist(), "alphas_cumprod": abar.tolist(), "betas": rescaled.tolist()}
        zero.append(case)
    out = {
        "keys": {
            "karras, exponential": "noise levels from sigma_max to sigma_min, without the zero that a sampler ends with",
            "timesteps": "from 0 to total - 1, in the order of sampling; ties in `trailing` went to the even number before 1 was taken away; linspace is null where n is 1 or a tie makes it ambiguous",
            "zero_terminal_snr": "alphas_cumprod and betas after rescaling; original_betas before it; `at`: only these timesteps",
            "dynamic_thresholding": "x is in float32; quantile of |x| per image with linear interpolation; x clipped to s = max(1, quantile) and divided by s",
            "time_distributions": "t at u, from the inverse distribution function (mode: the paper's map, which falls with u), and the density at that t; t = 1 is noise",
            "shift": "s t / (1 + (s - 1) t)",
        },
        "karras": [{"n": n, "sigma_min": a, "sigma_max": b, "rho": r, "sigmas": karras(n, a, b, r)} for n, a, b, r in KARRAS],
        "exponential": [{"n": n, "sigma_min": a, "sigma_max": b, "sigmas": exponential(n, a, b)} for n, a, b, _ in KARRAS],
        "timesteps": [
            {"total": t, "n": n, "trailing": trailing(t, n), "leading": leading(t, n), "linspace": linspace(t, n) if n > 1 else None}
            for t, n in STEPS
        ],
        "zero_terminal_snr": zero,
        "dynamic_thresholding": thresholding(),
        "u": U,
        "time_distributions": times(),
        "shift": [{"s": s, "t": [0.0, *U, 1.0], "shifted": shift(s)} for s in (0.5, 1.0, math.sqrt(3), 3.0, 6.0)],
    }
    OUT.write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in out.items()) + "\n}\n")


if __name__ == "__main__":
    main()
