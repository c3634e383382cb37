"""Makes distances.safetensors: what pytorch-fid, torch-fidelity and numpy say of small tables of features.

Needs requirements-eval.txt. Features are stored as u8 and stand for (u8 - 128) / 32, which float32 holds exactly. Results are f64.

    frechet.<case>.{real,generated}   features [n, dims]
    frechet.<case>.{reference,exact}  pytorch-fid's distance; the same from the singular values of the centred features, which
                                      keeps full precision for covariances of any rank
    cov.{mu,sigma}                    numpy's mean and covariance of frechet.full64.real
    kid.{real,generated}              features [n, dims]
    kid.{rows_real,rows_generated}    rows of each subset [subsets, size]
    kid.{subsets,mean,std}            torch-fidelity's estimate of each subset, and its KID
    isc.{logits,order,mean,std}       torch-fidelity's Inception Score of 10 splits of logits [n, classes] in that order
"""

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path

# The vector unit's width changes the last bits.
os.environ["OPENBLAS_CORETYPE"] = "Haswell"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from safetensors.numpy import save_file
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kernel_mmd, kid_features_to_metric

GOLDEN = Path(__file__).resolve().parents[2] / "crates" / "denoising-diffusion" / "tests" / "golden"
KERNEL = dict(kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0)


def table(rng, n, dims, shift=0.0):
    """Correlated features of falling variance."""
    spread = np.exp(-np.arange(dims) / (dims / 3))
    mix = np.linalg.qr(np.random.default_rng(dims).standard_normal((dims, dims)))[0]
    x = shift + 1.5 * (rng.standard_normal((n, dims)) * spread) @ mix
    return np.clip(np.round(x * 32 + 128), 0, 255).astype(np.uint8)


def values(x):
    return (x.astype(np.float32) - 128) / 32


def frechet(rng):
    deficient = [np.concatenate([t, t[:, ::-1]], axis=1) for t in (table(rng, 200, 32), table(rng, 150, 32, 0.2))]
    same, few = table(rng, 250, 192), table(rng, 60, 192)
    cases = {
        "full64": (table(rng, 300, 64), table(rng, 250, 64, 0.1)),
        "full192": (table(rng, 300, 192), table(rng, 260, 192, 0.1)),
        "deficient64": deficient,
        "few64": (table(rng, 40, 64), table(rng, 30, 64, 0.2)),
        "few192": (table(rng, 100, 192), table(rng, 80, 192, 0.2)),
        "few_against_many192": (table(rng, 260, 192), table(rng, 50, 192, 0.1)),
        "identical192": (same, same),
        "identical_few192": (few, few),
    }
    found = {}
    for name, (real, generated) in cases.items():
        x, y = values(real).astype(np.float64), values(generated).astype(np.float64)
        gaussians = [f(t) for t in (x, y) for f in (lambda t: t.mean(axis=0), lambda t: np.cov(t, rowvar=False))]
        reference = calculate_frechet_distance(*gaussians)
        cx, cy = x - x.mean(axis=0), y - y.mean(axis=0)
        cx, cy = cx / np.sqrt(len(x) - 1), cy / np.sqrt(len(y) - 1)
        overlap = np.linalg.svd(cx @ cy.T, compute_uv=False).sum()
        exact = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + (cx**2).sum() + (cy**2).sum() - 2 * overlap
        print(f"{name:>20} {reference:.12g} {exact:.12g}")
        results = {"reference": np.float64([reference]), "exact": np.float64([exact])}
        found |= {f"frechet.{name}.{k}": v for k, v in results.items()}
        found |= {f"frechet.{name}.real": real, f"frechet.{name}.generated": generated}
    x = values(cases["full64"][0]).astype(np.float64)
    return found | {"cov.mu": x.mean(axis=0), "cov.sigma": np.cov(x, rowvar=False)}


def kid(rng):
    real, generated = table(rng, 150, 48), table(rng, 120, 48, 0.1)
    x, y = (values(t).astype(np.float64) for t in (real, generated))
    subsets, size, seed = 6, 50, 2020
    draw = np.random.RandomState(seed)  # as kid_features_to_metric draws
    rows = [(draw.choice(150, size, replace=False), draw.choice(120, size, replace=False)) for _ in range(subsets)]
    each = np.float64([kernel_mmd(x[i], y[j], **KERNEL) for i, j in rows])
    options = dict(kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False, **KERNEL)
    metric = kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), **options)
    assert np.isclose(each.mean(), metric["kernel_inception_distance_mean"], rtol=1e-12, atol=0)
    return {
        "kid.real": real,
        "kid.generated": generated,
        "kid.rows_real": np.int64([i for i, _ in rows]),
        "kid.rows_generated": np.int64([j for _, j in rows]),
        "kid.subsets": each,
        "kid.mean": np.float64([metric["kernel_inception_distance_mean"]]),
        "kid.std": np.float64([metric["kernel_inception_distance_std"]]),
    }


def isc(rng):
    n, classes, seed = 203, 10, 2020
    logits = (2 * rng.standard_normal((n, classes))).astype(np.float32)
    metric = isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=True, rng_seed=seed)
    return {
        "isc.logits": logits,
        "isc.order": np.random.RandomState(seed).permutation(n).astype(np.int64),
        "isc.mean": np.float64([metric["inception_score_mean"]]),
        "isc.std": np.float64([metric["inception_score_std"]]),
    }


def main():
    parser = argparse.ArgumentParser(description="Makes distances.safetensors.")
    parser.add_argument("--out", type=Path, default=GOLDEN)
    path = parser.parse_args().out / "distances.safetensors"
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    tensors = frechet(rng) | kid(rng) | isc(rng)
    keys = [line.strip() for line in __doc__.splitlines() if line.startswith("    ")]
    versions = {name: version(name) for name in ("pytorch-fid", "torch-fidelity", "numpy", "scipy")}
    config = {"keys": keys, "reference": versions, "offset": 128, "scale": 32}
    save_file(tensors, str(path), metadata={"config": json.dumps(config, sort_keys=True)})
    path.chmod(0o644)  # the writer makes it private
    print(f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
