"""layers.safetensors and unet_*.safetensors: outputs and gradients of every layer and of whole U-Nets."""

import torch
from denoising_diffusion_pytorch import Unet
from denoising_diffusion_pytorch import classifier_free_guidance as cfg
from denoising_diffusion_pytorch import denoising_diffusion_pytorch as ddp

from common import network, rand, randn, state_of

LAYER_KEYS = {
    "<layer>.input.<name>": "input, [b, c, h, w], [b, d] or [b]",
    "<layer>.state.<name>": "parameter under the reference's name inside the layer",
    "<layer>.output": "output",
    "<layer>.cotangent": "fixed random tensor; the loss is sum(output * cotangent)",
    "<layer>.grad_input.<name>": "gradient of the loss with respect to that input",
    "<layer>.grad_state.<name>": "gradient of the loss with respect to that parameter",
}


def record(out, name, module, call=None, **inputs):
    leaves = {}
    for key, value in inputs.items():
        leaves[key] = value.clone().requires_grad_(value.is_floating_point())
        out[f"{name}.input.{key}"] = value
    out.update(state_of(module, f"{name}.state."))
    y = call(module, **leaves) if call else module(*leaves.values())
    out[f"{name}.output"] = y.detach()
    if not y.requires_grad:
        return
    cotangent = randn(*y.shape)
    out[f"{name}.cotangent"] = cotangent
    module.zero_grad()
    (y * cotangent).sum().backward()
    for key, leaf in leaves.items():
        if leaf.grad is not None:
            out[f"{name}.grad_input.{key}"] = leaf.grad
    for key, p in module.named_parameters():
        if p.grad is not None:
            out[f"{name}.grad_state.{key}"] = p.grad


def layers():
    torch.manual_seed(2)
    out = {}
    config = {"keys": LAYER_KEYS, "mode": "eval", "layers": {}}

    def layer(name, make, *args, inputs, call=None, **kwargs):
        config["layers"][name] = {"args": list(args), **kwargs}
        record(out, name, network(make, *args, **kwargs), call, **inputs)

    layer("rms_norm", ddp.RMSNorm, 6, inputs={"x": randn(2, 6, 3, 5)})
    # A pixel of zeros and one below the norm's floor of 1e-12: forward only, the gradient there is of order 1e12.
    with torch.no_grad():
        x = randn(1, 6, 1, 3)
        x[..., 0] = 0
        x[..., 1] *= 1e-13
        layer("rms_norm_zero", ddp.RMSNorm, 6, inputs={"x": x}, call=lambda m, x: m(x.detach()).detach())

    layer("block", ddp.Block, 6, 8, inputs={"x": randn(2, 6, 4, 6)})
    layer(
        "block_scale_shift", ddp.Block, 6, 8,
        inputs={"x": randn(2, 6, 4, 6), "scale": randn(2, 8, 1, 1), "shift": randn(2, 8, 1, 1)},
        call=lambda m, x, scale, shift: m(x, scale_shift=(scale, shift)),
    )
    layer("resnet_equal", ddp.ResnetBlock, 8, 8, time_emb_dim=12, inputs={"x": randn(2, 8, 4, 6), "time_emb": randn(2, 12)})
    layer("resnet_different", ddp.ResnetBlock, 6, 8, time_emb_dim=12, inputs={"x": randn(2, 6, 4, 6), "time_emb": randn(2, 12)})
    for kind, make in [("linear_attention", ddp.LinearAttention), ("attention", ddp.Attention)]:
        layer(kind, make, 8, heads=2, dim_head=6, inputs={"x": randn(2, 8, 4, 6)})
        layer(f"{kind}_default", make, 8, inputs={"x": randn(2, 8, 3, 4)})
        layer(f"{kind}_mem1", make, 4, heads=3, dim_head=5, num_mem_kv=1, inputs={"x": randn(1, 4, 2, 3)})
        layer(f"{kind}_long", make, 4, heads=1, dim_head=8, inputs={"x": randn(1, 4, 24, 20)})
    layer("upsample", ddp.Upsample, 6, 4, inputs={"x": randn(2, 6, 3, 5)})
    layer("downsample", ddp.Downsample, 6, 4, inputs={"x": randn(2, 6, 4, 6)})
    times = torch.tensor([0, 1, 17, 999])
    for theta in (10000, 100):
        layer(f"sinusoidal_{theta}", ddp.SinusoidalPosEmb, 16, theta=theta, inputs={"time": times})
    # Float times of a continuous-time formulation: at |t| near 1000 the product t * w * 2 pi alone rounds by 1e-3.
    levels = torch.tensor([0.0, 0.25, -3.5, 2.75]).to(randn(1).dtype)
    for name, is_random in [("fourier_learned", False), ("fourier_random", True)]:
        layer(name, ddp.RandomOrLearnedSinusoidalPosEmb, 16, is_random=is_random, inputs={"time": levels})
    layer("time_mlp", lambda dim: Unet(dim).time_mlp, 8, inputs={"time": times})
    return out, config


UNET_KEYS = {
    "state.<name>": "parameter, the reference's state dict name",
    "x": "[b, c, h, w]",
    "time": "[b], int64 steps or float32 noise levels",
    "x_self_cond": "[b, c, h, w], with self_condition only",
    "output": "[b, out_dim, h, w]; with x_self_cond where the file has one",
    "output_no_self_cond": "output for x_self_cond = None",
    "cotangent": "fixed random tensor; the loss is sum(output * cotangent)",
    "grad_input.x": "gradient of the loss with respect to x",
    "grad_state.<name>": "gradient of the loss with respect to that parameter",
}

