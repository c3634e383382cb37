//! Integrals of the polynomial through given points, for multistep solvers. Numbers only, no tensors.

/// The `j`-th Lagrange polynomial of `nodes` at `u`: 1 at node j, 0 at the others.
pub(super) fn lagrange(nodes: &[f64], j: usize, u: f64) -> f64 {
    let others = nodes.iter().enumerate().filter(|&(k, _)| k != j);
    others.map(|(_, node)| (u - node) / (nodes[j] - node)).product()
}

/// For each node, the integral of `density(u)` times its Lagrange polynomial from `a` to `b`: the weight of the value at that node in the integral
/// of density times the interpolating polynomial. By Gauss-Legendre quadrature with 8 points, exact for polynomials of degree 15.
pub(super) fn lagrange_integrals(nodes: &[f64], [a, b]: [f64; 2], density: impl Fn(f64) -> f64) -> Vec<f64> {
    let (middle, half) = (0.5 * (a + b), 0.5 * (b - a));
    let integral = |j| {
        let f = |u: f64| density(u) * lagrange(nodes, j, u);
        half * GAUSS_LEGENDRE_8.iter().map(|(x, w)| w * (f(middle - half * x) + f(middle + half * x))).sum::<f64>()
    };
    (0..nodes.len()).map(integral).collect()
}

/// Points in (0, 1), each used with both signs, and their weights.
const GAUSS_LEGENDRE_8: [(f64, f64); 4] = [
    (0.183_434_642_495_649_8, 0.362_683_783_378_362),
    (0.525_532_409_916_329, 0.313_706_645_877_887_3),
    (0.796_666_477_413_626_7, 0.222_381_034_453_374_48),
    (0.960_289_856_497_536_3, 0.101_228_536_290_376_26),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quadrature_is_exact_up_to_degree_15() {
        for degree in 0..=15 {
            let got = lagrange_integrals(&[0.0], [-0.5, 2.0], |u| u.powi(degree))[0];
            let exact = (2.0_f64.powi(degree + 1) - (-0.5_f64).powi(degree + 1)) / f64::from(degree + 1);
            assert!((got - exact).abs() < 1e-13 * exact.abs(), "{degree}: {got} {exact}");
        }
    }

    /// Adams and Bashforth's coefficients of order 4.
    #[test]
    fn equal_steps_give_the_textbook_coefficients() {
        let got = lagrange_integrals(&[0.0, -1.0, -2.0, -3.0], [0.0, 1.0], |_| 1.0);
        for (got, exact) in got.iter().zip([55.0, -59.0, 37.0, -9.0]) {
            assert!((got - exact / 24.0).abs() < 1e-13, "{got} {exact}");
        }
    }
}
