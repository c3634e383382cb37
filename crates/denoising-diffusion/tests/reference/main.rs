//! What the reference computes, against what we compute. `tools/parity` made the numbers; each file's metadata say from which calls.

mod continuous;
mod distances;
mod dit;
mod elucidated;
mod formulations;
mod golden;
mod guidance;
mod import;
mod import_diffusion;
mod inception;
mod karras;
mod layers;
mod learned_variance;
mod losses;
mod older_unets;
mod optimizer;
mod sampling;
mod schedules;
mod sets;
mod spacing;
mod unets;
mod uvit;
