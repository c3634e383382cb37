//! The parts of Inception-v3: a convolution with its folded normalisation, and the five kinds of blocks, under torchvision's names. Branches that
//! start with a 1x1 convolution of the same input are computed separately, because their outputs go into different kernels.

use burn::tensor::{Device, Tensor, TensorData};

use crate::interop::InteropError;
use crate::nn::ops::{Pool, Pooling, Window, conv2d_relu, pool2d};

/// The epsilon of all batch normalisations in the network.
const BN_EPS: f64 = 1e-3;

/// Convolution, batch normalisation with running statistics, ReLU.
#[derive(Clone, Debug)]
pub(super) struct Conv {
    weight: Tensor<4>,
    bias: Tensor<1>,
    window: Window,
}

impl Conv {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        conv2d_relu(x, self.window, self.weight.clone(), self.bias.clone())
    }

    /// Applies convolutions in order.
    pub(super) fn chain(convs: &[Conv], x: Tensor<4>) -> Tensor<4> {
        convs.iter().fold(x, |x, conv| conv.forward(x))
    }
}

/// 3x3 with step 2, between stages.
pub(super) fn max_pool(x: Tensor<4>) -> Tensor<4> {
    pool2d(x, Pool { pooling: Pooling::Max, window: 3, stride: 2, padding: 0 })
}

/// 3x3 at every position, in the pooling branches.
fn pool_same(x: Tensor<4>, pooling: Pooling) -> Tensor<4> {
    pool2d(x, Pool { pooling, window: 3, stride: 1, padding: 1 })
}

fn side_by_side(branches: Vec<Tensor<4>>) -> Tensor<4> {
    Tensor::cat(branches, 3)
}

/// Provides tensors by name and remembers which.
pub(super) struct Read<'a> {
    /// Returns a tensor's values, or the reason why it cannot.
    source: &'a mut Source<'a>,
    device: &'a Device,
}

/// Returns the values of the tensor with a name and a shape.
type Source<'a> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>, InteropError> + 'a;

impl<'a> Read<'a> {
    pub(super) fn new(source: &'a mut Source<'a>, device: &'a Device) -> Self {
        Self { source, device }
    }

    /// A convolution `[inputs, outputs]` with the normalisation after it folded in: the weight is multiplied by `gamma / sqrt(var + eps)`, and the
    /// bias is `beta - mean gamma / sqrt(var + eps)`.
    pub(super) fn conv(
        &mut self,
        name: &str,
        [inputs, outputs]: [usize; 2],
        kernel: [usize; 2],
        stride: usize,
        padding: [usize; 2],
    ) -> Result<Conv, InteropError> {
        let shape = [outputs, inputs, kernel[0], kernel[1]];
        let weight = (self.source)(&format!("{name}.conv.weight"), &shape)?;
        let mut norm = |part: &str| (self.source)(&format!("{name}.bn.{part}"), &[outputs]);
        let (gamma, beta) = (norm("weight")?, norm("bias")?);
        let (mean, var) = (norm("running_mean")?, norm("running_var")?);
        let mut folded = Vec::with_capacity(weight.len());
        let mut bias = Vec::with_capacity(outputs);
        for (o, kernel) in weight.chunks_exact(weight.len() / outputs).enumerate() {
            let scale = f64::from(gamma[o]) / (f64::from(var[o]) + BN_EPS).sqrt();
            folded.extend(kernel.iter().map(|&w| (f64::from(w) * scale) as f32));
            bias.push((f64::from(beta[o]) - f64::from(mean[o]) * scale) as f32);
        }
        Ok(Conv {
            weight: Tensor::from_data(TensorData::new(folded, shape), self.device),
            bias: Tensor::from_data(TensorData::new(bias, [outputs]), self.device),
            window: Window { stride, padding },
        })
    }

    /// The same with step 1 and an output of the same size as the input.
    pub(super) fn same(&mut self, name: &str, channels: [usize; 2], kernel: [usize; 2]) -> Result<Conv, InteropError> {
        self.conv(name, channels, kernel, 1, kernel.map(|k| k / 2))
    }

