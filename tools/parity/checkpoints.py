"""State dicts of the reference's diffusion classes, formulation_<name>.pt, and import_diffusion.safetensors: what they must give.

Each is as small as the classes allow: a U-Net of one level.
"""

from io import BytesIO
from pathlib import Path

import torch
from denoising_diffusion_pytorch import (
    ContinuousTimeGaussianDiffusion,
    ElucidatedDiffusion,
    LearnedGaussianDiffusion,
    Unet,
    VParamContinuousTimeGaussianDiffusion,
)

from common import diffusion, given, network, randn
from continuous import bend
from diffusing import SIZE
from formulations import TINY_UNET, WeightedSampling

DISCRETE = dict(image_size=SIZE, timesteps=20, beta_schedule="cosine", objective="pred_noise")
CONTINUOUS = dict(image_size=SIZE, channels=1)
FOURIER = dict(learned_sinusoidal_cond=True, learned_sinusoidal_dim=6)
# name -> (class, options of its U-Net, its own options)
CASES = {
    "learned_variance": (LearnedGaussianDiffusion, dict(learned_variance=True), DISCRETE),
    # The reference's class with its sampling mended; the state dict is the same.
    "weighted_objective": (WeightedSampling, dict(out_dim=4), DISCRETE),
    "continuous_learned": (
        ContinuousTimeGaussianDiffusion, FOURIER, CONTINUOUS | dict(noise_schedule="learned", learned_schedule_net_hidden_dim=8)
    ),
    "continuous_v": (VParamContinuousTimeGaussianDiffusion, FOURIER, CONTINUOUS),
    "elucidated": (ElucidatedDiffusion, FOURIER, CONTINUOUS),
}
LEVELS = {"discrete": [12, 3], "continuous": 0.6, "elucidated": 0.7}


def make(name):
    kind, unet, options = CASES[name]
    d = diffusion(network(Unet, **TINY_UNET, channels=1, **unet), kind, **options)
    if name == "continuous_learned":
        bend(d.log_snr)
    return d


def denoised(name, d, x):
    """x_start as the class's own sampler computes it, before it is clamped."""
    if name == "elucidated":
        sigma = given([LEVELS["elucidated"]] * len(x))
        return {"x_start": d.preconditioned_network_forward(x, sigma)}
    if name.startswith("continuous"):
        time = given(LEVELS["continuous"])
        log_snr = d.log_snr(time)
        alpha, sigma = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
        output = d.model(x, log_snr.expand(len(x)))
        x_start = alpha * x - sigma * output if name == "continuous_v" else (x - sigma * output) / alpha
        return {"x_start": x_start, "log_snr": log_snr}
    times = torch.tensor(LEVELS["discrete"])
    if name == "weighted_objective":
        return {"x_start": d.estimate(x, times)}
    _, _, log_variance, x_start = d.p_mean_variance(x=x, t=times, clip_denoised=False)
    return {"x_start": x_start, "log_variance": log_variance}


def checkpoints(folder):
    """Writes formulation_<name>.pt and gives the builder of import_diffusion.safetensors."""
    folder = Path(folder)
    torch.manual_seed(65)
    for name in CASES:
        # A file would give its name to every record in it, which costs more than the smaller tensors do.
        record = BytesIO()
        torch.save(make(name).state_dict(), record)
        (folder / f"formulation_{name}.pt").write_bytes(record.getvalue())

    def build():
        torch.manual_seed(66)
        x = randn(2, 1, SIZE, SIZE)
        out = {"x": x}
        for name in CASES:
            d = make(name)
            d.load_state_dict(torch.load(folder / f"formulation_{name}.pt", weights_only=True))
            with torch.no_grad():
                out.update({f"{name}.{k}": v for k, v in denoised(name, d, x).items()})
        keys = {
            "x": "[2, 1, 8, 8] noisy input of every case",
            "<case>.x_start": "estimate from formulation_<case>.pt, not clamped, at the case's level in `levels`",
            "learned_variance.log_variance": "[2, 1, 8, 8] log of the learned variance",
            "<continuous case>.log_snr": "scalar, at the time of the level",
        }
        levels = {
            "learned_variance, weighted_objective": {"t": LEVELS["discrete"]},
            "continuous_learned, continuous_v": {"time": LEVELS["continuous"]}, "elucidated": {"sigma": LEVELS["elucidated"]},
        }
        options = {
            name: {"unet": TINY_UNET | {"channels": 1} | unet, "diffusion": options} for name, (_, unet, options) in CASES.items()
        }
        note = "a state dict does not say whether the network predicts v or noise, nor which schedule without parameters goes with it"
        return out, {"keys": keys, "levels": levels, "cases": options, "note": note, "mode": "eval"}

    return build
