//! Every parameter of a U-Net, layer by layer, with our name and shape and the reference's. Not here: renaming (`names.rs`).

use crate::models::{Downsampling, Stage, UnetConfig, UnetConfigError};
use crate::nn::Axes;

/// One parameter of a U-Net, with both names and both shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterName {
    pub ours: String,
    pub our_shape: Vec<usize>,
    pub reference: String,
    pub reference_shape: Vec<usize>,
}

/// Every parameter of the configured U-Net, in the order of its layers. If the reference has no such network, the reference's names are meaningless.
pub fn reference_layout(config: &UnetConfig) -> Result<Vec<ParameterName>, UnetConfigError> {
    let stages = config.stages()?;
    let mut layout = Layout {
        time_dim: config.time_dim(),
        cond_dim: config.cond_dim(),
        axes: config.axes,
        memory: config.num_mem_kv,
        downsample: config.downsample,
        parameters: Vec::new(),
    };
    let first = config.first_dim();
    layout.conv("init_conv", "init_conv", config.in_channels(), first, 7);
    layout.time_mlp(config);
    if config.num_classes > 0 {
        layout.classes(config);
    }
    for (i, stage) in stages.iter().enumerate() {
        layout.down(i, stage);
    }
    if let Some(last) = stages.last() {
        let (heads, dim_head) = config.mid_attention(last);
        let innermost = Stage { full_attn: true, heads, dim_head, ..*last };
        layout.residual("mid_block1", "mid_block1", last.dim_out, last.dim_out);
        layout.attention("mid_attn", "mid_attn", &innermost, last.dim_out);
        layout.residual("mid_block2", "mid_block2", last.dim_out, last.dim_out);
    }
    for (i, stage) in stages.iter().rev().enumerate() {
        layout.up(i, stage, if i + 1 == stages.len() { "3" } else { "3.1" });
    }
    layout.residual("final_res_block", "final_res_block", first * 2, first);
    layout.conv("final_conv", "final_conv", first, config.out_channels(), 1);
    Ok(layout.parameters)
}

/// Collects parameters layer by layer; `ours` and `reference` are the layer's names on both sides.
struct Layout {
    time_dim: usize,
    cond_dim: usize,
    axes: Axes,
    memory: usize,
    downsample: Downsampling,
    parameters: Vec<ParameterName>,
}

impl Layout {
    fn add(&mut self, ours: String, our_shape: &[usize], reference: String, reference_shape: &[usize]) {
        let (our_shape, reference_shape) = (our_shape.to_vec(), reference_shape.to_vec());
        self.parameters.push(ParameterName { ours, our_shape, reference, reference_shape });
    }

    fn same(&mut self, ours: &str, reference: &str, leaf: &str, shape: &[usize]) {
        self.add(format!("{ours}.{leaf}"), shape, format!("{reference}.{leaf}"), shape);
    }

    fn conv(&mut self, ours: &str, reference: &str, dim_in: usize, dim_out: usize, kernel: usize) {
        self.kernel(ours, reference, dim_in, dim_out, kernel);
        self.same(ours, reference, "bias", &[dim_out]);
    }

    fn kernel(&mut self, ours: &str, reference: &str, dim_in: usize, dim_out: usize, kernel: usize) {
        let [height, width] = self.axes.kernel(kernel);
        let there: &[usize] = match self.axes {
            Axes::Both => &[dim_out, dim_in, height, width],
            Axes::Width => &[dim_out, dim_in, width],
        };
        let (ours, reference) = (format!("{ours}.weight"), format!("{reference}.weight"));
        self.add(ours, &[dim_out, dim_in, height, width], reference, there);
    }

    fn linear(&mut self, ours: &str, reference: &str, dim_in: usize, dim_out: usize) {
        self.same(ours, reference, "weight", &[dim_out, dim_in]);
        self.same(ours, reference, "bias", &[dim_out]);
    }

    fn gain(&mut self, ours: &str, reference: &str, dim: usize) {
        let there: &[usize] = match self.axes {
            Axes::Both => &[1, dim, 1, 1],
            Axes::Width => &[1, dim, 1],
        };
        self.add(format!("{ours}.g"), &[dim], format!("{reference}.g"), there);
    }

