"""Does the reference's Unet take back a safetensors file that `ddpm convert` wrote, and does it give the same output?

    load_back.py weights.safetensors unet.json given.safetensors [--tolerance 1e-4]

unet.json holds the keywords of Unet(...) (or is itself JSON text). given.safetensors holds x, time, output and, if used, x_self_cond.
The weights may be those of a Unet or of a GaussianDiffusion (names behind `model.`, tables beside them). Prints the max abs difference;
exits 1 if it is above the tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from denoising_diffusion_pytorch import Unet
from safetensors.torch import load_file


def unet_state(path):
    state = load_file(path)
    if any(key.startswith("model.") for key in state):
        state = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    return state


def unet_keywords(text):
    text = text if text.lstrip().startswith("{") else Path(text).read_text()
    return {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}


def main():
    parser = argparse.ArgumentParser(description="Loads converted weights into the reference's Unet and compares its output.")
    parser.add_argument("weights")
    parser.add_argument("config")
    parser.add_argument("given")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()

    net = Unet(**unet_keywords(args.config)).eval()
    net.load_state_dict(unet_state(args.weights), strict=True)
    given = load_file(args.given)
    with torch.inference_mode():
        output = net(given["x"], given["time"], given.get("x_self_cond"))
    if output.shape != given["output"].shape:
        sys.exit(f"error: the output is {tuple(output.shape)}, given is {tuple(given['output'].shape)}")
    worst = (output - given["output"]).abs().max().item()
    print(f"max abs difference {worst:.3e}")
    if not worst <= args.tolerance:
        sys.exit(f"error: above the tolerance of {args.tolerance:g}")


if __name__ == "__main__":
    main()
