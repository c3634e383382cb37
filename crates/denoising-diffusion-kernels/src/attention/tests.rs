//! Both attentions against plain f64 loops, and those against finite differences.

use super::*;
use crate::simd::Isa;
use crate::testing::{assert_close, one_and_two_threads_agree, random};
use proptest::prelude::*;

/// Queries, keys (memory first) and values of one head as rows.
type Rows = [Vec<Vec<f64>>; 3];

fn head64(s: &AttentionShape, qkv: &[f64], memory: impl Fn(usize, usize, usize) -> f64, b: usize, h: usize) -> Rows {
    let rows = |part: usize| -> Vec<Vec<f64>> {
        let position = |i| (0..s.head_dim).map(|d| qkv[s.qkv_at(b, i, part, h) + d]).collect();
        let stored = |j| (0..s.head_dim).map(|d| memory(part - 1, j, d)).collect();
        (0..if part == 0 { 0 } else { s.memory }).map(stored).chain((0..s.positions).map(position)).collect()
    };
    [rows(0), rows(1), rows(2)]
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|v| v / sum).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn full64(s: &AttentionShape, qkv: &[f64], memory: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; s.output_len()];
    for (b, h) in (0..s.batch).flat_map(|b| (0..s.heads).map(move |h| (b, h))) {
        let at = |part: usize, j: usize, d: usize| memory[((part * s.heads + h) * s.memory + j) * s.head_dim + d];
        let [q, k, v] = head64(s, qkv, at, b, h);
        for (i, q) in q.iter().enumerate() {
            let scores: Vec<f64> = k.iter().map(|k| dot(q, k) / (s.head_dim as f64).sqrt()).collect();
            for (p, v) in softmax(&scores).iter().zip(&v) {
                for d in 0..s.head_dim {
                    out[s.output_at(b, i, h) + d] += p * v[d];
                }
            }
        }
    }
    out
}

fn linear64(s: &AttentionShape, qkv: &[f64], memory: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; s.output_len()];
    for (b, h) in (0..s.batch).flat_map(|b| (0..s.heads).map(move |h| (b, h))) {
        let at = |part: usize, j: usize, d: usize| memory[((part * s.heads + h) * s.head_dim + d) * s.memory + j];
        let [q, k, v] = head64(s, qkv, at, b, h);
        for d in 0..s.head_dim {
            let weights = softmax(&k.iter().map(|k| k[d]).collect::<Vec<_>>());
            for e in 0..s.head_dim {
                let context: f64 = weights.iter().zip(&v).map(|(w, v)| w * v[e]).sum();
                for (i, q) in q.iter().enumerate() {
                    out[s.output_at(b, i, h) + e] += softmax(q)[d] / (s.head_dim as f64).sqrt() * context;
                }
            }
        }
    }
    out
}

type Forward64 = fn(&AttentionShape, &[f64], &[f64]) -> Vec<f64>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Full,
    Linear,
}

impl Kind {
    fn forward64(self) -> Forward64 {
        match self {
            Kind::Full => full64,
            Kind::Linear => linear64,
        }
    }

