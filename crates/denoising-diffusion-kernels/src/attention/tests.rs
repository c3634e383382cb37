//! Both attentions against plain f64 loops, and those against finite differences.

use super::exact::{Kind, exact};
use super::*;
use crate::simd::Isa;
use crate::testing::{assert_close, assert_some_close, numeric, one_and_two_threads_agree, random, some_indices, wide};
use proptest::prelude::*;

impl Kind {
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
                let mut state = vec![7.0; s.linear_state_len()];
                linear::forward_with(isa, s, qkv, memory, &mut out, &mut state);
                linear_grad::backward_with(isa, s, qkv, memory, &state, dout, &mut dqkv, &mut dmemory);
            }
        }
        [out, dqkv, dmemory]
    }
}

fn shapes(positions: usize) -> impl Strategy<Value = AttentionShape> {
    (1usize..=5, 1usize..=positions, 1usize..=4, 1usize..=40, 0usize..=5).prop_map(
        |(batch, positions, heads, head_dim, memory)| AttentionShape { batch, positions, heads, head_dim, memory },
    )
}

/// qkv, memory and dout.
fn inputs(s: &AttentionShape, seed: u64) -> [Vec<f32>; 3] {
    let scaled = |len, seed| random(len, seed).iter().map(|v| v * 3.0).collect::<Vec<f32>>();
    [scaled(s.qkv_len(), seed), scaled(s.memory_len(), seed ^ 1), random(s.output_len(), seed ^ 2)]
}

fn check(kind: Kind, s: &AttentionShape, seed: u64) {
    let [qkv, memory, dout] = inputs(s, seed);
    let [out, dqkv, dmemory] = exact(kind, s, &wide(&qkv), &wide(&memory), &wide(&dout));
    for isa in Isa::all() {
        let [y, dx, dm] = kind.run(isa, s, &qkv, &memory, &dout);
        assert_close(&y, &out, 5e-6);
        assert_close(&dx, &dqkv, 1e-5);
        assert_close(&dm, &dmemory, 1e-5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_exact_gradients_agree_with_finite_differences(s in shapes(12), linear: bool, seed: u64) {
        let kind = if linear { Kind::Linear } else { Kind::Full };
        let [qkv, memory, dout] = inputs(&s, seed);
        let (q, m, d) = (wide(&qkv), wide(&memory), wide(&dout));
        let [_, dqkv, dmemory] = exact(kind, &s, &q, &m, &d);
        let (of_qkv, of_memory) = (some_indices(q.len()), some_indices(m.len()));
        let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let dq = numeric(&q, &dout, &of_qkv, |q| exact(kind, &s, q, &m, &d)[0].clone());
        let dm = numeric(&m, &dout, &of_memory, |m| exact(kind, &s, &q, m, &d)[0].clone());
        assert_some_close(&narrow(&dqkv), &of_qkv, &dq, 1e-6);
        assert_some_close(&narrow(&dmemory), &of_memory, &dm, 1e-6);
    }

    #[test]
    fn agrees_with_f64(s in shapes(40), linear: bool, seed: u64) {
        check(if linear { Kind::Linear } else { Kind::Full }, &s, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn agrees_with_f64_at_any_number_of_positions(s in shapes(17 * 17), linear: bool, seed: u64) {
        check(if linear { Kind::Linear } else { Kind::Full }, &s, seed);
    }
}

#[test]
fn several_blocks_and_chunks_agree_with_f64() {
    for (positions, memory) in [(100, 28), (131, 4), (255, 4), (600, 60)] {
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
fn large_scores_stay_finite() {
    let s = AttentionShape { batch: 1, positions: 9, heads: 1, head_dim: 8, memory: 2 };
    let (qkv, memory) = (random(s.qkv_len(), 1), random(s.memory_len(), 2));
    let dout = random(s.output_len(), 3);
    let large: Vec<f32> = qkv.iter().map(|v| v * 1e4).collect();
    for kind in [Kind::Full, Kind::Linear] {
        for isa in Isa::all() {
            let finite = kind.run(isa, &s, &large, &memory, &dout).concat();
            assert!(finite.iter().all(|v| v.is_finite()));
        }
    }
}

#[test]
fn bad_values_come_out_of_their_image_alone() {
    let s = AttentionShape { batch: 2, positions: 9, heads: 2, head_dim: 8, memory: 2 };
    let [qkv, memory, dout] = inputs(&s, 1);
    let one = |values: &[f32], at: usize, bad: f32| {
        let mut values = values.to_vec();
        values[at] = bad;
        values
    };
    let broken = |values: &[f32]| values.iter().any(|v| !v.is_finite());
    for kind in [Kind::Full, Kind::Linear] {
        for (isa, bad) in Isa::all().into_iter().flat_map(|isa| [(isa, f32::NAN), (isa, f32::INFINITY)]) {
            for part in [QUERY, KEY, VALUE] {
                let qkv = one(&qkv, s.qkv_at(0, 4, part, 1), bad);
                let [out, dqkv, dmemory] = kind.run(isa, &s, &qkv, &memory, &dout);
                let (hit, rest) = out.split_at(s.output_len() / 2);
                let (hit_grad, rest_grad) = dqkv.split_at(s.qkv_len() / 2);
                assert!(broken(hit) && broken(hit_grad) && broken(&dmemory), "{kind:?} {isa:?} {part} {bad}");
                assert!(!broken(rest) && !broken(rest_grad), "{kind:?} {isa:?} {part} {bad}");
            }
            for at in [0, s.memory_len() - 1] {
                let [out, dqkv, dmemory] = kind.run(isa, &s, &qkv, &one(&memory, at, bad), &dout);
                assert!(broken(&out) && broken(&dqkv) && broken(&dmemory), "{kind:?} {isa:?} memory {at} {bad}");
            }
            let [out, dqkv, _] = kind.run(isa, &s, &qkv, &memory, &one(&dout, s.output_at(0, 4, 1), bad));
            let (hit, rest) = dqkv.split_at(s.qkv_len() / 2);
            assert!(!broken(&out) && broken(hit) && !broken(rest), "{kind:?} {isa:?} dout {bad}");
        }
    }
}

/// With one chunk of positions, and with several.
#[test]
fn a_nan_key_reaches_every_query_of_its_head() {
    for (positions, at) in [(60, 4), (600, 4), (600, 599)] {
        let s = AttentionShape { batch: 1, positions, heads: 1, head_dim: 8, memory: 2 };
        let [mut qkv, memory, dout] = inputs(&s, 1);
        qkv[s.qkv_at(0, at, KEY, 0)] = f32::NAN;
        for isa in Isa::all() {
            for kind in [Kind::Full, Kind::Linear] {
                let [out, ..] = kind.run(isa, &s, &qkv, &memory, &dout);
                assert!(out.iter().all(|v| v.is_nan()), "{kind:?} {isa:?} {positions} {at}");
            }
        }
    }
}
