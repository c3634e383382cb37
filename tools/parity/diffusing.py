"""schedules.safetensors, losses.safetensors and sampling.safetensors: the Gaussian diffusion around a network."""

import torch
from denoising_diffusion_pytorch import Unet
from denoising_diffusion_pytorch import denoising_diffusion_pytorch as ddp
from torch import nn

from common import diffusion, network, rand, randn, state_of, fixed_noise

OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")
SCHEDULES = ("linear", "cosine", "sigmoid")
SMALL_UNET = dict(dim=4, dim_mults=(1, 2), channels=1, attn_heads=2, attn_dim_head=8)
SIZE = 8


# schedules


class NoNetwork(nn.Module):
    channels = out_dim = 1
    self_condition = False


SCHEDULE_SETS = {
    "linear.t1000": ("linear", 1000, {}),
    "cosine.t1000": ("cosine", 1000, {}),
    "sigmoid.t1000": ("sigmoid", 1000, {}),
    "linear.t50": ("linear", 50, {}),
    "cosine.t50": ("cosine", 50, {}),
    "sigmoid.t50": ("sigmoid", 50, {}),
    "cosine_s.t50": ("cosine", 50, {"s": 0.02}),
    "sigmoid_kwargs.t50": ("sigmoid", 50, {"start": -2, "end": 4, "tau": 0.7}),
}


def schedules():
    out = {}
    for name, (schedule, timesteps, kwargs) in SCHEDULE_SETS.items():
        for objective in OBJECTIVES:
            for weight, min_snr in [("plain", False), ("min_snr", True)]:
                d = diffusion(
                    NoNetwork(), image_size=SIZE, timesteps=timesteps, beta_schedule=schedule, schedule_fn_kwargs=kwargs,
                    objective=objective, min_snr_loss_weight=min_snr, min_snr_gamma=5,
                )
                for key, table in d.named_buffers():
                    if key == "loss_weight":
                        out[f"{name}.loss_weight.{objective}.{weight}"] = table
                    else:
                        out.setdefault(f"{name}.{key}", table)
    keys = {
        "<set>.<buffer>": "[T] float32, computed by the reference in float64 and rounded; buffer names are the reference's",
        "<set>.loss_weight.<objective>.<plain|min_snr>": "[T]; min_snr uses gamma 5",
    }
    sets = {n: {"beta_schedule": s, "timesteps": t, "schedule_fn_kwargs": k} for n, (s, t, k) in SCHEDULE_SETS.items()}
    note = "the sigmoid schedule rounds sigmoid(start / tau) and sigmoid(end / tau) to float32 before it goes on in float64"
    return out, {"keys": keys, "sets": sets, "note": note}


# losses

TIMES = [0, 7, 30, 49]


def gradients(out, prefix, net, loss):
    net.zero_grad()
    loss.backward()
    out.update({f"{prefix}grad_state.{k}": p.grad.clone() for k, p in net.named_parameters()})


