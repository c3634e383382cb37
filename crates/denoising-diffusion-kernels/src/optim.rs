//! Optimizer sweeps: each reads and writes every parameter once.
//!
//! [`squared_norm`] for global-norm clipping, [`adam_step`] for clipping and Adam, [`lerp`] for the moving average of the weights. Not here:
//! learning-rate schedules, parameter groups, and the decision to skip a step.

use rayon::prelude::*;

use crate::par::{ELEMENTS_PER_TASK, Shared, for_each_task, task_range};
use crate::simd::{Isa, simd_fn};

/// Sum of squares of a gradient, accumulated in f64.
///
/// The sum is finite exactly if every value of `g` is, because squares of finite f32 values cannot overflow f64. The sums of several tensors add up
/// to the squared global norm.
pub fn squared_norm(g: &[f32]) -> f64 {
    squared_norm_with(Isa::detect(), g)
}

/// One step of Adam (Kingma & Ba 2015, algorithm 1), with decoupled weight decay (AdamW: Loshchilov & Hutter 2019), in PyTorch's order of operations.
///
/// g' = `grad_scale` g, m = beta1 m + (1 - beta1) g', v = beta2 v + (1 - beta2) g'^2,
/// w = (1 - lr weight_decay) w - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment, 0 <= beta1 < 1.
    pub beta1: f64,
    /// Decay of the second moment, 0 <= beta2 < 1.
    pub beta2: f64,
    /// Added to the root of the bias-corrected second moment.
    pub eps: f64,
    /// Weights shrink by `lr` times this; 0 for no decay.
    pub weight_decay: f64,
    /// Number of this step, starting from 1.
    pub step: u64,
    /// The gradient is first multiplied by this: `min(1, max_norm / norm)` for clipping, 1 for no clipping.
    pub grad_scale: f64,
}

impl AdamStep {
    /// The factor of the weights before the step.
    pub fn kept(&self) -> f64 {
        1.0 - self.lr * self.weight_decay
    }
}

/// Updates weights `w`, first moments `m` and second moments `v` with the gradient `g`; all have the same length.
pub fn adam_step(config: &AdamStep, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    adam_step_with(Isa::detect(), config, w, g, m, v);
}

/// average += weight (w - average), elementwise; an exponential moving average takes `weight` = 1 - decay.
pub fn lerp(average: &mut [f32], w: &[f32], weight: f64) {
    lerp_with(Isa::detect(), average, w, weight);
}

fn squared_norm_with(isa: Isa, g: &[f32]) -> f64 {
    // SAFETY: `isa` is one that this machine runs.
    let part = |g: &[f32]| unsafe { squared_norm_part(isa, g) };
    if g.len() <= ELEMENTS_PER_TASK {
        return part(g);
    }
    let sums: Vec<f64> = g.par_chunks(ELEMENTS_PER_TASK).map(part).collect();
    sums.iter().sum()
}

/// [`AdamStep`] as the constants of the sweep, computed in f64 and rounded once.
#[derive(Clone, Copy)]
struct Constants {
    grad_scale: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    root_correction: f32,
    eps: f32,
    kept: f32,
}

impl From<&AdamStep> for Constants {
    fn from(c: &AdamStep) -> Self {
        let step = c.step as f64;
        Self {
            grad_scale: c.grad_scale as f32,
            beta1: c.beta1 as f32,
            one_minus_beta1: (1.0 - c.beta1) as f32,
            beta2: c.beta2 as f32,
            one_minus_beta2: (1.0 - c.beta2) as f32,
            step_size: (c.lr / (1.0 - c.beta1.powf(step))) as f32,
            root_correction: (1.0 / (1.0 - c.beta2.powf(step)).sqrt()) as f32,
            eps: c.eps as f32,
            kept: c.kept() as f32,
        }
    }
}

