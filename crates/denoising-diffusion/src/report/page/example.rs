//! Two evaluations for tests: one with everything in it, and one with nothing.

use crate::eval::result::{
    Better, BitsPerDim, Evaluation, Extractor, JudgedOn, LossByTime, Measurement, NegativeLogLikelihood, Neighbours,
    Pair, Provenance, Sampling,
};

pub fn bare() -> Evaluation {
    let provenance =
        Provenance { generated: "run/samples".to_owned(), real: "digits".to_owned(), seed: 7, ..Default::default() };
    let version = "0.1.0".to_owned();
    Evaluation {
        version,
        provenance,
        measurements: vec![],
        loss: None,
        bits_per_dim: None,
        nll: None,
        neighbours: None,
        seconds: 2.34,
    }
}

pub fn evaluation() -> Evaluation {
    let sampling = Sampling {
        sampler: "ddim".to_owned(),
        steps: 50,
        evaluations: Some(50),
        weights: "ema".to_owned(),
        step: 20_000,
        ema_decay: Some(0.995),
        ema_sigma_rel: None,
        options: None,
        guidance: None,
        weak: None,
        classifier: None,
        classes: None,
        condition: None,
        vectors: None,
    };
    let extractor = Extractor {
        name: "inception-v3".to_owned(),
        dims: 2048,
        digest: "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2".to_owned(),
        preprocessing: "bilinear to 299 x 299 without antialiasing, to [-1, 1]".to_owned(),
    };
    let provenance = Provenance {
        generated: "runs/digits/step-00020000".to_owned(),
        real: "digits".to_owned(),
        real_digest: Some("0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0".to_owned()),
        seed: 7,
        sampling: Some(sampling),
        extractor: Some(extractor),
    };
    Evaluation {
        provenance,
        measurements: measurements(),
        loss: Some(LossByTime {
            on: JudgedOn::HeldOut,
            n: 179,
            mean: 0.087_264,
            standard_error: 0.001_234,
            quarters: [0.214_9, 0.081_23, 0.037_8, 0.015_11],
        }),
        bits_per_dim: Some(bits_per_dim()),
        nll: Some(nll()),
        neighbours: Some(neighbours()),
        seconds: 1234.5,
        ..bare()
    }
}

fn measurements() -> Vec<Measurement> {
    use Better::{Higher, Lower};
    let row = |name: &str, value, standard_error, better, n_real, notes: &[&str]| Measurement {
        name: name.to_owned(),
        value,
        standard_error,
        better,
        n_generated: Some(2000),
        n_real: (n_real > 0).then_some(n_real),
        notes: notes.iter().map(|&note| note.to_owned()).collect(),
    };
    vec![
        row(
            "fid",
            12.345_678,
            Some(0.212),
            Lower,
            1797,
            &[
                "FID at n = 2,000 is biased by about +3.1; papers use 50,000 samples.",
                "Fewer real images (1,797) than feature dimensions (2,048): the covariance is singular.",
            ],
        ),
        row("kid", 0.000_521_3, Some(0.000_114), Lower, 1797, &[]),
        row("precision", 0.7312, Some(0.0099), Higher, 1797, &[]),
        row("recall", 0.6128, Some(0.0109), Higher, 1797, &[]),
        row("density", 1.0131, Some(0.0213), Higher, 1797, &[]),
        row("coverage", 0.9132, Some(0.0066), Higher, 1797, &[]),
        row("swd", 0.023_45, None, Lower, 1797, &[]),
        row(
            "is",
            2.0312,
            Some(0.0291),
            Higher,
            0,
            &["The classes are ImageNet's: the score says little about images of other things."],
        ),
    ]
}

/// Thirty values of t, falling over four powers of ten.
fn bits_per_dim() -> BitsPerDim {
    let term = |index: i32| (2 + 34 * index as usize, 0.04 * 10_f64.powf(-3.6 * (f64::from(index) / 29.0).powf(0.4)));
    let [prior, diffusion, reconstruction] = [0.000_123, 1.932_44, 1.819_83];
    BitsPerDim {
        on: JudgedOn::HeldOut,
        n: 179,
        total: prior + diffusion + reconstruction,
        standard_error: 0.011_2,
        prior,
        diffusion,
        reconstruction,
        terms: (0..30).map(term).collect(),
    }
}

fn nll() -> NegativeLogLikelihood {
    let term = |index: i32| {
        let log_snr = 9.0 - 0.6 * f64::from(index);
        (log_snr, -0.4 / (1.0 + (-log_snr).exp()))
    };
    let [prior, volume, interval] = [2.047_21, -5.341_2, 6.994_353];
    NegativeLogLikelihood {
        on: JudgedOn::HeldOut,
        n: 179,
        total: prior + volume + interval,
        standard_error: 0.011_8,
        prior,
        volume,
        interval,
        terms: (0..32).map(term).collect(),
    }
}

fn neighbours() -> Neighbours {
    let pair = |index: usize| Pair {
        generated: 17 + 191 * index,
        training: 1203 - 97 * index,
        distance: 0.0612 + 0.0041 * index as f64,
    };
    Neighbours {
        n_generated: 2000,
        n_training: 1618,
        n_held_out: 179,
        generated_quantiles: [0.0612, 0.0984, 0.127, 0.1493, 0.1722, 0.2077, 0.2814],
        held_out_quantiles: [0.0718, 0.1022, 0.1301, 0.1527, 0.1781, 0.2192, 0.2663],
        share_below_held_out: 0.063,
        z: -1.42,
        exact_copies: 0,
        closest: (0..10).map(pair).collect(),
    }
}
