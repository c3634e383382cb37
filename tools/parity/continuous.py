"""formulations_continuous.safetensors: the continuous-time forms of the reference, whose noise level is log(alpha^2 / sigma^2) of a
time in [0, 1]: noise prediction (Kingma et al. 2021, arXiv:2107.00630, with a learned schedule too), v prediction (Salimans & Ho
2022, arXiv:2202.00512) and the shifted and interpolated schedules of simple diffusion (Hoogeboom et al. 2023, arXiv:2301.11093).
"""

from copy import deepcopy

import torch
from denoising_diffusion_pytorch import ContinuousTimeGaussianDiffusion, Unet, VParamContinuousTimeGaussianDiffusion
from denoising_diffusion_pytorch import simple_diffusion as sd

from common import diffusion, fixed_noise, float32_default, given, network, rand, randn, state_of
from diffusing import SIZE, gradients
from formulations import TINY_UNET

UNET = TINY_UNET | dict(channels=1, learned_sinusoidal_cond=True, learned_sinusoidal_dim=6)
SHAPE = (2, 1, SIZE, SIZE)
STEPS = 8
HIDDEN = 8
TIMES = [0.02, 0.3, 0.6, 0.97]
# Exact in float32 and in float64.
GRID = [0, 1 / 1024] + [k / 64 for k in range(1, 64)] + [1023 / 1024, 1]
CONTINUOUS = dict(image_size=SIZE, channels=1, num_sample_steps=STEPS)
SIMPLE = {
    "plain": {},
    "shifted": dict(noise_d=4),
    "interpolated": dict(noise_d_low=2, noise_d_high=4),
}
SIMPLE_TRAJECTORIES = {"simple_v": ("interpolated", "v"), "simple_eps": ("shifted", "eps")}


def grid(out, name, log_snr, exact):
    with torch.no_grad(), float32_default():
        out[f"log_snr.{name}"] = log_snr(given(GRID))
        out[f"log_snr_exact.{name}"] = exact(torch.tensor(GRID, dtype=torch.float64))


def losses(out, key, d, images, noise):
    with torch.no_grad():
        for name, reduction in [("per_sample", "none"), ("mean", "mean")]:
            # Through p_losses: one of the classes takes no times.
            out[f"{key}.{name}"] = d.p_losses(images * 2 - 1, given(TIMES), noise=noise, loss_reduction=reduction)


def rounded(log_snr):
    """A schedule that is a table in float32 whatever the pass: at t = 1 the cosine's is nothing but the rounding of cos(pi / 2)."""
    return lambda t: log_snr(t.float()).to(t.dtype)


def trajectory(out, name, d):
    """x after each step; the log-SNR that the steps used goes with it, because a network feels its last digits."""
    if not isinstance(d.log_snr, torch.nn.Module):
        d.log_snr = rounded(d.log_snr)
    x_T, noise = randn(*SHAPE), randn(STEPS - 1, *SHAPE)
    steps = torch.linspace(1.0, 0.0, STEPS + 1)
    images = [x_T]
    with torch.no_grad():
        log_snr = torch.stack([d.log_snr(t) for t in steps])
        for i in range(STEPS):
            with fixed_noise(*noise[i : i + 1]):
                images.append(d.p_sample(images[-1], steps[i], steps[i + 1]))
        with fixed_noise(x_T, *noise):
            output = d.p_sample_loop(SHAPE)
    torch.testing.assert_close(output, (images[-1].clamp(-1, 1) + 1) / 2)
    out |= {f"{name}.noise": noise, f"{name}.log_snr": log_snr, f"{name}.images": torch.stack(images, dim=1), f"{name}.output": output}


def single_step(out, name, d, x):
    """One step without the clamp of x_start, from 0.6 to 0.475 with no noise, and the estimate that it is made of."""
    time, time_next = given([0.6, 0.475])
    d.clip_sample_denoised = False
    with torch.no_grad():
        mean, variance = d.p_mean_variance(x, time, time_next)
    out |= {f"{name}.unclipped.mean": mean, f"{name}.unclipped.variance": variance}


