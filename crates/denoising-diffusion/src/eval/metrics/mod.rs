mod distances;
pub mod estimate;
pub mod features;
pub mod neighbours;
pub mod prdc;
pub mod sliced_wasserstein;
pub mod table_error;
