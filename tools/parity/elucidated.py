"""formulations_edm.safetensors: the reference's ElucidatedDiffusion (Karras et al. 2022, arXiv:2206.00364): preconditioning, loss,
noise levels, Heun steps with and without churn, DPM-Solver++(2M)."""

import math

import torch
from denoising_diffusion_pytorch import ElucidatedDiffusion, Unet
from denoising_diffusion_pytorch import elucidated_diffusion as edm

from common import diffusion, fixed_noise, given, network, rand, randn, state_of
from diffusing import SIZE, gradients
from formulations import TINY_UNET

UNET = TINY_UNET | dict(channels=2, learned_sinusoidal_cond=True, learned_sinusoidal_dim=6)
UNET_SELF_COND = TINY_UNET | dict(channels=1, learned_sinusoidal_cond=True, learned_sinusoidal_dim=6, self_condition=True)
STEPS = 8
SIGMAS = [0.002, 0.05, 0.5, 3.0, 80.0]
LOSS_SIGMAS = [0.02, 0.3, 1.5, 20.0]
SCHEDULES = {"default": {}, "other": dict(sigma_min=0.03, sigma_max=14.6, rho=5)}


def wrap(net, **kwargs):
    return diffusion(net, ElucidatedDiffusion, image_size=SIZE, channels=net.channels, num_sample_steps=STEPS, **kwargs)


def preconditioning(out, d):
    sigma, x = given(SIGMAS), randn(len(SIGMAS), 2, SIZE, SIZE)
    x = x * (sigma**2 + d.sigma_data**2).sqrt().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        output = d.preconditioned_network_forward(x, sigma)
        clamped = d.preconditioned_network_forward(x, sigma, clamp=True)
    out |= {"denoiser.sigma": sigma, "denoiser.x": x, "denoiser.output": output, "denoiser.clamped": clamped}
    for name in ("c_skip", "c_out", "c_in", "c_noise", "loss_weight"):
        out[f"denoiser.{name}"] = getattr(d, name)(sigma)


def levels(out):
    for name, kwargs in SCHEDULES.items():
        d = wrap(network(Unet, **UNET), **kwargs)
        for n in (8, 18, 32):
            out[f"sigmas.{name}.n{n}"] = d.sample_schedule(n).detach()
            i = torch.arange(n, dtype=torch.float64)
            top, bottom = d.sigma_max ** (1 / d.rho), d.sigma_min ** (1 / d.rho)
            exact = (top + i / (n - 1) * (bottom - top)) ** d.rho
            out[f"sigmas_exact.{name}.n{n}"] = torch.cat([exact, torch.zeros(1, dtype=torch.float64)])


def loss(out, net):
    d = wrap(net)
    images, noise, sigma = rand(4, 2, SIZE, SIZE), randn(4, 2, SIZE, SIZE), given(LOSS_SIGMAS)
    out |= {"loss.image": images, "loss.noise": noise, "loss.sigma": sigma}
    with fixed_noise(noise), torch.no_grad():
        out["loss.per_sample"] = d(images, sigma=sigma, loss_reduction="none")
    with fixed_noise(noise):
        mean = d(images, sigma=sigma)
    out["loss.mean"] = mean.detach()
    gradients(out, "loss.", net, mean)


def self_conditioned(out, net):
    d = wrap(net)
    images, noise, sigma = rand(4, 1, SIZE, SIZE), randn(4, 1, SIZE, SIZE), given(LOSS_SIGMAS)
    out |= {"self_cond.image": images, "self_cond.noise": noise}
    noised = images * 2 - 1 + sigma.reshape(-1, 1, 1, 1) * noise
    with torch.no_grad():
        out["self_cond.x_self_cond"] = d.preconditioned_network_forward(noised, sigma)
    coin = edm.random
    try:
        for side, value in [("on", 0.0), ("off", 0.9)]:
            edm.random = lambda: value
            with fixed_noise(noise), torch.no_grad():
                out[f"self_cond.{side}.per_sample"] = d(images, sigma=sigma, loss_reduction="none")
            with fixed_noise(noise):
                mean = d(images, sigma=sigma)
            out[f"self_cond.{side}.mean"] = mean.detach()
            if side == "on":
                whole = {}
                gradients(whole, "self_cond.on.", net, mean)
                out.update({k: v for k, v in whole.items() if "final_conv" in k or "init_conv" in k})
    finally:
        edm.random = coin


def in_working_dtype(d):
    """The levels in the pass's own dtype: otherwise the logarithms of DPM-Solver++ are float32 in both passes."""
    levels = d.sample_schedule
    d.sample_schedule = lambda n=None: given(levels(n))
    return d


def heun(d, x, noise):
    """Algorithm 2, with x after every step; the reference gives only the last."""
    sigmas = [s.item() for s in d.sample_schedule(STEPS)]
    images, x_start = [x], None
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        gamma = min(d.S_churn / STEPS, math.sqrt(2) - 1) if d.S_tmin <= sigma <= d.S_tmax else 0.0
        sigma_hat = sigma + gamma * sigma
        x_hat = x + math.sqrt(sigma_hat**2 - sigma**2) * d.S_noise * noise[i]
        denoised = d.preconditioned_network_forward(x_hat, sigma_hat, x_start if d.self_condition else None, clamp=True)
        slope = (x_hat - denoised) / sigma_hat
        x = x_hat + (sigma_next - sigma_hat) * slope
        if sigma_next > 0:
            denoised = d.preconditioned_network_forward(x, sigma_next, denoised if d.self_condition else None, clamp=True)
            x = x_hat + (sigma_next - sigma_hat) * (slope + (x - denoised) / sigma_next) / 2
        x_start = denoised
        images.append(x)
    return images


