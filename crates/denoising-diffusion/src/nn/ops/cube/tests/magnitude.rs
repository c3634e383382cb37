//! Magnitude-preserving operations, and axes halved and doubled.

use denoising_diffusion_kernels::dropout::Mask;

use super::super::super::{AxisResize, DropoutKey, cube};
use super::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn what_keeps_magnitudes(
        seed: u64, b in 1_usize..6, h in 1_usize..8, w in 1_usize..8, c in 2_usize..71, layout in any_layout(), long: bool,
    ) {
        // Some rows are shorter than the larger floor.
        let floor = if long { 1e-4 } else { 0.8 * (c as f64).sqrt() };
        let case = Case { dims: [b, h, w, c], layout, images: 0, others: &[], scale: 1.0 };
        case.compare(
            "unit_rows",
            seed,
            &|mut x, _| cube::unit_rows(x.remove(0), 3.0, floor),
            &|mut x, _| plain::unit_rows(x.remove(0), 3.0, floor),
        );
        let case = Case { images: 1, ..case };
        case.compare(
            "add_scaled",
            seed,
            &|mut x, _| cube::add_scaled(x.remove(0), x.remove(0), 0.7),
            &|mut x, _| plain::add_scaled(x.remove(0), x.remove(0), 0.7),
        );
        case.compare(
            "join_scaled",
            seed,
            &|mut x, _| cube::join_scaled(x.remove(0), x.remove(0).narrow(3, 0, c - 1), [0.7, -1.2]),
            &|mut x, _| plain::join_scaled(x.remove(0), x.remove(0).narrow(3, 0, c - 1), [0.7, -1.2]),
        );
        let case = Case { images: 0, others: &[[b, c]], scale: 3.0, ..case };
        case.compare(
            "gated_silu",
            seed,
            &|mut x, others| cube::gated_silu(x.remove(0), others[0].clone()),
            &|mut x, others| plain::gated_silu(x.remove(0), others[0].clone()),
        );
    }
}

/// The same values as on the host, with all vector widths, and with a key that uses all of its bits.
#[test]
fn dropped_values() {
    let (words, draw) = ([0xFEDC_BA98, 0x7654_3210], 1 << 33 | 5);
    for (c, layout) in [(8, Layout::Dense), (6, Layout::Padded), (5, Layout::Dense), (4, Layout::Permuted)] {
        let case = Case { dims: [2, 3, 5, c], layout, images: 0, others: &[], scale: 1.0 };
        let mask = Mask::new(words, draw, 0.3);
        case.compare(
            "dropout",
            1,
            &|mut x, _| cube::dropout(x.remove(0), DropoutKey::Words(words), mask),
            &|mut x, _| plain::dropout(x.remove(0), mask),
        );
    }
}

/// Axes of one and of many, and rows of all vector widths.
#[test]
fn resized_axes() {
    for (dims, layout) in [
        ([2, 6, 3, 8], Layout::Dense),
        ([3, 2, 1, 5], Layout::Padded),
        ([1, 4, 2, 6], Layout::Permuted),
        ([2, 1, 4, 4], Layout::Dense),
    ] {
        for resize in [AxisResize::HalveByMean, AxisResize::DoubleLinearly] {
            if resize == AxisResize::HalveByMean && dims[1] == 1 {
                continue;
            }
            let case = Case { dims, layout, images: 0, others: &[], scale: 1.0 };
            let run = |f: fn(Tensor<4>, AxisResize) -> Tensor<4>| {
                move |mut images: Vec<Tensor<4>>, _: Vec<Tensor<2>>| f(images.remove(0), resize)
            };
            case.compare("resize_axis", 1, &run(cube::resize_axis), &run(plain::resize_axis));
        }
    }
}