fn adam_step_with(isa: Isa, config: &AdamStep, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let len = w.len();
    assert!(g.len() == len && m.len() == len && v.len() == len, "w, g, m and v differ in length");
    // Step 0 would divide 0 by 0.
    assert!(config.step >= 1, "steps count from 1");
    let constants = Constants::from(config);
    let (w, m, v) = (Shared::new(w), Shared::new(m), Shared::new(v));
    for_each_task(len.div_ceil(ELEMENTS_PER_TASK), |task| {
        let range = task_range(task, ELEMENTS_PER_TASK, len);
        // SAFETY: ranges of different tasks are disjoint; all slices have the range's length.
        unsafe {
            let (w, m, v) = (w.part(range.clone()), m.part(range.clone()), v.part(range.clone()));
            adam_part(isa, constants, w, &g[range], m, v);
        }
    });
}

fn lerp_with(isa: Isa, average: &mut [f32], w: &[f32], weight: f64) {
    assert_eq!(average.len(), w.len(), "average and w differ in length");
    let out = Shared::new(average);
    for_each_task(w.len().div_ceil(ELEMENTS_PER_TASK), |task| {
        let range = task_range(task, ELEMENTS_PER_TASK, w.len());
        // SAFETY: ranges of different tasks are disjoint; both slices have the range's length.
        unsafe { lerp_part(isa, out.part(range.clone()), &w[range], weight as f32) }
    });
}

