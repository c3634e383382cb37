//! Every formulation with every variant of its options, through everything that the library does with one: training, saving, loading,
//! resuming, sampling by every solver over every spacing of noise levels, evaluating. The lists come from the library
//! (`FormulationConfig::all()`, `SamplerKind::ALL`, `NoiseLevels::ALL`) and from `variants`, so that a new formulation, solver or spacing
//! is in here from the day it exists. Not here: numbers of the reference (`tests/reference`), modes of networks (`tests/modes.rs`), and the
//! solvers' own order (`src/sampler/tests`).

mod levels;
mod lifecycle;
mod mlp;
mod oracle;
mod points;
mod refusals;
mod sampling;
mod toy;
mod variants;
