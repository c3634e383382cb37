"""The operations of the kernels in torch, as the reference, denoising-diffusion-pytorch 2.3.4, computes them.

variants(case) gives, for a case of the bench program `roofline`, calls that all compute the same: with images in torch's default layout
and channels-last, and for full attention by the reference's formula and by scaled_dot_product_attention. What a forward pass
saves for its backward pass is made beforehand; forward passes run without recording a graph. Both favour torch.
"""

import math
import time

import torch
import torch.nn.functional as F
from torch import einsum

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
SECONDS = 0.15
WARM_UP = 2
LEAST_CALLS = 5


def fastest_ms(call):
    """Of calls for SECONDS."""
    for _ in range(WARM_UP):
        call()
    found, begin = [], time.perf_counter()
    while len(found) < LEAST_CALLS or time.perf_counter() - begin < SECONDS:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found) * 1e3


def variants(case):
    """Calls by name."""
    torch.manual_seed(0)
    if case["op"] == "optimizer":
        return {"fused": optimizer(case)}
    if case["op"] == "conv":
        return {name: convolution(case, layout) for name, layout in LAYOUTS.items()}
    if case["op"] == "silu":
        return {"flat": differentiable(F.silu, case["pass"], torch.randn(case["len"]))}
    if case["op"] == "attention":
        formulas = {"einsum": attention, "sdpa": scaled_dot_product}
        return {f"{name} {f}": attend(case, layout, formulas[f]) for f in formulas for name, layout in LAYOUTS.items()}
    make = {"rms_norm": norm, "linear_attention": lambda c, l: attend(c, l, linear_attention)}[case["op"]]
    return {name: make(case, layout) for name, layout in LAYOUTS.items()}


def images(layout, *shape):
    return torch.randn(shape).contiguous(memory_format=layout)


def differentiable(function, which, *inputs):
    """The function's forward pass, or the gradients of all inputs."""
    if which == "forward":
        return lambda: function(*inputs)
    for x in inputs:
        x.requires_grad_()
    y = function(*inputs)
    # The gradient that a following layer gives has y's layout.
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


# Convolutions: of doubled pixels, and of 2 x 2 pixels as channels, as in the reference's Upsample and Downsample.


def convolution(c, layout):
    x = images(layout, c["batch"], c["in_channels"], c["height"], c["width"])
    halving, doubled = c["stride"] == 2, c["upsample"] == 2
    size = 1 if halving else c["kernel_size"]

    def resample(x):
        if halving:
            b, n, h, w = x.shape
            x = x.reshape(b, n, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * n, h // 2, w // 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if doubled else x

    def resample_grad(dx):
        if halving:
            return F.pixel_shuffle(dx, 2)
        return torch.ops.aten.upsample_nearest2d_backward(dx, dx.shape[2:], x.shape, 2.0, 2.0) if doubled else dx

    resampled = resample(x)
    weight = images(layout, c["out_channels"], resampled.shape[1], size, size)
    padding = [0 if halving else c["padding"]] * 2
    y = F.conv2d(resampled, weight, padding=padding)
    dy = torch.randn_like(y)

    def gradient(*mask):
        return torch.ops.aten.convolution_backward(
            dy, resampled, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [*mask, False]
        )

    @torch.no_grad()
    def run():
        if c["pass"] == "forward":
            F.conv2d(resample(x), weight, padding=padding)
        elif c["pass"] == "input_grad":
            resample_grad(gradient(True, False)[0])
        else:
            gradient(False, True)

    return run


# Normalisations, with scale, shift and SiLU as in the reference's Block.


def norm(c, layout):
    batch, channels, side = c["batch"], c["channels"], math.isqrt(c["positions"])
    x = images(layout, batch, channels, side, side)
    g, scale, shift = torch.randn(1, channels, 1, 1), torch.randn(batch, channels, 1, 1), torch.randn(batch, channels, 1, 1)

    def rms(x, g):
        return F.normalize(x, dim=1) * g * channels**0.5

    if c["scaled"]:
        function = lambda x, g, scale, shift: F.silu(rms(x, g) * (scale + 1) + shift)
        return differentiable(function, c["pass"], x, g, scale, shift)
    return differentiable(rms, c["pass"], x, g)


# Attention, from the output of the projection to queries, keys and values to the input of the one that follows.


def attend(c, layout, formula):
    heads, dim, side = c["heads"], c["head_dim"], math.isqrt(c["positions"])
    qkv = images(layout, c["batch"], 3 * heads * dim, side, side)
    memory = [c["memory"], dim] if formula is not linear_attention else [dim, c["memory"]]
    function = lambda qkv, memory: formula(qkv, memory, heads)
    return differentiable(function, c["pass"], qkv, torch.randn(2, heads, *memory))


def linear_attention(qkv, memory, heads):
    b, _, h, w = qkv.shape
    q, k, v = (t.reshape(b, heads, -1, h * w) for t in qkv.chunk(3, dim=1))
    k, v = (torch.cat((m.expand(b, -1, -1, -1), t), dim=-1) for m, t in zip(memory, (k, v)))
    q, k = q.softmax(dim=-2), k.softmax(dim=-1)
    q = q * q.shape[-2] ** -0.5
    context = einsum("b h d n, b h e n -> b h d e", k, v)
    return einsum("b h d e, b h d n -> b h e n", context, q).reshape(b, -1, h, w)


def with_memory(qkv, memory, heads):
    b, _, h, w = qkv.shape
    q, k, v = (t.reshape(b, heads, -1, h * w).transpose(2, 3) for t in qkv.chunk(3, dim=1))
    return q, *(torch.cat((m.expand(b, -1, -1, -1), t), dim=-2) for m, t in zip(memory, (k, v)))


def joined(out, qkv):
    b, _, h, w = qkv.shape
    return out.transpose(2, 3).reshape(b, -1, h, w)


def attention(qkv, memory, heads):
    q, k, v = with_memory(qkv, memory, heads)
    weights = (einsum("b h i d, b h j d -> b h i j", q, k) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return joined(einsum("b h i j, b h j d -> b h i d", weights, v), qkv)


def scaled_dot_product(qkv, memory, heads):
    return joined(F.scaled_dot_product_attention(*with_memory(qkv, memory, heads)), qkv)


# The end of a training step: clip, Adam, moving average.


def optimizer(c):
    w = torch.nn.Parameter(torch.randn(c["len"]))
    w.grad = torch.randn(c["len"])
    average = torch.randn(c["len"])
    adam = torch.optim.Adam([w], lr=1e-4, betas=(0.9, 0.99), fused=True)

    def run():
        torch.nn.utils.clip_grad_norm_([w], 1.0, foreach=True)
        adam.step()
        with torch.no_grad():
            average.lerp_(w, 0.005)

    return run
