//! Non-leaky geometric augmentation of EDM (Karras et al. 2022, arXiv:2206.00364, appendix F.2 and table 6): an image is flipped, scaled, turned,
//! stretched and moved at random, and the network is told how, by nine numbers. It is then asked for images with nine zeros, those of an
//! unchanged image, so that what training images went through does not show in samples. (The released code turns the axes of an anisotropic scaling in
//! half of the cases only; here they are turned always, as in table 6.)
//!
//! Here are the draws, the labels and the transformation of one image. Random numbers are the caller's, as are batches, the threads, and the layer
//! that reads the labels. The colour transformations and the whole-pixel moves of the GAN pipeline that EDM's descends from (Karras et al. 2020,
//! arXiv:2006.06676) are not here: no released EDM model is trained with them.

mod warp;

use std::f64::consts::PI;

pub use warp::Scratch;
use warp::{Flips, Inverse, flip, warp};

/// Numbers uniform in [0, 1) that a draw takes.
pub const UNIFORMS: usize = 8;
/// Standard normal numbers that a draw takes.
pub const NORMALS: usize = 4;
/// Numbers that describe a transformation to the network.
pub const LABELS: usize = 9;

/// log2 of `A_scale` and of `A_aniso`.
const LOG2_SCALE: f64 = 0.2;
const LOG2_ANISO: f64 = 0.2;
/// Of the image's width or height.
const A_TRANS: f64 = 0.125;

/// How often each transformation is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AugmentPlan {
    /// `A_prob`: how likely each of scaling, rotation, anisotropy and translation is, from 0 to 1, and twice how likely a y-flip is. An x-flip
    /// has probability 1/2. The paper has 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQv2.
    pub probability: f64,
    /// Whether the x-flip is drawn at all.
    pub x_flip: bool,
}

/// The paper's, for CIFAR-10.
impl Default for AugmentPlan {
    fn default() -> Self {
        Self { probability: 0.12, x_flip: true }
    }
}

/// One transformation, by the parameters `a0` to `a7` of table 6; `Default` changes nothing. It depends on no image and no size: an image and what
/// conditions it go through the same.
///
/// A point of the image, in pixels from its centre, x to the right and y down, goes to
///
/// `T(w a6 / 8, h a7 / 8) R(-a4) S(2^(0.2 a5), 2^(-0.2 a5)) R(a4) R(-a3) S(2^(0.2 a2), 2^(0.2 a2)) S(1, 1 - 2 a1) S(1 - 2 a0, 1)`
///
/// times the point, where `T` moves, `S` scales, and `R(a) = [cos a, -sin a; sin a, cos a]`. So positive `a3` turns what is seen counter-clockwise,
/// positive `a2` enlarges it, and positive `a6` and `a7` move it to the right and down.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Drawn {
    /// `a0`: left and right are swapped.
    pub x_flip: bool,
    /// `a1`: top and bottom are swapped.
    pub y_flip: bool,
    /// `a2`, standard normal or 0.
    pub scaling: f64,
    /// `a3`, in radians, from -pi to pi.
    pub rotation: f64,
    /// `a4`, in radians, from -pi to pi. Without effect where `a5` is 0. An angle and its opposite, `a4 + pi`, give one image and two labels, of
    /// opposite signs: unless these are 0, the labels of an anisotropic scaling leave open along which of its axes the image is stretched.
    pub axes: f64,
    /// `a5`, standard normal or 0.
    pub anisotropy: f64,
    /// `a6` and `a7`, standard normal or both 0.
    pub translation: [f64; 2],
}

impl AugmentPlan {
    /// Chooses a transformation. All numbers are taken whatever comes out, so that a stream of random numbers stays aligned.
    pub fn draw(&self, uniforms: [f64; UNIFORMS], normals: [f64; NORMALS]) -> Drawn {
        let [x_flip, y_flip, scaling, rotation, angle, anisotropy, axes, translation] = uniforms;
        let chosen = |uniform: f64, value: f64| if uniform < self.probability { value } else { 0.0 };
        let turn = |uniform: f64| PI * (2.0 * uniform - 1.0);
        Drawn {
            x_flip: self.x_flip && x_flip < 0.5,
            y_flip: y_flip < 0.5 * self.probability,
            scaling: chosen(scaling, normals[0]),
            rotation: chosen(rotation, turn(angle)),
            axes: turn(axes),
            anisotropy: chosen(anisotropy, normals[1]),
            translation: [chosen(translation, normals[2]), chosen(translation, normals[3])],
        }
    }
}

