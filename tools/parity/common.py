"""Shared by every golden file: seeded draws, network construction, fixed noise, writing.

Every file is built twice from the same seeds: in float32, which is what is stored, and in float64 from the same
float32 draws and tables. The difference between the two is the reference's own rounding; it goes into the file's metadata
as `f64_deviation`, so that a test's tolerance can be justified.
"""

import json
from contextlib import contextmanager
from pathlib import Path

import torch
from denoising_diffusion_pytorch import GaussianDiffusion
from safetensors.torch import save_file

WORK = torch.float32  # dtype of the pass in progress


@contextmanager
def working_dtype(dtype):
    global WORK
    WORK = dtype
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        WORK = torch.float32
        torch.set_default_dtype(torch.float32)


@contextmanager
def float32_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float32).to(WORK)


def rand(*shape):
    return torch.rand(*shape, dtype=torch.float32).to(WORK)


def given(values):
    """Numbers as float32 holds them, in the pass's own dtype."""
    return torch.as_tensor(values, dtype=torch.float32).to(WORK)


def network(make, *args, **kwargs):
    """Constructs a module and moves every parameter away from values at which a mistake would not show.

    Norm gains start at exactly one and attention logits near zero; both would hide a missing factor.
    """
    with float32_default(), torch.no_grad():
        module = make(*args, **kwargs)
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, dtype=torch.float32)
            if name == "g" or name.endswith(".g"):
                p.copy_(1 + 0.2 * noise)
            elif name == "bias" or name.endswith(".bias"):
                p.add_(0.1 * noise)
            elif name.endswith("to_qkv.weight"):
                p.mul_(3)
    return module.to(WORK).eval()


def diffusion(model, kind=GaussianDiffusion, **kwargs):
    with float32_default():  # some of the schedules compute constants in the default dtype
        return kind(model, **kwargs).to(WORK)


def state_of(module, prefix="state."):
    return {f"{prefix}{k}": v.detach().clone() for k, v in module.state_dict().items()}


@contextmanager
def fixed_noise(*tape):
    """Makes torch.randn and torch.randn_like return the tensors of `tape` in order; all of them must be used."""
    left = list(tape)

    def take(shape):
        value = left.pop(0)
        assert tuple(value.shape) == tuple(shape), (value.shape, shape)
        return value.clone()

    saved = torch.randn, torch.randn_like
    torch.randn = lambda *shape, **_: take(shape[0] if len(shape) == 1 else shape)
    torch.randn_like = lambda x, **_: take(x.shape)
    try:
        yield
    finally:
        torch.randn, torch.randn_like = saved
    assert not left, f"{len(left)} draws were not used"


def deviation(f32, f64):
    """Max abs difference per stored result; gradients are gathered into one entry per family, inputs are left out."""
    found = {}
    for key, a in f32.items():
        if not a.is_floating_point():
            continue
        d = (a.double() - f64[key].double()).abs().max().item() if a.numel() else 0.0
        family = key.split("grad_state.")[0] + "grad_state" if "grad_state." in key else key
        found[family] = max(found.get(family, 0.0), d)
    return {k: float(f"{v:.1e}") for k, v in sorted(found.items()) if v > 0}


def write(folder, name, build, compare=True):
    """`build()` gives (tensors, config); config must have "keys": what each key pattern holds."""
    tensors, config = build()
    assert "keys" in config
    if compare:
        with working_dtype(torch.float64):
            exact, _ = build()
        config = config | {"f64_deviation": deviation(tensors, exact)}
    config = config | {"reference": "denoising-diffusion-pytorch 2.3.4", "torch": torch.__version__.split("+")[0]}
    for key, value in tensors.items():
        assert torch.isfinite(value).all(), f"{name}: {key} is not finite"
    path = Path(folder) / f"{name}.safetensors"
    tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    # One metadata entry only: the writer does not order several.
    save_file(tensors, str(path), metadata={"config": json.dumps(config, sort_keys=True)})
    path.chmod(0o644)  # the writer makes it private
