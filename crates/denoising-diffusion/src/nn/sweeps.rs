//! Many of a network's tensors at once, as flat tensors: optimizers, averages and type conversions use this, so that a GPU can process many tensors
//! per launch. Not here: what is computed (`train::sweep`).
//!
//! The values of a flat tensor are in the order of rows, except for weights of convolutions on GPUs, which are channels last: this is how those
//! convolutions read weights and leave their gradients. A weight that went through here has that layout in memory and is not copied anywhere after
//! that.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Shape, Tensor};

use super::ops;
use super::params::Path;
use crate::device::is_cpu;

/// A tensor of a network.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    pub name: &'a str,
    /// The name of its layer's type.
    pub layer: &'a str,
    pub shape: &'a Shape,
}

/// Replaces many floating-point tensors at once. Those for which `takes` returns something are taken out, flat and without another owner, and `sweep`
/// returns what replaces each of them.
pub fn replace<M: Module, T>(
    module: M,
    takes: impl FnMut(Field<'_>) -> Option<T>,
    sweep: impl FnOnce(Vec<(Tensor<1>, T)>) -> Vec<Tensor<1>>,
) -> M {
    let mut take = Take { path: Path::default(), takes, taken: Vec::new(), places: Vec::new(), nothing: None };
    let module = module.map(&mut take);
    module.map(&mut Put { places: take.places.into_iter(), replaced: sweep(take.taken).into_iter() })
}

/// What is needed to put a tensor back.
struct Place {
    name: String,
    shape: Shape,
    autodiff: bool,
    require_grad: bool,
}

/// Takes tensors out. Not `params::map`, because what is left in their places must not be on a tape.
struct Take<F, T> {
    path: Path,
    takes: F,
    taken: Vec<(Tensor<1>, T)>,
    places: Vec<Option<Place>>,
    /// Placeholder for a tensor that is taken out.
    nothing: Option<Tensor<1>>,
}

impl<T, F: FnMut(Field<'_>) -> Option<T>> ModuleMapper for Take<F, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        let (id, tensor, mapper) = param.consume();
        let shape = tensor.shape();
        let Some(with) = (self.takes)(Field { name: &name, layer: self.path.layer(), shape: &shape }) else {
            self.places.push(None);
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let (autodiff, require_grad) = (tensor.is_autodiff(), tensor.is_require_grad());
        let plain = if autodiff { tensor.inner() } else { tensor };
        let nothing = self.nothing.get_or_insert_with(|| Tensor::empty([1], &plain.device())).clone();
        self.taken.push((flat(&name, plain), with));
        self.places.push(Some(Place { name, shape, autodiff, require_grad }));
        Param::from_mapped_value(id, nothing.reshape([1; D]), mapper)
    }
}

/// Puts tensors back into their places.
struct Put<P, R> {
    places: P,
    replaced: R,
}

impl<P: Iterator<Item = Option<Place>>, R: Iterator<Item = Tensor<1>>> ModuleMapper for Put<P, R> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(Place { name, shape, autodiff, require_grad }) = self.places.next().flatten() else { return param };
        let (id, _, mapper) = param.consume();
        let plain = shaped(&name, self.replaced.next().expect("a tensor for each that was taken"), &shape);
        let value = if autodiff { Tensor::from_inner(plain).set_require_grad(require_grad) } else { plain };
        Param::from_mapped_value(id, value, mapper)
    }
}

/// A network for data of type `dtype`: weights and biases of [`Conv2d`](super::Conv2d), which are only ever used with data, are converted to that
/// type, and weights are laid out as the device's convolutions read them. Otherwise they would be converted at each use, with a launch each.
pub fn for_data<M: Module>(module: M, dtype: DType) -> M {
    let is_conv = |field: Field<'_>| (field.layer == "Conv2d").then_some(());
    replace(module, is_conv, |taken| ops::cast(taken.into_iter().map(|(tensor, ())| tensor).collect(), dtype))
}

/// The same network in separate memory, where it stays for the whole run; on GPUs, this is kept apart from short-lived memory. There, memory for
/// each result is searched for among all live allocations, and hundreds of small tensors that are never freed cost more than the launches do.
pub fn settled<M: Module>(module: M) -> M {
    replace(module, |_| Some(()), |taken| ops::copied(taken.into_iter().map(|(tensor, ())| tensor).collect()))
}

/// The values of the tensor with this name, or of its gradient, in the order of flat tensors.
pub fn flat<const D: usize>(name: &str, tensor: Tensor<D>) -> Tensor<1> {
    let size = tensor.shape().num_elements();
    let tensor = if is_kernel(name, D, &tensor.device()) { tensor.permute(axes(TO_LAST)) } else { tensor };
    tensor.reshape([size])
}