def losses():
    torch.manual_seed(20)
    net = network(Unet, **SMALL_UNET)
    out = state_of(net)
    images, noise = rand(4, 1, SIZE, SIZE), randn(4, 1, SIZE, SIZE)
    times = torch.tensor(TIMES)
    out |= {"image": images, "noise": noise, "times": times}
    common = dict(image_size=SIZE, timesteps=50)

    def store(key, d, **kwargs):
        with torch.no_grad():
            for name, reduction in [("per_sample", "none"), ("mean", "mean")]:
                # The reference adds offset noise into the tensor it was given.
                out[f"{key}.{name}"] = d(images, times=times, noise=noise.clone(), loss_reduction=reduction, **kwargs)

    for schedule in SCHEDULES:
        for objective in OBJECTIVES:
            for weight, min_snr in [("plain", False), ("min_snr", True)]:
                d = diffusion(net, beta_schedule=schedule, objective=objective, min_snr_loss_weight=min_snr, **common)
                store(f"loss.{schedule}.{objective}.{weight}", d)
        x_start = images * 2 - 1
        out[f"x_t.{schedule}"] = d.q_sample(x_start, times, noise)
        out[f"target_v.{schedule}"] = d.predict_v(x_start, times, noise)

    d = diffusion(net, beta_schedule="sigmoid", objective="pred_v", auto_normalize=False, **common)
    store("no_auto_normalize", d)

    d = diffusion(net, beta_schedule="cosine", objective="pred_noise", min_snr_loss_weight=True, **common)
    gradients(out, "gradient.", net, d(images, times=times, noise=noise.clone()))

    offset(out, net, images, noise, times, common)
    self_conditioned(out, times, images, noise, common)
    immiscible(out, net, common)

    keys = {
        "state.<name>": "parameters of the U-Net of every case but self_cond",
        "image": "[4, 1, 8, 8] in [0, 1], before auto-normalisation to [-1, 1]",
        "noise": "[4, 1, 8, 8]", "times": "[4] int64",
        "loss.<schedule>.<objective>.<plain|min_snr>.<per_sample|mean>": "weighted losses, [4] and scalar",
        "x_t.<schedule>, target_v.<schedule>": "noised x (of the auto-normalised image) and the v target",
        "no_auto_normalize.*": "sigmoid, pred_v, plain; the image is used as it is",
        "gradient.grad_state.<name>": "gradients of loss.cosine.pred_noise.min_snr.mean",
        "offset.noise": "[4, 1] the second draw; noise + 0.1 * offset is used for x_t and target",
        "offset.<objective>.<per_sample|mean>": "cosine, plain, offset_noise_strength 0.1",
        "self_cond.state.<name>": "parameters of a U-Net with self_condition",
        "self_cond.x_self_cond": "first pass: its prediction of x_0, not clamped, no gradient (linear, pred_v, plain)",
        "self_cond.<on|off>.<per_sample|mean>, self_cond.on.grad_state.<name>": "with and without the first pass; gradients of the mean",
        "immiscible.x_start, immiscible.noise": "[16, 1, 8, 8]",
        "immiscible.distance": "[16, 16] Euclidean, rows x_start, columns noise",
        "immiscible.assignment": "[16] int64: x_start i goes with noise[assignment[i]]",
        "immiscible.cost": "scalar float64, sum of the assigned distances",
        "immiscible.loss_reference": "[16] cosine, pred_noise, min_snr as the reference computes it: only x_t uses the assignment",
        "immiscible.loss": "[16] x_t and target both use the assigned noise, as in the paper",
        "immiscible.times": "[16] int64",
    }
    return out, {
        "keys": keys, "unet": SMALL_UNET, "unet_self_cond": SMALL_UNET | {"self_condition": True},
        "timesteps": 50, "min_snr_gamma": 5, "auto_normalize": True,
    }


def offset(out, net, images, noise, times, common):
    drawn = randn(4, 1)
    out["offset.noise"] = drawn
    for objective in OBJECTIVES:
        d = diffusion(net, beta_schedule="cosine", objective=objective, offset_noise_strength=0.1, **common)
        for name, reduction in [("per_sample", "none"), ("mean", "mean")]:
            with fixed_noise(drawn), torch.no_grad():
                out[f"offset.{objective}.{name}"] = d(images, times=times, noise=noise.clone(), loss_reduction=reduction)


def self_conditioned(out, times, images, noise, common):
    net = network(Unet, **SMALL_UNET, self_condition=True)
    out.update(state_of(net, "self_cond.state."))
    d = diffusion(net, beta_schedule="linear", objective="pred_v", **common)
    with torch.no_grad():
        out["self_cond.x_self_cond"] = d.model_predictions(d.q_sample(images * 2 - 1, times, noise), times).pred_x_start
    coin = ddp.random
    try:
        for side, value in [("on", 0.0), ("off", 0.9)]:
            ddp.random = lambda: value
            with torch.no_grad():
                out[f"self_cond.{side}.per_sample"] = d(images, times=times, noise=noise.clone(), loss_reduction="none")
            loss = d(images, times=times, noise=noise.clone())
            out[f"self_cond.{side}.mean"] = loss.detach()
            if side == "on":
                gradients(out, "self_cond.on.", net, loss)
    finally:
        ddp.random = coin


