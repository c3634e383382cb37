"""guidance.safetensors and cfg_unet.safetensors: classifier-free guidance with its variations, CFG++, classifier guidance, and the
class-conditional U-Net of the reference.

The formulas are given drawn tensors in place of a network's outputs.
"""

from contextlib import redirect_stdout
from io import StringIO
from types import SimpleNamespace

import torch
from denoising_diffusion_pytorch import classifier_free_guidance as cfg
from denoising_diffusion_pytorch import guided_diffusion
from torch import nn

from common import diffusion, network, rand, randn, state_of
from diffusing import OBJECTIVES, SIZE, TIMES, gradients

TIMESTEPS = 50
SCALES = (0, 0.5, 1, 3, 6)
PHIS = (0, 0.7)
CFG_UNET = dict(dim=4, dim_mults=(1, 2), channels=1, num_classes=3, attn_heads=2, attn_dim_head=8)


# classifier-free guidance


def combine(logits, null_logits, **kwargs):
    """The reference's forward_with_cond_scale on the two given outputs of a network."""
    outputs = SimpleNamespace(forward=lambda cond_drop_prob: logits if cond_drop_prob == 0 else null_logits)
    result = cfg.Unet.forward_with_cond_scale(outputs, **kwargs)
    # With a scale of 1 it gives one tensor, on which its own caller breaks.
    return result if torch.is_tensor(result) else result[0]


def combinations(out):
    logits, null_logits = randn(3, 2, 4, 4), randn(3, 2, 4, 4)
    null_logits = 0.6 * logits + 0.5 * null_logits  # in truth the two are alike
    out |= {"combine.logits": logits, "combine.null_logits": null_logits}
    parallel, orthogonal = cfg.project(logits - null_logits, logits)
    out |= {"project.parallel": parallel, "project.orthogonal": orthogonal}
    for scale in SCALES:
        for phi in PHIS:
            options = dict(cond_scale=scale, rescaled_phi=phi)
            out[f"combine.w{scale:g}.phi{phi:g}.plain"] = combine(logits, null_logits, remove_parallel_component=False, **options)
            for keep in (0, 0.4):
                removed = combine(logits, null_logits, remove_parallel_component=True, keep_parallel_frac=keep, **options)
                out[f"combine.w{scale:g}.phi{phi:g}.keep{keep:g}"] = removed


class Outputs(nn.Module):
    """A network whose guided and unconditional outputs are given."""

    channels = out_dim = 1
    random_or_learned_sinusoidal_cond = False

    def __init__(self, guided, null):
        super().__init__()
        self.both = guided, null

    def forward_with_cond_scale(self, *_, **__):
        return self.both


def predictions(out):
    x, guided, null, noise = (randn(4, 1, SIZE, SIZE) for _ in range(4))
    times, times_next = torch.tensor([30, 20, 12, 5]), torch.tensor([22, 15, 4, 0])
    out |= {"predict.x": x, "predict.guided": guided, "predict.null": null, "predict.noise": noise}
    out |= {"predict.times": times, "predict.times_next": times_next}
    for objective in OBJECTIVES:
        for name, plus in [("cfg", False), ("cfg_plus_plus", True)]:
            d = diffusion(
                Outputs(guided, null), cfg.GaussianDiffusion, image_size=SIZE, timesteps=TIMESTEPS, beta_schedule="linear",
                objective=objective, use_cfg_plus_plus=plus,
            )
            for clip in (False, True):
                key = f"predict.{objective}.{name}.{'clipped' if clip else 'plain'}"
                pred_noise, x_start = d.model_predictions(x, times, None, clip_x_start=clip)
                out |= {f"{key}.pred_noise": pred_noise, f"{key}.x_start": x_start}
                for eta in (0, 0.5):
                    out[f"{key}.ddim_eta{eta:g}"] = ddim_step(d, x_start, pred_noise, noise, times, times_next, eta)


