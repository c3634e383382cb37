//! FID with what is needed to interpret it: its standard error, and how much of it is due to the number of samples.
//!
//! FID is the Fréchet distance between Gaussians fitted to features of real and generated images (Heusel et al. 2017, arXiv:1706.08500). Its
//! expectation falls with the number of images n, to first order by a constant over n, so values for different n cannot be compared.
//!
//! Not here: the network that computes the features.

use faer::Par;
use rayon::prelude::*;

use super::draws::{Draw, permutation, subset};
use super::features::Features;
use super::frechet::{FrechetError, Reference};
use super::linalg;
use super::projection::Projection;
use super::statistics::Gaussian;

/// With fewer images, FID's bias is usually larger than the differences of interest.
pub const LEAST_SAMPLES: usize = 10_000;

/// Smallest subset of the extrapolation if there are at least twice as many images (Chong and Forsyth 2020).
const SMALLEST_SUBSET: usize = 5_000;

/// What is computed besides the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FidOptions {
    /// Seed for groups and subsets.
    pub seed: u64,
    /// Number of groups of the jackknife, which take one eigendecomposition each: 0 for no standard error, otherwise at least 2. With G groups, the
    /// relative uncertainty of the standard error itself is about 1 / sqrt(2 (G - 1)), a quarter for 10.
    pub groups: usize,
    /// Number of subset sizes of the extrapolation, which take one eigendecomposition each except for the last: 0 for no extrapolation, otherwise at
    /// least 2.
    pub points: usize,
    /// Smallest subset size, at least 2 and less than n; by default 5000, or n / 2 if that is less.
    pub smallest: Option<usize>,
}

impl Default for FidOptions {
    fn default() -> Self {
        Self { seed: 0, groups: 10, points: 15, smallest: None }
    }
}

/// Which images a note is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The reference statistics.
    Real,
    /// The images under test.
    Generated,
}

/// A reason not to trust a value without qualification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FidNote {
    /// There are so few images that the bias matters.
    FewSamples {
        /// On which side.
        side: Side,
        /// Number of images.
        n: usize,
        /// The usual minimum.
        least: usize,
    },
    /// The covariance is singular: the value mostly measures the number of images.
    FewerSamplesThanDimensions {
        /// On which side.
        side: Side,
        /// Number of images.
        n: usize,
        /// Dimensions of the features.
        dims: usize,
    },
}

/// A FID.
#[derive(Clone, Debug, PartialEq)]
pub struct Fid {
    /// The distance for these images, at least 0.
    pub value: f64,
    /// Dimensions of the features.
    pub dims: usize,
    /// Number of real images, if the reference states it.
    pub n_real: Option<usize>,
    /// Number of generated images, if known.
    pub n_generated: Option<usize>,
    /// Standard deviation of `value` over other generated sets of this size, with the reference taken as exact.
    pub standard_error: Option<f64>,
    /// FID_infinity: the expected value for infinitely many generated images. Can be below 0 by chance if the true value is near 0.
    pub extrapolated: Option<f64>,
    /// Reasons not to trust the value without qualification.
    pub notes: Vec<FidNote>,
}

/// Why a FID cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FidError {
    /// With one group, nothing is left without it.
    #[error("1 jackknife group; expected 0 (no standard error) or at least 2")]
    OneGroup,
    /// One point does not determine a line.
    #[error("1 subset size for the extrapolation; expected 0 (none) or at least 2")]
    OnePoint,
    /// A smallest subset size that is out of range.
    #[error("the smallest subset has {smallest} of {n} images; expected at least 2 and fewer than all")]
    Smallest {
        /// The requested size.
        smallest: usize,
        /// Number of generated images.
        n: usize,
    },
    /// The distance itself.
    #[error(transparent)]
    Distance(#[from] FrechetError),
}

