"""ema.safetensors, post_hoc.safetensors, adam.safetensors, adamw.safetensors, and a real checkpoint of the reference's Trainer with what it must give."""

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
from denoising_diffusion_pytorch import denoising_diffusion_pytorch as ddp
from ema_pytorch import EMA
from ema_pytorch.post_hoc_ema import p_dot_p, sigma_rel_to_gamma, solve_weights
from PIL import Image
from torch import nn

from common import fixed_noise, network

# EMA


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.register_buffer("floating", torch.zeros(1))
        self.register_buffer("counter", torch.zeros(1, dtype=torch.long))

    def set(self, k):
        self.w.data.fill_(math.sin(k * 0.1))
        self.floating.fill_(math.cos(k * 0.1))
        self.counter.fill_(k)


class Watched(EMA):
    """Notes what each call of update() did and with which decay."""

    def note(self, kind, decay=0.0):
        self.action, self.decay = kind, decay

    def copy_params_from_model_to_ema(self):
        self.note(1)
        super().copy_params_from_model_to_ema()

    def get_current_decay(self):
        decay = super().get_current_decay()
        self.note(2, decay)
        return decay


EMA_SETS = {
    "every10": (3000, dict(beta=0.995, update_every=10)),
    "every1": (3000, dict(beta=0.995, update_every=1)),
    "variant": (300, dict(beta=0.9, update_after_step=7, update_every=3, inv_gamma=2.0, power=0.75, min_value=0.6)),
}


def ema():
    out = {}
    for name, (calls, kwargs) in EMA_SETS.items():
        model = Scalar()
        model.set(-1)  # what the average starts from, before the first call
        average = Watched(model, **kwargs)
        rows = []
        for k in range(calls):
            model.set(k)
            average.note(0)
            average.update()
            shadow = average.ema_model
            rows.append((average.action, average.decay, shadow.w.item(), shadow.floating.item(), shadow.counter.item()))
        action, decay, w, floating, counter = zip(*rows)
        out |= {
            f"{name}.action": torch.tensor(action, dtype=torch.uint8),
            f"{name}.decay": torch.tensor(decay),
            f"{name}.w": torch.tensor(w),
            f"{name}.floating": torch.tensor(floating),
            f"{name}.counter": torch.tensor(counter),
        }
        assert set(counter) == {-1}, "the reference never copies integer buffers"
        out[f"{name}.counter"] = out[f"{name}.counter"][-1:]
    keys = {
        "<set>.action": "[calls] uint8 per call of update(): 0 nothing, 1 copy, 2 lerp",
        "<set>.decay": "[calls] decay used by a lerp, 0 elsewhere; computed by the reference in float32",
        "<set>.w": "[calls] averaged parameter after each call; call k (from 0) sees w_k = float32(sin(k * 0.1))",
        "<set>.floating": "[calls] averaged float buffer after each call; call k sees float32(cos(k * 0.1))",
        "<set>.counter": "[1] int64 buffer of the average after the last call: still the value at construction, -1",
    }
    semantics = [
        "s is the number of earlier calls of update(); the counter is incremented first, and the decay is computed from the incremented counter",
        "call s = 0 (flag initted false): copy parameters and float buffers, whatever update_every is",
        "else if s % update_every != 0: nothing",
        "else if s <= update_after_step: copy",
        "else: lerp with decay d(s): e = s - update_after_step, d = clamp(1 - (1 + e / inv_gamma)^(-power), min_value, beta), average += (1 - d) * (w - average)",
        "float buffers are treated as parameters; integer buffers are never touched after construction",
    ]
    return out, {"keys": keys, "semantics": semantics, "sets": {n: {"calls": c} | k for n, (c, k) in EMA_SETS.items()}}


# Averages of any length

# Lengths and steps of the stored averages, length and step of the wanted one.
POST_HOC_SETS = {
    "between": ((0.05, 0.1), range(500, 5001, 500), 0.07, 5000),
    "longer": ((0.05, 0.28), range(1000, 8001, 1000), 0.15, 8000),
    "shorter": ((0.1, 0.2), range(250, 2001, 250), 0.08, 2000),
}


