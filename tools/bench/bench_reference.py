"""Times the reference, denoising-diffusion-pytorch 2.3.4, round by round.

Prints one JSON line when ready; then runs one round for each line read from stdin and prints one JSON line
{"train_step_ms", "forward_ms", "peak_rss_mib", "device_memory_mib"}: medians over the round on the CPU, means over two seconds on a GPU, which has
worked for one before, and the peaks so far.
U-Nets (s, m, m128, g) are trained by the reference's GaussianDiffusion. The other configurations are networks that it does not take as they are:
their loss is the mean squared error of the network's output for noisy images, which is what all of its losses come to.
A train step is forward, backward, clip_grad_norm_(1.0), Adam and EMA.update(), as in the reference's Trainer; a forward is the
U-Net in eval mode under inference_mode. Inputs are made beforehand; decoding images is not timed.

--torch eager is what the reference's Trainer runs. --torch bf16 adds autocast to bf16. --torch best adds channels_last, fused Adam and
torch.compile, each only if it works here, and on a GPU autocast to bf16, flash attention, convolutions chosen by trial (cudnn.benchmark), and no wait
for the loss within a step; the ready line says which did. --torch best-bf16 is best with autocast to bf16 on the CPU, too. --torch graphs is best
with torch.compile's mode reduce-overhead (CUDA graphs).
"""

import argparse
import json
import math
import os
import resource
import statistics
import sys
import time

# What the reference prints goes to stderr: stdout is for answers.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

# Before torch looks for a GPU.
if "cuda" not in sys.argv:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from denoising_diffusion_pytorch.denoising_diffusion_pytorch_1d import Unet1D
from denoising_diffusion_pytorch.karras_unet import KarrasUnet
from denoising_diffusion_pytorch.karras_unet_3d import KarrasUnet3D
from denoising_diffusion_pytorch.simple_diffusion import UViT
from ema_pytorch import EMA

# name -> (Unet keywords, image side, batch)
CONFIGS = {
    "s": (dict(dim=32, dim_mults=(1, 2, 4), channels=1), 28, 32),
    "m": (dict(dim=64, dim_mults=(1, 2, 4, 8), channels=3), 32, 16),
    "m128": (dict(dim=64, dim_mults=(1, 2, 4, 8), channels=3), 32, 128),
    "g": (dict(dim=64, dim_mults=(1, 2, 4, 8), channels=3), 128, 32),
}


class Dit(torch.nn.Module):
    """DiT of `diffusers`, as the reference has none. Its embedder of the noise level, of which diffusers has a copy in each block, is one."""

    def __init__(self, hidden, depth, heads, patch, channels, side):
        from diffusers import DiTTransformer2DModel

        super().__init__()
        self.model = DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=hidden // heads, in_channels=channels, out_channels=channels,
            num_layers=depth, sample_size=side, patch_size=patch, num_embeds_ada_norm=1, norm_eps=1e-6,
        )
        for block in self.model.transformer_blocks:
            block.norm1.emb = self.model.transformer_blocks[0].norm1.emb

    def forward(self, x, times):
        classes = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.model(x, timestep=times, class_labels=classes).sample


KARRAS = dict(channels=3, num_downsamples=2, num_blocks_per_stage=2)
# name -> (class, keywords, shape of an example, batch)
OTHERS = {
    "unet1d": (Unet1D, dict(dim=32, dim_mults=(1, 2, 4), channels=1), (256,), 32),
    "uvit": (UViT, dict(dim=32, dim_mults=(1, 2, 4), vit_depth=4, channels=3), (32, 32), 16),
    "dit": (Dit, dict(hidden=192, depth=6, heads=3, patch=2, channels=3, side=32), (32, 32), 16),
    "karras": (KarrasUnet, KARRAS | dict(image_size=32, dim=32, dim_max=128, attn_res=(16, 8)), (32, 32), 8),
    "karras3d": (KarrasUnet3D, KARRAS | dict(image_size=16, frames=8, dim=16, dim_max=64, attn_res=(4,), attn_dim_head=32), (8, 16, 16), 4),
}
LEARNING_RATE = 1e-4
ADAM_BETAS = (0.9, 0.99)