impl Fid {
    /// FID of `generated` against `reference`.
    ///
    /// The standard error is a delete-a-group jackknife: images are assigned at random to G groups of about equal size, the FID is computed without
    /// each of them, and SE^2 = (G - 1) / G sum (FID_g - mean)^2. It is `None` for fewer than 3 images. A bootstrap would repeat images, which adds
    /// to the bias, and would take hundreds of repetitions with an eigendecomposition each.
    ///
    /// `extrapolated` is the intercept of the line through (1 / m, FID of a random subset of m images) for `points` sizes m, evenly spaced from
    /// `smallest` to n (Chong and Forsyth 2020, arXiv:1911.07023, with 15 points). It is `None` for fewer than 4 images. It only removes the bias of
    /// the generated side. Unless m is well above the number of dimensions, the line is a poor approximation.
    ///
    /// Distances are computed in parallel on the threads of the current rayon pool. Each needs about 4 rank^2 f64, and all together another n x rank,
    /// where rank is that of the reference's covariance.
    ///
    /// # Errors
    /// [`FidError`]: options out of range, fewer than 2 images, differing dimensions, overflow.
    pub fn new(reference: &Reference, generated: Features<'_>, options: &FidOptions) -> Result<Self, FidError> {
        let n = generated.n();
        let sizes = subset_sizes(n, options)?;
        let groups = if n < 3 { 0 } else { options.groups.min(n) };
        if options.groups == 1 {
            return Err(FidError::OneGroup);
        }
        let projection = Projection::new(reference, generated)?;
        let value = projection.distance(&(0..n).collect::<Vec<_>>(), linalg::threads())?;
        Ok(Self {
            standard_error: (groups > 0).then(|| jackknife(&projection, n, groups, options.seed)).transpose()?,
            extrapolated: sizes.map(|sizes| extrapolate(&projection, value, &sizes, options.seed)).transpose()?,
            ..Self::without_error(reference, value, Some(n))
        })
    }

    /// FID from statistics alone, without images: no standard error and no extrapolation.
    ///
    /// # Errors
    /// [`FidError::Distance`].
    pub fn of_statistics(reference: &Reference, generated: &Gaussian) -> Result<Self, FidError> {
        let value = reference.distance(generated)?;
        Ok(Self::without_error(reference, value, generated.n()))
    }

    /// How much of the value is due to the number of generated images.
    pub fn bias(&self) -> Option<f64> {
        self.extrapolated.map(|extrapolated| self.value - extrapolated)
    }

    fn without_error(reference: &Reference, value: f64, n: Option<usize>) -> Self {
        let (dims, n_real) = (reference.dims(), reference.gaussian().n());
        let mut notes = Vec::new();
        for (side, n) in [(Side::Real, n_real), (Side::Generated, n)] {
            let Some(n) = n else { continue };
            if n < LEAST_SAMPLES {
                notes.push(FidNote::FewSamples { side, n, least: LEAST_SAMPLES });
            }
            if n < dims {
                notes.push(FidNote::FewerSamplesThanDimensions { side, n, dims });
            }
        }
        Self { value, dims, n_real, n_generated: n, standard_error: None, extrapolated: None, notes }
    }
}

fn jackknife(projection: &Projection<'_>, n: usize, groups: usize, seed: u64) -> Result<f64, FrechetError> {
    let order = permutation(seed, Draw::FidGroups, 0, n);
    let groups: Vec<&[usize]> = (0..groups).map(|g| &order[g * n / groups..(g + 1) * n / groups]).collect();
    let values = projection.distances_without(&order, &groups)?;
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Ok(((count - 1.0) / count * squares).sqrt())
}

/// Ascending sizes up to n itself; `None` if none are requested or n is too small for two.
fn subset_sizes(n: usize, options: &FidOptions) -> Result<Option<Vec<usize>>, FidError> {
    match options.points {
        0 => return Ok(None),
        1 => return Err(FidError::OnePoint),
        _ => {}
    }
    if let Some(smallest) = options.smallest.filter(|&smallest| smallest < 2 || smallest >= n) {
        return Err(FidError::Smallest { smallest, n });
    }
    let smallest = options.smallest.unwrap_or(SMALLEST_SUBSET.min(n / 2));
    if smallest < 2 {
        return Ok(None);
    }
    // With more points than sizes, some would be repeated.
    let steps = (options.points - 1).min(n - smallest);
    Ok(Some((0..=steps).map(|i| smallest + (n - smallest) * i / steps).collect()))
}