impl Drawn {
    /// What the network is told, table 6: `[a0, a1, a2, cos a3 - 1, sin a3, a5 cos a4, a5 sin a4, a6, a7]`; all 0 if and only if nothing changes.
    pub fn labels(&self) -> [f32; LABELS] {
        let Self { x_flip, y_flip, scaling, rotation, axes, anisotropy, translation: [a6, a7] } = *self;
        let (sin, cos) = rotation.sin_cos();
        let (sin_axes, cos_axes) = axes.sin_cos();
        let flips = [x_flip, y_flip].map(|flip| f64::from(u8::from(flip)));
        [flips[0], flips[1], scaling, cos - 1.0, sin, anisotropy * cos_axes, anisotropy * sin_axes, a6, a7]
            .map(|label| label as f32)
    }

    /// Whether every image is left as it is.
    pub fn is_identity(&self) -> bool {
        !self.x_flip && !self.y_flip && !self.resamples()
    }

    /// Transforms `image`, `[c, h, w]` in row-major order, into `out`, of the same shape. Where the transformed image does not reach, it goes on as
    /// its reflection, without repeating the border pixel, as often as needed.
    ///
    /// Nothing at all, and nothing but flips, copies values bit for bit. All else is resampled, as by EDM with the symlet-6 wavelet. Values may then
    /// leave the range of the image's: at edges by a tenth of the step, at corners by a quarter. As in EDM they are not clamped.
    ///
    /// # Panics
    /// If a length is not `c h w`, or where a pixel comes from is not finite.
    pub fn apply(&self, image: &[f32], shape: [usize; 3], out: &mut [f32], scratch: &mut Scratch) {
        let [c, h, w] = shape;
        assert_eq!([image.len(), out.len()], [c * h * w; 2], "image and output must have {c} x {h} x {w} values");
        if image.is_empty() {
            return;
        }
        let flips = Flips { x: self.x_flip, y: self.y_flip };
        if self.resamples() {
            warp(&self.inverse(h, w), flips, image, shape, out, scratch);
        } else {
            flip(flips, image, [h, w], out);
        }
    }

    fn resamples(&self) -> bool {
        [self.scaling, self.rotation, self.anisotropy, self.translation[0], self.translation[1]]
            .iter()
            .any(|&a| a != 0.0)
    }

    /// Where in the flipped image a point of the output comes from: the inverses of the factors in the opposite order.
    fn inverse(&self, h: usize, w: usize) -> Inverse {
        let shrink = (-LOG2_SCALE * self.scaling).exp2();
        let squeeze = (-LOG2_ANISO * self.anisotropy).exp2();
        let aniso = product(turn(-self.axes), product([[squeeze, 0.0], [0.0, squeeze.recip()]], turn(self.axes)));
        let linear = product(turn(self.rotation), aniso).map(|row| row.map(|entry| shrink * entry));
        let [a6, a7] = self.translation;
        Inverse { linear, shift: [A_TRANS * a6 * w as f64, A_TRANS * a7 * h as f64] }
    }
}

/// `R(angle)`.
fn turn(angle: f64) -> [[f64; 2]; 2] {
    let (sin, cos) = angle.sin_cos();
    [[cos, -sin], [sin, cos]]
}

fn product(a: [[f64; 2]; 2], b: [[f64; 2]; 2]) -> [[f64; 2]; 2] {
    a.map(|row| [0, 1].map(|j| row[0] * b[0][j] + row[1] * b[1][j]))
}

#[cfg(test)]
mod tests {
    use std::f64::consts::FRAC_PI_2;

    use super::*;

    /// A linear congruential generator (Knuth's MMIX), uniform in [0, 1).
    struct Lcg(u64);

    impl Lcg {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        }

        /// Box-Muller.
        fn normal(&mut self) -> f64 {
            (-2.0 * (1.0 - self.next()).ln()).sqrt() * (2.0 * PI * self.next()).cos()
        }

