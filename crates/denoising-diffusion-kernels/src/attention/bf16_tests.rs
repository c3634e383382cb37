//! Attention on matrix units, and on the plain loops in their place, against plain f64 loops.

use proptest::prelude::*;

use super::exact::{Kind, exact};
use super::*;
use crate::simd::Isa;
use crate::testing::{assert_close, one_and_two_threads_agree, random, wide};

/// Output, dqkv, dmemory.
fn run(unit: (Isa, Unit), s: &AttentionShape, [qkv, memory, dout]: [&[f32]; 3]) -> [Vec<f32>; 3] {
    let (mut out, mut dqkv, mut dmemory) = (vec![7.0; dout.len()], vec![7.0; qkv.len()], vec![7.0; memory.len()]);
    let mut lse = vec![7.0; s.lse_len()];
    bf16::forward(unit, s, qkv, memory, &mut out, &mut lse);
    bf16::backward(unit, s, qkv, memory, &out, &lse, dout, &mut dqkv, &mut dmemory);
    [out, dqkv, dmemory]
}

fn check(s: &AttentionShape, seed: u64) {
    let [qkv, memory, dout] =
        [(s.qkv_len(), 1), (s.memory_len(), 2), (s.output_len(), 3)].map(|(len, salt)| random(len, seed ^ salt));
    let want = exact(Kind::Full, s, &wide(&qkv), &wide(&memory), &wide(&dout));
    for unit in Unit::all().into_iter().flat_map(|unit| Isa::all().into_iter().map(move |isa| (isa, unit))) {
        for (got, want) in run(unit, s, [&qkv, &memory, &dout]).iter().zip(&want) {
            // Factors of up to two values are rounded to 2^-9 of themselves; sums of many have less.
            assert_close(got, want, 2e-2);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn agrees_with_f64_up_to_the_rounding_of_factors(
        (batch, positions, heads, head_dim, memory) in (1usize..3, 1usize..=150, 1usize..4, 1usize..=70, 0usize..=5),
        seed: u64,
    ) {
        check(&AttentionShape { batch, positions, heads, head_dim, memory }, seed);
    }
}

#[test]
fn several_blocks_agree_with_f64() {
    for (positions, memory) in [(128, 0), (131, 4), (255, 4), (300, 60)] {
        check(&AttentionShape { batch: 1, positions, heads: 1, head_dim: 16, memory }, 3);
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let s = AttentionShape { batch: 2, positions: 150, heads: 3, head_dim: 20, memory: 4 };
    let (qkv, memory, dout) = (random(s.qkv_len(), 1), random(s.memory_len(), 2), random(s.output_len(), 3));
    for unit in Unit::all() {
        one_and_two_threads_agree(|| run((Isa::detect(), unit), &s, [&qkv, &memory, &dout]).concat());
    }
}

#[test]
fn a_nan_key_reaches_every_query_of_its_head_and_no_other_image() {
    let s = AttentionShape { batch: 2, positions: 140, heads: 1, head_dim: 16, memory: 2 };
    let (mut qkv, memory, dout) = (random(s.qkv_len(), 1), random(s.memory_len(), 2), random(s.output_len(), 3));
    qkv[s.qkv_at(0, 139, KEY, 0)] = f32::NAN;
    for unit in Unit::all() {
        let [out, dqkv, dmemory] = run((Isa::detect(), unit), &s, [&qkv, &memory, &dout]);
        let (hit, rest) = out.split_at(s.output_len() / 2);
        assert!(hit.iter().all(|v| v.is_nan()) && rest.iter().all(|v| v.is_finite()), "{unit:?}");
        assert!(dqkv[s.qkv_len() / 2..].iter().all(|v| v.is_finite()), "{unit:?}");
        assert!(dmemory.iter().any(|v| v.is_nan()), "{unit:?}");
    }
}