def predicted_noise(out, net, images, noise, x):
    for schedule in ("linear", "cosine"):
        for weight, min_snr in [("plain", False), ("min_snr", True)]:
            d = diffusion(net, ContinuousTimeGaussianDiffusion, noise_schedule=schedule, min_snr_loss_weight=min_snr, **CONTINUOUS)
            losses(out, f"loss.{schedule}.{weight}", d, images, noise)
        out[f"loss_log_snr.{schedule}"] = d.log_snr(given(TIMES))
        grid(out, schedule, d.log_snr, d.log_snr)
        single_step(out, schedule, d, x)
        trajectory(out, f"ddpm_{schedule}", diffusion(net, ContinuousTimeGaussianDiffusion, noise_schedule=schedule, **CONTINUOUS))
    d = diffusion(net, ContinuousTimeGaussianDiffusion, min_snr_loss_weight=True, **CONTINUOUS)
    gradients(out, "linear.", net, d(images, times=given(TIMES), noise=noise))


def bend(schedule):
    """As it is made, a learned schedule differs little from a straight line, which would hide mistakes."""
    outer, first, last = schedule.net[1].net, schedule.net[2].fn[0].net, schedule.net[2].fn[2].net
    with torch.no_grad():
        outer.weight.fill_(0.6875)
        outer.bias.fill_(0.03125)
        first.weight.mul_(4)
        last.weight.mul_(4)


def learned_schedule(out, net, images, noise):
    make = lambda **kwargs: diffusion(
        net, ContinuousTimeGaussianDiffusion, noise_schedule="learned", learned_schedule_net_hidden_dim=HIDDEN, **CONTINUOUS, **kwargs
    )
    d = make()
    schedule = d.log_snr
    bend(schedule)
    out.update(state_of(schedule, "learned.schedule."))
    out["loss_log_snr.learned"] = schedule(given(TIMES)).detach()
    grid(out, "learned", schedule, deepcopy(schedule).double())
    trajectory(out, "ddpm_learned", d)
    for weight, min_snr in [("plain", False), ("min_snr", True)]:
        for frac in (1.0, 0.3):
            d = make(min_snr_loss_weight=min_snr, learned_noise_schedule_frac_gradient=frac)
            d.log_snr.load_state_dict(schedule.state_dict())
            if frac == 1:
                losses(out, f"loss.learned.{weight}", d, images, noise)
            d.zero_grad()
            d(images, times=given(TIMES), noise=noise).backward()
            key = f"learned.{weight}.frac{frac:g}.grad_state."
            out.update({f"{key}{k}": p.grad.clone() for k, p in d.named_parameters() if "log_snr" in k or "final_conv" in k})


def predicted_v(out, net, images, noise, x):
    d = diffusion(net, VParamContinuousTimeGaussianDiffusion, **CONTINUOUS)
    losses(out, "loss.v", d, images, noise)
    whole = {}
    gradients(whole, "v.", net, d(images, times=given(TIMES), noise=noise))
    out.update({k: v for k, v in whole.items() if ".final_conv." in k})
    single_step(out, "v", d, x)
    trajectory(out, "ddpm_v", diffusion(net, VParamContinuousTimeGaussianDiffusion, **CONTINUOUS))


def simple(out, net, images, noise):
    for name, kwargs in SIMPLE.items():
        for objective in ("v", "eps"):
            for weight, min_snr in [("plain", False), ("min_snr", True)]:
                d = diffusion(net, sd.GaussianDiffusion, pred_objective=objective, min_snr_loss_weight=min_snr, **CONTINUOUS, **kwargs)
                losses(out, f"loss.simple_{name}.{objective}.{weight}", d, images, noise)
        grid(out, f"simple_{name}", d.log_snr, d.log_snr)
        out[f"loss_log_snr.simple_{name}"] = d.log_snr(given(TIMES))
    for key, (name, objective) in SIMPLE_TRAJECTORIES.items():
        trajectory(out, f"ddpm_{key}", diffusion(net, sd.GaussianDiffusion, pred_objective=objective, **CONTINUOUS, **SIMPLE[name]))