def immiscible(out, net, common):
    x_start, noise = rand(16, 1, SIZE, SIZE) * 2 - 1, randn(16, 1, SIZE, SIZE)
    times = torch.arange(16) * 3
    options = dict(beta_schedule="cosine", objective="pred_noise", min_snr_loss_weight=True, **common)
    reference, plain = diffusion(net, immiscible=True, **options), diffusion(net, **options)
    assignment = reference.noise_assignment(x_start, noise)
    distance = torch.cdist(x_start.flatten(1), noise.flatten(1))
    with torch.no_grad():
        out |= {
            "immiscible.x_start": x_start,
            "immiscible.noise": noise,
            "immiscible.times": times,
            "immiscible.distance": distance,
            "immiscible.assignment": assignment,
            "immiscible.cost": distance[torch.arange(16), assignment].double().sum(),
            "immiscible.loss_reference": reference.p_losses(x_start, times, noise=noise.clone(), loss_reduction="none"),
            "immiscible.loss": plain.p_losses(x_start, times, noise=noise[assignment], loss_reduction="none"),
        }


# sampling

# In the last two pairs the float32 rounding of the reference moves a time by one from the exact quotient.
DDIM_TIMES = [(1000, 250), (1000, 50), (50, 10), (1000, 7), (50, 1), (1000, 26), (100, 90)]