    /// The weight of a linear layer, `[inputs, outputs]`; its bias is read and ignored.
    pub(super) fn linear(&mut self, name: &str, [inputs, outputs]: [usize; 2]) -> Result<Tensor<2>, InteropError> {
        (self.source)(&format!("{name}.bias"), &[outputs])?;
        let weight = (self.source)(&format!("{name}.weight"), &[outputs, inputs])?;
        let weight = Tensor::<2>::from_data(TensorData::new(weight, [outputs, inputs]), self.device);
        Ok(weight.transpose())
    }
}

/// 35x35: 1x1, 5x5, two 3x3, pooling.
#[derive(Clone, Debug)]
pub(super) struct BlockA {
    branch1x1: Conv,
    branch5x5: [Conv; 2],
    branch3x3dbl: [Conv; 3],
    branch_pool: Conv,
}

impl BlockA {
    pub(super) fn read(r: &mut Read<'_>, name: &str, c: usize, pool: usize) -> Result<Self, InteropError> {
        let at = |part: &str| format!("{name}.{part}");
        Ok(Self {
            branch1x1: r.same(&at("branch1x1"), [c, 64], [1, 1])?,
            branch5x5: [r.same(&at("branch5x5_1"), [c, 48], [1, 1])?, r.same(&at("branch5x5_2"), [48, 64], [5, 5])?],
            branch3x3dbl: [
                r.same(&at("branch3x3dbl_1"), [c, 64], [1, 1])?,
                r.same(&at("branch3x3dbl_2"), [64, 96], [3, 3])?,
                r.same(&at("branch3x3dbl_3"), [96, 96], [3, 3])?,
            ],
            branch_pool: r.same(&at("branch_pool"), [c, pool], [1, 1])?,
        })
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        side_by_side(vec![
            self.branch1x1.forward(x.clone()),
            Conv::chain(&self.branch5x5, x.clone()),
            Conv::chain(&self.branch3x3dbl, x.clone()),
            self.branch_pool.forward(pool_same(x, Pooling::Mean)),
        ])
    }
}

/// 35x35 to 17x17.
#[derive(Clone, Debug)]
pub(super) struct BlockB {
    branch3x3: Conv,
    branch3x3dbl: [Conv; 3],
}

impl BlockB {
    pub(super) fn read(r: &mut Read<'_>, name: &str, c: usize) -> Result<Self, InteropError> {
        let at = |part: &str| format!("{name}.{part}");
        Ok(Self {
            branch3x3: r.conv(&at("branch3x3"), [c, 384], [3, 3], 2, [0, 0])?,
            branch3x3dbl: [
                r.same(&at("branch3x3dbl_1"), [c, 64], [1, 1])?,
                r.same(&at("branch3x3dbl_2"), [64, 96], [3, 3])?,
                r.conv(&at("branch3x3dbl_3"), [96, 96], [3, 3], 2, [0, 0])?,
            ],
        })
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        side_by_side(vec![self.branch3x3.forward(x.clone()), Conv::chain(&self.branch3x3dbl, x.clone()), max_pool(x)])
    }
}

/// 17x17: 1x1, 7x7 in two factors, two 7x7 in two factors, pooling.
#[derive(Clone, Debug)]
pub(super) struct BlockC {
    branch1x1: Conv,
    branch7x7: [Conv; 3],
    branch7x7dbl: [Conv; 5],
    branch_pool: Conv,
}

impl BlockC {
    pub(super) fn read(r: &mut Read<'_>, name: &str, c: usize, c7: usize) -> Result<Self, InteropError> {
        let at = |part: &str| format!("{name}.{part}");
        Ok(Self {
            branch1x1: r.same(&at("branch1x1"), [c, 192], [1, 1])?,
            branch7x7: [
                r.same(&at("branch7x7_1"), [c, c7], [1, 1])?,
                r.same(&at("branch7x7_2"), [c7, c7], [1, 7])?,
                r.same(&at("branch7x7_3"), [c7, 192], [7, 1])?,
            ],
            branch7x7dbl: [
                r.same(&at("branch7x7dbl_1"), [c, c7], [1, 1])?,
                r.same(&at("branch7x7dbl_2"), [c7, c7], [7, 1])?,
                r.same(&at("branch7x7dbl_3"), [c7, c7], [1, 7])?,
                r.same(&at("branch7x7dbl_4"), [c7, c7], [7, 1])?,
                r.same(&at("branch7x7dbl_5"), [c7, 192], [1, 7])?,
            ],
            branch_pool: r.same(&at("branch_pool"), [c, 192], [1, 1])?,
        })
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        side_by_side(vec![
            self.branch1x1.forward(x.clone()),
            Conv::chain(&self.branch7x7, x.clone()),
            Conv::chain(&self.branch7x7dbl, x.clone()),
            self.branch_pool.forward(pool_same(x, Pooling::Mean)),
        ])
    }
}

