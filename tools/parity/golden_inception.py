#!/usr/bin/env python3
"""Golden features of Inception and FID of folders: crates/denoising-diffusion/tests/golden/inception.safetensors.

The network is pytorch-fid's own, with weights from a formula that eval/inception/weights.rs has too (the published ones are too
large to ship, and no test may need them). Images come from a formula as well.

    pip install -r tools/parity/requirements-eval.txt && python tools/parity/golden_inception.py
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_fid import fid_score, inception
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "crates/denoising-diffusion/tests/golden/inception.safetensors"


def unit(tensor, count):
    """SplitMix64's output function of (tensor, index), in [0, 1)."""
    with np.errstate(over="ignore"):
        z = (np.uint64(tensor << 32) | np.arange(count, dtype=np.uint64)) + np.uint64(1)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def fnv(name):
    value = 0x811C9DC5
    for byte in name.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def drawn(name, shape):
    u = unit(fnv(name), int(np.prod(shape)))
    kind = name.rsplit(".", 1)[-1]
    if kind == "running_var":
        values = 0.75 + 0.5 * u
    elif kind == "weight" and len(shape) == 1:
        values = 0.9 + 0.2 * u
    elif kind == "weight":
        values = (2.0 * u - 1.0) * np.sqrt(6.0 / np.prod(shape[1:]))
    else:
        values = 0.2 * u - 0.1
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def network():
    """pytorch-fid's function that builds the network, with its download replaced; the last layer's weight; all tensors."""
    template = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    state = {}

    def load(self, _, **__):
        for name, tensor in self.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            state[name] = drawn(name, tuple(tensor.shape))
        return torch.nn.Module.load_state_dict(self, state, strict=False)

    inception.load_state_dict_from_url = lambda *_, **__: {}
    torchvision_class = type(template)
    torchvision_class.load_state_dict = load
    try:
        net = inception.InceptionV3([0, 1, 2, 3])
    finally:
        del torchvision_class.load_state_dict
    return net.eval(), state["fc.weight"], state


def picture(group, number, shape):
    """[c, h, w] of bytes; the Rust test draws the same."""
    c, h, w = shape
    k, y, x = np.meshgrid(np.arange(c), np.arange(h), np.arange(w), indexing="ij")
    stripes = (x * (3 + number % 5) + y * (2 + number % 7)) * (group + 1) + 40 * k + 11 * number
    noise = (unit(7000 + 100 * group + number, c * h * w) * 64).astype(np.int64).reshape(shape)
    return ((stripes + noise) % 256).astype(np.uint8)


SHAPES = {"grey": (1, 28, 28), "rgb": (3, 40, 36), "large": (3, 320, 340)}


def features(net, fc, shape, count):
    batch = []
    for number in range(count):
        image = picture(0, number, shape)
        image = np.repeat(image, 3, axis=0) if shape[0] == 1 else image
        batch.append(torch.from_numpy(image.astype(np.float32) / 255.0))
    with torch.no_grad():
        blocks = net(torch.stack(batch))
    out = {str(block.shape[1]): block.mean(dim=(2, 3)).contiguous() for block in blocks}
    out["logits"] = (out["2048"] @ fc.T).contiguous()
    return out


def write_folder(path, group, shape, count):
    path.mkdir()
    for number in range(count):
        image = picture(group, number, shape)
        image = Image.fromarray(image[0], "L") if shape[0] == 1 else Image.fromarray(image.transpose(1, 2, 0), "RGB")
        image.save(path / f"{number:03}.png")


def folder_fid(net, shape, count, dims):
    """FID between two folders by pytorch-fid's own path: files, statistics, scipy."""
    index = inception.InceptionV3.BLOCK_INDEX_BY_DIM[dims]
    net.output_blocks, net.last_needed_block = [index], index
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        paths = []
        for group in (0, 1):
            write_folder(root / str(group), group, shape, count)
            paths.append(str(root / str(group)))
        statistics = [fid_score.compute_statistics_of_path(p, net, 20, dims, "cpu", 0) for p in paths]
    return float(fid_score.calculate_frechet_distance(*statistics[0], *statistics[1]))


def main():
    net, fc, _ = network()
    tensors = {}
    for name, shape in SHAPES.items():
        for key, values in features(net, fc, shape, 2).items():
            tensors[f"{name}.{key}"] = values
    fid = {}
    for name, count, dims in [("grey", 90, 64), ("rgb", 90, 64), ("rgb", 8, 2048)]:
        fid[f"{name}.{count}.{dims}"] = folder_fid(net, SHAPES[name], count, dims)
    config = {"shapes": SHAPES, "fid": fid, "versions": {"torch": torch.__version__, "python": sys.version.split()[0]}}
    save_file(tensors, OUT, metadata={"config": json.dumps(config)})
    print(json.dumps(fid, indent=1))


if __name__ == "__main__":
    main()
