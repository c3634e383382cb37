//! Images go through the public function, [`Drawn::apply`], under parameters that make the expected image easy to say.

use std::f64::consts::{FRAC_PI_2, PI};

use super::super::Drawn;
use super::*;
use crate::testing::largest_difference;

fn apply(drawn: Drawn, image: &[f32], shape: [usize; 3]) -> Vec<f32> {
    let mut out = vec![f32::NAN; image.len()];
    drawn.apply(image, shape, &mut out, &mut Scratch::default());
    out
}

/// Values without any order, in [0, 1].
fn noise(shape: [usize; 3]) -> Vec<f32> {
    (0..shape.iter().product::<usize>() as u32)
        .map(|i| (i.wrapping_mul(2654435761) >> 8) as f32 / 2f32.powi(24))
        .collect()
}

/// The value at `[x, y]` of a picture of half-waves, three across and two down, that is its own reflection at the borders.
fn waves(x: f64, y: f64, [_, h, w]: [usize; 3]) -> f64 {
    let across = (3.0 * PI * x / (w as f64 - 1.0)).cos() + (PI * x / (w as f64 - 1.0)).cos();
    let down = 1.0 + (2.0 * PI * y / (h as f64 - 1.0)).cos() + (PI * y / (h as f64 - 1.0)).cos();
    0.5 + across * down / 12.0
}

/// An image by its values at `[channel, y, x]`.
fn image([c, h, w]: [usize; 3], value: impl Fn(usize, usize, usize) -> f32) -> Vec<f32> {
    (0..c * h * w).map(|i| value(i / (h * w), i / w % h, i % w)).collect()
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len() as f32
}

#[test]
fn the_filter_is_orthogonal_to_its_even_shifts() {
    for shift in (0..12).step_by(2) {
        let product: f32 = SYM6[shift..].iter().zip(&SYM6).map(|(a, b)| a * b).sum();
        assert!((product - f32::from(shift == 0)).abs() < 1e-6);
    }
    // Of each fine sample the weights have the same sum: a constant stays one.
    for weights in [EVEN, ODD] {
        assert!((weights.iter().sum::<f32>() - 0.5f32.sqrt()).abs() < 1e-6);
    }
}

#[test]
fn identity_and_flips_are_exact() {
    let shape @ [_, h, w] = [3, 9, 14];
    let source = noise(shape);
    for (x_flip, y_flip) in [(false, false), (true, false), (false, true), (true, true)] {
        let drawn = Drawn { x_flip, y_flip, axes: 1.0, ..Drawn::default() };
        let expected = image(shape, |c, y, x| {
            let (y, x) = (if y_flip { h - 1 - y } else { y }, if x_flip { w - 1 - x } else { x });
            source[(c * h + y) * w + x]
        });
        assert_eq!(apply(drawn, &source, shape), expected);
    }
}

/// Without a map to speak of, resampling gives the image back, and flips come before it.
#[test]
fn the_last_step_undoes_the_first() {
    let shape = [2, 11, 8];
    let source = noise(shape);
    let flipped = apply(Drawn { x_flip: true, y_flip: true, ..Drawn::default() }, &source, shape);
    let resampled = apply(Drawn { x_flip: true, y_flip: true, rotation: 1e-9, ..Drawn::default() }, &source, shape);
    assert!(largest_difference(&resampled, &flipped) < 1e-5);
}

/// By 90 degrees counter-clockwise the top row is the right column of before.
#[test]
fn positive_rotation_is_counter_clockwise() {
    let shape @ [_, n, _] = [1, 32, 32];
    let source = image(shape, |_, y, x| waves(x as f64, 0.7 * y as f64, shape) as f32);
    let expected = image(shape, |_, y, x| source[x * n + n - 1 - y]);
    let turned = apply(Drawn { rotation: FRAC_PI_2, ..Drawn::default() }, &source, shape);
    assert!(largest_difference(&turned, &expected) < 1e-2);
}

#[test]
fn translation_by_whole_pixels_is_exact_and_reflects() {
    let shape @ [_, h, w] = [3, 8, 16];
    let source = noise(shape);
    // Three pixels to the right and two up: 0.125 * 16 a6 = 3, 0.125 * 8 a7 = -2.
    let moved = apply(Drawn { translation: [1.5, -2.0], ..Drawn::default() }, &source, shape);
    let expected = image(shape, |c, y, x| {
        let (from_x, from_y) = (x.abs_diff(3), if y + 2 < h { y + 2 } else { 2 * (h - 1) - (y + 2) });
        source[(c * h + from_y) * w + from_x]
    });
    assert!(largest_difference(&moved, &expected) < 1e-5);
    // Whole periods of the reflection away, far beyond the borders, lies the image itself: 5 times 30 pixels to the right, 3 times 14 up.
    let far = Drawn { translation: [5.0 * 30.0 / 2.0, -3.0 * 14.0], ..Drawn::default() };
    assert!(largest_difference(&apply(far, &source, shape), &source) < 1e-5);
}

