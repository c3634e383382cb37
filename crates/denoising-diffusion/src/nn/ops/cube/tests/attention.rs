//! Attention, softmax and linear.

use super::super::{attention, linear_attention, takes_attention, takes_linear_attention};
use super::*;

/// In a random case: number of heads, channels per head, and rows of the memory.
type Heads = (usize, usize, usize);

/// Compares attention, linear or not, over `[b, h, w]` positions.
fn compare_attention(linear: bool, seed: u64, [b, h, w]: [usize; 3], (heads, d, m): Heads, layout: Layout) {
    let memory = [[1, 2 * heads * d * m]];
    let others = if m == 0 { &[] } else { memory.as_slice() };
    let case = Case { dims: [b, h, w, 3 * heads * d], layout, images: 0, others, scale: 2.0 };
    let run = |attention: fn(Tensor<4>, Tensor<4>) -> Tensor<4>| {
        move |mut images: Vec<Tensor<4>>, mut others: Vec<Tensor<2>>| {
            let qkv = images.remove(0);
            let memory = match m {
                0 if linear => Tensor::zeros([2, heads, d, 0], &qkv.device()),
                0 => Tensor::zeros([2, heads, 0, d], &qkv.device()),
                _ if linear => others.remove(0).reshape([2, heads, d, m]),
                _ => others.remove(0).reshape([2, heads, m, d]),
            };
            attention(qkv, memory)
        }
    };
    let what = format!("attention (linear: {linear}) with {heads} heads of {d} channels and {m} memories");
    if linear {
        case.compare(&what, seed, &run(linear_attention), &run(plain::linear_attention));
    } else {
        case.compare(&what, seed, &run(attention), &run(plain::attention));
    }
}

/// Whether the test device runs our attention kernels; CubeCL's CPU runtime has too few units.
fn runs_attention() -> bool {
    let runs = |device: Device| {
        let qkv = Tensor::zeros([1, 1, 1, 96], &device);
        takes_linear_attention(&qkv, 32) && takes_attention(&qkv, 32)
    };
    let runs = test_device().is_some_and(runs);
    if !runs {
        eprintln!("no device that runs attention kernels");
    }
    runs
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn linear_attentions(
        seed: u64, b in 1_usize..4, h in 1_usize..14, w in 1_usize..14, heads in 1_usize..4, d in 1_usize..33, m in 0_usize..5,
        layout in any_layout(),
    ) {
        if runs_attention() {
            compare_attention(true, seed, [b, h, w], (heads, d, m), layout);
        }
    }

    #[test]
    fn softmax_attentions(
        seed: u64, b in 1_usize..4, h in 1_usize..14, w in 1_usize..14, heads in 1_usize..4, d in 1_usize..65, m in 0_usize..5,
        layout in any_layout(),
    ) {
        if runs_attention() {
            compare_attention(false, seed, [b, h, w], (heads, d, m), layout);
        }
    }
}

/// More memory than a block, a single position, the largest number of positions, the widest heads.
#[test]
fn large_softmax_attentions() {
    if runs_attention() {
        compare_attention(false, 1, [2, 16, 16], (4, 32, 4), Layout::Dense);
        compare_attention(false, 2, [1, 16, 32], (2, 64, 0), Layout::Padded);
        compare_attention(false, 3, [3, 1, 1], (1, 8, 70), Layout::Dense);
        compare_attention(false, 4, [3, 4, 4], (4, 32, 4), Layout::Permuted);
    }
}

/// Heads of all widths for which products are divided differently, and more positions than a cube takes in one block.
#[test]
fn large_linear_attentions() {
    if runs_attention() {
        compare_attention(true, 1, [2, 64, 64], (4, 32, 4), Layout::Dense);
        compare_attention(true, 2, [1, 16, 24], (2, 64, 4), Layout::Padded);
        compare_attention(true, 3, [1, 9, 9], (1, 128, 4), Layout::Dense);
        compare_attention(true, 4, [3, 9, 9], (2, 4, 1), Layout::Permuted);
    }
}
