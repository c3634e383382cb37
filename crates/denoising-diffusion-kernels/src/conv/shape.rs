//! The sizes of a convolution.

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dShape {
    /// Images.
    pub batch: usize,
    /// Rows of the input, as it is stored.
    pub height: usize,
    /// Columns of the input, as it is stored.
    pub width: usize,
    /// How often each pixel of the input is repeated, vertically and horizontally, before the convolution (nearest-neighbour enlargement).
    pub upsample: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step between output pixels, in input pixels, vertically and horizontally.
    pub stride: usize,
    /// Rows of zeros above and below, columns of zeros left and right.
    pub padding: [usize; 2],
}

/// Why a [`Conv2dShape`] does not describe a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A size that must be at least 1 is 0.
    #[error("{0} is 0, it must be at least 1")]
    Zero(&'static str),
    /// There are more values than can be counted.
    #[error("the sizes are too large")]
    TooLarge,
    /// The kernel does not fit into the padded input, so there would be no output.
    #[error("a kernel of {kernel} does not fit into {input} {axis} plus {padding} on each side")]
    KernelTooLarge {
        /// `rows` or `columns`.
        axis: &'static str,
        /// Size of the kernel along the axis.
        kernel: usize,
        /// Size of the input along the axis.
        input: usize,
        /// Padding on each side.
        padding: usize,
    },
}

impl Conv2dShape {
    /// Checks that there is at least one value of everything, and an output.
    pub fn validate(&self) -> Result<(), ShapeError> {
        let sizes = [
            ("batch", self.batch),
            ("height", self.height),
            ("width", self.width),
            ("upsample", self.upsample),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("kernel height", self.kernel[0]),
            ("kernel width", self.kernel[1]),
            ("stride", self.stride),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(ShapeError::Zero(name));
        }
        self.values().ok_or(ShapeError::TooLarge)?;
        let [rows, columns] = self.enlarged();
        for (axis, input) in [rows, columns].into_iter().enumerate() {
            let (kernel, padding) = (self.kernel[axis], self.padding[axis]);
            if kernel > input + 2 * padding {
                return Err(ShapeError::KernelTooLarge { axis: ["rows", "columns"][axis], kernel, input, padding });
            }
        }
        Ok(())
    }

    /// An upper bound of the number of values of the enlarged and padded input, the output and the weight, if it can be counted.
    fn values(&self) -> Option<usize> {
        let side = |size: usize, padding: usize| size.checked_mul(self.upsample)?.checked_add(padding.checked_mul(2)?);
        let pixels = side(self.height, self.padding[0])?.checked_mul(side(self.width, self.padding[1])?)?;
        let channels = self.in_channels.checked_add(self.out_channels)?;
        let activations = self.batch.checked_mul(pixels)?.checked_mul(channels)?;
        let taps = self.kernel[0].checked_mul(self.kernel[1])?;
        activations.checked_add(self.in_channels.checked_mul(self.out_channels)?.checked_mul(taps)?)
    }

    /// Rows and columns of the enlarged input, which the kernel passes over.
    pub(super) fn enlarged(&self) -> [usize; 2] {
        [self.height * self.upsample, self.width * self.upsample]
    }

    /// The same convolution for an input that is already enlarged.
    pub(super) fn of_enlarged(&self) -> Self {
        let [height, width] = self.enlarged();
        Self { height, width, upsample: 1, ..*self }
    }

    /// Rows of the output.
    pub fn out_height(&self) -> usize {
        self.out_size(0)
    }

    /// Columns of the output.
    pub fn out_width(&self) -> usize {
        self.out_size(1)
    }

    fn out_size(&self, axis: usize) -> usize {
        let padded = self.enlarged()[axis] + 2 * self.padding[axis];
        assert!(padded >= self.kernel[axis] && self.stride > 0, "no window of {self:?}");
        (padded - self.kernel[axis]) / self.stride + 1
    }

    /// Values of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.height * self.width * self.in_channels
    }

    /// Values of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.out_height() * self.out_width() * self.out_channels
    }

    /// Values of the weight.
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.in_channels * self.taps()
    }

    /// Floating-point operations of the forward pass, with a multiplication and an addition counted as two.
    pub fn flops(&self) -> usize {
        2 * self.batch * self.out_height() * self.out_width() * self.weight_len()
    }

    /// Positions of the kernel.
    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Whether each output pixel depends only on the input pixel at the same place.
    pub(super) fn is_pointwise(&self) -> bool {
        self.taps() == 1 && self.stride == 1 && self.padding == [0; 2] && self.upsample == 1
    }

    pub(super) fn check(&self, x: usize, weight: usize, y: usize) {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        assert_eq!(x, self.input_len(), "length of the input of {self:?}");
        assert_eq!(weight, self.weight_len(), "length of the weight of {self:?}");
        assert_eq!(y, self.output_len(), "length of the output of {self:?}");
    }
}
