"""formulations.safetensors: the discrete formulations beside the plain one: a learned variance (Nichol & Dhariwal 2021,
arXiv:2102.09672), a weighted objective (the reference's own), and the choice among candidates of noise ("forward XM",
arXiv:2607.27372).

Where the reference crashes, the equation stands here in a few lines.
"""

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, LearnedGaussianDiffusion, Unet, WeightedObjectiveGaussianDiffusion
from denoising_diffusion_pytorch import learned_gaussian_diffusion as lgd
from denoising_diffusion_pytorch.xm import XMWrapper
from torch import nn
from torch.nn import functional as F

from common import diffusion, fixed_noise, network, rand, randn, state_of
from diffusing import SIZE, TIMES, gradients, trajectory

# One level: every layer but down- and upsampling, a third of the size.
TINY_UNET = dict(dim=4, dim_mults=(1,), attn_heads=1, attn_dim_head=8)
LEARNED_UNET = TINY_UNET | dict(channels=2, learned_variance=True)
WEIGHTED_UNET = TINY_UNET | dict(channels=2, out_dim=6)
XM_UNET = TINY_UNET | dict(channels=1)
CANDIDATES = 3
# lambda * T for T = 1000, the weight of arXiv:2102.09672 for the one term that is drawn: L_vlb is the sum of T terms, lambda = 0.001.
VB_WEIGHT = 1.0
VB_TIMES = [0, 7, 30, 44]  # at the cosine schedule's last step the bound alone is 1000 bits


def per_sample(x):
    return x.flatten(1).mean(dim=1)


def batch(out, key, channels):
    images, noise = rand(4, channels, SIZE, SIZE), randn(4, channels, SIZE, SIZE)
    out |= {f"{key}.image": images, f"{key}.noise": noise}
    return images, noise, torch.tensor(TIMES)


# learned variance


def bound(d, x_start, times, noise):
    """The terms of the variational bound in bits per dimension, [b]: `vb_losses` of the reference's p_losses."""
    x_t = d.q_sample(x_start, times, noise)
    true_mean, _, true_log_variance = d.q_posterior(x_start, x_t, times)
    mean, _, log_variance, _ = d.p_mean_variance(x=x_t, t=times, clip_denoised=False)
    mean = mean.detach()
    kl = lgd.meanflat(lgd.normal_kl(true_mean, true_log_variance, mean, log_variance)) * lgd.NAT
    nll = -lgd.meanflat(lgd.discretized_gaussian_log_likelihood(x_start, means=mean, log_scales=0.5 * log_variance)) * lgd.NAT
    return torch.where(times == 0, nll, kl)


class NoiseHalf(nn.Module):
    """The first half of a network's output: what a sampler that ignores the variance sees."""

    random_or_learned_sinusoidal_cond = self_condition = False

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.channels = self.out_dim = net.channels

    def forward(self, x, t, x_self_cond=None):
        return self.net(x, t).chunk(2, dim=1)[0]


def floored(d):
    """The table of improved-diffusion: log of the posterior variance, where t = 0, whose variance is 0, takes that of t = 1."""
    d.posterior_log_variance_clipped[0] = d.posterior_log_variance_clipped[1]
    return d


