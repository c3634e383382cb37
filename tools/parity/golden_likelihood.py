#!/usr/bin/env python3
"""Golden terms of the variational bound: crates/denoising-diffusion/tests/golden/likelihood.json.

KL divergences and the likelihood of 8-bit values come from the reference's own functions (learned_gaussian_diffusion:
`normal_kl`, `discretized_gaussian_log_likelihood`), on a drawn image and a drawn estimate of it, in float64.

    pip install -r tools/parity/requirements.txt && python tools/parity/golden_likelihood.py
"""

import json
import math
from pathlib import Path

import torch
from denoising_diffusion_pytorch import GaussianDiffusion
from denoising_diffusion_pytorch.learned_gaussian_diffusion import discretized_gaussian_log_likelihood, normal_kl

OUT = Path(__file__).resolve().parents[2] / "crates/denoising-diffusion/tests/golden/likelihood.json"
TIMESTEPS = 20
SHAPE = (1, 1, 4, 4)


class NoNetwork(torch.nn.Module):
    channels = out_dim = 1
    self_condition = False


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    out = {"timesteps": TIMESTEPS, "cases": []}
    for schedule in ("linear", "cosine"):
        diffusion = GaussianDiffusion(NoNetwork(), image_size=4, timesteps=TIMESTEPS, beta_schedule=schedule).double()
        pixels = torch.randint(0, 256, SHAPE)
        pixels.view(-1)[:2] = torch.tensor([0, 255])
        # As float32, which is what our side gets.
        x_start = ((pixels.float() / 255) * 2 - 1).double()
        estimate = (x_start + 0.05 * torch.randn(SHAPE)).clamp(-1, 1).float().double()
        terms = []
        for t in range(TIMESTEPS):
            index = torch.tensor([t])
            x = diffusion.q_sample(x_start, index, noise=torch.randn(SHAPE))
            mean, _, _ = diffusion.q_posterior(x_start, x, index)
            predicted, _, _ = diffusion.q_posterior(estimate, x, index)
            log_variance = diffusion.posterior_variance[max(t, 1)].log().expand(SHAPE)
            if t == 0:
                nats = -discretized_gaussian_log_likelihood(x_start, means=predicted, log_scales=0.5 * log_variance)
            else:
                nats = normal_kl(mean, log_variance, predicted, log_variance)
            terms.append(float(nats.mean()) / math.log(2))
        abar = diffusion.alphas_cumprod[-1]
        prior = normal_kl(abar.sqrt() * x_start, torch.log(1 - abar), torch.tensor(0.0), torch.tensor(0.0))
        out["cases"].append(
            {
                "beta_schedule": schedule,
                "pixels": pixels.flatten().tolist(),
                "estimate": estimate.flatten().tolist(),
                "terms": terms,
                "prior": float(prior.mean()) / math.log(2),
            }
        )
    OUT.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