def ddim_step(d, x_start, pred_noise, noise, times, times_next, eta):
    alpha, alpha_next = (d.alphas_cumprod[t].reshape(-1, 1, 1, 1) for t in (times, times_next))
    sigma = eta * ((1 - alpha / alpha_next) * (1 - alpha_next) / (1 - alpha)).sqrt()
    return x_start * alpha_next.sqrt() + (1 - alpha_next - sigma**2).sqrt() * pred_noise + sigma * noise


# classifier guidance


class NoNetwork(nn.Module):
    channels = out_dim = 1
    self_condition = random_or_learned_sinusoidal_cond = False


def classifier(out):
    d = diffusion(
        NoNetwork(), guided_diffusion.GaussianDiffusion, image_size=SIZE, timesteps=TIMESTEPS, beta_schedule="linear", objective="pred_noise"
    )
    x, x_start, pred_noise, gradient = (randn(4, 1, SIZE, SIZE) for _ in range(4))
    x_start = x_start.clamp(-1, 1)
    times, times_next = torch.tensor([30, 20, 12, 1]), torch.tensor([22, 15, 4, 0])
    out |= {"classifier.x": x, "classifier.x_start": x_start, "classifier.pred_noise": pred_noise, "classifier.gradient": gradient}
    out |= {"classifier.times": times, "classifier.times_next": times_next}
    mean, variance, _ = d.q_posterior(x_start, x, times)
    out |= {"classifier.mean": mean, "classifier.variance": variance.flatten()}
    for scale in (1, 2.5):
        given_gradient = lambda mean, t, scale: scale * gradient
        # It converts the mean to float32, and 0 is exact in any type.
        with redirect_stdout(StringIO()):
            shift = d.condition_mean(given_gradient, torch.zeros_like(mean), variance, x, times, {"scale": scale})
        out[f"classifier.s{scale:g}.mean"] = mean + shift

        alpha = d.alphas_cumprod[times].reshape(-1, 1, 1, 1)
        eps = pred_noise - (1 - alpha).sqrt() * scale * gradient
        guided_start = d.predict_start_from_noise(x, times, eps)
        clipped = guided_start.clamp(-1, 1)
        rederived = d.predict_noise_from_start(x, times, clipped)
        out |= {f"classifier.s{scale:g}.pred_noise": eps, f"classifier.s{scale:g}.x_start": guided_start}
        for key, start, noise in [("ddim", guided_start, eps), ("ddim_clipped", clipped, rederived)]:
            out[f"classifier.s{scale:g}.{key}"] = ddim_step(d, start, noise, 0, times, times_next, eta=0)


def guidance():
    torch.manual_seed(63)
    out = {}
    combinations(out)
    predictions(out)
    classifier(out)
    keys = {
        "combine.logits, combine.null_logits": "[3, 2, 4, 4] outputs with the class and without",
        "combine.w<scale>.phi<phi>.plain": "logits + (w - 1) (logits - null), then phi times it rescaled to the standard deviation of logits (per sample) plus 1 - phi times it",
        "combine.w<scale>.phi<phi>.keep<frac>": (
            "the same where the update is its part orthogonal to logits plus frac times its parallel part, as the reference does by default "
            "with frac 0 (arXiv:2410.02416)"
        ),
        "combine.w1.*": "logits: the reference gives one tensor here where its caller unpacks two",
        "project.<parallel|orthogonal>": "of logits - null along logits, per sample; computed in float64",
        "predict.<x|guided|null|noise>, predict.times, predict.times_next": "[4, 1, 8, 8]; [4] int64; linear schedule, T 50; guided and null are a network's outputs",
        "predict.<objective>.<cfg|cfg_plus_plus>.<plain|clipped>.<pred_noise|x_start>": (
            "x_start from guided; pred_noise from guided, with CFG++ (arXiv:2406.08070) from null. Clipped: x_start is clamped to [-1, 1] before "
            "the noise is derived from it (pred_x0 and pred_v); with pred_noise the noise is not derived anew, unlike in the plain diffusion"
        ),
        "predict.<objective>.<case>.<clip>.ddim_eta<eta>": "DDIM step with that pair and with predict.noise, from times to times_next, by the formula of its ddim_sample",
        "classifier.<x|x_start|pred_noise|gradient>, classifier.times, classifier.times_next": "[4, 1, 8, 8], x_start in [-1, 1]; [4] int64; linear schedule, T 50; gradient is that of log p(y | x)",
        "classifier.mean, classifier.variance": "of the posterior, from x_start and x; [4, 1, 8, 8] and [4]",
        "classifier.s<scale>.mean": "the reference's condition_mean: mean + variance * scale * gradient",
        "classifier.s<scale>.pred_noise, classifier.s<scale>.x_start": (
            "arXiv:2105.05233, algorithm 2: pred_noise - sqrt(1 - alphas_cumprod) * scale * gradient, and x_start from it; the reference's "
            "ddim_sample takes a cond_fn and ignores it"
        ),
        "classifier.s<scale>.<ddim|ddim_clipped>": "DDIM step with eta 0 from these; clipped: x_start clamped and the noise derived from it anew",
    }
    return out, {"keys": keys, "timesteps": TIMESTEPS, "beta_schedule": "linear"}