def learned(out):
    net = network(Unet, **LEARNED_UNET)
    out.update(state_of(net, "learned.state."))
    images, noise, times = batch(out, "learned", channels=2)
    options = dict(image_size=SIZE, beta_schedule="cosine", objective="pred_noise")
    make = lambda **kwargs: diffusion(net, LearnedGaussianDiffusion, **options, **kwargs)

    def losses(key, d, times):
        with torch.no_grad():
            total = d(images, times=times, noise=noise, loss_reduction="none")
            simple = per_sample((d.model(d.q_sample(images * 2 - 1, times, noise), times)[:, :2] - noise) ** 2)
            vb = bound(d, images * 2 - 1, times, noise)
        torch.testing.assert_close(total, simple + d.vb_loss_weight * vb)
        loss = d(images, times=times, noise=noise)
        out.update({f"{key}.per_sample": total, f"{key}.mean": loss.detach(), f"{key}.simple": simple, f"{key}.vb": vb})
        return loss

    losses("learned.default", make(timesteps=50), times)
    times = out["learned.vb_times"] = torch.tensor(VB_TIMES)
    losses("learned.scaled", make(timesteps=50, vb_loss_weight=VB_WEIGHT), times)
    loss = losses("learned.floored", floored(make(timesteps=50, vb_loss_weight=VB_WEIGHT)), times)
    gradients(out, "learned.floored.", net, loss)

    x = randn(2, 2, SIZE, SIZE)
    out["learned.x"] = x
    d = make(timesteps=50)
    with torch.no_grad():
        for t in (49, 25, 1, 0):
            mean, _, log_variance, x_start = d.p_mean_variance(x=x, t=torch.full((2,), t), clip_denoised=True)
            for name, value in [("mean", mean), ("log_variance", log_variance), ("x_start", x_start)]:
                out[f"learned.t{t}.{name}"] = value
        _, _, log_variance, _ = floored(d).p_mean_variance(x=x, t=torch.tensor([0, 0]), clip_denoised=True)
        out["learned.floored.t0.log_variance"] = log_variance

    shape = (2, 2, SIZE, SIZE)
    d = make(timesteps=20)
    trajectory(out, "learned.ddpm", d, d.p_sample_loop, shape, draws=19)
    d = diffusion(NoiseHalf(net), timesteps=20, sampling_timesteps=5, ddim_sampling_eta=0.0, **options)
    trajectory(out, "learned.ddim", d, d.ddim_sample, shape, draws=4)
    return {
        "learned.state.<name>": "U-Net; channels 0 and 1 of its output are the noise, 2 and 3 the variance's place v in [-1, 1]",
        "learned.image, learned.noise": "[4, 2, 8, 8]; the image is in [0, 1]; cosine schedule, T 50; default has `times`, scaled and floored have learned.vb_times",
        "learned.<default|scaled|floored>.<per_sample|mean>": (
            "simple + weight * vb; weight 0.001 in default, 1 in scaled and floored (the paper's weight of one drawn term is lambda T, 1 for T = "
            "1000; the reference leaves T out). The loss ignores min-SNR weights, offset noise and the objective: the target is always the noise"
        ),
        "learned.<case>.simple, learned.<case>.vb": (
            "[4] the mean squared error of the noise, and in bits per dimension KL(q(x_(t-1) | x_t, x_0) || p), at t = 0 the negative log "
            "likelihood of 8-bit values (tanh approximation of the normal CDF); the predicted mean is not clipped and takes no gradient"
        ),
        "learned.floored.grad_state.<name>": "gradients of that mean",
        "learned.floored.*": (
            "not the reference: the log posterior variance of t = 0 is that of t = 1, as in the authors' improved-diffusion. The reference "
            "clamps that variance to 1e-20, so that at t = 0 vb of most values saturates at about 50 bits without a gradient"
        ),
        "learned.x, learned.t<t>.<mean|log_variance|x_start>": (
            "p_mean_variance of x_t = x; x_start clamped; log_variance = f log(beta_t) + (1 - f) log(posterior variance), f = (v + 1) / 2"
        ),
        "learned.ddpm.*": "T 20, ancestral, by the reference; keys as in sampling.safetensors",
        "learned.ddim.*": (
            "T 20, 5 steps, eta 0, from the noise half of the output: the reference's own DDIM crashes (`partial` is not imported). eta is "
            "0, so that the noise does not count"
        ),
    }


# weighted objective


class WeightedSampling(WeightedObjectiveGaussianDiffusion):
    """The same with a p_mean_variance that the reference's own sampling loop can call."""

    def estimate(self, x, t):
        noise, x_start, weights = self.model(x, t).split(self.split_dims, dim=1)
        from_noise, direct = weights.softmax(dim=1).split(1, dim=1)
        return from_noise * self.predict_start_from_noise(x, t, noise) + direct * x_start

    def p_mean_variance(self, x, t, x_self_cond=None, clip_denoised=True):
        x_start = self.estimate(x, t)
        if clip_denoised:
            x_start = x_start.clamp(-1, 1)
        return *self.q_posterior(x_start, x, t), x_start


