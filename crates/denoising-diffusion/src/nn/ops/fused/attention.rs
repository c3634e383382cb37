//! Softmax and linear attention over positions.

use burn_flex::FlexTensor;
use denoising_diffusion_kernels::attention::{
    AttentionShape, Factors, attention_backward, attention_forward, linear_attention_backward,
    linear_attention_forward, linear_attention_state,
};

use super::super::settings::{CpuArithmetic, cpu_arithmetic};
use super::{Kernel, dims, slice, tensor};

/// `qkv [b, h, w, 3 heads d]`, `mem_kv [2, heads, memory, d]`.
#[derive(Clone, Debug)]
pub(super) struct FullAttention;

/// `qkv [b, h, w, 3 heads d]`, `mem_kv [2, heads, d, memory]`.
#[derive(Clone, Debug)]
pub(super) struct LinearAttention;

fn factors() -> Factors {
    if cpu_arithmetic() == CpuArithmetic::Bf16 { Factors::Bf16 } else { Factors::F32 }
}

fn shape_of(qkv: &FlexTensor, heads: usize, memory: usize, head_dim: usize) -> AttentionShape {
    let [batch, h, w, _] = dims(qkv);
    AttentionShape { batch, positions: h * w, heads, head_dim, memory }
}

fn output_dims(qkv: &FlexTensor) -> [usize; 4] {
    let [b, h, w, channels] = dims(qkv);
    [b, h, w, channels / 3]
}

fn full_shape(qkv: &FlexTensor, mem_kv: &FlexTensor) -> AttentionShape {
    let [_, heads, memory, head_dim] = dims(mem_kv);
    shape_of(qkv, heads, memory, head_dim)
}

fn linear_shape(qkv: &FlexTensor, mem_kv: &FlexTensor) -> AttentionShape {
    let [_, heads, head_dim, memory] = dims(mem_kv);
    shape_of(qkv, heads, memory, head_dim)
}

/// Gradients of `qkv` and `mem_kv`, computed in one pass.
fn gradients(
    qkv: &FlexTensor,
    mem_kv: &FlexTensor,
    fill: impl FnOnce(&mut [f32], &mut [f32]),
) -> [Option<FlexTensor>; 2] {
    let mut dmem_kv = None;
    let dqkv = tensor(dims::<4>(qkv), |dqkv| {
        dmem_kv = Some(tensor(dims::<4>(mem_kv), |dmem_kv| fill(dqkv, dmem_kv)));
    });
    [Some(dqkv), dmem_kv]
}

impl Kernel<2> for FullAttention {
    /// Inputs, output, and the logarithms of the softmax's denominators.
    type Saved = [FlexTensor; 4];

    fn forward(&self, [qkv, mem_kv]: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
        let shape = full_shape(&qkv, &mem_kv);
        let mut out = None;
        let lse = tensor([shape.lse_len()], |lse| {
            out = Some(tensor(output_dims(&qkv), |out| {
                attention_forward(&shape, factors(), slice(&qkv), slice(&mem_kv), out, lse);
            }));
        });
        let out = out.expect("filled above");
        (out.clone(), [qkv, mem_kv, out, lse])
    }

    fn backward(&self, saved: Self::Saved, dy: FlexTensor, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [qkv, mem_kv, out, lse] = &saved;
        let shape = full_shape(qkv, mem_kv);
        gradients(qkv, mem_kv, |dqkv, dmem_kv| {
            attention_backward(
                &shape,
                factors(),
                slice(qkv),
                slice(mem_kv),
                slice(out),
                slice(lse),
                slice(&dy),
                dqkv,
                dmem_kv,
            );
        })
    }
}

impl Kernel<2> for LinearAttention {
    /// Inputs and the state of the keys.
    type Saved = [FlexTensor; 3];

    fn forward(&self, [qkv, mem_kv]: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
        let shape = linear_shape(&qkv, &mem_kv);
        let mut out = None;
        let state = tensor([shape.linear_state_len()], |state| {
            out = Some(tensor(output_dims(&qkv), |out| {
                linear_attention_forward(&shape, slice(&qkv), slice(&mem_kv), out, state);
            }));
        });
        (out.expect("filled above"), [qkv, mem_kv, state])
    }

    fn saved(&self, [qkv, mem_kv]: [FlexTensor; 2]) -> Self::Saved {
        let shape = linear_shape(&qkv, &mem_kv);
        let state = tensor([shape.linear_state_len()], |state| {
            linear_attention_state(&shape, slice(&qkv), slice(&mem_kv), state);
        });
        [qkv, mem_kv, state]
    }

    fn backward(&self, saved: Self::Saved, dy: FlexTensor, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [qkv, mem_kv, state] = &saved;
        let shape = linear_shape(qkv, mem_kv);
        gradients(qkv, mem_kv, |dqkv, dmem_kv| {
            linear_attention_backward(&shape, slice(qkv), slice(mem_kv), slice(state), slice(&dy), dqkv, dmem_kv);
        })
    }
}
