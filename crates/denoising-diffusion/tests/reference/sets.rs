//! Metrics that compare two sets of feature vectors, against prdc, POT, scikit-learn and scipy (tools/parity/golden_sets.py).

use denoising_diffusion::eval::metrics::features::Features;
use denoising_diffusion::eval::metrics::neighbours::{
    DistanceToTraining, NearestTraining, mann_whitney_z, memorisation,
};
use denoising_diffusion::eval::metrics::prdc::prdc;
use denoising_diffusion::eval::metrics::sliced_wasserstein::sliced_wasserstein_along;

use crate::golden::Golden;

fn features<'a>(golden: &'a Golden, name: &str) -> Features<'a> {
    let host = golden.host(name);
    Features::new(&host.values, host.shape[1]).unwrap()
}

/// Each value within `tolerance`, relative above 1.
fn assert_close_f64(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what}, {i}: {a} is not {b}");
    }
}

#[test]
fn precision_recall_density_coverage() {
    let golden = Golden::open("sets");
    for case in ["overlap", "wide", "many"] {
        let real = features(&golden, &format!("prdc.{case}.real"));
        let generated = features(&golden, &format!("prdc.{case}.generated"));
        for k in [1, 3, 5, 10] {
            let found = prdc(real, generated, k).unwrap();
            let got = [found.precision, found.recall, found.density, found.coverage].map(|estimate| estimate.value);
            let key = format!("prdc.{case}.{k}");
            // Counts: equal, or off by 1 / n at least.
            assert_close_f64(&key, &got, &golden.values_f64(&key), 1e-14);
        }
    }
}

#[test]
fn sliced_wasserstein_distances() {
    let golden = Golden::open("sets");
    for case in ["equal", "unequal", "one_row", "close"] {
        let (a, b) = (format!("sliced.{case}.a"), format!("sliced.{case}.b"));
        let directions = golden.values_f64(&format!("sliced.{case}.directions"));
        let found = sliced_wasserstein_along(features(&golden, &a), features(&golden, &b), &directions).unwrap();
        let expected = golden.values_f64(&format!("sliced.{case}.expected"));
        assert_close_f64(case, &[found.value, found.standard_error], &expected, 1e-12);
    }
}

#[test]
fn nearest_training_images_and_the_data_copying_test() {
    let golden = Golden::open("sets");
    let table = |name: &str| features(&golden, &format!("neighbours.{name}"));
    let nearest = |name| {
        let mut nearest = NearestTraining::of(table(name));
        nearest.see(table("training")).unwrap();
        nearest.finish().unwrap()
    };
    let found = memorisation(nearest("generated"), nearest("held_out")).unwrap();
    check_distances(&golden, "generated", &found.generated);
    check_distances(&golden, "held_out", &found.held_out);
    assert_eq!((found.generated.exact_copies, found.held_out.exact_copies), (3, 0));
    assert_close_f64("near", &[found.near], &golden.values_f64("neighbours.near"), 1e-15);
    // The expected value went through a p-value.
    assert_close_f64("z", &[found.z.unwrap()], &golden.values_f64("neighbours.z"), 1e-11);
}

fn check_distances(golden: &Golden, name: &str, found: &DistanceToTraining) {
    let indices: Vec<usize> = found.nearest.iter().map(|neighbour| neighbour.index).collect();
    assert_eq!(indices, golden.indices(&format!("neighbours.{name}_indices")), "{name}");
    let distances: Vec<f64> = found.nearest.iter().map(|neighbour| neighbour.distance).collect();
    assert_close_f64(name, &distances, &golden.values_f64(&format!("neighbours.{name}_distances")), 1e-14);
    let q = found.quantiles;
    let quantiles = [q.min, q.p05, q.p25, q.median, q.p75, q.p95, q.max];
    assert_close_f64(name, &quantiles, &golden.values_f64(&format!("neighbours.{name}_quantiles")), 1e-14);
}

#[test]
fn mann_whitney_with_ties() {
    let golden = Golden::open("sets");
    for case in ["ties", "no_ties", "greater"] {
        let value = |name: &str| golden.values_f64(&format!("z.{case}.{name}"));
        let z = mann_whitney_z(&value("a"), &value("b")).unwrap();
        assert_close_f64(case, &[z], &value("z"), 1e-11);
    }
}