class Denoising(torch.nn.Module):
    """The loss of a network at noise levels in [0, 1]."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        times, noise = torch.rand(len(images), device=images.device), torch.randn_like(images)
        level = times.view(-1, *[1] * (images.ndim - 1))
        return torch.nn.functional.mse_loss(self.network(images + level * noise, times), noise)


class Subject:
    """The network, its optimizer and one batch."""

    def __init__(self, config, mode, device):
        torch.manual_seed(0)
        self.works = []
        self.best, self.graphs = mode in ("best", "best-bf16", "graphs"), mode == "graphs"
        self.bf16 = mode in ("bf16", "best-bf16") or (self.best and device == "cuda")
        self.device = device
        if self.best and device == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
            self.works.append("cudnn.benchmark")
        if config in CONFIGS:
            kwargs, side, self.batch = CONFIGS[config]
            if self.best and device == "cuda":
                kwargs = kwargs | dict(flash_attn=True)
                self.works.append("flash attention")
            self.unet = Unet(**kwargs)
            self.diffusion = GaussianDiffusion(self.unet, image_size=side)
            shape = (side, side)
            self.times = torch.randint(0, 1000, (self.batch,))
        else:
            make, kwargs, shape, self.batch = OTHERS[config]
            self.unet = make(**kwargs)
            self.diffusion = Denoising(self.unet)
            self.times = torch.rand(self.batch)
        self.images = torch.rand(self.batch, kwargs["channels"], *shape).to(device)
        self.times, self.diffusion = self.times.to(device), self.diffusion.to(device)
        if self.bf16:
            self.works.append("bf16 autocast")
        if self.best and len(shape) == 2:
            self.diffusion = self.diffusion.to(memory_format=torch.channels_last)
            self.images = self.images.contiguous(memory_format=torch.channels_last)
            self.works.append("channels_last")
        self.optimizer = self.adam()
        self.ema = EMA(self.diffusion, beta=0.995, update_every=10)
        self.loss, self.network = self.diffusion, self.unet
        if self.best:
            self.compile()

    def adam(self):
        options = dict(lr=LEARNING_RATE, betas=ADAM_BETAS)
        if self.best:
            try:
                optimizer = torch.optim.Adam(self.diffusion.parameters(), fused=True, **options)
                self.works.append("fused Adam")
                return optimizer
            except (RuntimeError, ValueError) as e:
                print(f"no fused Adam: {e}", file=sys.stderr)
        return torch.optim.Adam(self.diffusion.parameters(), **options)

    def compile(self):
        eager = self.loss, self.network
        try:
            options = dict(mode="reduce-overhead") if self.graphs else {}
            self.loss, self.network = torch.compile(self.diffusion, **options), torch.compile(self.unet, **options)
            for _ in range(3):
                self.train_step()
                self.forward()
            self.works.append("torch.compile" + (" with CUDA graphs" if self.graphs else ""))
        except Exception as e:  # whatever a missing or broken compiler raises
            print(f"no torch.compile: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}", file=sys.stderr)
            self.loss, self.network = eager
            self.optimizer.zero_grad()

    def train_step(self):
        self.diffusion.train()
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with self.autocast():
            loss = self.loss(self.images)
        if not (self.best and self.device == "cuda"):
            loss.item()  # as the reference's Trainer does
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    def forward(self):
        self.unet.eval()
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.inference_mode(), self.autocast():
            self.network(self.images, self.times)

    def autocast(self):
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16)

    def peaks_mib(self):
        found = {"peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}
        if self.device == "cuda":
            found["device_memory_mib"] = round(torch.cuda.max_memory_reserved() / 2**20, 1)
        return found

    def time_ms(self, run, repeats):
        if self.device == "cuda":
            return steady_ms(run, repeats)
        run()
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            found.append((time.perf_counter() - start) * 1e3)
        return statistics.median(found)


def steady_ms(run, repeats, warm_up=1.0, timed=2.0):
    """As `ddpm bench` times a GPU: many in a row, waiting after the last."""

    def times(count):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    each = times(repeats)
    each = times(max(repeats, math.ceil(warm_up / each)))
    return times(max(repeats, math.ceil(timed / each))) * 1e3


def say(value):
    print(json.dumps(value), file=ANSWERS, flush=True)


def main():
    parser = argparse.ArgumentParser(description="Times the reference; one round for each line on stdin.")
    parser.add_argument("--config", choices=[*CONFIGS, *OTHERS], default="s")
    parser.add_argument("--torch", choices=["eager", "bf16", "best", "best-bf16", "graphs"], default="eager")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="train steps, and forward passes, in a round on the CPU; at least so many on a GPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    subject = Subject(args.config, args.torch, args.device)
    subject.train_step()
    ready = {"ready": args.config, "batch": subject.batch, "torch": torch.__version__, "mode": args.torch, "with": subject.works, "device": args.device}
    say(ready)
    for _ in sys.stdin:
        # The first of each kind in a round pays for the switch of shape, mode and cache.
        train, forward = subject.time_ms(subject.train_step, args.repeats), subject.time_ms(subject.forward, args.repeats)
        say({"train_step_ms": round(train, 3), "forward_ms": round(forward, 3)} | subject.peaks_mib())


if __name__ == "__main__":
    main()
