//! FID, KID, Inception Score and the statistics under them.

use denoising_diffusion::eval::metrics::features::Features;
use denoising_diffusion::eval::metrics::frechet::{Reference, frechet_distance};
use denoising_diffusion::eval::metrics::inception_score::{Predictions, inception_score};
use denoising_diffusion::eval::metrics::kid::{KidSubset, kid_of_subsets};
use denoising_diffusion::eval::metrics::statistics::Gaussian;

use crate::golden::Golden;

struct Table {
    values: Vec<f32>,
    dims: usize,
}

impl Table {
    /// Stored as u8, which stand for (u8 - 128) / 32.
    fn read(golden: &Golden, name: &str) -> Self {
        let values = golden.values(name).iter().map(|v| (v - 128.0) / 32.0).collect();
        Self { values, dims: golden.host(name).shape[1] }
    }

    fn features(&self) -> Features<'_> {
        Features::new(&self.values, self.dims).unwrap()
    }
}

fn one(golden: &Golden, name: &str) -> f64 {
    golden.values_f64(name)[0]
}

fn close(what: &str, got: f64, expected: f64, tolerance: f64) {
    let error = (got - expected).abs();
    assert!(error <= tolerance, "{what}: {got} differs from {expected} by {error:e}, more than {tolerance:e}");
}

#[test]
fn statistics() {
    let golden = Golden::open("distances");
    let real = Table::read(&golden, "frechet.full64.real");
    let got = Gaussian::of(real.features()).unwrap();
    for (name, got) in [("cov.mu", got.mu()), ("cov.sigma", got.sigma())] {
        let expected = golden.values_f64(name);
        assert_eq!(got.len(), expected.len());
        got.iter().zip(expected).for_each(|(got, expected)| close(name, *got, expected, 1e-14));
    }
}

/// `exact` is precise for any rank; `reference` is pytorch-fid, whose matrix root loses up to half of the digits where the covariances
/// are singular (its own error is up to 4e-6 here); tolerances are relative to the traces.
#[test]
fn frechet_distances() {
    let golden = Golden::open("distances");
    let (singular, regular) = (1e-7, 1e-13);
    for (case, tolerance) in [
        ("full64", regular),
        ("full192", regular),
        ("identical192", regular),
        ("deficient64", singular),
        ("few64", singular),
        ("few192", singular),
        ("few_against_many192", singular),
        ("identical_few192", singular),
    ] {
        let [real, generated] =
            ["real", "generated"].map(|side| Table::read(&golden, &format!("frechet.{case}.{side}")));
        let [a, b] = [&real, &generated].map(|table| Gaussian::of(table.features()).unwrap());
        // As from a file that does not say how many images there were.
        let [a_file, b_file] = [&a, &b].map(|g| Gaussian::new(None, g.mu().to_vec(), g.sigma().to_vec()).unwrap());
        let reference = one(&golden, &format!("frechet.{case}.reference"));
        let exact = one(&golden, &format!("frechet.{case}.exact"));
        let scale = a.trace() + b.trace();
        let known = [
            ("statistics", frechet_distance(&a, &b).unwrap()),
            ("swapped", frechet_distance(&b, &a).unwrap()),
            ("features", Reference::new(a).unwrap().distance_to(generated.features()).unwrap()),
        ];
        for (way, got) in known {
            close(&format!("{case} {way}, exact"), got, exact, 1e-13 * scale);
            close(&format!("{case} {way}, pytorch-fid"), got, reference, tolerance * scale);
        }
        let got = frechet_distance(&a_file, &b_file).unwrap();
        close(&format!("{case} of files"), got, exact, tolerance * scale);
    }
}

#[test]
fn kid() {
    let golden = Golden::open("distances");
    let [real, generated] = ["kid.real", "kid.generated"].map(|name| Table::read(&golden, name));
    let [rows_real, rows_generated] =
        ["kid.rows_real", "kid.rows_generated"].map(|name| (golden.indices(name), golden.host(name).shape[1]));
    let subsets: Vec<KidSubset> = rows_real
        .0
        .chunks(rows_real.1)
        .zip(rows_generated.0.chunks(rows_generated.1))
        .map(|(real, generated)| KidSubset { real: real.to_vec(), generated: generated.to_vec() })
        .collect();
    let got = kid_of_subsets(real.features(), generated.features(), &subsets).unwrap();
    let expected = golden.values_f64("kid.subsets");
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(&expected) {
        close("subset", *got, *expected, 1e-12);
    }
    let n = got.len() as f64;
    let mean = got.iter().sum::<f64>() / n;
    close("mean", mean, one(&golden, "kid.mean"), 1e-12);
    let deviation = (got.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    close("standard deviation", deviation, one(&golden, "kid.std"), 1e-12);
}

#[test]
fn inception_scores() {
    let golden = Golden::open("distances");
    let logits = golden.host("isc.logits");
    let features = Features::new(&logits.values, logits.shape[1]).unwrap();
    let got = inception_score(Predictions::Logits(features), 10, &golden.indices("isc.order")).unwrap();
    close("mean", got.mean, one(&golden, "isc.mean"), 1e-12);
    close("standard deviation", got.standard_deviation, one(&golden, "isc.std"), 1e-12);
}
