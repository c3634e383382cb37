pub mod draws;
pub mod features;
pub mod fid;
pub mod frechet;
pub mod inception_score;
pub mod kid;
mod linalg;
mod projection;
pub mod statistics;