simd_fn! {
    unsafe fn squared_norm_part<S>(g: &[f32]) -> f64 {
        // Independent sums, so that additions overlap; plain loops, because the compiler vectorises them well.
        let mut sums = [0.0f64; 16];
        let mut blocks = g.chunks_exact(16);
        for block in &mut blocks {
            for (sum, &x) in sums.iter_mut().zip(block) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(blocks.remainder()) {
            *sum += f64::from(x) * f64::from(x);
        }
        sums.iter().sum()
    }
}

simd_fn! {
    unsafe fn adam_part<S>(c: Constants, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let mut i = 0;
        while i < w.len() {
            let n = (w.len() - i).min(S::LANES);
            let grad = S::mul(S::load_n(g.as_ptr().add(i), n), S::splat(c.grad_scale));
            let m1 = S::mul(S::load_n(m.as_ptr().add(i), n), S::splat(c.beta1));
            let m1 = S::fma(grad, S::splat(c.one_minus_beta1), m1);
            let v1 = S::mul(S::load_n(v.as_ptr().add(i), n), S::splat(c.beta2));
            let v1 = S::fma(S::mul(grad, grad), S::splat(c.one_minus_beta2), v1);
            let denominator = S::fma(S::sqrt(v1), S::splat(c.root_correction), S::splat(c.eps));
            let update = S::div(S::mul(m1, S::splat(c.step_size)), denominator);
            S::store_n(m.as_mut_ptr().add(i), m1, n);
            S::store_n(v.as_mut_ptr().add(i), v1, n);
            let w1 = S::sub(S::mul(S::load_n(w.as_ptr().add(i), n), S::splat(c.kept)), update);
            S::store_n(w.as_mut_ptr().add(i), w1, n);
            i += S::LANES;
        }
    }
}

simd_fn! {
    unsafe fn lerp_part<S>(average: &mut [f32], w: &[f32], weight: f32) {
        let mut i = 0;
        while i < w.len() {
            let n = (w.len() - i).min(S::LANES);
            let old = S::load_n(average.as_ptr().add(i), n);
            let difference = S::sub(S::load_n(w.as_ptr().add(i), n), old);
            S::store_n(average.as_mut_ptr().add(i), S::fma(difference, S::splat(weight), old), n);
            i += S::LANES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, one_and_two_threads_agree, random};
    use proptest::prelude::*;

    /// Kingma & Ba's algorithm 1 in f64: returns w, m, v.
    fn adam64(c: &AdamStep, w: &[f32], g: &[f32], m: &[f32], v: &[f32]) -> [Vec<f64>; 3] {
        let mut out = [Vec::new(), Vec::new(), Vec::new()];
        for i in 0..w.len() {
            let g = f64::from(g[i]) * c.grad_scale;
            let m = c.beta1 * f64::from(m[i]) + (1.0 - c.beta1) * g;
            let v = c.beta2 * f64::from(v[i]) + (1.0 - c.beta2) * g * g;
            let m_hat = m / (1.0 - c.beta1.powi(c.step as i32));
            let v_hat = v / (1.0 - c.beta2.powi(c.step as i32));
            out[0].push(f64::from(w[i]) * c.kept() - c.lr * m_hat / (v_hat.sqrt() + c.eps));
            out[1].push(m);
            out[2].push(v);
        }
        out
    }

    proptest! {
        #[test]
        fn adam_agrees_with_f64(len in 0usize..70, step in 1u64..2000, lr in 1e-5f64..1.0, weight_decay in 0.0f64..1.0, grad_scale in 0.01f64..1.0, seed: u64) {
            let c = AdamStep { lr, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay, step, grad_scale };
            let (w, g, m) = (random(len, seed), random(len, seed ^ 1), random(len, seed ^ 2));
            // A second moment far below the square of the first would make the division ill-conditioned, which does not happen in Adam.
            let v: Vec<f32> = m.iter().map(|m| m * m + 1e-3).collect();
            let exact = adam64(&c, &w, &g, &m, &v);
            for isa in Isa::all() {
                let (mut w, mut m, mut v) = (w.clone(), m.clone(), v.clone());
                adam_step_with(isa, &c, &mut w, &g, &mut m, &mut v);
                for (got, exact) in [w, m, v].iter().zip(&exact) {
                    assert_close(got, exact, 2e-6);
                }
            }
        }

        #[test]
        fn norm_and_lerp_agree_with_f64(len in 0usize..50_000, weight in 0.0f64..1.0, seed: u64) {
            let (g, w) = (random(len, seed), random(len, seed ^ 1));
            let exact: f64 = g.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let lerped: Vec<f64> =
                g.iter().zip(&w).map(|(&a, &w)| f64::from(a) + weight * (f64::from(w) - f64::from(a))).collect();
            for isa in Isa::all() {
                prop_assert!((squared_norm_with(isa, &g) - exact).abs() <= 1e-12 * exact);
                let mut average = g.clone();
                lerp_with(isa, &mut average, &w, weight);
                assert_close(&average, &lerped, 3e-7);
            }
        }

        #[test]
        fn the_norm_is_finite_exactly_when_the_gradient_is(len in 1usize..40_000, at: prop::sample::Index, bad in 0usize..4) {
            let mut g = vec![f32::MAX; len];
            prop_assert!(squared_norm(&g).is_finite());
            g[at.index(len)] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN][bad];
            for isa in Isa::all() {
                prop_assert_eq!(squared_norm_with(isa, &g).is_finite(), bad == 3);
            }
        }
    }

    #[test]
    fn first_step_moves_by_the_learning_rate() {
        // m_hat / sqrt(v_hat) is the sign of the gradient at step 1, whatever the betas.
        let c = AdamStep { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0, step: 1, grad_scale: 1.0 };
        let (mut w, mut m, mut v) = ([1.0, 1.0], [0.0; 2], [0.0; 2]);
        adam_step(&c, &mut w, &[3.0, -5.0], &mut m, &mut v);
        assert_close(&w, &[0.99, 1.01], 1e-7);
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let len = 100_003;
        let g = random(len, 3);
        one_and_two_threads_agree(|| {
            let (mut w, mut m, mut v) = (random(len, 4), vec![0.0; len], vec![0.0; len]);
            let norm = squared_norm(&g);
            let c = AdamStep {
                lr: 1e-3,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                weight_decay: 0.0,
                step: 7,
                grad_scale: 1.0 / norm.sqrt(),
            };
            adam_step(&c, &mut w, &g, &mut m, &mut v);
            let mut average = g.clone();
            lerp(&mut average, &w, 0.005);
            w.extend([f32::from_bits(norm.to_bits() as u32), f32::from_bits((norm.to_bits() >> 32) as u32)]);
            [w, m, v, average].concat()
        });
    }
}