        fn draw(&mut self, plan: &AugmentPlan) -> Drawn {
            let uniforms = std::array::from_fn(|_| self.next());
            plan.draw(uniforms, std::array::from_fn(|_| self.normal()))
        }
    }

    fn drawn(plan: AugmentPlan) -> Vec<Drawn> {
        let mut random = Lcg(1);
        (0..100_000).map(|_| random.draw(&plan)).collect()
    }

    fn rate(draws: &[Drawn], of: impl Fn(&Drawn) -> bool) -> f64 {
        draws.iter().filter(|drawn| of(drawn)).count() as f64 / draws.len() as f64
    }

    fn assert_near(value: f64, expected: f64, tolerance: f64) {
        assert!((value - expected).abs() < tolerance, "{value}, not {expected}");
    }

    #[test]
    fn each_transformation_is_as_frequent_as_asked() {
        let draws = drawn(AugmentPlan { probability: 0.15, x_flip: true });
        let near = |expected, of: &dyn Fn(&Drawn) -> bool| assert_near(rate(&draws, of), expected, 0.005);
        near(0.5, &|drawn| drawn.x_flip);
        near(0.075, &|drawn| drawn.y_flip);
        near(0.15, &|drawn| drawn.scaling != 0.0);
        near(0.15, &|drawn| drawn.rotation != 0.0);
        near(0.15, &|drawn| drawn.anisotropy != 0.0);
        near(0.15, &|drawn| drawn.translation != [0.0; 2]);
        // Independently of each other.
        near(0.15 * 0.15, &|drawn| drawn.scaling != 0.0 && drawn.translation[1] != 0.0);
        near(0.5 * 0.925 * 0.85f64.powi(4), &Drawn::is_identity);
    }

    #[test]
    fn parameters_have_the_distributions_of_table_6() {
        let draws = drawn(AugmentPlan { probability: 1.0, ..AugmentPlan::default() });
        let moment = |power, of: &dyn Fn(&Drawn) -> f64| {
            draws.iter().map(|drawn| of(drawn).powi(power)).sum::<f64>() / draws.len() as f64
        };
        let normals: [&dyn Fn(&Drawn) -> f64; 4] =
            [&|drawn| drawn.scaling, &|drawn| drawn.anisotropy, &|drawn| drawn.translation[0], &|drawn| {
                drawn.translation[1]
            }];
        for of in normals {
            assert_near(moment(1, of), 0.0, 0.02);
            assert_near(moment(2, of), 1.0, 0.03);
        }
        let angles: [&dyn Fn(&Drawn) -> f64; 2] = [&|drawn| drawn.rotation, &|drawn| drawn.axes];
        for of in angles {
            assert_near(moment(1, of), 0.0, 0.05);
            assert_near(moment(2, of), PI * PI / 3.0, 0.05);
            assert!(draws.iter().all(|drawn| (-PI..=PI).contains(&of(drawn))));
        }
        assert_near(moment(1, &|drawn| drawn.translation[0] * drawn.translation[1]), 0.0, 0.02);
    }

    #[test]
    fn a_probability_of_zero_leaves_only_the_x_flip() {
        let draws = drawn(AugmentPlan { probability: 0.0, ..AugmentPlan::default() });
        assert!(draws.iter().all(|drawn| drawn.is_identity() != drawn.x_flip && drawn.labels()[1..] == [0.0; 8]));
        assert_near(rate(&draws, Drawn::is_identity), 0.5, 0.005);
    }

    #[test]
    fn labels_are_those_of_table_6() {
        let drawn = Drawn {
            x_flip: true,
            y_flip: true,
            scaling: -0.5,
            rotation: FRAC_PI_2,
            axes: -FRAC_PI_2 / 3.0,
            anisotropy: 2.0,
            translation: [0.25, -1.5],
        };
        let expected = [1.0, 1.0, -0.5, -1.0, 1.0, 3f32.sqrt(), -1.0, 0.25, -1.5];
        for (label, expected) in drawn.labels().into_iter().zip(expected) {
            assert!((label - expected).abs() < 1e-6, "{label}, not {expected}");
        }
    }

    #[test]
    fn labels_are_zero_where_nothing_changes() {
        assert_eq!(Drawn::default().labels(), [0.0; LABELS]);
        // Axes along which nothing is stretched do not count.
        let unchanged = Drawn { axes: 2.0, ..Drawn::default() };
        assert!(unchanged.is_identity());
        assert_eq!(unchanged.labels(), [0.0; LABELS]);
        let draws = drawn(AugmentPlan::default());
        assert!(draws.iter().all(|drawn| drawn.is_identity() == (drawn.labels() == [0.0; LABELS])));
    }

    #[test]
    fn the_inverse_undoes_the_documented_map() {
        let drawn = Drawn {
            scaling: 1.5,
            rotation: 0.4,
            axes: 1.1,
            anisotropy: -0.7,
            translation: [0.3, -0.9],
            ..Drawn::default()
        };
        let stretch = [[2f64.powf(-0.14), 0.0], [0.0, 2f64.powf(0.14)]];
        let aniso = product(turn(-1.1), product(stretch, turn(1.1)));
        let forward = product(aniso, turn(-0.4)).map(|row| row.map(|entry| 2f64.powf(0.3) * entry));
        let Inverse { linear, shift } = drawn.inverse(40, 80);
        let back = product(linear, forward);
        for (entry, expected) in back.as_flattened().iter().zip([1.0, 0.0, 0.0, 1.0]) {
            assert_near(*entry, expected, 1e-12);
        }
        assert_near(shift[0], 3.0, 1e-12);
        assert_near(shift[1], -4.5, 1e-12);
    }
}
