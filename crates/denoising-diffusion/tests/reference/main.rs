//! What the reference computes, against what we compute. `tools/parity` made the numbers; each file's metadata say from which calls.

mod distances;
mod golden;
mod import;
mod inception;
mod layers;
mod losses;
mod optimizer;
mod sampling;
mod schedules;
mod sets;
mod unets;
