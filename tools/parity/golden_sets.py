"""Makes sets.safetensors: metrics that compare two sets of feature vectors, as published packages compute them.

Features are float32; every package gets them as float64, so that what it gives is free of float32 rounding. Results are stored as
float64. The metadata entry "config" holds a JSON object whose "keys" says what every key holds. Needs requirements-eval.txt:
`venv/bin/pip install -r requirements-eval.txt && venv/bin/python golden_sets.py`.
"""

import argparse
import contextlib
import io
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import ot
from prdc import compute_prdc
from safetensors.numpy import save_file
from scipy.stats import mannwhitneyu, norm
from sklearn.neighbors import NearestNeighbors

GOLDEN = Path(__file__).resolve().parents[2] / "crates" / "denoising-diffusion" / "tests" / "golden"
QUANTILES = [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]
KEYS = {
    "prdc.<case>.{real,generated}": "features [n, dims]",
    "prdc.<case>.<k>": "prdc.compute_prdc with k neighbours: precision, recall, density, coverage",
    "sliced.<case>.{a,b}": "features [n, dims]",
    "sliced.<case>.directions": "[directions, dims], unit length, float64 (ot's projections are their transpose)",
    "sliced.<case>.expected": "ot.sliced_wasserstein_distance(p=2), and s / sqrt(L) / (2 value) of its L projected_emds",
    "neighbours.{generated,held_out,training}": "features [n, dims]",
    "neighbours.<set>_{indices,distances}": "sklearn.neighbors.NearestNeighbors(1, brute) of the set in training",
    "neighbours.<set>_quantiles": f"numpy.quantile of the distances at {QUANTILES}",
    "neighbours.near": "share of generated distances below the 5 % quantile of the held-out ones",
    "neighbours.z": "norm.ppf of scipy.stats.mannwhitneyu(generated, held-out distances, less, asymptotic, no continuity)",
    "z.<case>.{a,b}": "values with ties, float64",
    "z.<case>.z": "as neighbours.z",
}


def features(rng, n, dims, mean=0.0, scale=1.0):
    # Unequal scales, so that dimensions cannot be exchanged unseen.
    return (mean + scale * rng.standard_normal((n, dims)) * np.linspace(0.5, 1.5, dims)).astype(np.float32)


def prdc_cases(rng):
    """Partial overlap, other numbers of rows; many dimensions far from the origin; sizes beyond one tile."""
    cases = {
        "overlap": (features(rng, 150, 8), features(rng, 130, 8, 0.3, 0.9)),
        "wide": (features(rng, 40, 300, 20.0), features(rng, 50, 300, 20.05, 0.95)),
        "many": (features(rng, 700, 3), features(rng, 300, 3, 0.5, 1.2)),
    }
    for case, (real, generated) in cases.items():
        yield f"prdc.{case}.real", real
        yield f"prdc.{case}.generated", generated
        for k in (1, 3, 5, 10):
            with contextlib.redirect_stdout(io.StringIO()):
                found = compute_prdc(real.astype(np.float64), generated.astype(np.float64), k)
            yield f"prdc.{case}.{k}", np.array([found[name] for name in ("precision", "recall", "density", "coverage")])


def sliced_cases(rng):
    cases = {
        "equal": (features(rng, 80, 5), features(rng, 80, 5, 0.5)),
        "unequal": (features(rng, 70, 12), features(rng, 113, 12, 0.1, 1.3)),
        "one_row": (features(rng, 1, 3), features(rng, 9, 3)),
        "close": (features(rng, 60, 4, 50.0), features(rng, 90, 4, 50.0)),
    }
    for case, (a, b) in cases.items():
        directions = rng.standard_normal((75, a.shape[1]))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        value, log = ot.sliced_wasserstein_distance(
            a.astype(np.float64), b.astype(np.float64), projections=directions.T.copy(), p=2, log=True
        )
        squared = log["projected_emds"]
        error = squared.std(ddof=1) / np.sqrt(len(squared)) / (2 * value)
        yield f"sliced.{case}.a", a
        yield f"sliced.{case}.b", b
        yield f"sliced.{case}.directions", directions
        yield f"sliced.{case}.expected", np.array([value, error])


def z_score(a, b):
    test = mannwhitneyu(a, b, alternative="less", method="asymptotic", use_continuity=False)
    return np.array([norm.ppf(test.pvalue)])


def neighbour_cases(rng):
    training, held_out, generated = features(rng, 600, 6), features(rng, 90, 6), features(rng, 140, 6)
    # A part of the generated rows are near copies, three are exact ones.
    generated[:30] = training[100:130] + features(rng, 30, 6, 0.0, 0.05)
    generated[30:33] = training[200:203]
    yield "neighbours.training", training
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(training.astype(np.float64))
    distances = {}
    for name, rows in (("generated", generated), ("held_out", held_out)):
        _, indices = search.kneighbors(rows.astype(np.float64))
        # The search takes distances from a product, which does not give 0 for equal rows.
        differences = rows.astype(np.float64) - training[indices[:, 0]].astype(np.float64)
        distances[name] = np.sqrt((differences**2).sum(axis=1))
        yield f"neighbours.{name}", rows
        yield f"neighbours.{name}_indices", indices[:, 0].astype(np.int64)
        yield f"neighbours.{name}_distances", distances[name]
        yield f"neighbours.{name}_quantiles", np.quantile(distances[name], QUANTILES)
    yield "neighbours.near", np.array([(distances["generated"] < np.quantile(distances["held_out"], 0.05)).mean()])
    yield "neighbours.z", z_score(distances["generated"], distances["held_out"])


def z_cases(rng):
    cases = {
        "ties": (rng.integers(0, 6, 40), rng.integers(1, 8, 55)),
        "no_ties": (rng.standard_normal(25), rng.standard_normal(31)),
        "greater": (rng.integers(2, 9, 30), rng.integers(0, 7, 20)),
    }
    for case, (a, b) in cases.items():
        a, b = a.astype(np.float64), b.astype(np.float64)
        yield f"z.{case}.a", a
        yield f"z.{case}.b", b
        yield f"z.{case}.z", z_score(a, b)


def main():
    parser = argparse.ArgumentParser(description="Makes sets.safetensors.")
    parser.add_argument("--out", type=Path, default=GOLDEN)
    folder = parser.parse_args().out
    rng = np.random.default_rng(0)
    tensors = {}
    for make in (prdc_cases, sliced_cases, neighbour_cases, z_cases):
        tensors.update(make(rng))
    assert all(np.isfinite(value).all() for value in tensors.values())
    packages = {name: version(name) for name in ("numpy", "POT", "prdc", "scikit-learn", "scipy")}
    path = folder / "sets.safetensors"
    save_file(tensors, path, metadata={"config": json.dumps({"keys": KEYS, "packages": packages}, sort_keys=True)})
    path.chmod(0o644)  # the writer makes it private
    print(f"{path.stat().st_size:>9,}  {path.name}")


if __name__ == "__main__":
    main()
