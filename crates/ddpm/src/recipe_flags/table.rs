//! Every key of a recipe as a flag: section, name, kind of value, and help. Not here: how values are read, and which of them may change on resume
//! (`recipe` of the library).

use denoising_diffusion::recipe::may_change;

/// What a value looks like on the command line.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number of at least 0.
    Whole,
    Number,
    /// `--key` or `--key=false`.
    Switch,
    Word(&'static [&'static str]),
    /// Whole numbers, separated by commas.
    Wholes,
    /// Numbers, separated by commas.
    Numbers,
    /// One whole number, or one per stage.
    WholePerStage,
    /// true or false, or one of them per stage.
    SwitchPerStage,
    ImageSize,
    Channels,
    /// Words, separated by commas.
    Words(&'static [&'static str]),
    /// One word, or one per stage.
    WordPerStage(&'static [&'static str]),
    /// Two numbers, separated by a comma.
    Range,
    /// The same, or `measured`.
    ValueRange,
    Precision,
}

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The section that has the key; for keys that several networks share, all sections that have it.
    pub sections: &'static [&'static str],
    pub key: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

use Kind::{
    Channels, ImageSize as Size, Number, Numbers, Precision, Range, Switch, SwitchPerStage, ValueRange, Whole,
    WholePerStage, Wholes, Word, WordPerStage, Words,
};

impl Flag {
    /// Whether it may change on resume.
    pub fn may_change(&self) -> bool {
        self.sections.iter().all(|section| may_change(section, self.key))
    }
}

const fn flag(sections: &'static [&'static str], key: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag { sections, key, kind, help }
}

const DATA: &[&str] = &["data"];
const NETWORK: &[&str] = &["network"];
const DIFFUSION: &[&str] = &["diffusion"];
const TRAIN: &[&str] = &["train"];
const EMA: &[&str] = &["ema"];
const POST_HOC: &[&str] = &["post_hoc"];
const SAMPLE: &[&str] = &["sample"];
const GUIDANCE: &[&str] = &["guidance"];
const EVALUATE: &[&str] = &["evaluate"];
const ARITHMETIC: &[&str] = &["arithmetic"];
/// Networks.
const UNET: &[&str] = &["unet"];
const UNETS: &[&str] = &["unet", "unet1d"];
const STAGED: &[&str] = &["unet", "unet1d", "uvit"];
const SIZED: &[&str] = &["unet", "unet1d", "uvit", "karras_unet"];
const ESTIMATED: &[&str] = &["unet", "unet1d", "karras_unet"];
const NETWORKS: &[&str] = &["unet", "unet1d", "dit", "uvit", "karras_unet"];
const KARRAS: &[&str] = &["karras_unet"];
const DIT: &[&str] = &["dit"];
const PATCHED: &[&str] = &["dit", "uvit"];
const UVIT: &[&str] = &["uvit"];

/// Help of `--precision`, for all commands that have the flag.
pub const PRECISION: &str = "Arithmetic of networks: f32, or, on devices that can, bf16 (weights, norms, softmax and losses stay in f32; CPUs need \
                             AMX) or tf32 (only GPUs: matrix products and convolutions; f32 is the same there)";

const FORMULATIONS: &[&str] = &[
    "gaussian",
    "learned_variance",
    "weighted_objective",
    "continuous_time",
    "simple",
    "elucidated",
    "rectified_flow",
];
const SAMPLERS: &[&str] = &[
    "ddpm",
    "ddim",
    "euler",
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_sde_2m",
    "dpmpp_sde_3m",
    "unipc",
    "lms",
];
const METRICS: &[&str] = &["fid", "kid", "is", "prdc", "swd", "spectrum", "neighbours", "loss", "bpd", "nll"];
const NUMBERS: &[&str] =
    &["fid", "kid", "is", "precision", "recall", "density", "coverage", "swd", "spectrum", "loss", "bpd", "nll"];

