"""uvit_*.safetensors: forward passes and gradients of `simple_diffusion.UViT`.

Two cases are put together here, as the reference cannot: `haar`, because UViT tests the transforms that it is given on a tensor that
`torch.Size(1, 1, 32, 32)` fails to make; and `classes`, because UViT takes none (the class embedding is that of
classifier_free_guidance.Unet, beside the time embedding as it is there).
"""

import torch
from denoising_diffusion_pytorch import classifier_free_guidance as cfg
from denoising_diffusion_pytorch.simple_diffusion import FeedForward, ResnetBlock, UViT

from common import given, network, randn, state_of

KEYS = {
    "state.<name>": "parameter, the reference's state dict name",
    "x": "[b, c, h, w]",
    "time": "[b], noise levels",
    "classes": "[b], int64; num_classes stands for no class; with classes only",
    "output": "[b, channels, h, w]",
    "cotangent": "fixed random tensor; the loss is sum(output * cotangent)",
    "grad_input.x": "gradient of the loss with respect to x",
    "grad_state.<name>": "gradient of the loss with respect to that parameter, where the file has gradients",
}

SMALL = dict(dim=4, dim_mults=(1, 2), vit_depth=1, attn_heads=2, attn_dim_head=6, learned_sinusoidal_dim=6)
# name -> (seed, UViT keywords, (h, w), with gradients)
CASES = {
    "base": (60, SMALL | dict(channels=3, vit_depth=2, vit_dropout=0.0), (8, 8), True),
    "factors": (61, SMALL | dict(channels=1, init_dim=6, downsample_factor=(1, 3), ff_mult=2, out_dim=2), (9, 6), False),
    "patches": (62, SMALL | dict(channels=2, patch_size=2, vit_dropout=0.0), (8, 16), True),
    "dual_patchnorm": (63, SMALL | dict(channels=1, patch_size=3, dual_patchnorm=True, vit_dropout=0.0), (12, 12), True),
    "haar": (64, SMALL | dict(channels=1, vit_dropout=0.0, image_transform="haar"), (8, 16), True),
    "classes": (65, SMALL | dict(channels=2, num_classes=4, vit_dropout=0.0), (8, 4), True),
}


def haar(x):
    p, q, r, s = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    bands = torch.stack([p + q + r + s, p - q + r - s, p + q - r - s, p - q - r + s], 2) / 2
    return bands.flatten(1, 2)


def inverse_haar(bands):
    a, b, c, d = bands.unflatten(1, (-1, 4)).unbind(2)
    rows = [torch.stack([a + b + c + d, a - b + c - d], -1), torch.stack([a + b - c - d, a - b - c + d], -1)]
    return torch.stack([row.flatten(-2) / 2 for row in rows], -2).flatten(-3, -2)


class ClassUViT(UViT):
    def __init__(self, dim, num_classes, **kwargs):
        super().__init__(dim, **kwargs)
        guided = cfg.Unet(dim, num_classes)
        self.classes_emb, self.null_classes_emb, self.classes_mlp = guided.classes_emb, guided.null_classes_emb, guided.classes_mlp
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ResnetBlock):
                    conv = child.block1.proj
                    setattr(parent, name, ResnetBlock(conv.in_channels, conv.out_channels, time_emb_dim=8 * dim))
                elif isinstance(child, FeedForward):
                    width, hidden = child.proj_out[1].out_features, child.proj_out[1].in_features
                    setattr(parent, name, FeedForward(width, 8 * dim, mult=hidden // width))
        self.time_mlp.register_forward_hook(lambda module, args, t: torch.cat((t, self.embedded), 1))

    def forward(self, x, time, classes):
        keep = classes < self.classes_emb.num_embeddings
        known = self.classes_emb(classes.clamp(max=self.classes_emb.num_embeddings - 1))
        self.embedded = self.classes_mlp(torch.where(keep[:, None], known, self.null_classes_emb))
        return super().forward(x, time)


def make(image_transform=None, channels=3, num_classes=None, **kwargs):
    if image_transform:
        net = UViT(channels=4 * channels, **kwargs)
        net.init_img_transform, net.final_img_itransform = haar, inverse_haar
    elif num_classes:
        net = ClassUViT(num_classes=num_classes, channels=channels, **kwargs)
    else:
        net = UViT(channels=channels, **kwargs)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "to_scale_shift" in name:
                p.copy_(0.2 * torch.randn(p.shape))
            elif name.endswith("_scale") or (name.startswith("init_conv") and p.ndim == 1):
                p.add_(0.2 * torch.randn(p.shape))
            elif ".0.net.0." in name or name.startswith("null"):  # upsampling begins with equal rows
                p.add_(0.1 * torch.randn(p.shape))
    return net


def uvit(name):
    seed, options, (h, w), gradients = CASES[name]

    def build():
        torch.manual_seed(seed)
        net = network(make, **options)
        out = state_of(net)
        out["x"] = x = randn(3, options["channels"], h, w)
        out["time"] = time = given([0.25, -3.5, 2.75])
        extra = []
        if "num_classes" in options:
            out["classes"] = torch.tensor([2, 4, 0])
            extra = [out["classes"]]
        leaf = x.clone().requires_grad_()
        y = net(leaf, time, *extra)
        out["output"] = y.detach()
        if gradients:
            out["cotangent"] = cotangent = randn(*y.shape)
            (y * cotangent).sum().backward()
            out["grad_input.x"] = leaf.grad
            out.update({f"grad_state.{k}": p.grad for k, p in net.named_parameters()})
        return out, {"keys": KEYS, "mode": "eval", "uvit": options}

    return build
