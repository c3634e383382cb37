"""karras_*.safetensors: forward passes and gradients of KarrasUnet, KarrasUnet1D and KarrasUnet3D, in eval behaviour.

In train behaviour the reference's forward pass replaces the weights by normalised ones, which changes no output; gradients are those
of eval behaviour, which leaves the weights alone.
"""

import torch
from denoising_diffusion_pytorch.karras_unet import KarrasUnet
from denoising_diffusion_pytorch.karras_unet_1d import KarrasUnet1D
from denoising_diffusion_pytorch.karras_unet_3d import KarrasUnet3D

from common import given, network, randn, state_of

KEYS = {
    "state.<name>": "parameter, the reference's state dict name",
    "x": "[b, c, ...]",
    "time": "[b], noise levels",
    "x_self_cond": "as x, with self-conditioning only",
    "classes": "[b], int64, with classes only",
    "output": "[b, c, ...]",
    "cotangent": "fixed random tensor; the loss is sum(output * cotangent), where the file has gradients",
    "grad_input.x": "gradient of the loss with respect to x",
    "grad_state.<name>": "gradient of the loss with respect to that parameter",
}

SMALL = dict(dim=4, dim_max=6, channels=2, num_downsamples=1, num_blocks_per_stage=1, attn_dim_head=3, fourier_dim=4)
# name -> (seed, class, keywords, shape of the data, with gradients)
CASES = {
    "image": (80, KarrasUnet, SMALL | dict(image_size=4, attn_res=(2,)), (4, 4), True),
    "image_classes": (81, KarrasUnet, SMALL | dict(image_size=8, attn_res=(8, 4), num_classes=3, num_downsamples=2, mp_cat_t=0.4, mp_add_emb_t=0.6), (8, 8), False),
    "image_selfcond": (82, KarrasUnet, SMALL | dict(image_size=4, attn_res=(), self_condition=True), (4, 4), False),
    "sequence": (83, KarrasUnet1D, SMALL | dict(seq_len=8, attn_res=(4,), num_classes=2), (8,), True),
    "volume": (84, KarrasUnet3D, SMALL | dict(image_size=4, frames=2, attn_res=(2,)), (2, 4, 4), True),
    "volume_types": (85, KarrasUnet3D, SMALL | dict(image_size=4, frames=4, attn_res=(2,), num_downsamples=2, downsample_types=("image", "frame"), num_blocks_per_stage=(2, 1)), (4, 4, 4), False),
    "volume_factorized": (86, KarrasUnet3D, SMALL | dict(image_size=4, frames=2, attn_res=(4, 2), dim=8, dim_max=8, attn_dim_head=4, factorize_space_time_attn=True), (2, 4, 4), True),
}


def karras(name):
    seed, make, options, shape, gradients = CASES[name]

    def build():
        torch.manual_seed(seed)
        net = network(make, **options)
        with torch.no_grad():  # they start at 0, and hide everything
            for key, p in net.named_parameters():
                if key.endswith("gain"):
                    p.copy_(0.5 + torch.rand((), dtype=torch.float32))
        out = state_of(net)
        out["x"] = x = randn(3, options["channels"], *shape)
        out["time"] = time = given([0.25, -1.5, 0.75])
        extra = {}
        if options.get("self_condition"):
            out["x_self_cond"] = extra["self_cond"] = randn(*x.shape)
        if "num_classes" in options:
            out["classes"] = extra["class_labels"] = torch.tensor([1, 0, 1])
        leaf = x.clone().requires_grad_()
        y = net(leaf, time, **extra)
        out["output"] = y.detach()
        if gradients:
            out["cotangent"] = cotangent = randn(*y.shape)
            (y * cotangent).sum().backward()
            out["grad_input.x"] = leaf.grad
            out.update({f"grad_state.{k}": p.grad for k, p in net.named_parameters() if p.grad is not None})
        return out, {"keys": KEYS, "mode": "eval", "karras_unet": options}

    return build


def has_f64(name):
    """The reference turns classes into float32, whatever the weights are."""
    return "num_classes" not in CASES[name][2]