def weighted(out):
    net = network(Unet, **WEIGHTED_UNET)
    out.update(state_of(net, "weighted.state."))
    images, noise, times = batch(out, "weighted", channels=2)
    options = dict(image_size=SIZE, beta_schedule="cosine")
    d = diffusion(net, WeightedObjectiveGaussianDiffusion, timesteps=50, **options)
    loss = d(images, times=times, noise=noise)
    with torch.no_grad():
        x_start = images * 2 - 1
        x_t = d.q_sample(x_start, times, noise)
        pred_noise, pred_x_start, weights = d.model(x_t, times).split([2, 2, 2], dim=1)
        share = weights.softmax(dim=1)
        from_noise = d.predict_start_from_noise(x_t, times, pred_noise).clamp(-2, 2)
        mix = share[:, :1] * from_noise + share[:, 1:] * pred_x_start
        parts = {"noise": (pred_noise, noise), "x_start": (pred_x_start, x_start), "weighted": (mix, x_start)}
        parts = {name: per_sample(F.mse_loss(a, b, reduction="none")) for name, (a, b) in parts.items()}
        out.update({f"weighted.loss.{name}": value for name, value in parts.items()})
        for name, kwargs, w_noise, w_start in [
            ("default", {}, 0.1, 0.1), ("given", dict(pred_noise_loss_weight=0.3, pred_x_start_loss_weight=0.7), 0.3, 0.7),
        ]:
            d = diffusion(net, WeightedObjectiveGaussianDiffusion, timesteps=50, **options, **kwargs)
            total = d(images, times=times, noise=noise, loss_reduction="none")
            torch.testing.assert_close(total, parts["weighted"] + w_noise * parts["noise"] + w_start * parts["x_start"])
            out[f"weighted.{name}.per_sample"] = total
            out[f"weighted.{name}.mean"] = d(images, times=times, noise=noise)
    gradients(out, "weighted.default.", net, loss)

    x = randn(2, 2, SIZE, SIZE)
    out["weighted.x"] = x
    mending = diffusion(net, WeightedSampling, timesteps=50, **options)
    with torch.no_grad():
        for t in (49, 25, 1, 0):
            t_batch = torch.full((2,), t)
            mean, _, _, x_start = mending.p_mean_variance(x, t_batch)
            torch.testing.assert_close(mean, d.p_mean_variance(x=x, t=t_batch, clip_denoised=True)[0])
            out[f"weighted.t{t}.x_start"], out[f"weighted.t{t}.mean"] = x_start, mean
            out[f"weighted.t{t}.x_start_unclipped"] = mending.estimate(x, t_batch)
    d = diffusion(net, WeightedSampling, timesteps=20, **options)
    trajectory(out, "weighted.ddpm", d, d.p_sample_loop, (2, 2, SIZE, SIZE), draws=19)
    return {
        "weighted.state.<name>": "U-Net; its output is noise (channels 0, 1), x_start (2, 3) and the two logits of their weights (4: the x_start from the noise, 5: the direct one)",
        "weighted.image, weighted.noise": "[4, 2, 8, 8]; the image is in [0, 1]; cosine schedule, T 50, with `times`",
        "weighted.loss.<noise|x_start|weighted>": "[4] mean squared errors, not weighted; in `weighted` the x_start from the noise is clamped to [-2, 2]",
        "weighted.<default|given>.<per_sample|mean>": "weighted + w_noise * noise + w_start * x_start; default 0.1 and 0.1, given 0.3 and 0.7; min-SNR weights and offset noise are ignored",
        "weighted.default.grad_state.<name>": "gradients of weighted.default.mean",
        "weighted.x, weighted.t<t>.<x_start|x_start_unclipped|mean>": "of x_t = x: weighted x_start, without the clamp to [-2, 2]; clamped to [-1, 1]; mean of the posterior with the clamped one",
        "weighted.ddpm.*": "T 20, ancestral, with that x_start and the posterior's variance; the reference's own sample() crashes (p_mean_variance takes no x_self_cond and gives three values)",
    }


# candidates of noise


def candidates(out):
    net = network(Unet, **XM_UNET)
    out.update(state_of(net, "xm.state."))
    images, times = rand(4, 1, SIZE, SIZE), torch.tensor(TIMES)
    noise = randn(4 * CANDIDATES, 1, SIZE, SIZE)
    d = diffusion(net, image_size=SIZE, timesteps=50, beta_schedule="sigmoid", objective="pred_v", min_snr_loss_weight=True)
    wrapper = XMWrapper(d, candidates=CANDIDATES)
    with fixed_noise(noise):
        loss = wrapper(images, times=times)
    with fixed_noise(*noise.split(5)), torch.no_grad():
        torch.testing.assert_close(wrapper(images, times=times, max_batch_size=5), loss)
    with torch.no_grad():
        repeated = [t.repeat_interleave(CANDIDATES, dim=0) for t in (images, times)]
        each = d(repeated[0], times=repeated[1], noise=noise, loss_reduction="none").reshape(4, CANDIDATES)
    torch.testing.assert_close(each.min(dim=1).values.mean(), loss)
    out |= {"xm.image": images, "xm.noise": noise, "xm.candidate_losses": each, "xm.chosen": each.argmin(dim=1), "xm.loss": loss.detach()}
    whole = {}
    gradients(whole, "xm.", net, loss)
    out.update({k: v for k, v in whole.items() if ".final_conv." in k})
    return {
        "xm.state.<name>, xm.image": "U-Net; [4, 1, 8, 8] in [0, 1]; sigmoid, pred_v, min-SNR, T 50, with `times`",
        "xm.noise": "[12, 1, 8, 8], 3 candidates for each of 4 images: row b * 3 + k is candidate k of image b; a candidate shares its image's time",
        "xm.candidate_losses": "[4, 3] weighted loss of each candidate",
        "xm.chosen": "[4] int64, the candidate with the least loss",
        "xm.loss, xm.grad_state.final_conv.<name>": "mean over the images of the least loss, and its gradients",
    }


def formulations():
    torch.manual_seed(60)
    out = {"times": torch.tensor(TIMES)}
    keys = {"times": "[4] int64 of every loss"} | learned(out) | weighted(out) | candidates(out)
    trajectories = {
        "learned.ddpm": {"timesteps": 20, "beta_schedule": "cosine"},
        "learned.ddim": {"timesteps": 20, "sampling_timesteps": 5, "eta": 0.0, "beta_schedule": "cosine"},
        "weighted.ddpm": {"timesteps": 20, "beta_schedule": "cosine"},
    }
    return out, {
        "keys": keys, "learned_unet": LEARNED_UNET, "weighted_unet": WEIGHTED_UNET, "xm_unet": XM_UNET, "trajectories": trajectories,
        "vb_loss_weight": {"default": 0.001, "scaled": VB_WEIGHT, "floored": VB_WEIGHT}, "min_snr_gamma": 5, "mode": "eval",
    }