def sampling():
    torch.manual_seed(30)
    net = network(Unet, **SMALL_UNET)
    net_self_cond = network(Unet, **SMALL_UNET, self_condition=True)
    # An untrained network that is fed its own output is chaotic: rounding grows to 0.2 within ten steps. A weak output damps it.
    net_self_cond.final_conv.weight.data.mul_(0.2)
    out = state_of(net) | state_of(net_self_cond, "self_cond.state.")
    shape = (2, 1, SIZE, SIZE)

    x, noise = randn(*shape), randn(*shape)
    out |= {"p_sample.x": x, "p_sample.noise": noise}
    for objective, schedule in zip(OBJECTIVES, SCHEDULES):
        d = diffusion(net, image_size=SIZE, timesteps=50, beta_schedule=schedule, objective=objective)
        for t in (49, 25, 0):
            with fixed_noise(*([noise] if t > 0 else [])):
                previous, x_start = d.p_sample(x, t)
            out[f"p_sample.{objective}.t{t}.output"] = previous
            out[f"p_sample.{objective}.t{t}.x_start"] = x_start

    d = diffusion(net, image_size=SIZE, timesteps=20, beta_schedule="cosine", objective="pred_v")
    trajectory(out, "ddpm", d, d.p_sample_loop, shape, draws=19)
    d = diffusion(net, image_size=SIZE, timesteps=20, beta_schedule="sigmoid", objective="pred_noise")
    trajectory(out, "ddpm_noise", d, d.p_sample_loop, shape, draws=19)

    for name, eta, objective in [("ddim_eta0", 0.0, "pred_v"), ("ddim_eta07", 0.7, "pred_noise")]:
        d = diffusion(
            net, image_size=SIZE, timesteps=50, sampling_timesteps=10, beta_schedule="sigmoid", objective=objective, ddim_sampling_eta=eta
        )
        trajectory(out, name, d, d.ddim_sample, shape, draws=9)
    d = diffusion(
        net_self_cond, image_size=SIZE, timesteps=50, sampling_timesteps=10, beta_schedule="cosine", objective="pred_x0", ddim_sampling_eta=0.5
    )
    trajectory(out, "ddim_self_cond", d, d.ddim_sample, shape, draws=9)

    d = diffusion(net, image_size=SIZE, timesteps=50, beta_schedule="sigmoid", objective="pred_v")
    x1, x2 = rand(*shape) * 2 - 1, rand(*shape) * 2 - 1
    n1, n2, steps = randn(*shape), randn(*shape), randn(19, *shape)
    with fixed_noise(n1, n2, *steps):
        y = d.interpolate(x1, x2, t=20, lam=0.3)
    out |= {
        "interpolate.x1": x1, "interpolate.x2": x2, "interpolate.noise1": n1, "interpolate.noise2": n2,
        "interpolate.noise": steps, "interpolate.output": y,
    }
    for total, steps in DDIM_TIMES:
        out[f"ddim_times.{total}.{steps}"] = ddim_times(total, steps)

    keys = {
        "state.<name>, self_cond.state.<name>": "parameters of the U-Net without and with self_condition",
        "p_sample.x, p_sample.noise": "x_t and the drawn noise of every single step (t = 0 draws none)",
        "p_sample.<objective>.t<t>.<output|x_start>": "x_(t-1) and the clamped x_0; T 50; pred_noise linear, pred_x0 cosine, pred_v sigmoid",
        "<trajectory>.x_T": "[b, c, h, w] first draw",
        "<trajectory>.noise": "[draws, b, c, h, w] in the order used; the last step draws none",
        "<trajectory>.images": "[b, steps + 1, c, h, w]: x_T, then x after each step, all mapped to (x + 1) / 2, not clamped",
        "interpolate.*": "T 50, sigmoid, pred_v, t 20, lam 0.3; x1, x2 in [-1, 1], noised with noise1, noise2 to t 20; then steps t = 19..0 with noise[0..19]; neither normalised nor unnormalised",
        "ddim_times.<T>.<S>": (
            "[S + 1] int64, from T - 1 down to -1: linspace(-1, T - 1, S + 1) truncated towards zero, all in float32 with step = T / S: "
            "-1 + step * i for i < (S + 1) / 2 (integer division), else (T - 1) - step * (S - i)"
        ),
    }
    trajectories = {
        "ddpm": {"timesteps": 20, "beta_schedule": "cosine", "objective": "pred_v"},
        "ddpm_noise": {"timesteps": 20, "beta_schedule": "sigmoid", "objective": "pred_noise"},
        "ddim_eta0": {"timesteps": 50, "sampling_timesteps": 10, "eta": 0.0, "beta_schedule": "sigmoid", "objective": "pred_v"},
        "ddim_eta07": {"timesteps": 50, "sampling_timesteps": 10, "eta": 0.7, "beta_schedule": "sigmoid", "objective": "pred_noise"},
        "ddim_self_cond": {"timesteps": 50, "sampling_timesteps": 10, "eta": 0.5, "beta_schedule": "cosine", "objective": "pred_x0"},
    }
    return out, {
        "keys": keys, "unet": SMALL_UNET, "unet_self_cond": SMALL_UNET | {"self_condition": True}, "trajectories": trajectories, "mode": "eval",
    }


def trajectory(out, name, d, sample, shape, draws):
    x_T, noise = randn(*shape), randn(draws, *shape)
    with fixed_noise(x_T, *noise):
        images = sample(shape, return_all_timesteps=True)
    out |= {f"{name}.x_T": x_T, f"{name}.noise": noise, f"{name}.images": images}


class TimesOnly(NoNetwork):
    """Records the times at which a sampler asks for a prediction."""

    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, x, t, x_self_cond=None):
        self.times.append(t[0].item())
        return torch.zeros_like(x)


def ddim_times(total, steps):
    probe = TimesOnly()
    with torch.random.fork_rng():
        diffusion(probe, image_size=1, timesteps=total, sampling_timesteps=steps).ddim_sample((1, 1, 1, 1))
    assert len(probe.times) == steps
    return torch.tensor(probe.times + [-1])
