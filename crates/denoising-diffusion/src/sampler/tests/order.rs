//! How fast the error of each deterministic solver falls with the number of steps, and where all of them end up.

use super::mixture::{
    FAMILIES, Family, Mixture, Point, distance, flow_from_pure_noise, points, start, tensor, to_clean,
};
use super::solvers::{DDIM, DETERMINISTIC, DPMPP_2M, DPMPP_2S, DPMPP_3M, EULER, HEUN, LMS, Solver, UNIPC_2, UNIPC_3};
use crate::diffusion::NoiseLevel;
use crate::sampler::*;

const EXAMPLES: usize = 24;

fn errors(solver: Solver, mixture: &Mixture, levels: &dyn Fn(usize) -> Vec<NoiseLevel>, steps: &[usize]) -> Vec<f64> {
    let ends = levels(1);
    let x = start(ends[0], EXAMPLES);
    let exact: Vec<Point> = points(x.clone()).into_iter().map(|x| mixture.flow(x, &ends)).collect();
    let error = |&n: &usize| distance(&points(solver(mixture, x.clone(), &levels(n)).unwrap()), &exact);
    steps.iter().map(error).collect()
}

/// The slope of the least-squares line through `(ln steps, -ln error)`.
fn slope(steps: &[usize], errors: &[f64]) -> f64 {
    let n = steps.len() as f64;
    let (u, v): (Vec<f64>, Vec<f64>) = steps.iter().zip(errors).map(|(&n, e)| ((n as f64).ln(), -e.ln())).unzip();
    let (mean_u, mean_v) = (u.iter().sum::<f64>() / n, v.iter().sum::<f64>() / n);
    let covariance: f64 = u.iter().zip(&v).map(|(u, v)| (u - mean_u) * (v - mean_v)).sum();
    covariance / u.iter().map(|u| (u - mean_u).powi(2)).sum::<f64>()
}

type Spacing<'a> = (&'a str, Mixture, Box<dyn Fn(usize) -> Vec<NoiseLevel>>);

/// From 8 to 0.1 (in `sigma / alpha`; the modes are about 0.27 wide), so that no step is singular.
fn spacings() -> Vec<Spacing<'static>> {
    let mut all: Vec<Spacing<'_>> = Vec::new();
    for family in FAMILIES {
        all.push(("log", Mixture::three(family), Box::new(move |n| family.log_spaced(8.0, 0.1, n))));
        all.push(("karras", Mixture::three(family), Box::new(move |n| family.karras(8.0, 0.1, n))));
    }
    all
}