def post_hoc():
    sigma_rels = (0.01, 0.05, 0.1, 0.2, 0.28)
    out = {"gamma": torch.tensor([sigma_rel_to_gamma(s) for s in sigma_rels])}
    for name, (lengths, steps, length, step) in POST_HOC_SETS.items():
        stored = [(float(t), sigma_rel_to_gamma(s)) for t in steps for s in lengths]
        t_i, gamma_i = (torch.tensor(x, dtype=torch.float64) for x in zip(*stored))
        t_r, gamma_r = (torch.tensor([x], dtype=torch.float64) for x in (float(step), sigma_rel_to_gamma(length)))
        solved = solve_weights(t_i, gamma_i, t_r, gamma_r).flatten()
        solved = solved / solved.sum()
        among = p_dot_p(t_i[:, None], gamma_i[:, None], t_i, gamma_i)
        norm = p_dot_p(t_r, gamma_r, t_r, gamma_r)
        squares = solved @ among @ solved - 2 * solved @ p_dot_p(t_i, gamma_i, t_r, gamma_r) + norm
        out[f"{name}.weights"] = solved.float()
        out[f"{name}.relative_error"] = (squares / norm).sqrt().float()
    keys = {
        "gamma": "the exponents of config's sigma_rels",
        "<set>.weights": "[n] what each stored average counts, for each step all lengths; divided by their sum, which ema-pytorch leaves out and EDM2 does not",
        "<set>.relative_error": "[1] norm of the difference to the wanted profile, as a share of the norm of that",
    }
    fields = ("stored_sigma_rels", "stored_steps", "sigma_rel", "step")
    sets = {name: dict(zip(fields, (list(a), list(b), c, d))) for name, (a, b, c, d) in POST_HOC_SETS.items()}
    return out, {"keys": keys, "sigma_rels": sigma_rels, "sets": sets}


# Adam


def adam(weight_decay=0.0):
    torch.manual_seed(40)
    options = dict(lr=1e-3, betas=(0.9, 0.99), eps=1e-8)
    params = {"a": nn.Parameter(torch.randn(4, 3)), "b": nn.Parameter(torch.randn(7))}
    out = {f"param.{k}.0": p.detach().clone() for k, p in params.items()}
    if weight_decay:
        options["weight_decay"] = weight_decay
    make = torch.optim.AdamW if weight_decay else torch.optim.Adam
    optimizer = make(params.values(), **options)
    for step, scale in enumerate([50.0, 3.0, 0.05], start=1):
        for key, p in params.items():
            p.grad = scale * torch.randn(p.shape)
            out[f"grad.{key}.{step}"] = p.grad.clone()
        out[f"norm.{step}"] = nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        for key, p in params.items():
            out[f"clipped.{key}.{step}"] = p.grad.clone()
            out[f"param.{key}.{step}"] = p.detach().clone()
            for moment in ("exp_avg", "exp_avg_sq"):
                out[f"{moment}.{key}.{step}"] = optimizer.state[p][moment].clone()
    assert out["norm.1"] > 1 and out["norm.3"] < 1
    keys = {
        "param.<a|b>.<step>": "after that step; step 0 is the start",
        "grad.<a|b>.<step>": "given gradient, before clipping",
        "norm.<step>": "global L2 norm before clipping; above 1 in steps 1 and 2, below in step 3",
        "clipped.<a|b>.<step>": "gradient times min(1, 1 / (norm + 1e-6))",
        "exp_avg.<a|b>.<step>, exp_avg_sq.<a|b>.<step>": "moments after the step",
    }
    return out, {"keys": keys, "adam": options, "max_norm": 1.0}


def adamw():
    return adam(weight_decay=1.0)


# checkpoint