    fn time_mlp(&mut self, config: &UnetConfig) {
        let embedded = if config.fourier_time() {
            let frequencies = config.learned_sinusoidal_dim / 2;
            self.same("time_mlp.embed", "time_mlp.0", "weights", &[frequencies]);
            config.learned_sinusoidal_dim + 1
        } else {
            config.dim
        };
        self.linear("time_mlp.linear1", "time_mlp.1", embedded, self.time_dim);
        self.linear("time_mlp.linear2", "time_mlp.3", self.time_dim, self.time_dim);
    }

    fn classes(&mut self, config: &UnetConfig) {
        let (n, dim) = (config.num_classes, config.dim);
        self.same("classes_emb", "classes_emb", "weight", &[n, dim]);
        self.add("null_classes_emb".to_string(), &[dim], "null_classes_emb".to_string(), &[dim]);
        self.linear("classes_mlp.linear1", "classes_mlp.0", dim, self.time_dim);
        self.linear("classes_mlp.linear2", "classes_mlp.2", self.time_dim, self.time_dim);
    }

    fn down(&mut self, index: usize, stage: &Stage) {
        let path = format!("downs.{index}");
        self.blocks(&path, stage, stage.dim_in, stage.dim_in);
        let ours = format!("{path}.resample.conv");
        match self.downsample {
            _ if stage.is_last => self.conv(&ours, &format!("{path}.3"), stage.dim_in, stage.dim_out, 3),
            // Space to depth turns 2x2 pixels into channels before a 1x1 convolution.
            Downsampling::Unshuffle => self.conv(&ours, &format!("{path}.3.1"), stage.dim_in * 4, stage.dim_out, 1),
            Downsampling::Strided => self.conv(&ours, &format!("{path}.3"), stage.dim_in, stage.dim_out, 4),
        }
    }

    /// `conv` is the reference's name of the convolution that ends the stage.
    fn up(&mut self, index: usize, stage: &Stage, conv: &str) {
        let path = format!("ups.{index}");
        self.blocks(&path, stage, stage.dim_out + stage.dim_in, stage.dim_out);
        self.conv(&format!("{path}.resample.conv"), &format!("{path}.{conv}"), stage.dim_out, stage.dim_in, 3);
    }

    fn blocks(&mut self, path: &str, stage: &Stage, dim_in: usize, dim: usize) {
        self.residual(&format!("{path}.block1"), &format!("{path}.0"), dim_in, dim);
        self.residual(&format!("{path}.block2"), &format!("{path}.1"), dim_in, dim);
        self.attention(&format!("{path}.attn"), &format!("{path}.2"), stage, dim);
    }

    fn residual(&mut self, ours: &str, reference: &str, dim_in: usize, dim_out: usize) {
        self.linear(&format!("{ours}.mlp"), &format!("{reference}.mlp.1"), self.cond_dim, dim_out * 2);
        for (block, dim) in [("block1", dim_in), ("block2", dim_out)] {
            let (ours, reference) = (format!("{ours}.{block}"), format!("{reference}.{block}"));
            self.conv(&format!("{ours}.proj"), &format!("{reference}.proj"), dim, dim_out, 3);
            self.gain(&format!("{ours}.norm"), &format!("{reference}.norm"), dim_out);
        }
        if dim_in != dim_out {
            self.conv(&format!("{ours}.res_conv"), &format!("{reference}.res_conv"), dim_in, dim_out, 1);
        }
    }

    fn attention(&mut self, ours: &str, reference: &str, stage: &Stage, dim: usize) {
        let (heads, dim_head, memory) = (stage.heads, stage.dim_head, self.memory);
        let hidden = heads * dim_head;
        let (norm, inner) = match self.downsample {
            Downsampling::Unshuffle => (format!("{reference}.norm"), reference.to_string()),
            Downsampling::Strided => (format!("{reference}.fn.norm"), format!("{reference}.fn.fn")),
        };
        self.gain(&format!("{ours}.norm"), &norm, dim);
        self.kernel(&format!("{ours}.to_qkv"), &format!("{inner}.to_qkv"), dim, hidden * 3, 1);
        if memory > 0 {
            let (rows, columns) = if stage.full_attn { (memory, dim_head) } else { (dim_head, memory) };
            self.same(ours, &inner, "mem_kv", &[2, heads, rows, columns]);
        }
        let to_out = format!("{ours}.to_out");
        if stage.full_attn {
            self.conv(&to_out, &format!("{inner}.to_out"), hidden, dim, 1);
        } else {
            self.conv(&to_out, &format!("{inner}.to_out.0"), hidden, dim, 1);
            self.gain(&format!("{ours}.out_norm"), &format!("{inner}.to_out.1"), dim);
        }
    }
}
