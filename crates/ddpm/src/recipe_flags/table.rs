//! Every key of a recipe as a flag: section, name, kind of value, whether a run that goes on may change it, and its help. Not here: how
//! values are read.

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
    /// One whole number, or one per stage.
    WholePerStage,
    /// true or false, or one of them per stage.
    SwitchPerStage,
    ImageSize,
    Channels,
    /// Words, separated by commas.
    Words(&'static [&'static str]),
    /// Two numbers, separated by a comma.
    Range,
}

/// What a run that goes on may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It would not be the same run.
    Fixed,
    Free,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub section: &'static str,
    pub key: &'static str,
    pub kind: Kind,
    pub resume: Resume,
    pub help: &'static str,
}

use Kind::{
    Channels, ImageSize as Size, Number, Range, Switch, SwitchPerStage, Whole, WholePerStage, Wholes, Word, Words,
};
use Resume::{Fixed, Free};

const fn flag(section: &'static str, key: &'static str, kind: Kind, resume: Resume, help: &'static str) -> Flag {
    Flag { section, key, kind, resume, help }
}

const FORMULATIONS: &[&str] = &[
    "gaussian",
    "learned_variance",
    "weighted_objective",
    "continuous_time",
    "simple",
    "elucidated",
    "rectified_flow",
];
const SAMPLERS: &[&str] =
    &["ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2s", "dpmpp_sde_2m", "unipc", "lms"];
const METRICS: &[&str] = &["fid", "kid", "is", "prdc", "swd", "neighbours", "loss", "bpd"];
const NUMBERS: &[&str] = &["fid", "kid", "is", "precision", "recall", "density", "coverage", "swd", "loss", "bpd"];