/// The tensor with this name and shape, from the values that [`flat`] gives.
pub fn shaped<const D: usize>(name: &str, flat: Tensor<1>, shape: &[usize]) -> Tensor<D> {
    if is_kernel(name, D, &flat.device()) {
        let last: [usize; D] = TO_LAST.map(|axis| shape[axis as usize])[..].try_into().expect("four axes");
        return flat.reshape(last).permute(axes(FROM_LAST));
    }
    flat.reshape(Shape::from(shape))
}

/// The values of a flat tensor in the order of rows, as in files.
pub fn in_rows(name: &str, flat: Tensor<1>, shape: &[usize]) -> Tensor<1> {
    let size = flat.dims()[0];
    if shape.len() == 4 { shaped::<4>(name, flat, shape).reshape([size]) } else { flat }
}

/// The inverse of [`in_rows`].
pub fn from_rows(name: &str, rows: Tensor<1>, shape: &[usize]) -> Tensor<1> {
    if shape.len() == 4 { self::flat(name, rows.reshape::<4, _>(Shape::from(shape))) } else { rows }
}

const TO_LAST: [isize; 4] = [0, 2, 3, 1];
const FROM_LAST: [isize; 4] = [0, 3, 1, 2];

fn axes<const D: usize>(of_four: [isize; 4]) -> [isize; D] {
    of_four[..].try_into().expect("only asked for tensors of four axes")
}

/// Whether a tensor is the weight `[c_out, c_in, kh, kw]` of a convolution on a GPU. All layers use the same name for theirs.
fn is_kernel(name: &str, rank: usize, device: &Device) -> bool {
    rank == 4 && name.rsplit('.').next() == Some("weight") && !is_cpu(device)
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::{FloatDType, TensorData};

    use super::*;
    use crate::nn::params::host_values;
    use crate::nn::{Conv2d, Init, Linear};

    /// The CPU, and the test device for GPU kernels if there is one.
    #[cfg(feature = "cube")]
    pub(crate) fn devices() -> Vec<Device> {
        std::iter::once(Device::flex()).chain(crate::nn::ops::cube::tests::test_device()).collect()
    }

    #[cfg(not(feature = "cube"))]
    pub(crate) fn devices() -> Vec<Device> {
        vec![Device::flex()]
    }

    #[derive(Module, Debug)]
    struct Layers {
        conv: Conv2d,
        linear: Linear,
    }

    #[test]
    fn the_order_of_flat_tensors_is_undone() {
        for device in devices() {
            let shape = [3, 4, 3, 5];
            let values: Vec<f32> = (0..180).map(|i| i as f32).collect();
            let rows = Tensor::<1>::from_floats(values.as_slice(), &device);
            for name in ["weight", "convs.0.weight", "mem_kv"] {
                let flat = from_rows(name, rows.clone(), &shape);
                let kernel = name != "mem_kv" && !is_cpu(&device);
                assert_eq!(host_values(flat.clone())[1], if kernel { 15.0 } else { 1.0 });
                assert_eq!(host_values(in_rows(name, flat.clone(), &shape)), values);
                assert_eq!(host_values(shaped::<4>(name, flat, &shape)), values);
                let plane = rows.clone().reshape([12, 15]);
                assert_eq!(host_values(self::flat(name, plane)), values);
            }
        }
    }

    #[test]
    fn what_is_used_with_data_is_of_their_type() {
        let device = Device::flex().autodiff();
        let init = &mut Init::new(0, &device);
        let layers = Layers { conv: Conv2d::new(init, 8, 6, 3), linear: Linear::new(init, 8, 6) };
        let narrow = for_data(layers.clone(), DType::BF16);
        let bias = |layers: &Layers| layers.conv.bias.as_ref().map(|bias| bias.val()).unwrap();
        assert_eq!((narrow.conv.weight.val().dtype(), bias(&narrow).dtype()), (DType::BF16, DType::BF16));
        assert_eq!(narrow.linear.weight.val().dtype(), DType::F32);
        let rounded = |tensor: Tensor<4>| host_values(tensor.cast(FloatDType::BF16).cast(FloatDType::F32));
        assert_eq!(rounded(narrow.conv.weight.val()), rounded(layers.conv.weight.val()));
        // Gradients are with respect to the narrow weights.
        let x = Tensor::<4>::ones([1, 4, 4, 8], &device).cast(FloatDType::BF16);
        let mut gradients = narrow.conv.forward(x).sum().backward();
        assert_eq!(narrow.conv.weight.val().grad_remove(&mut gradients).unwrap().dtype(), DType::BF16);
    }

    #[test]
    fn weights_of_every_device_are_the_same() {
        for device in devices() {
            let data = TensorData::new((0..54).map(|i| i as f32).collect::<Vec<_>>(), [2, 3, 3, 3]);
            let mut conv = Conv2d::without_bias(&mut Init::new(0, &device), 3, 2, 3);
            conv.weight = burn::module::Param::from_tensor(Tensor::from_data(data.clone(), &device));
            let ready = for_data(conv, DType::F32);
            assert_eq!(host_values(ready.weight.val()), data.try_into_vec::<f32>().unwrap());
        }
    }
}