TRAINED = dict(dim=4, dim_mults=(1, 2), channels=1, attn_heads=2, attn_dim_head=4)
TRAINED_DIFFUSION = dict(image_size=8, timesteps=50, sampling_timesteps=5, beta_schedule="cosine", objective="pred_noise", min_snr_loss_weight=True)
PLAIN = dict(dim=4, dim_mults=(1, 2), channels=3, self_condition=True, init_dim=6, attn_heads=(1, 2), attn_dim_head=(8, 4))
STEPS = 12


def train(folder):
    """Runs the reference's Trainer for STEPS steps; it writes folder/model-1.pt and gives itself back."""
    torch.manual_seed(50)
    images = folder / "images"
    images.mkdir()
    pixels = np.random.default_rng(50)
    for i in range(112):
        Image.fromarray(pixels.integers(0, 256, (8, 8), dtype=np.uint8)).save(images / f"{i:03}.png")
    workers, ddp.cpu_count = ddp.cpu_count, lambda: 0  # the draws of worker processes depend on their number
    try:
        trainer = Trainer(
            GaussianDiffusion(network(Unet, **TRAINED), **TRAINED_DIFFUSION), str(images), train_batch_size=16, train_lr=1e-3,
            train_num_steps=STEPS, save_and_sample_every=STEPS, num_samples=1, results_folder=str(folder / "results"), calculate_fid=False,
        )
        trainer.ds.paths.sort()  # a file system lists them in any order
        trainer.train()
    finally:
        ddp.cpu_count = workers
    return (folder / "results" / "model-1.pt").read_bytes()


def checkpoints(folder):
    """Writes model-1.pt and state_dict.pt and gives the builder of import.safetensors."""
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as scratch:
        (folder / "model-1.pt").write_bytes(train(Path(scratch)))
    torch.manual_seed(51)
    plain = network(Unet, **PLAIN)
    torch.save(plain.state_dict(), folder / "state_dict.pt")

    def build():
        torch.manual_seed(52)
        data = torch.load(folder / "model-1.pt", weights_only=True)
        assert data["step"] == STEPS and data["ema"]["step"] == STEPS
        out = {"x_T": torch.randn(4, 1, 8, 8), "x": torch.randn(2, 1, 8, 8), "time": torch.tensor([4, 33])}
        averaged = {k.removeprefix("ema_model."): v for k, v in data["ema"].items() if k.startswith("ema_model.")}
        for name, state in [("model", data["model"]), ("ema", averaged)]:
            d = GaussianDiffusion(Unet(**TRAINED), **TRAINED_DIFFUSION).eval()
            d.load_state_dict(state)
            with torch.no_grad():
                out[f"forward.{name}"] = d.model(out["x"], out["time"])
            with fixed_noise(out["x_T"], *torch.zeros(4, 4, 1, 8, 8)):  # eta is 0: later draws have no weight
                out[f"ddim.{name}"] = d.sample(batch_size=4)
        assert not torch.equal(out["forward.model"], out["forward.ema"])
        net = Unet(**PLAIN).eval()
        net.load_state_dict(torch.load(folder / "state_dict.pt", weights_only=True))
        out |= {"plain.x": torch.randn(2, 3, 8, 8), "plain.x_self_cond": torch.randn(2, 3, 8, 8), "plain.time": torch.tensor([0, 700])}
        with torch.no_grad():
            out["plain.output"] = net(out["plain.x"], out["plain.time"], out["plain.x_self_cond"])
        keys = {
            "x_T": "[4, 1, 8, 8] start of the DDIM runs",
            "ddim.<ema|model>": "[4, 1, 8, 8] in [0, 1] domain, not clamped: DDIM, 5 steps, eta 0, weights of model-1.pt",
            "x, time": "input of the plain forward passes", "forward.<ema|model>": "U-Net output, weights of model-1.pt",
            "plain.<x|time|x_self_cond|output>": "forward pass of state_dict.pt",
        }
        return out, {"keys": keys, "unet": TRAINED, "diffusion": TRAINED_DIFFUSION, "step": STEPS, "plain_unet": PLAIN, "mode": "eval"}

    return build
