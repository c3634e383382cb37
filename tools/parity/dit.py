"""dit_*.safetensors: forward passes and gradients of DiT, from `diffusers` (requirements-dit.txt), which is independent of the official code
and of ours. Two of its constants are set to the official code's: frequencies of the timestep embedding are `10000^(-k / 128)`
(`downscale_freq_shift` 0, where diffusers' DiT has 1), and every LayerNorm adds 1e-6 to the variance.

    python dit.py    # writes beside the other golden files
"""

from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel

from common import given, network, randn, write

GOLDEN = Path(__file__).resolve().parents[2] / "crates" / "denoising-diffusion" / "tests" / "golden"
KEYS = {
    "x": "noisy data, [b, c, h, w]",
    "time": "timesteps, [b]",
    "classes": "classes, the last of them `no class`, [b]",
    "state.<name>": "parameter under our name",
    "output": "[b, out, h, w]",
    "cotangent": "fixed random tensor; the loss is sum(output * cotangent)",
    "grad_input.x": "gradient of the loss with respect to x",
    "grad_state.<name>": "gradient with respect to that parameter, summed over its copies",
}
CASES = {
    "square": dict(hidden=16, depth=2, heads=2, patch=2, channels=3, out=3, classes=5, size=8),
    "patch1": dict(hidden=24, depth=1, heads=3, patch=1, channels=1, out=2, classes=2, size=4),
}
EMBEDDER = "norm1.emb.timestep_embedder"


def make(case):
    model = DiTTransformer2DModel(
        num_attention_heads=case["heads"],
        attention_head_dim=case["hidden"] // case["heads"],
        in_channels=case["channels"],
        out_channels=case["out"],
        num_layers=case["depth"],
        sample_size=case["size"],
        patch_size=case["patch"],
        num_embeds_ada_norm=case["classes"],
        norm_eps=1e-6,
    )
    first = model.transformer_blocks[0].norm1.emb
    for block in model.transformer_blocks:
        block.norm1.emb = first  # one embedder, where diffusers has a copy for each block
        first.time_proj.downscale_freq_shift = 0
    return model


def ours(tensors):
    """Tensors by diffusers' names -> by ours; q, k and v become one matrix."""
    out = {}
    rename = {
        "pos_embed.proj.weight": "x_embedder.weight",
        "pos_embed.proj.bias": "x_embedder.bias",
        "proj_out_1.weight": "final_modulation.weight",
        "proj_out_1.bias": "final_modulation.bias",
        "proj_out_2.weight": "final_linear.weight",
        "proj_out_2.bias": "final_linear.bias",
    }
    inner = {
        "norm1.linear": "modulation",
        "attn1.to_out.0": "proj",
        "ff.net.0.proj": "fc1",
        "ff.net.2": "fc2",
    }
    for name, tensor in tensors.items():
        if name == "pos_embed.proj.weight":
            tensor = tensor.flatten(1)
        if name in rename:
            out[rename[name]] = tensor
        elif name.startswith("transformer_blocks."):
            _, i, rest = name.split(".", 2)
            if "norm1.emb" in rest:
                if i == "0":
                    new = rest.replace(f"{EMBEDDER}.linear_1", "t_embedder.linear1")
                    new = new.replace(f"{EMBEDDER}.linear_2", "t_embedder.linear2")
                    out[new.replace("norm1.emb.class_embedder.embedding_table", "y_embedder")] = tensor
                continue
            if rest.startswith("attn1.to_q"):
                parts = [tensors[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
                out[f"blocks.{i}.qkv.{rest.rsplit('.', 1)[1]}"] = torch.cat(parts)
            for theirs, new in inner.items():
                if rest.startswith(theirs + "."):
                    out[f"blocks.{i}.{new}{rest[len(theirs):]}"] = tensor
    return out


def build(case):
    def tensors():
        torch.manual_seed(11)
        model = network(make, case)
        b, size = 3, case["size"]
        x, time = randn(b, case["channels"], size, size), given([0.0, 17.0, 999.0])
        classes = torch.tensor([0, 1, case["classes"]])
        leaf = x.clone().requires_grad_()
        y = model(leaf, timestep=time, class_labels=classes).sample
        cotangent = randn(*y.shape)
        (y * cotangent).sum().backward()
        out = {"x": x, "time": time, "classes": classes, "output": y.detach(), "cotangent": cotangent}
        out["grad_input.x"] = leaf.grad
        named = dict(model.named_parameters(remove_duplicate=False))
        out |= {f"state.{k}": v for k, v in ours({k: p.detach() for k, p in named.items()}).items()}
        out |= {f"grad_state.{k}": v for k, v in ours({k: p.grad for k, p in named.items()}).items()}
        config = {
            "hidden_size": case["hidden"], "depth": case["depth"], "num_heads": case["heads"],
            "patch_size": case["patch"], "channels": case["channels"], "out_dim": case["out"],
            "num_classes": case["classes"],
        }
        return out, {"keys": KEYS, "dit": config, "made_by": "diffusers 0.42.1, DiTTransformer2DModel"}

    return tensors


def main():
    torch.set_num_threads(1)
    for name, case in CASES.items():
        write(GOLDEN, f"dit_{name}", build(case))


if __name__ == "__main__":
    main()