/// `order` bounds the slope over `steps` from both sides.
fn check_order(name: &str, solver: Solver, steps: [usize; 3], order: std::ops::Range<f64>, spacings: &[Spacing<'_>]) {
    for (spacing, mixture, levels) in spacings {
        let errors = errors(solver, mixture, levels, &steps);
        let slope = slope(&steps, &errors);
        let what = format!("{name}, {:?}, {spacing}: {slope:.2} from {errors:?}", mixture.family);
        println!("{what}");
        assert!(order.contains(&slope), "{what}");
    }
}

#[test]
fn solvers_have_their_order() {
    let all = spacings();
    for (name, solver) in [("ddim", DDIM), ("euler", EULER)] {
        check_order(name, solver, [32, 64, 128], 0.95..1.05, &all);
    }
    for (name, solver) in [("heun", HEUN), ("dpmpp_2m", DPMPP_2M), ("dpmpp_2s", DPMPP_2S)] {
        check_order(name, solver, [32, 64, 128], 1.9..2.1, &all);
    }
    check_order("dpmpp_sde_3m, eta 0", DPMPP_3M, [16, 32, 64], 2.7..3.8, &all);
    // The corrector raises the order of the predictor, 2 or 3, by one. More steps would show the rounding of f32 (about 1e-6).
    check_order("unipc 2", UNIPC_2, [16, 32, 64], 2.8..3.3, &all);
    check_order("unipc 3", UNIPC_3, [16, 32, 64], 3.5..5.5, &all);
    // In transition from 2, the order of its first step, which contributes little to the error, to 4.
    check_order("lms", LMS, [16, 32, 64], 3.2..4.1, &all);
}

/// The first step, from alpha = 0, is a single first-order step, which does not reduce the order of a second-order method.
#[test]
fn solvers_keep_their_order_from_pure_noise() {
    let flow = [("pure noise", Mixture::three(Family::Flow), Box::new(|n| flow_from_pure_noise(0.1, n)) as _)];
    check_order("ddim", DDIM, [32, 64, 128], 0.95..1.1, &flow);
    for (name, solver) in [("heun", HEUN), ("dpmpp_2m", DPMPP_2M), ("dpmpp_2s", DPMPP_2S)] {
        check_order(name, solver, [32, 64, 128], 1.9..2.2, &flow);
    }
    check_order("dpmpp_sde_3m, eta 0", DPMPP_3M, [32, 64, 128], 2.7..3.8, &flow);
    check_order("unipc 2", UNIPC_2, [32, 64, 128], 2.8..3.4, &flow);
    check_order("unipc 3", UNIPC_3, [32, 64, 128], 3.5..5.0, &flow);
    // Here the first steps dominate the error.
    check_order("lms", LMS, [32, 64, 128], 2.2..3.5, &flow);
}

/// With all schedules and all solvers, the same noise gives the same data.
#[test]
fn all_deterministic_solvers_reach_the_same_data() {
    let x = points(start(Family::Edm.level(20.0), 8));
    let exact: Vec<Point> =
        x.iter().map(|&x| Mixture::three(Family::Edm).flow(x, &Family::Edm.karras(20.0, 1e-3, 1))).collect();
    for family in FAMILIES {
        let mixture = Mixture::three(family);
        let alpha = family.level(20.0).alpha;
        let x: Vec<Point> = x.iter().map(|x| x.map(|v| v * alpha)).collect();
        for (name, solver) in DETERMINISTIC {
            // The first three are first-order and equal each other.
            let steps = match name {
                "ddim" => 3000,
                "euler" | "euler_ancestral" => continue,
                _ => 200,
            };
            let levels = to_clean(family.log_spaced(20.0, 2e-3, steps));
            let out = solver(&mixture, tensor(&x), &levels).unwrap();
            let distance = distance(&points(out), &exact);
            println!("{name} {family:?} {distance:.1e}");
            assert!(distance < 1e-3, "{name} {family:?} {distance}");
        }
    }
}

#[test]
fn euler_without_churn_or_noise_is_ddim_and_the_sde_solver_without_noise_is_2m() {
    for family in FAMILIES {
        let mixture = Mixture::three(family);
        let levels = to_clean(family.karras(20.0, 0.02, 12));
        let x = start(levels[0], 8);
        let run = |name: &str| {
            let (_, solver) = DETERMINISTIC.into_iter().find(|(other, _)| *other == name).unwrap();
            points(solver(&mixture, x.clone(), &levels).unwrap())
        };
        for (a, b) in [("ddim", "euler"), ("euler", "euler_ancestral"), ("dpmpp_2m", "dpmpp_sde_2m")] {
            assert!(distance(&run(a), &run(b)) < 1e-5, "{a} {b}");
        }
        assert!(distance(&run("ddim"), &run("dpmpp_2m")) > 1e-2);
    }
}

/// Inversion is first-order too: twice the steps, half the error.
#[test]
fn ddim_returns_from_where_inversion_went() {
    for family in FAMILIES {
        let mixture = Mixture::three(family);
        let noise = points(start(family.level(20.0), 12));
        let ends = family.log_spaced(20.0, 0.01, 1);
        let data: Vec<Point> = noise.into_iter().map(|x| mixture.flow(x, &ends)).collect();
        let missed = |steps: usize| {
            let levels = to_clean(family.log_spaced(20.0, 0.01, steps));
            let inverted = ddim_inversion(&mixture, tensor(&data), &levels, &mut ignore).unwrap();
            distance(&points(DDIM(&mixture, inverted, &levels).unwrap()), &data)
        };
        let [few, many] = [300, 600].map(missed);
        println!("{family:?} {few} {many}");
        assert!(many < 0.02 && (1.8..2.2).contains(&(few / many)), "{family:?} {few} {many}");
    }
}

/// The noise that inversion finds is that of the exact flow.
#[test]
fn inversion_follows_the_flow_backwards() {
    let mixture = Mixture::three(Family::VariancePreserving);
    let levels = Family::VariancePreserving.log_spaced(20.0, 0.05, 2000);
    let noise = start(levels[0], 12);
    let data: Vec<Point> = points(noise.clone()).into_iter().map(|x| mixture.flow(x, &levels)).collect();
    let inverted = ddim_inversion(&mixture, tensor(&data), &levels, &mut ignore).unwrap();
    let distance = distance(&points(inverted), &points(noise));
    println!("{distance}");
    assert!(distance < 0.02, "{distance}");
}