/// Every key of a recipe but `data.path` and `data.labels`, which are arguments of their own, and the networks' `channels`, which follow the data.
#[rustfmt::skip] // a table is read by its columns
pub const FLAGS: &[Flag] = &[
    flag("data", "image_size", Size, Fixed, "Size of the images: 28, or height x width: 28x20 [default: that of the data]"),
    flag("data", "channels", Channels, Fixed, "Channels to train on: auto, 1 (grey), 3 (RGB), ..."),
    flag("data", "resize", Word(&["crop", "stretch", "pad"]), Fixed, "How images of another size are fitted"),
    flag("data", "class_condition", Switch, Fixed, "Tell the network the class of each image"),
    flag("data", "flip", Word(&["auto", "on", "off"]), Fixed, "Mirror half of the images; auto: on, but off for the digits"),
    flag("data", "held_out", Number, Fixed, "Fraction of the images held out for the held-out loss, at most 1000 images"),
    flag("data", "cache", Word(&["auto", "on", "off"]), Free, "Keep decoded images in memory"),
    flag("data", "cache_mib", Whole, Free, "Largest cache that --cache auto makes, MiB"),
    flag("data", "workers", Whole, Free, "Threads that read and decode; 0 chooses"),
    flag("data", "max_broken", Number, Fixed, "Fraction of broken files that is skipped rather than an error"),
    flag("data", "verify", Word(&["full", "header"]), Free, "Decode every file before training, or read headers only"),

    flag("network", "model", Word(&["unet", "dit"]), Fixed, "Network"),

    flag("unet", "dim", Whole, Fixed, "Base width"),
    flag("unet", "init_dim", Whole, Fixed, "Width after the first convolution [default: dim]"),
    flag("unet", "out_dim", Whole, Fixed, "Channels of the output [default: those of the data]"),
    flag("unet", "dim_mults", Wholes, Fixed, "Width of each stage as a multiple of dim; each stage but the last halves the size"),
    flag("unet", "self_condition", Switch, Fixed, "Give the network its own earlier estimate (analog bits)"),
    flag("unet", "learned_variance", Switch, Fixed, "Give the output a second half for the variance"),
    flag("unet", "learned_sinusoidal_cond", Switch, Fixed, "Embed time by learned Fourier frequencies"),
    flag("unet", "random_fourier_features", Switch, Fixed, "Embed time by random Fourier frequencies"),
    flag("unet", "learned_sinusoidal_dim", Whole, Fixed, "Number of Fourier features"),
    flag("unet", "sinusoidal_pos_emb_theta", Number, Fixed, "Base of the sinusoidal time embedding's frequencies"),
    flag("unet", "dropout", Number, Fixed, "Dropout probability"),
    flag("unet", "attn_dim_head", WholePerStage, Fixed, "Width of an attention head, one for all stages or one per stage"),
    flag("unet", "attn_heads", WholePerStage, Fixed, "Attention heads, one number for all stages or one per stage"),
    flag("unet", "full_attn", SwitchPerStage, Fixed, "Softmax (true) or linear attention (false), for all stages or per stage [default: softmax in the innermost stage]"),
    flag("unet", "class_drop_prob", Number, Fixed, "Probability with which training hides an example's class"),

    flag("dit", "dit_size", Word(&["s", "b", "l", "xl"]), Fixed, "Sets the next three where they are absent"),
    flag("dit", "hidden_size", Whole, Fixed, "Width of a token [default: that of the size]"),
    flag("dit", "depth", Whole, Fixed, "Number of blocks [default: that of the size]"),
    flag("dit", "num_heads", Whole, Fixed, "Attention heads [default: that of the size]"),
    flag("dit", "patch_size", Whole, Fixed, "Side of the square of pixels that becomes a token"),
    flag("dit", "mlp_ratio", Number, Fixed, "Width of a block's hidden layer, as a multiple of hidden_size"),
    flag("dit", "class_dropout_prob", Number, Fixed, "Probability with which training hides an example's class"),

    flag("diffusion", "diffusion", Word(FORMULATIONS), Fixed, "Formulation"),
    flag("diffusion", "timesteps", Whole, Fixed, "T, the number of noise levels"),
    flag("diffusion", "objective", Word(&["pred_noise", "pred_x0", "pred_v"]), Fixed, "What the network predicts [default: pred_v; learned_variance, continuous_time: pred_noise]"),
    flag("diffusion", "beta_schedule", Word(&["linear", "cosine", "sigmoid"]), Fixed, "How noise grows with t"),
    flag("diffusion", "cosine_s", Number, Fixed, "Offset of the cosine schedule [default: 0.008]"),
    flag("diffusion", "sigmoid_start", Number, Fixed, "Where the sigmoid schedule is cut off on the left [default: -3]"),
    flag("diffusion", "sigmoid_end", Number, Fixed, "Where the sigmoid schedule is cut off on the right [default: 3]"),
    flag("diffusion", "sigmoid_tau", Number, Fixed, "Temperature of the sigmoid schedule [default: 1]"),
    flag("diffusion", "zero_terminal_snr", Switch, Fixed, "Change the schedule so that its last level is pure noise"),
    flag("diffusion", "variance_reading", Word(&["range", "direct"]), Fixed, "learned_variance: how the output says the variance"),
    flag("diffusion", "vb_loss_weight", Number, Fixed, "learned_variance: weight of the variational bound"),
    flag("diffusion", "pred_noise_loss_weight", Number, Fixed, "weighted_objective: weight of the predicted noise's error"),
    flag("diffusion", "pred_x_start_loss_weight", Number, Fixed, "weighted_objective: weight of the predicted data's error"),
    flag("diffusion", "noise_schedule", Word(&["linear", "cosine", "learned"]), Fixed, "continuous_time: how log-SNR falls with t"),
    flag("diffusion", "learned_schedule_hidden_dim", Whole, Fixed, "continuous_time: hidden units of the learned schedule [default: 1024]"),
    flag("diffusion", "learned_schedule_frac_gradient", Number, Fixed, "continuous_time: share of the gradient that reaches the learned schedule [default: 1]"),
    flag("diffusion", "noise_d", Number, Fixed, "simple: side of the images whose noise is used [default: no shift]"),
    flag("diffusion", "noise_d_low", Number, Fixed, "simple: the same at t = 1, interpolated [default: no shift]"),
    flag("diffusion", "noise_d_high", Number, Fixed, "simple: the same at t = 0, interpolated [default: no shift]"),
    flag("diffusion", "image_d", Number, Fixed, "simple: side of the images [default: that of the data]"),
    flag("diffusion", "sigma_min", Number, Fixed, "elucidated: cleanest sigma of sampling"),
    flag("diffusion", "sigma_max", Number, Fixed, "elucidated: noisiest sigma of sampling"),
    flag("diffusion", "sigma_data", Number, Fixed, "elucidated: standard deviation of the data"),
    flag("diffusion", "rho", Number, Fixed, "elucidated: spacing of sampling"),
    flag("diffusion", "p_mean", Number, Fixed, "elucidated: mean of ln sigma in training"),
    flag("diffusion", "p_std", Number, Fixed, "elucidated: standard deviation of ln sigma in training"),
    flag("diffusion", "time_distribution", Word(&["uniform", "logit_normal", "mode", "cosmap"]), Fixed, "rectified_flow: how t is drawn in training"),
    flag("diffusion", "logit_mean", Number, Fixed, "rectified_flow: mean of logit(t) [default: 0]"),
    flag("diffusion", "logit_std", Number, Fixed, "rectified_flow: standard deviation of logit(t) [default: 1]"),
    flag("diffusion", "mode_scale", Number, Fixed, "rectified_flow: s of the mode distribution [default: 1.29]"),
    flag("diffusion", "flow_shift", Number, Fixed, "rectified_flow: more noise at every t, for large images"),
    flag("diffusion", "auto_normalize", Switch, Fixed, "Map data in [0, 1] to [-1, 1] for the network"),
    flag("diffusion", "offset_noise_strength", Number, Fixed, "Strength of noise that is constant over each channel"),
    flag("diffusion", "min_snr_loss_weight", Switch, Fixed, "Weigh the loss by min(SNR, gamma) [default: false; simple: true]"),
    flag("diffusion", "min_snr_gamma", Number, Fixed, "The gamma of --min-snr-loss-weight"),
    flag("diffusion", "immiscible", Switch, Fixed, "Assign noise to the images of a batch by least distance"),
    flag("diffusion", "xm_candidates", Whole, Fixed, "Noises drawn per image, of which the one of least loss is trained on"),

    flag("train", "steps", Whole, Free, "Optimizer steps"),
    flag("train", "batch_size", Whole, Fixed, "Images per backward pass"),
    flag("train", "accumulate", Whole, Fixed, "Backward passes per optimizer step"),
    flag("train", "lr", Number, Fixed, "Learning rate"),
    flag("train", "lr_schedule", Word(&["constant", "cosine", "inverse_sqrt"]), Fixed, "How the learning rate changes after warm-up"),
    flag("train", "warmup_steps", Whole, Fixed, "Steps over which the learning rate rises"),
    flag("train", "adam_beta1", Number, Fixed, "Adam's decay of the first moment"),
    flag("train", "adam_beta2", Number, Fixed, "Adam's decay of the second moment"),
    flag("train", "adam_eps", Number, Fixed, "Adam's epsilon"),
    flag("train", "max_grad_norm", Number, Fixed, "Scale gradients down to this norm; inf clips nothing"),
    flag("train", "checkpoint_activations", Switch, Free, "Compute activations again in the backward pass instead of keeping them: less memory, more time"),
    flag("train", "seed", Whole, Fixed, "Seed of weights, data order, noise and samples"),
    flag("train", "save_every", Whole, Free, "Steps between checkpoints"),
    flag("train", "sample_every", Whole, Free, "Steps between sample grids [default: as --save-every]"),
    flag("train", "held_out_every", Whole, Free, "Steps between measurements of the held-out loss [default: as --save-every]"),
    flag("train", "log_every", Whole, Free, "Steps between lines of the log"),
    flag("train", "keep", Whole, Free, "Number of latest checkpoints that are kept"),
    flag("train", "keep_every", Whole, Free, "Keep every checkpoint whose step is a multiple of this for good"),
    flag("train", "max_skipped", Whole, Free, "End after so many steps in a row without a finite loss and gradient"),

    flag("ema", "ema_decay", Number, Fixed, "Largest decay of the moving average"),
    flag("ema", "ema_update_every", Whole, Fixed, "Steps between updates of the moving average"),
    flag("ema", "ema_update_after_step", Whole, Fixed, "Up to this step the moving average is a copy"),
    flag("ema", "ema_inv_gamma", Number, Fixed, "Inverse multiplicative factor of the decay's warm-up"),
    flag("ema", "ema_power", Number, Fixed, "Exponent of the decay's warm-up"),
    flag("ema", "ema_min_value", Number, Fixed, "Smallest decay"),
    flag("ema", "ema_buffers", Word(&["copy", "lerp"]), Fixed, "What becomes of running statistics"),

    flag("sample", "num_samples", Whole, Free, "Images per grid"),
    flag("sample", "sampler", Word(SAMPLERS), Free, "Solver"),
    flag("sample", "sampling_timesteps", Whole, Free, "Steps from noise to data [default: ddpm: as many as training has; others: at most 50]"),
    flag("sample", "noise_levels", Word(&["trained", "karras", "log_snr", "trailing"]), Free, "Which noise levels the steps visit"),
    flag("sample", "karras_rho", Number, Free, "rho of --noise-levels karras"),
    flag("sample", "eta", Number, Free, "Noise of each step, 0 (none) to 1 [default: ddim 0, euler_ancestral and dpmpp_sde_2m 1]"),
    flag("sample", "posterior_variance", Word(&["small", "large", "learned"]), Free, "Variance of the steps of ddpm"),
    flag("sample", "s_churn", Number, Free, "euler, heun: noise added before steps and removed by them"),
    flag("sample", "s_tmin", Number, Free, "euler, heun: least sigma at which it is added"),
    flag("sample", "s_tmax", Number, Free, "euler, heun: largest sigma at which it is added [default: no limit]"),
    flag("sample", "s_noise", Number, Free, "euler, heun: its deviation"),
    flag("sample", "sample_batch_size", Whole, Free, "Images per batch while sampling"),

    flag("guidance", "guidance", Number, Free, "Scale of guidance: 1 conditional, 0 unconditional, above 1 more of the condition"),
    flag("guidance", "rescale_phi", Number, Free, "How much of the guided deviation is set back to the conditional one"),
    flag("guidance", "keep_parallel", Number, Free, "How much of the update along the conditional prediction is kept; 0 oversaturates least"),
    flag("guidance", "cfg_plus_plus", Switch, Free, "Take the direction back to noise from the unconditional estimate"),
    flag("guidance", "guidance_interval", Range, Free, "Guide only where sigma / alpha lies in LOW,HIGH [default: everywhere]"),
    flag("guidance", "threshold", Word(&["static", "dynamic", "none"]), Free, "How estimates are kept in the range of the data"),
    flag("guidance", "threshold_quantile", Number, Free, "Quantile of --threshold dynamic"),

    flag("evaluate", "evaluate_every", Whole, Free, "Steps between evaluations of the average [default: no evaluation]"),
    flag("evaluate", "metrics", Words(METRICS), Free, "What is measured"),
    flag("evaluate", "evaluate_samples", Whole, Free, "Images drawn for an evaluation"),
    flag("evaluate", "evaluate_real", Whole, Free, "Real images that are compared with [default: all]"),
    flag("evaluate", "evaluate_sampling_timesteps", Whole, Free, "Evaluations of the network per image [default: as --sampling-timesteps]"),
    flag("evaluate", "evaluate_budget_s", Number, Free, "Longest time for one evaluation, seconds: draw fewer images if more is expected [default: no limit]"),
    flag("evaluate", "best_metric", Word(NUMBERS), Free, "The number that tells the best checkpoint [default: the first that is measured and has a better side]"),
];
