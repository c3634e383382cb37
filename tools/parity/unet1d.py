"""unet1d_*.safetensors: forward passes and gradients of `denoising_diffusion_pytorch_1d.Unet1D`."""

import torch
from denoising_diffusion_pytorch.denoising_diffusion_pytorch_1d import Unet1D

from common import given, network, randn, state_of

KEYS = {
    "state.<name>": "parameter, the reference's state dict name",
    "x": "[b, c, l]",
    "time": "[b], noise levels",
    "x_self_cond": "[b, c, l], with self-conditioning only",
    "output": "[b, out channels, l]",
    "cotangent": "fixed random tensor; the loss is sum(output * cotangent)",
    "grad_input.x": "gradient of the loss with respect to x",
    "grad_state.<name>": "gradient of the loss with respect to that parameter, where the file has gradients",
}

# name -> (seed, Unet1D keywords, length, with gradients)
CASES = {
    "base": (70, dict(dim=4, dim_mults=(1, 2), channels=3, attn_heads=2), 12, True),
    "selfcond": (71, dict(dim=4, init_dim=6, dim_mults=(1, 2, 1), channels=2, self_condition=True, attn_heads=1), 20, False),
    "fourier": (72, dict(dim=4, dim_mults=(1,), channels=1, learned_variance=True, random_fourier_features=True, learned_sinusoidal_dim=6, attn_heads=1), 7, False),
}


def unet1d(name):
    seed, options, length, gradients = CASES[name]

    def build():
        torch.manual_seed(seed)
        net = network(Unet1D, **options)
        out = state_of(net)
        out["x"] = x = randn(2, options["channels"], length)
        out["time"] = time = given([0.25, -3.5]) if "random_fourier_features" in options else given([7.0, 803.0])
        extra = []
        if options.get("self_condition"):
            out["x_self_cond"] = randn(2, options["channels"], length)
            extra = [out["x_self_cond"]]
        leaf = x.clone().requires_grad_()
        y = net(leaf, time, *extra)
        out["output"] = y.detach()
        if gradients:
            out["cotangent"] = cotangent = randn(*y.shape)
            (y * cotangent).sum().backward()
            out["grad_input.x"] = leaf.grad
            out.update({f"grad_state.{k}": p.grad for k, p in net.named_parameters()})
        return out, {"keys": KEYS, "mode": "eval", "unet1d": options}

    return build