def continuous():
    torch.manual_seed(61)
    net = network(Unet, **UNET)
    out = state_of(net)
    images, noise, x = rand(4, 1, SIZE, SIZE), randn(4, 1, SIZE, SIZE), randn(*SHAPE)
    out |= {"image": images, "noise": noise, "times": given(TIMES), "x": x, "grid": torch.tensor(GRID, dtype=torch.float64)}
    predicted_noise(out, net, images, noise, x)
    learned_schedule(out, net, images, noise)
    predicted_v(out, net, images, noise, x)
    simple(out, net, images, noise)
    keys = {
        "state.<name>": "the U-Net of every case; it is given the log-SNR",
        "image, noise, times": "[4, 1, 8, 8] in [0, 1], [4, 1, 8, 8] and [4] float32 of every loss",
        "grid, log_snr.<schedule>, log_snr_exact.<schedule>": (
            "[67] times in float64, all exact in float32; the log-SNR by the reference in float32 and by the same formula in float64. At t = 1 "
            "the cosine's has no meaning: -log(cos(pi / 2)^-2 - 1) is -34 in float32 and -75 in float64"
        ),
        "loss_log_snr.<schedule>": "[4] float32 at `times`; the network feels the error of its last digits",
        "loss.<linear|cosine|learned>.<plain|min_snr>.<per_sample|mean>": "noise prediction, weight 1 or min(snr, 5) / snr",
        "loss.v.<per_sample|mean>": "v prediction on the cosine schedule, weight 1",
        "loss.simple_<schedule>.<v|eps>.<plain|min_snr>.<per_sample|mean>": (
            "weight s / (snr + 1) for v, s / snr for eps, where s is snr or min(snr, 5); image size 8; shifted: noise_d 4; interpolated: "
            "noise_d_low 2, noise_d_high 4"
        ),
        "linear.grad_state.<name>": "gradients of loss.linear.min_snr.mean",
        "v.grad_state.final_conv.<name>": "gradients of loss.v.mean",
        "learned.schedule.<name>": "parameters of the learned schedule, hidden dim 8, from 9.21 at t = 0 to -10.0 at t = 1; the network uses their absolute values",
        "learned.<plain|min_snr>.frac<1|0.3>.grad_state.<name>": (
            "gradients of loss.learned.<weight>.mean for log_snr.<schedule parameter> and model.final_conv: the first are frac times those of "
            "frac 1, the second do not depend on it. Those of the schedule are small: compare relative to their largest; that of net.2.fn.2.net.bias is 0 but for rounding"
        ),
        "x, <linear|cosine|v>.unclipped.<mean|variance>": "one step from t = 0.6 to 0.475 without the clamp of x_start, no noise; variance is a scalar",
        "ddpm_<case>.noise, ddpm_<case>.images": "[7, 2, 1, 8, 8], the last step draws none; [2, 9, 1, 8, 8]: the given x_T, then x after each step in [-1, 1] domain, not clamped",
        "ddpm_<case>.log_snr": "[9] of the times linspace(1, 0, 9), float32 by the reference: a comparison should start from these",
        "ddpm_<case>.output": "the reference's sample: the last of images, clamped to [-1, 1], as (x + 1) / 2",
    }
    return out, {
        "keys": keys, "unet": UNET, "num_sample_steps": STEPS, "min_snr_gamma": 5, "learned_schedule_net_hidden_dim": HIDDEN,
        "simple": SIMPLE, "image_size": SIZE, "mode": "eval",
        "simple_trajectories": {f"ddpm_{k}": {"schedule": n, "objective": o} for k, (n, o) in SIMPLE_TRAJECTORIES.items()},
        "note": "x_start is clamped to [-1, 1] at every step of ddpm_*; simple_diffusion clamps it whatever clip_sample_denoised says",
    }