/// 17x17 to 8x8.
#[derive(Clone, Debug)]
pub(super) struct BlockD {
    branch3x3: [Conv; 2],
    branch7x7x3: [Conv; 4],
}

impl BlockD {
    pub(super) fn read(r: &mut Read<'_>, name: &str, c: usize) -> Result<Self, InteropError> {
        let at = |part: &str| format!("{name}.{part}");
        Ok(Self {
            branch3x3: [
                r.same(&at("branch3x3_1"), [c, 192], [1, 1])?,
                r.conv(&at("branch3x3_2"), [192, 320], [3, 3], 2, [0, 0])?,
            ],
            branch7x7x3: [
                r.same(&at("branch7x7x3_1"), [c, 192], [1, 1])?,
                r.same(&at("branch7x7x3_2"), [192, 192], [1, 7])?,
                r.same(&at("branch7x7x3_3"), [192, 192], [7, 1])?,
                r.conv(&at("branch7x7x3_4"), [192, 192], [3, 3], 2, [0, 0])?,
            ],
        })
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        side_by_side(vec![
            Conv::chain(&self.branch3x3, x.clone()),
            Conv::chain(&self.branch7x7x3, x.clone()),
            max_pool(x),
        ])
    }
}

/// 8x8: 1x1, 3x3 as 1x3 beside 3x1, two 3x3 likewise, pooling of either kind.
#[derive(Clone, Debug)]
pub(super) struct BlockE {
    branch1x1: Conv,
    branch3x3: Conv,
    branch3x3_2: [Conv; 2],
    branch3x3dbl: [Conv; 2],
    branch3x3dbl_3: [Conv; 2],
    branch_pool: Conv,
    pooling: Pooling,
}

impl BlockE {
    pub(super) fn read(r: &mut Read<'_>, name: &str, c: usize, pooling: Pooling) -> Result<Self, InteropError> {
        let at = |part: &str| format!("{name}.{part}");
        Ok(Self {
            branch1x1: r.same(&at("branch1x1"), [c, 320], [1, 1])?,
            branch3x3: r.same(&at("branch3x3_1"), [c, 384], [1, 1])?,
            branch3x3_2: [
                r.same(&at("branch3x3_2a"), [384, 384], [1, 3])?,
                r.same(&at("branch3x3_2b"), [384, 384], [3, 1])?,
            ],
            branch3x3dbl: [
                r.same(&at("branch3x3dbl_1"), [c, 448], [1, 1])?,
                r.same(&at("branch3x3dbl_2"), [448, 384], [3, 3])?,
            ],
            branch3x3dbl_3: [
                r.same(&at("branch3x3dbl_3a"), [384, 384], [1, 3])?,
                r.same(&at("branch3x3dbl_3b"), [384, 384], [3, 1])?,
            ],
            branch_pool: r.same(&at("branch_pool"), [c, 192], [1, 1])?,
            pooling,
        })
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let once = self.branch3x3.forward(x.clone());
        let twice = Conv::chain(&self.branch3x3dbl, x.clone());
        side_by_side(vec![
            self.branch1x1.forward(x.clone()),
            self.branch3x3_2[0].forward(once.clone()),
            self.branch3x3_2[1].forward(once),
            self.branch3x3dbl_3[0].forward(twice.clone()),
            self.branch3x3dbl_3[1].forward(twice),
            self.branch_pool.forward(pool_same(x, self.pooling)),
        ])
    }
}
