"""Regenerates the golden files of crates/denoising-diffusion/tests/golden from the reference, denoising-diffusion-pytorch 2.3.4.

Everything is float32 on one CPU thread and seeded; with the pinned versions on one machine the files come out byte for byte the same.
Each *.safetensors holds one metadata entry, "config": a JSON object whose "keys" says what every key holds, along with the options
of the case and `f64_deviation` (see common.py). Parameters carry the reference's state dict names behind `state.`, gradients
behind `grad_state.`; images are [b, c, h, w].

    schedules        every table of every beta schedule; loss weights by objective and min-SNR
    layers           <layer>.{input,state,output,cotangent,grad_input,grad_state}
    unet_<name>      state, x, time, x_self_cond, output; unet_base has all gradients too
    unet_classes     the same with classes; all gradients
    unet1d_<name>    the same of Unet1D (unet1d.py)
    karras_<name>    the same of KarrasUnet, 1-D and 3-D too (karras.py)
    uvit_<name>      the same of UViT (uvit.py)
    losses           per-sample and mean losses, offset noise, self-conditioning, immiscible assignment
    sampling         single DDPM steps, DDPM and DDIM trajectories with their noise, interpolation, DDIM times
    ema, adam, adamw sequences of ema-pytorch's EMA, of clipped Adam steps, and of AdamW's
    post_hoc         which sums of stored averages ema-pytorch's PostHocEMA makes others of
    import           what model-1.pt (written by the reference's Trainer) and state_dict.pt must give
    formulations     learned variance, weighted objective, candidates of noise: losses, gradients, trajectories
    formulations_continuous, formulations_edm
                     the same for the continuous-time forms, with their schedules, and for the EDM
    guidance         classifier-free guidance, CFG++ and classifier guidance on drawn outputs of a network
    cfg_unet         the class-conditional U-Net
    import_diffusion what formulation_*.pt, state dicts of the diffusion classes, must give
"""

import argparse
import os
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch: the checkpoint's Trainer would pick a GPU
# The vector unit's width changes the last bits: the same for every machine that has AVX2.
os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
os.environ["TQDM_DISABLE"] = "1"

import torch

import checkpoints
import continuous
import diffusing
import elucidated
import formulations
import guidance
import karras
import networks
import training
import unet1d
import uvit
from common import write

GOLDEN = Path(__file__).resolve().parents[2] / "crates" / "denoising-diffusion" / "tests" / "golden"


def main():
    parser = argparse.ArgumentParser(description="Regenerates the golden files from the reference.")
    parser.add_argument("--out", type=Path, default=GOLDEN)
    folder = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    folder.mkdir(parents=True, exist_ok=True)

    write(folder, "schedules", diffusing.schedules, compare=False)
    write(folder, "layers", networks.layers)
    for name in networks.UNETS:
        write(folder, f"unet_{name}", networks.unet(name))
    write(folder, "unet_classes", networks.class_unet)
    for name in karras.CASES:
        write(folder, f"karras_{name}", karras.karras(name), compare=karras.has_f64(name))
    for name in unet1d.CASES:
        write(folder, f"unet1d_{name}", unet1d.unet1d(name))
    for name in uvit.CASES:
        write(folder, f"uvit_{name}", uvit.uvit(name))
    write(folder, "losses", diffusing.losses)
    write(folder, "sampling", diffusing.sampling)
    write(folder, "ema", training.ema, compare=False)
    write(folder, "post_hoc", training.post_hoc, compare=False)
    write(folder, "adam", training.adam, compare=False)
    write(folder, "adamw", training.adamw, compare=False)
    write(folder, "import", training.checkpoints(folder), compare=False)
    write(folder, "formulations", formulations.formulations)
    write(folder, "formulations_continuous", continuous.continuous)
    write(folder, "formulations_edm", elucidated.elucidated)
    write(folder, "guidance", guidance.guidance)
    write(folder, "cfg_unet", guidance.cfg_unet)
    write(folder, "import_diffusion", checkpoints.checkpoints(folder))

    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".pt"))
    for path in files:
        print(f"{path.stat().st_size:>9,}  {path.name}")
    print(f"{sum(p.stat().st_size for p in files):>9,}  in all")


if __name__ == "__main__":
    main()