# name -> (seed, Unet keywords, (h, w))
UNETS = {
    "base": (10, dict(dim=8, dim_mults=(1, 2), channels=3), (8, 8)),
    "rect": (11, dict(dim=4, dim_mults=(1, 2, 4), channels=1, attn_heads=(1, 2, 3), attn_dim_head=(8, 6, 4)), (8, 12)),
    "selfcond": (12, dict(dim=4, dim_mults=(1, 2), channels=2, self_condition=True, attn_heads=2, attn_dim_head=8), (8, 8)),
    "full_attn": (13, dict(dim=8, dim_mults=(1, 2), channels=3, full_attn=(True, True), init_dim=12, out_dim=5, attn_heads=2, attn_dim_head=8), (8, 8)),
    "fourier": (14, dict(dim=4, dim_mults=(1, 2), channels=1, random_fourier_features=True, learned_sinusoidal_dim=16, learned_variance=True, attn_heads=2, attn_dim_head=8), (8, 8)),
    "learned_fourier": (15, dict(dim=4, dim_mults=(1,), channels=1, learned_sinusoidal_cond=True, learned_sinusoidal_dim=6, attn_heads=1, attn_dim_head=8), (5, 7)),
    "odd": (16, dict(dim=6, dim_mults=(1, 1, 2), channels=2, sinusoidal_pos_emb_theta=100, dropout=0.0, full_attn=(False, True, False), attn_heads=2, attn_dim_head=8), (12, 8)),
}


def unet(name):
    seed, kwargs, (h, w) = UNETS[name]

    def build():
        torch.manual_seed(seed)
        net = network(Unet, **kwargs)
        out = state_of(net)
        out["x"] = x = randn(2, kwargs["channels"], h, w)
        fourier = net.random_or_learned_sinusoidal_cond
        time = (rand(2) * 8 - 4) if fourier else torch.tensor([3, 871])
        out["time"] = time
        if net.self_condition:
            out["x_self_cond"] = cond = randn(*x.shape)
            with torch.no_grad():
                out["output"] = net(x, time, cond)
                out["output_no_self_cond"] = net(x, time, None)
        elif name == "base":
            leaf = x.clone().requires_grad_()
            y = net(leaf, time)
            out["output"] = y.detach()
            out["cotangent"] = cotangent = randn(*y.shape)
            (y * cotangent).sum().backward()
            out["grad_input.x"] = leaf.grad
            out.update({f"grad_state.{k}": p.grad for k, p in net.named_parameters()})
        else:
            with torch.no_grad():
                out["output"] = net(x, time)
        return out, {"keys": UNET_KEYS, "mode": "eval; dropout is 0, so train mode gives the same", "unet": kwargs}

    return build


class ClassUnet(Unet):
    """The main Unet with two parts of classifier_free_guidance.Unet: its class embedding and its residual blocks."""

    def __init__(self, dim, num_classes, **kwargs):
        super().__init__(dim, **kwargs)
        guided = cfg.Unet(dim, num_classes, **kwargs)
        self.classes_emb, self.null_classes_emb, self.classes_mlp = guided.classes_emb, guided.null_classes_emb, guided.classes_mlp
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ddp.ResnetBlock):
                    conv = child.block1.proj
                    setattr(parent, name, ClassBlock(conv.in_channels, conv.out_channels, time_emb_dim=4 * dim, classes_emb_dim=4 * dim))
        # What Unet.forward takes for the time embedding goes to every block.
        self.time_mlp.register_forward_hook(lambda module, args, t: (t, self.embedded))

    def forward(self, x, time, classes):
        keep = classes < self.classes_emb.num_embeddings
        known = self.classes_emb(classes.clamp(max=self.classes_emb.num_embeddings - 1))
        self.embedded = self.classes_mlp(torch.where(keep[:, None], known, self.null_classes_emb))
        return super().forward(x, time)


class ClassBlock(cfg.ResnetBlock):
    def forward(self, x, embeddings):
        return super().forward(x, *embeddings)


def class_unet():
    torch.manual_seed(17)
    kwargs = dict(dim=4, num_classes=4, dim_mults=(1, 2), channels=2, attn_heads=2, attn_dim_head=4)
    net = network(ClassUnet, **kwargs)
    out = state_of(net)
    out["x"] = x = randn(4, 2, 4, 6)
    out["time"] = time = torch.tensor([3, 871, 40, 500])
    out["classes"] = classes = torch.tensor([2, 0, 4, 2])
    leaf = x.clone().requires_grad_()
    y = net(leaf, time, classes)
    out["output"] = y.detach()
    out["cotangent"] = cotangent = randn(*y.shape)
    (y * cotangent).sum().backward()
    out["grad_input.x"] = leaf.grad
    out.update({f"grad_state.{k}": p.grad for k, p in net.named_parameters()})
    keys = UNET_KEYS | {"classes": "[b], int64; num_classes stands for no class", "output": "[b, channels, h, w]"}
    network_is = "Unet with the class embedding and the residual blocks of classifier_free_guidance.Unet"
    return out, {"keys": keys, "mode": "eval", "network": network_is, "unet": kwargs}