# class-conditional U-Net


def cfg_unet():
    torch.manual_seed(64)
    net = network(cfg.Unet, **CFG_UNET)
    with torch.no_grad():  # the class is felt too little otherwise
        for weight in (net.classes_emb.weight, net.classes_mlp[0].weight, net.classes_mlp[2].weight):
            weight.mul_(4)
    out = state_of(net)
    x, classes, times = randn(4, 1, SIZE, SIZE), torch.tensor([0, 1, 2, 1]), torch.tensor([3, 871, 40, 500])
    out |= {"x": x, "classes": classes, "time": times}
    with torch.no_grad():
        for drop in (0, 1):
            out[f"output.drop{drop}"] = net(x, times, classes, cond_drop_prob=float(drop))
        out["output.w3"], _ = net.forward_with_cond_scale(x, times, classes, cond_scale=3.0, rescaled_phi=0.7)

    images, noise, keep = rand(4, 1, SIZE, SIZE), randn(4, 1, SIZE, SIZE), torch.tensor([True, False, True, True])
    d = diffusion(net, cfg.GaussianDiffusion, image_size=SIZE, timesteps=TIMESTEPS, beta_schedule="cosine", objective="pred_noise")
    options = dict(times=torch.tensor(TIMES), classes=classes, noise=noise, cond_keep_mask=keep)
    with torch.no_grad():
        out["loss.per_sample"] = d(images, loss_reduction="none", **options)
    loss = d(images, **options)
    out |= {"loss.image": images, "loss.noise": noise, "loss.times": options["times"], "loss.keep": keep.long(), "loss.mean": loss.detach()}
    whole = {}
    gradients(whole, "loss.", net, loss)
    out.update({k: v for k, v in whole.items() if "classes" in k})
    keys = {
        "state.<name>": "parameters of the class-conditional U-Net, which has layers that the plain one lacks: null_classes_emb, classes_emb, classes_mlp, attention behind a norm",
        "x, time, classes": "[4, 1, 8, 8], [4] int64, [4] int64",
        "output.drop<0|1>": "with every class and with none (the learned null class)",
        "output.w3": "forward_with_cond_scale, scale 3, rescaled_phi 0.7, its defaults otherwise (the parallel part removed)",
        "loss.<image|noise|times|keep>": "image in [0, 1]; keep is 1 where the class is given; T 50, cosine, pred_noise",
        "loss.<per_sample|mean>, loss.grad_state.<name>": "and the gradients of the mean for the embeddings of the classes",
    }
    return out, {
        "keys": keys, "unet": CFG_UNET, "timesteps": TIMESTEPS, "mode": "eval",
        "linear_attention": {"heads": 4, "dim_head": 32, "note": "whatever attn_heads and attn_dim_head say, which are of the middle only"},
    }
