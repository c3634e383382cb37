//! Conditions that are vectors of numbers: how they are passed to networks, and their embedding, which is added to that of the noise level.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

use super::{Init, Linear, ops};

/// A vector for each example of a batch, or for some of the examples.
#[derive(Clone, Debug)]
pub struct Vectors {
    /// `[b, dim]`
    pub values: Tensor<2>,
    /// `[b, 1]`: 1 if the vector is given, 0 if it counts as unknown.
    pub given: Tensor<2>,
}

impl Vectors {
    /// From rows of `dim` numbers; those for which `given` is false are unknown, whatever stands there.
    pub fn of_rows(mut rows: Vec<f32>, dim: usize, given: impl Fn(usize) -> bool, device: &Device) -> Self {
        let b = rows.len() / dim;
        let given: Vec<f32> = (0..b).map(|i| if given(i) { 1.0 } else { 0.0 }).collect();
        // Networks multiply by `given`, which would leave NaN.
        rows.chunks_mut(dim).zip(&given).filter(|(_, given)| **given == 0.0).for_each(|(row, _)| row.fill(0.0));
        Self {
            values: Tensor::from_data(TensorData::new(rows, [b, dim]), device),
            given: Tensor::from_data(TensorData::new(given, [b, 1]), device),
        }
    }

    /// Unknown vectors for `b` examples.
    pub fn unknown(b: usize, dim: usize, device: &Device) -> Self {
        Self { values: Tensor::zeros([b, dim], device), given: Tensor::zeros([b, 1], device) }
    }

    /// Concatenates these and others.
    pub fn then(self, other: Self) -> Self {
        let cat = |one, other| Tensor::cat(vec![one, other], 0);
        Self { values: cat(self.values, other.values), given: cat(self.given, other.given) }
    }
}

/// Linear, SiLU, linear, to be added to the embedding of the noise level. For an unknown vector, a learned embedding replaces the first layer's
/// output.
#[derive(Module, Debug)]
pub struct VectorEmbedding {
    pub linear1: Linear,
    /// `[dim_out]`
    pub unknown: Param<Tensor<1>>,
    pub linear2: Linear,
}

impl VectorEmbedding {
    pub fn new(init: &mut Init, dim: usize, dim_out: usize) -> Self {
        Self {
            linear1: Linear::new(init, dim, dim_out),
            unknown: init.normal([dim_out]),
            linear2: Linear::new(init, dim_out, dim_out),
        }
    }

    /// `[b, dim] -> [b, dim_out]`; `None` counts as unknown vectors for all.
    pub fn forward(&self, vectors: Option<Vectors>, b: usize) -> Tensor<2> {
        let unknown = self.unknown.val().unsqueeze::<2>();
        let hidden = match vectors {
            Some(Vectors { values, given }) => {
                self.linear1.forward(values) * given.clone() + unknown * (given.neg() + 1.0)
            }
            None => unknown.repeat_dim(0, b),
        };
        self.linear2.forward(ops::silu(hidden))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::params::host_values;

    #[test]
    fn unknown_vectors_are_none() {
        let device = Device::flex();
        let embedding = VectorEmbedding::new(&mut Init::new(3, &device), 2, 4);
        let some = Vectors::of_rows(vec![1.0, 2.0, 3.0, 4.0], 2, |i| i == 1, &device);
        let got = host_values(embedding.forward(Some(some.clone()), 2));
        let none = host_values(embedding.forward(None, 1));
        let last = host_values(embedding.forward(Some(Vectors::of_rows(vec![3.0, 4.0], 2, |_| true, &device)), 1));
        assert_eq!(got, [none.clone(), last.clone()].concat());
        assert_ne!(none, last, "{none:?}");
        let three = some.then(Vectors::unknown(1, 2, &device));
        assert_eq!(host_values(embedding.forward(Some(three), 3)), [none.clone(), last, none].concat());
    }

    #[test]
    fn an_unknown_vector_may_be_anything() {
        let device = Device::flex();
        let embedding = VectorEmbedding::new(&mut Init::new(3, &device), 2, 4);
        let rows = |unknown: [f32; 2]| Vectors::of_rows([unknown, [3.0, 4.0]].concat(), 2, |i| i == 1, &device);
        let [odd, zeros] = [[f32::NAN, f32::INFINITY], [0.0; 2]].map(rows);
        assert_eq!(host_values(odd.values.clone()), [0.0, 0.0, 3.0, 4.0]);
        assert_eq!(host_values(embedding.forward(Some(odd), 2)), host_values(embedding.forward(Some(zeros), 2)));
    }
}