fn extrapolate(projection: &Projection<'_>, value: f64, sizes: &[usize], seed: u64) -> Result<f64, FrechetError> {
    let n = sizes[sizes.len() - 1];
    let of_subset = |(number, &size): (usize, &usize)| {
        // The value for all images is already known.
        if size == n {
            return Ok(value);
        }
        projection.distance(&subset(seed, Draw::FidSubset, number as u32, n, size), Par::Seq)
    };
    let values = sizes.par_iter().enumerate().map(of_subset).collect::<Result<Vec<f64>, FrechetError>>()?;
    let inverse: Vec<f64> = sizes.iter().map(|&size| 1.0 / size as f64).collect();
    Ok(intercept(&inverse, &values))
}

/// Intercept of the least-squares line.
fn intercept(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len() as f64;
    let (mean_x, mean_y) = (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
    let covariance: f64 = x.iter().zip(y).map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = x.iter().map(|x| (x - mean_x).powi(2)).sum();
    mean_y - covariance / variance * mean_x
}

#[cfg(test)]
mod tests {
    use super::super::draws::normal;
    use super::super::frechet::frechet_distance;
    use super::super::statistics::StatisticsError;
    use super::*;

    fn standard(dims: usize) -> Reference {
        let sigma = (0..dims * dims).map(|at| f64::from(u8::from(at / dims == at % dims))).collect();
        Reference::new(Gaussian::new(None, vec![0.0; dims], sigma).unwrap()).unwrap()
    }

    fn fid(reference: &Reference, values: &[f32], options: &FidOptions) -> Result<Fid, FidError> {
        Fid::new(reference, Features::new(values, reference.dims()).unwrap(), options)
    }

    #[test]
    fn the_value_is_the_distance() {
        let (real, values) = (normal(1, 60 * 8), normal(2, 50 * 8));
        let [a, b] = [&real, &values].map(|v| Gaussian::of(Features::new(v, 8).unwrap()).unwrap());
        let expected = frechet_distance(&a, &b).unwrap();
        let reference = Reference::new(a).unwrap();
        let got = fid(&reference, &values, &FidOptions::default()).unwrap();
        assert!((got.value - expected).abs() < 1e-12);
        assert_eq!((got.n_real, got.n_generated, got.dims), (Some(60), Some(50), 8));
        let of_statistics = Fid::of_statistics(&reference, &b).unwrap();
        assert!((of_statistics.value - expected).abs() < 1e-12);
        assert_eq!((of_statistics.standard_error, of_statistics.bias()), (None, None));
        assert_eq!(of_statistics.notes, got.notes);
    }

    /// Over many sets: the standard error is the scatter of the values, and the extrapolation removes most of the bias.
    #[test]
    fn error_and_extrapolation_are_calibrated() {
        let (dims, n, sets) = (16, 400, 150);
        let reference = standard(dims);
        // Twice the reference's scale: a true distance of (2 - 1)^2 per dimension.
        let results: Vec<Fid> = (0..sets)
            .map(|set| {
                let values: Vec<f32> = normal(100 + set, n * dims).iter().map(|v| 2.0 * v).collect();
                fid(&reference, &values, &FidOptions { seed: set, ..Default::default() }).unwrap()
            })
            .collect();
        let mean = |f: &dyn Fn(&Fid) -> f64| results.iter().map(f).sum::<f64>() / sets as f64;
        let value = mean(&|fid| fid.value);
        let scatter = mean(&|fid| (fid.value - value).powi(2)).sqrt();
        let error = mean(&|fid| fid.standard_error.unwrap().powi(2)).sqrt();
        assert!((0.7..1.4).contains(&(error / scatter)), "standard error {error}, scatter {scatter}");
        let noise = scatter / (sets as f64).sqrt();
        let extrapolated = mean(&|fid| fid.extrapolated.unwrap());
        assert!(value - 16.0 > 6.0 * noise, "value {value}, noise {noise}");
        assert!((extrapolated - 16.0).abs() < 3.0 * noise, "extrapolated {extrapolated}, noise {noise}");
        assert!((mean(&|fid| fid.bias().unwrap()) - (value - extrapolated)).abs() < 1e-12);
    }

    /// The bias is of the order of the value, far from any asymptote.
    #[test]
    fn fewer_images_than_dimensions_have_a_fid() {
        let (real, values) = (normal(3, 30 * 40), normal(4, 25 * 40));
        let real = Gaussian::of(Features::new(&real, 40).unwrap()).unwrap();
        let got = fid(&Reference::new(real).unwrap(), &values, &FidOptions::default()).unwrap();
        assert!(got.value > 1.0 && got.standard_error.unwrap() > 0.0 && got.extrapolated.unwrap() < got.value);
        let few = |side, n| FidNote::FewSamples { side, n, least: 10_000 };
        let fewer = |side, n| FidNote::FewerSamplesThanDimensions { side, n, dims: 40 };
        let (r, g) = (Side::Real, Side::Generated);
        assert_eq!(got.notes, [few(r, 30), fewer(r, 30), few(g, 25), fewer(g, 25)]);
    }

    #[test]
    fn taking_a_group_out_is_the_distance_of_the_rest() {
        let reference = standard(5);
        for n in [7, 40] {
            let values = normal(5, n * 5);
            let features = Features::new(&values, 5).unwrap();
            let projection = Projection::new(&reference, features).unwrap();
            let all: Vec<usize> = (0..n).collect();
            let groups: Vec<&[usize]> = all.chunks(3).collect();
            let got = projection.distances_without(&all, &groups).unwrap();
            for (group, got) in groups.iter().zip(got) {
                let rest: Vec<f32> =
                    all.iter().filter(|i| !group.contains(i)).flat_map(|&i| features.row(i)).copied().collect();
                let expected = reference.distance(&Gaussian::of(Features::new(&rest, 5).unwrap()).unwrap()).unwrap();
                assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
            }
        }
    }

    #[test]
    fn the_seed_alone_decides() {
        let (reference, values) = (standard(70), normal(6, 400 * 70));
        let on = |threads, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| fid(&reference, &values, &FidOptions { seed, ..Default::default() }).unwrap())
        };
        let one = on(1, 0);
        assert_eq!(one, on(2, 0));
        assert_eq!(one, on(5, 0));
        let other = on(2, 1);
        assert_eq!(one.value, other.value);
        assert_ne!(one.standard_error, other.standard_error);
        assert_ne!(one.extrapolated, other.extrapolated);
    }

    #[test]
    fn very_few_images_give_what_they_can() {
        let reference = standard(3);
        let of = |n: usize| fid(&reference, &normal(7, n * 3), &FidOptions::default());
        for n in [0, 1] {
            assert_eq!(of(n).unwrap_err(), FidError::Distance(StatisticsError::TooFewRows { n }.into()));
        }
        let given = |n| of(n).map(|fid| (fid.standard_error.is_some(), fid.extrapolated.is_some())).unwrap();
        assert_eq!(given(2), (false, false));
        assert_eq!(given(3), (true, false));
        assert_eq!(given(4), (true, true));
        assert!(of(4).unwrap().extrapolated.unwrap().is_finite());
    }

    #[test]
    fn options_are_checked() {
        let (reference, values) = (standard(2), normal(8, 20 * 2));
        let with =
            |groups, points, smallest| fid(&reference, &values, &FidOptions { seed: 0, groups, points, smallest });
        assert_eq!(with(1, 15, None).unwrap_err(), FidError::OneGroup);
        assert_eq!(with(10, 1, None).unwrap_err(), FidError::OnePoint);
        for smallest in [0, 1, 20, 21] {
            assert_eq!(with(0, 2, Some(smallest)).unwrap_err(), FidError::Smallest { smallest, n: 20 });
        }
        let bare = with(0, 0, None).unwrap();
        assert_eq!((bare.standard_error, bare.extrapolated), (None, None));
        assert!(with(1000, 1000, Some(19)).is_ok());
    }

    #[test]
    fn sizes_are_even_and_end_at_n() {
        let sizes = |n, points| subset_sizes(n, &FidOptions { points, ..Default::default() }).unwrap().unwrap();
        assert_eq!(sizes(50_000, 10), (1..=10).map(|i| i * 5000).collect::<Vec<_>>());
        assert_eq!(sizes(2000, 3), [1000, 1500, 2000]);
        assert_eq!(sizes(4, 15), [2, 3, 4]);
    }

    #[test]
    fn the_intercept_of_a_line_is_found() {
        assert!((intercept(&[1.0, 0.5, 0.25], &[7.0, 5.0, 4.0]) - 3.0).abs() < 1e-14);
    }
}