/// Every key of a recipe except those that are separate arguments (`ARGUMENTS`), and the networks' `channels`, which are set by the data.
#[rustfmt::skip] // a table is read by its columns
pub const FLAGS: &[Flag] = &[
    flag(DATA, "image_size", Size, "Size of the images: 28, or height x width: 28x20 [default: that of the data]"),
    flag(DATA, "channels", Channels, "Channels to train on: auto, 1 (grey), 3 (RGB), ..."),
    flag(DATA, "condition_channels", Channels, "Channels of the --condition data: auto, 1 (grey), 3 (RGB), ..."),
    flag(DATA, "resize", Word(&["crop", "stretch", "pad"]), "How to fit images of another size"),
    flag(DATA, "layout", Word(&["auto", "images", "sequences", "volumes"]), "What an array holds; auto: sequences for a sequence network, volumes if it has five dimensions"),
    flag(DATA, "value_range", ValueRange, "Array values that become 0 and 1 [default: the range of the type; for floats [0, 1] or [-1, 1]; measured for sequences and volumes]"),
    flag(DATA, "condition_value_range", ValueRange, "Values of a --condition array that become 0 and 1 [default: found as for --value-range, from the conditions themselves]"),
    flag(DATA, "class_condition", Switch, "Condition the network on the class of each image"),
    flag(DATA, "augment", Number, "Probability of each of EDM's geometric transformations of training images (scaling, rotation, stretching, translation; half as much for a flip upside down; mirroring as --flip says); the network is told of them, so that samples do not show them; 0.12 to 0.15 is usual [default: 0]"),
    flag(DATA, "flip", Word(&["auto", "on", "off"]), "Mirror half of the images; auto: on, except for the digits, sequences and volumes"),
    flag(DATA, "held_out", Number, "Fraction of the images held out for the held-out loss: at most 1000 images, and none if there are fewer than 40"),
    flag(DATA, "cache", Word(&["auto", "on", "off"]), "Keep decoded images in memory"),
    flag(DATA, "cache_mib", Whole, "Largest cache that --cache auto may use, MiB"),
    flag(DATA, "workers", Whole, "Threads that read and decode; 0: automatic"),
    flag(DATA, "max_broken", Number, "Largest fraction of broken files to skip; more are an error"),
    flag(DATA, "verify", Word(&["full", "header"]), "Check every file before training: decode it (full), or read its header only"),

    flag(NETWORK, "model", Word(&["unet", "unet1d", "dit", "uvit", "karras_unet"]), "Network"),

    flag(SIZED, "dim", Whole, "Base width"),
    flag(STAGED, "init_dim", Whole, "Width after the first convolution [default: dim]"),
    flag(UNETS, "out_dim", Whole, "Channels of the output [default: those of the data]"),
    flag(STAGED, "dim_mults", Wholes, "Width of each stage as a multiple of dim; each stage but the last halves the size (uvit: every stage, by downsample_factor)"),
    flag(ESTIMATED, "self_condition", Switch, "Feed the network its own earlier estimate (analog bits)"),
    flag(UNETS, "learned_variance", Switch, "Give the output a second half, for the variance"),
    flag(UNETS, "learned_sinusoidal_cond", Switch, "Embed time with learned Fourier frequencies"),
    flag(UNETS, "random_fourier_features", Switch, "Embed time with random Fourier frequencies"),
    flag(STAGED, "learned_sinusoidal_dim", Whole, "Number of Fourier features"),
    flag(UNETS, "sinusoidal_pos_emb_theta", Number, "Base of the sinusoidal time embedding's frequencies"),
    flag(ESTIMATED, "dropout", Number, "Dropout probability"),
    flag(SIZED, "attn_dim_head", WholePerStage, "Width of an attention head, one for all stages or one per stage"),
    flag(STAGED, "attn_heads", WholePerStage, "Attention heads, one number for all stages or one per stage"),
    flag(UNET, "full_attn", SwitchPerStage, "Softmax (true) or linear attention (false), for all stages or per stage [default: softmax in the innermost stage]"),
    flag(UNET, "num_mem_kv", Whole, "Learned key/value pairs in every attention; 0: none"),
    flag(UNET, "mid_attn_heads", Whole, "Attention heads of the middle block [default: those of the innermost stage]"),
    flag(UNET, "mid_attn_dim_head", Whole, "Width of a head of the middle block [default: that of the innermost stage]"),
    flag(UNET, "downsample", Word(&["unshuffle", "strided"]), "How stages halve the size"),
    flag(NETWORKS, "class_drop_prob", Number, "Probability of dropping an example's class in training"),

    flag(DIT, "dit_size", Word(&["s", "b", "l", "xl"]), "Sets the next three flags where they are not given"),
    flag(DIT, "hidden_size", Whole, "Width of a token [default: that of --dit-size]"),
    flag(DIT, "depth", Whole, "Number of blocks [default: that of --dit-size]"),
    flag(DIT, "num_heads", Whole, "Attention heads [default: that of --dit-size]"),
    flag(PATCHED, "patch_size", Whole, "Side of the square of pixels that forms a token"),
    flag(DIT, "mlp_ratio", Number, "Width of a block's hidden layer, as a multiple of hidden_size"),

    flag(UVIT, "downsample_factor", WholePerStage, "Factor by which each stage divides both sides, one for all or one per stage"),
    flag(UVIT, "vit_depth", Whole, "Transformer blocks"),
    flag(UVIT, "vit_dropout", Number, "Dropout probability in the transformer"),
    flag(UVIT, "ff_mult", Whole, "Width of a block's hidden layer, as a multiple of the transformer's"),
    flag(UVIT, "image_transform", Word(&["none", "haar"]), "Invertible transform of the images that the network works on"),
    flag(UVIT, "dual_patchnorm", Switch, "Normalise patches before and after their linear map"),

    flag(KARRAS, "dim_max", Whole, "Largest width of a stage"),
    flag(KARRAS, "num_downsamples", Whole, "Stages below the outermost, each twice as wide and half the size"),
    flag(KARRAS, "num_blocks_per_stage", WholePerStage, "Blocks per stage on each side, one number for all or one per stage"),
    flag(KARRAS, "downsample_types", WordPerStage(&["all", "frame", "image"]), "Axes of a volume that stages halve, one for all or one per stage"),
    flag(KARRAS, "attn_res", Wholes, "Sizes at which there is attention"),
    flag(KARRAS, "space_time_attn", Word(&["joint", "factorized", "factorized_at_resizing"]), "Attention in volumes: between all positions, or within slices and then across them; factorized_at_resizing: as the reference does"),
    flag(KARRAS, "fourier_dim", Whole, "Number of Fourier features of the noise level"),
    flag(KARRAS, "mp_cat_t", Number, "Share of the skip connection when it is joined to the data"),
    flag(KARRAS, "mp_add_emb_t", Number, "Share of the class in the embedding"),
    flag(KARRAS, "attn_res_mp_add_t", Number, "Share of the input in the sum after attention"),
    flag(KARRAS, "resnet_mp_add_t", Number, "Share of the input in the sum after a block"),

    flag(DIFFUSION, "diffusion", Word(FORMULATIONS), "Formulation"),
    flag(DIFFUSION, "timesteps", Whole, "T, the number of noise levels"),
    flag(DIFFUSION, "objective", Word(&["pred_noise", "pred_x0", "pred_v"]), "What the network predicts [default: pred_v; learned_variance, continuous_time: pred_noise]"),
    flag(DIFFUSION, "beta_schedule", Word(&["linear", "cosine", "sigmoid"]), "How noise grows with t"),
    flag(DIFFUSION, "cosine_s", Number, "Offset of the cosine schedule [default: 0.008]"),
    flag(DIFFUSION, "sigmoid_start", Number, "Where the sigmoid schedule is cut off on the left [default: -3]"),
    flag(DIFFUSION, "sigmoid_end", Number, "Where the sigmoid schedule is cut off on the right [default: 3]"),
    flag(DIFFUSION, "sigmoid_tau", Number, "Temperature of the sigmoid schedule [default: 1]"),
    flag(DIFFUSION, "zero_terminal_snr", Switch, "Change the schedule so that its last level is pure noise"),
    flag(DIFFUSION, "loss_weight", Word(&["noise", "uniform"]), "gaussian: how the error of v or data is weighted: noise (so that it is the error of the noise) or uniform (1) [default: noise; with --zero-terminal-snr uniform]"),
    flag(DIFFUSION, "variance_reading", Word(&["range", "direct"]), "learned_variance: how the output encodes the variance"),
    flag(DIFFUSION, "vb_loss_weight", Number, "learned_variance: weight of the variational bound"),
    flag(DIFFUSION, "pred_noise_loss_weight", Number, "weighted_objective: weight of the error of the predicted noise"),
    flag(DIFFUSION, "pred_x_start_loss_weight", Number, "weighted_objective: weight of the error of the predicted data"),
    flag(DIFFUSION, "noise_schedule", Word(&["linear", "cosine", "learned"]), "continuous_time: how log-SNR falls with t"),
    flag(DIFFUSION, "learned_schedule_hidden_dim", Whole, "continuous_time: hidden units of the learned schedule [default: 1024]"),
    flag(DIFFUSION, "learned_schedule_frac_gradient", Number, "continuous_time: share of the gradient that reaches the learned schedule [default: 1]"),
    flag(DIFFUSION, "noise_d", Number, "simple: side of the images whose noise schedule is used [default: no shift]"),
    flag(DIFFUSION, "noise_d_low", Number, "simple: the same at t = 1, interpolated [default: no shift]"),
    flag(DIFFUSION, "noise_d_high", Number, "simple: the same at t = 0, interpolated [default: no shift]"),
    flag(DIFFUSION, "image_d", Number, "simple: side of the images [default: that of the data]"),
    flag(DIFFUSION, "sigma_min", Number, "elucidated: cleanest sigma of sampling"),
    flag(DIFFUSION, "sigma_max", Number, "elucidated: noisiest sigma of sampling"),
    flag(DIFFUSION, "sigma_data", Number, "elucidated: standard deviation of the data"),
    flag(DIFFUSION, "rho", Number, "elucidated: spacing of sampling"),
    flag(DIFFUSION, "p_mean", Number, "elucidated: mean of ln sigma in training"),
    flag(DIFFUSION, "p_std", Number, "elucidated: standard deviation of ln sigma in training"),
    flag(DIFFUSION, "time_distribution", Word(&["uniform", "logit_normal", "mode", "cosmap"]), "rectified_flow: how t is drawn in training"),
    flag(DIFFUSION, "logit_mean", Number, "rectified_flow: mean of logit(t) [default: 0]"),
    flag(DIFFUSION, "logit_std", Number, "rectified_flow: standard deviation of logit(t) [default: 1]"),
    flag(DIFFUSION, "mode_scale", Number, "rectified_flow: s of the mode distribution [default: 1.29]"),
    flag(DIFFUSION, "flow_shift", Number, "rectified_flow: more noise at every t, for large images"),
    flag(DIFFUSION, "time_scale", Number, "rectified_flow: the time that the network receives at t = 1 [default: 1000; 1 for networks that embed time with Fourier features]"),
    flag(DIFFUSION, "auto_normalize", Switch, "Map data in [0, 1] to [-1, 1] for the network"),
    flag(DIFFUSION, "offset_noise_strength", Number, "Strength of noise that is constant over each channel"),
    flag(DIFFUSION, "min_snr_loss_weight", Switch, "Weight the loss by min(SNR, gamma) [default: false; simple: true]"),
    flag(DIFFUSION, "min_snr_gamma", Number, "gamma of --min-snr-loss-weight"),
    flag(DIFFUSION, "immiscible", Switch, "Assign noise to the images of a batch by smallest distance"),
    flag(DIFFUSION, "stratified_times", Switch, "Spread the noise levels of a batch evenly, from a random start: the loss varies less from step to step [default: false]"),
    flag(DIFFUSION, "xm_candidates", Whole, "Noise candidates drawn per image; the one with the smallest loss is trained on"),

    flag(TRAIN, "steps", Whole, "Optimizer steps"),
    flag(TRAIN, "batch_size", Whole, "Images per backward pass"),
    flag(TRAIN, "accumulate", Whole, "Backward passes per optimizer step"),
    flag(TRAIN, "lr", Number, "Learning rate [default: 0.0001; karras_unet: 0.01]"),
    flag(TRAIN, "lr_schedule", Word(&["constant", "cosine", "inverse_sqrt"]), "How the learning rate changes after warm-up"),
    flag(TRAIN, "warmup_steps", Whole, "Steps over which the learning rate rises"),
    flag(TRAIN, "adam_beta1", Number, "Adam's decay of the first moment"),
    flag(TRAIN, "adam_beta2", Number, "Adam's decay of the second moment"),
    flag(TRAIN, "adam_eps", Number, "Adam's epsilon"),
    flag(TRAIN, "weight_decay", Number, "Decoupled weight decay (AdamW): weights shrink by lr times this in each step"),
    flag(TRAIN, "max_grad_norm", Number, "Scale gradients down to this norm; inf: no clipping"),
    flag(TRAIN, "checkpoint_activations", Switch, "Recompute activations in the backward pass instead of keeping them: less memory, more time"),
    flag(TRAIN, "tensorboard", Switch, "Also write the log and the grids of samples as event files for TensorBoard, into the run folder"),
    flag(TRAIN, "device_graph", Switch, "On GPUs, record the passes of a step and the sampling networks once, and replay them: less work for the host, more memory"),
    flag(TRAIN, "seed", Whole, "Seed of weights, data order, noise and samples"),
    flag(TRAIN, "save_every", Whole, "Steps between checkpoints"),
    flag(TRAIN, "sample_every", Whole, "Steps between sample grids; 0: none [default: as --save-every]"),
    flag(TRAIN, "held_out_every", Whole, "Steps between measurements of the held-out loss; 0: none [default: as --save-every]"),
    flag(TRAIN, "log_every", Whole, "Steps between lines of the log"),
    flag(TRAIN, "keep", Whole, "Number of latest checkpoints to keep"),
    flag(TRAIN, "keep_every", Whole, "Never delete checkpoints whose step is a multiple of this"),
    flag(TRAIN, "max_skipped", Whole, "Give up after this many steps in a row without a finite loss and gradient"),

    flag(EMA, "ema_decay", Number, "Largest decay of the moving average"),
    flag(EMA, "ema_update_every", Whole, "Steps between updates of the moving average"),
    flag(EMA, "ema_update_after_step", Whole, "Up to this step, the moving average is a copy of the weights"),
    flag(EMA, "ema_inv_gamma", Number, "Inverse multiplicative factor of the decay's warm-up"),
    flag(EMA, "ema_power", Number, "Exponent of the decay's warm-up"),
    flag(EMA, "ema_min_value", Number, "Smallest decay"),
    flag(EMA, "ema_buffers", Word(&["copy", "lerp"]), "Running statistics in the average: copied from the network, or averaged (lerp)"),

    flag(POST_HOC, "post_hoc_sigma_rels", Numbers, "Keep averages of these lengths (fractions of the training, such as 0.05,0.1), from which `ddpm average` makes one of any length [default: none]"),
    flag(POST_HOC, "post_hoc_every", Whole, "Steps between snapshots of these averages [default: as --save-every]"),

    flag(SAMPLE, "num_samples", Whole, "Images per grid"),
    flag(SAMPLE, "sampler", Word(SAMPLERS), "Solver [default: dpmpp_sde_2m; elucidated: dpmpp_2m; rectified_flow: euler]"),
    flag(SAMPLE, "sampling_timesteps", Whole, "Steps from noise to data [default: ddpm: as many as in training (continuous_time and simple: 500, elucidated: 250, rectified_flow: 100); others: at most 50 (elucidated with heun: 18)]"),
    flag(SAMPLE, "noise_levels", Word(&["trained", "karras", "log_snr", "trailing"]), "Which noise levels the steps visit [default: trained; log_snr in discrete time from 10 steps on, for the dpmpp solvers and unipc]"),
    flag(SAMPLE, "karras_rho", Number, "rho of --noise-levels karras"),
    flag(SAMPLE, "eta", Number, "Noise added in each step, 0 (none) to 1 [default: ddim 0, euler_ancestral, dpmpp_sde_2m and dpmpp_sde_3m 1]"),
    flag(SAMPLE, "posterior_variance", Word(&["small", "large", "learned"]), "Variance of the steps of ddpm [default: learned where the network has learned one, else small]"),
    flag(SAMPLE, "s_churn", Number, "euler, heun: noise added before each step, and removed by it (churn)"),
    flag(SAMPLE, "s_tmin", Number, "euler, heun: smallest sigma with churn"),
    flag(SAMPLE, "s_tmax", Number, "euler, heun: largest sigma with churn [default: no limit]"),
    flag(SAMPLE, "s_noise", Number, "euler, heun: standard deviation of the churn's noise"),
    flag(SAMPLE, "sample_batch_size", Whole, "Images per batch while sampling"),

    flag(GUIDANCE, "guidance", Number, "Guidance scale: 1 is conditional, 0 unconditional, above 1 follows the condition more closely"),
    flag(GUIDANCE, "rescale_phi", Number, "How far to rescale the guided prediction to the conditional one's standard deviation"),
    flag(GUIDANCE, "keep_parallel", Number, "How much of the update parallel to the conditional estimate of clean data to keep; 0 oversaturates least"),
    flag(GUIDANCE, "cfg_plus_plus", Switch, "Take the direction back to noise from the unconditional estimate"),
    flag(GUIDANCE, "guidance_norm_threshold", Number, "Largest norm of the guiding update of an estimate of clean data; larger ones are shortened [default: no limit]"),
    flag(GUIDANCE, "guidance_interval", Range, "Guide only where sigma / alpha is between LOW and HIGH [default: everywhere]"),
    flag(GUIDANCE, "threshold", Word(&["static", "dynamic", "none"]), "How to keep estimates within the range of the data"),
    flag(GUIDANCE, "threshold_quantile", Number, "Quantile of --threshold dynamic"),

    flag(EVALUATE, "evaluate_every", Whole, "Steps between evaluations of the average [default: no evaluation]"),
    flag(EVALUATE, "metrics", Words(METRICS), "What to measure"),
    flag(EVALUATE, "evaluate_samples", Whole, "Images to draw for an evaluation"),
    flag(EVALUATE, "evaluate_real", Whole, "Real images to compare with [default: all]"),
    flag(EVALUATE, "evaluate_sampling_timesteps", Whole, "Steps from noise to data for the images of an evaluation [default: as --sampling-timesteps]"),
    flag(EVALUATE, "evaluate_budget_s", Number, "Longest time for one evaluation, seconds; fewer images are drawn if it would take longer [default: no limit]"),
    flag(EVALUATE, "best_metric", Word(NUMBERS), "Number that decides which checkpoint is the best [default: the first measured one that is better low or better high]"),

    flag(ARITHMETIC, "precise", Switch, "Compute convolutions without Winograd's algorithm: slower, and one digit more exact"),
    flag(ARITHMETIC, "precision", Precision, PRECISION),
];