    /// Output, dqkv, dmemory.
    fn run(self, isa: Isa, s: &AttentionShape, qkv: &[f32], memory: &[f32], dout: &[f32]) -> [Vec<f32>; 3] {
        let (mut out, mut dqkv, mut dmemory) = (vec![7.0; dout.len()], vec![7.0; qkv.len()], vec![7.0; memory.len()]);
        match self {
            Kind::Full => {
                let mut lse = vec![7.0; s.lse_len()];
                full::forward_with(isa, s, qkv, memory, &mut out, &mut lse);
                full_grad::backward_with(isa, s, qkv, memory, &out, &lse, dout, &mut dqkv, &mut dmemory);
            }
            Kind::Linear => {
                linear::forward_with(isa, s, qkv, memory, &mut out);
                linear_grad::backward_with(isa, s, qkv, memory, dout, &mut dqkv, &mut dmemory);
            }
        }
        [out, dqkv, dmemory]
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

/// d(sum of dout out) / d(values) at `indices` by central differences in f64.
fn numeric(values: &[f64], dout: &[f32], indices: &[usize], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let loss = |values: &[f64]| f(values).iter().zip(dout).map(|(y, &d)| y * f64::from(d)).sum::<f64>();
    let h = 1e-4;
    let mut moved = values.to_vec();
    let mut at = |i: usize, x: f64| {
        moved[i] = x;
        let loss = loss(&moved);
        moved[i] = values[i];
        loss
    };
    indices.iter().map(|&i| (at(i, values[i] + h) - at(i, values[i] - h)) / (2.0 * h)).collect()
}

fn check(kind: Kind, s: &AttentionShape, seed: u64) {
    let scaled = |len, seed, factor: f32| random(len, seed).iter().map(|v| v * factor).collect::<Vec<f32>>();
    let qkv = scaled(s.qkv_len(), seed, 3.0);
    let memory = scaled(s.memory_len(), seed ^ 1, 3.0);
    let dout = random(s.output_len(), seed ^ 2);
    let (qkv64, memory64, f) = (wide(&qkv), wide(&memory), kind.forward64());
    let exact = f(s, &qkv64, &memory64);
    // A handful of entries, as every finite difference costs two passes.
    let pick = |len: usize| (0..len).step_by(len.div_ceil(12).max(1) | 1).collect::<Vec<_>>();
    let (of_qkv, of_memory) = (pick(qkv.len()), pick(memory.len()));
    let dqkv64 = numeric(&qkv64, &dout, &of_qkv, |x| f(s, x, &memory64));
    let dmemory64 = numeric(&memory64, &dout, &of_memory, |m| f(s, &qkv64, m));
    for isa in Isa::all() {
        let [out, dqkv, dmemory] = kind.run(isa, s, &qkv, &memory, &dout);
        assert_close(&out, &exact, 2e-6);
        assert_close(&of_qkv.iter().map(|&i| dqkv[i]).collect::<Vec<_>>(), &dqkv64, 1e-5);
        assert_close(&of_memory.iter().map(|&i| dmemory[i]).collect::<Vec<_>>(), &dmemory64, 1e-5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn agrees_with_f64_and_finite_differences(
        (batch, positions, heads) in (1usize..4, 1usize..40, 1usize..4),
        (head_dim, memory) in (1usize..40, 0usize..6),
        linear: bool,
        seed: u64,
    ) {
        let kind = if linear { Kind::Linear } else { Kind::Full };
        check(kind, &AttentionShape { batch, positions, heads, head_dim, memory }, seed);
    }
}

#[test]
fn several_blocks_of_queries_and_keys_agree_with_f64() {
    for (positions, memory) in [(100, 28), (131, 4), (255, 4)] {
        let s = AttentionShape { batch: 1, positions, heads: 1, head_dim: 8, memory };
        check(Kind::Full, &s, 3);
        check(Kind::Linear, &s, 3);
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let s = AttentionShape { batch: 2, positions: 150, heads: 3, head_dim: 20, memory: 4 };
    let (qkv, memory) = (random(s.qkv_len(), 1), random(s.memory_len(), 2));
    let dout = random(s.output_len(), 3);
    for kind in [Kind::Full, Kind::Linear] {
        one_and_two_threads_agree(|| kind.run(Isa::detect(), &s, &qkv, &memory, &dout).concat());
    }
}

#[test]
fn large_scores_stay_finite_and_nan_comes_out() {
    let s = AttentionShape { batch: 1, positions: 9, heads: 1, head_dim: 8, memory: 2 };
    let (mut qkv, memory) = (random(s.qkv_len(), 1), random(s.memory_len(), 2));
    let dout = random(s.output_len(), 3);
    let large: Vec<f32> = qkv.iter().map(|v| v * 1e4).collect();
    for kind in [Kind::Full, Kind::Linear] {
        for isa in Isa::all() {
            let finite = kind.run(isa, &s, &large, &memory, &dout).concat();
            assert!(finite.iter().all(|v| v.is_finite()));
        }
    }
    qkv[s.qkv_at(0, 4, KEY, 0)] = f32::NAN;
    for isa in Isa::all() {
        let [out, ..] = Kind::Full.run(isa, &s, &qkv, &memory, &dout);
        assert!(out.iter().all(|v| v.is_nan()));
        let [out, ..] = Kind::Linear.run(isa, &s, &qkv, &memory, &dout);
        assert!(out.iter().all(|v| v.is_nan()));
    }
}
