//! What is done with the products of a convolution before they are stored.

/// y = activation(products + bias + residual).
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One value per output channel.
    pub bias: Option<&'a [f32]>,
    /// An image of the shape of y.
    pub residual: Option<&'a [f32]>,
    /// Applied last.
    pub activation: ConvActivation,
}

/// The function applied to the sums of a convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConvActivation {
    /// y = x
    #[default]
    Identity,
    /// y = max(x, 0); NaN stays NaN.
    Relu,
}

impl ConvActivation {
    /// The smallest possible result.
    pub(super) fn floor(self) -> f32 {
        match self {
            ConvActivation::Identity => f32::NEG_INFINITY,
            ConvActivation::Relu => 0.0,
        }
    }
}

impl Epilogue<'_> {
    pub(super) fn check(&self, out_channels: usize, output_len: usize) {
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), out_channels, "length of the bias");
        }
        if let Some(residual) = self.residual {
            assert_eq!(residual.len(), output_len, "length of the residual");
        }
    }
}