#[test]
fn smooth_images_are_transformed_as_documented() {
    for shape @ [_, h, w] in [[1, 48, 48], [1, 64, 40]] {
        let source = image(shape, |_, y, x| waves(x as f64, y as f64, shape) as f32);
        let some = Drawn::default();
        for drawn in [
            Drawn { scaling: 1.3, ..some },
            Drawn { scaling: -2.0, ..some },
            Drawn { rotation: 0.6, ..some },
            Drawn { rotation: -2.5, ..some },
            Drawn { anisotropy: 1.5, ..some },
            Drawn { anisotropy: -1.0, axes: 0.9, ..some },
            Drawn { translation: [0.37, -0.81], ..some },
            Drawn { scaling: -1.0, rotation: 2.0, anisotropy: 1.0, axes: -2.2, translation: [1.2, 0.3], ..some },
        ] {
            let Inverse { linear: [[a, b], [c, d]], shift } = drawn.inverse(h, w);
            let expected = image(shape, |_, y, x| {
                let centre = [(w as f64 - 1.0) / 2.0, (h as f64 - 1.0) / 2.0];
                let (x, y) = (x as f64 - centre[0] - shift[0], y as f64 - centre[1] - shift[1]);
                waves(a * x + b * y + centre[0], c * x + d * y + centre[1], shape) as f32
            });
            let difference = largest_difference(&apply(drawn, &source, shape), &expected);
            assert!(difference < 1e-2, "{drawn:?}: {difference}");
        }
    }
}

#[test]
fn a_transformation_and_its_inverse_return_the_centre() {
    let shape @ [_, n, _] = [1, 48, 48];
    let source = image(shape, |_, y, x| waves(x as f64, y as f64, shape) as f32);
    let some = Drawn::default();
    for (there, back) in [
        (Drawn { scaling: -1.0, ..some }, Drawn { scaling: 1.0, ..some }),
        (Drawn { rotation: 0.5, ..some }, Drawn { rotation: -0.5, ..some }),
        (Drawn { anisotropy: 0.8, axes: 0.5, ..some }, Drawn { anisotropy: -0.8, axes: 0.5, ..some }),
        (Drawn { translation: [0.5, 0.25], ..some }, Drawn { translation: [-0.5, -0.25], ..some }),
    ] {
        let returned = apply(back, &apply(there, &source, shape), shape);
        let centre =
            |values: &[f32]| -> Vec<f32> { (16..32).flat_map(|y| values[y * n + 16..y * n + 32].to_vec()).collect() };
        assert!(largest_difference(&centre(&returned), &centre(&source)) < 5e-3, "{there:?}");
    }
}

#[test]
fn constants_stay_and_means_nearly() {
    let shape = [3, 32, 32];
    let drawn =
        Drawn { scaling: 0.5, rotation: 1.0, axes: 0.4, anisotropy: 1.0, translation: [0.3, 0.2], ..Drawn::default() };
    let constant = vec![0.7; 3 * 32 * 32];
    assert!(largest_difference(&apply(drawn, &constant, shape), &constant) < 1e-5);
    let source = noise(shape);
    assert!((mean(&apply(drawn, &source, shape)) - mean(&source)).abs() < 0.02);
}

/// One scratch serves all shapes, whatever it was used for before.
#[test]
fn small_and_oblong_images_have_finite_results() {
    let everything = Drawn {
        x_flip: true,
        scaling: -3.0,
        rotation: 1.0,
        axes: 2.0,
        anisotropy: 2.0,
        translation: [3.0, -3.0],
        ..Drawn::default()
    };
    let mut scratch = Scratch::default();
    for shape in
        [[3, 64, 48], [1, 1, 1], [4, 2, 2], [1, 4, 4], [1, 1, 17], [2, 23, 1], [0, 4, 4], [3, 0, 4], [1, 9, 31]]
    {
        let source = noise(shape);
        let mut out = vec![f32::NAN; source.len()];
        everything.apply(&source, shape, &mut out, &mut scratch);
        assert_eq!(out, apply(everything, &source, shape));
        assert!(out.iter().all(|value| (-0.5..1.5).contains(value)), "{shape:?}: {out:?}");
    }
}

#[test]
#[should_panic(expected = "not finite")]
fn a_map_that_is_not_finite_is_refused() {
    apply(Drawn { scaling: f64::NEG_INFINITY, ..Drawn::default() }, &[0.0; 4], [1, 2, 2]);
}