def dpmpp(d, x):
    """DPM-Solver++(2M), arXiv:2211.01095, in t = -log(sigma); the last step, to sigma 0, is of first order and gives the estimate."""
    sigmas = d.sample_schedule(STEPS)
    images, previous = [x], None
    for i in range(STEPS):
        denoised = d.preconditioned_network_forward(x, sigmas[i].item())
        ratio = sigmas[i + 1] / sigmas[i]
        estimate = denoised
        if previous is not None and sigmas[i + 1] > 0:
            r = (sigmas[i - 1] / sigmas[i]).log() / (sigmas[i] / sigmas[i + 1]).log()
            estimate = denoised + (denoised - previous) / (2 * r)
        x = ratio * x + (1 - ratio) * estimate
        previous = denoised
        images.append(x)
    return images


def trajectories(out, net, net_self_cond):
    cases = {
        "heun_churn0": (net, dict(S_churn=0)), "heun_churn80": (net, dict(S_churn=80)), "heun_self_cond": (net_self_cond, dict(S_churn=0)),
        "dpmpp": (net, {}),
    }
    for name, (network_, kwargs) in cases.items():
        d = in_working_dtype(wrap(network_, **kwargs))
        shape = (2, network_.channels, SIZE, SIZE)
        start = randn(*shape)
        x = d.sample_schedule()[0] * start
        noise = torch.zeros(STEPS, *shape)  # the reference draws it also where no churn uses it
        if kwargs.get("S_churn"):
            noise = out[f"{name}.noise"] = randn(STEPS, *shape)
        with torch.no_grad():
            images = dpmpp(d, x) if name == "dpmpp" else heun(d, x, noise)
            with fixed_noise(start, *([] if name == "dpmpp" else noise)):
                output = d.sample_using_dpmpp(batch_size=2) if name == "dpmpp" else d.sample(batch_size=2)
        torch.testing.assert_close(output, (images[-1].clamp(-1, 1) + 1) / 2, rtol=0, atol=1e-5)
        out |= {f"{name}.images": torch.stack(images, dim=1), f"{name}.output": output}


def elucidated():
    torch.manual_seed(62)
    net, net_self_cond = network(Unet, **UNET), network(Unet, **UNET_SELF_COND)
    # As in sampling.safetensors: an untrained network fed its own output is chaotic, a weak output damps it.
    net_self_cond.final_conv.weight.data.mul_(0.25)
    out = state_of(net) | state_of(net_self_cond, "self_cond.state.")
    preconditioning(out, wrap(net))
    levels(out)
    loss(out, net)
    self_conditioned(out, net_self_cond)
    trajectories(out, net, net_self_cond)
    keys = {
        "state.<name>, self_cond.state.<name>": "U-Net of 2 channels, and of 1 channel with self_condition; both are given c_noise",
        "denoiser.<sigma|x>": "[5], [5, 2, 8, 8]",
        "denoiser.output, denoiser.clamped": "D(x; sigma) of equation 7, and clamped to [-1, 1]",
        "denoiser.<c_skip|c_out|c_in|c_noise|loss_weight>": "[5] table 1, sigma_data 0.5; loss_weight is lambda(sigma)",
        "sigmas.<default|other>.n<n>, sigmas_exact.<...>": "[n + 1] equation 5 and a zero: float32 by the reference, and float64",
        "loss.<image|noise|sigma>": "[4, 2, 8, 8] in [0, 1], [4, 2, 8, 8] unit normal, [4]; x = (2 image - 1) + sigma noise",
        "loss.<per_sample|mean>, loss.grad_state.<name>": "weighted by lambda(sigma); gradients of the mean",
        "self_cond.<image|noise>": "as of loss, 1 channel, with loss.sigma",
        "self_cond.x_self_cond": "first pass: the preconditioned output, not clamped, no gradient (in sampling it is clamped)",
        "self_cond.<on|off>.<per_sample|mean>, self_cond.on.grad_state.<init_conv|final_conv>.<name>": "with and without the first pass",
        "<trajectory>.images": "[b, 9, c, h, w] the start, sigma_max times a unit normal, then x after each of 8 steps, of order sigma, not clamped; levels sigmas.default.n8",
        "<trajectory>.output": "the reference's own sample: the last of images, clamped, as (x + 1) / 2",
        "heun_churn80.noise": "[8, b, c, h, w] unit normals of the steps, used where gamma > 0",
        "heun_churn0.*, heun_churn80.*, heun_self_cond.*": (
            "algorithm 2, gamma = min(S_churn / 8, sqrt(2) - 1) where S_tmin <= sigma <= S_tmax; D is clamped to [-1, 1]. heun_self_cond: "
            "S_churn 0; each evaluation is given the one before it, within a step too, the first zeros"
        ),
        "dpmpp.*": "DPM-Solver++(2M), D is not clamped; the reference does not self-condition here",
    }
    return out, {
        "keys": keys, "unet": UNET, "unet_self_cond": UNET_SELF_COND, "schedules": SCHEDULES, "num_sample_steps": STEPS, "mode": "eval",
        "elucidated": dict(sigma_min=0.002, sigma_max=80, sigma_data=0.5, rho=7, S_tmin=0.05, S_tmax=50, S_noise=1.003),
    }
